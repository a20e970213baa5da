"""The I3D port: names, shapes and counts of the public file, TensorFlow's padding, the loader."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from hpdm_core.errors import MetricError
from hpdm_core.metrics.i3d import (
    I3D,
    SamePool,
    load_i3d_port,
    load_i3d_torchscript,
    pad_same,
    same_padding,
)


@pytest.fixture(scope="module")
def network() -> I3D:
    torch.manual_seed(0)
    network = I3D().eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.running_var.uniform_(0.5, 1.5)
            module.running_mean.normal_(std=0.1)
    return network


def file_state(network: I3D) -> dict[str, torch.Tensor]:
    """The state dict as VideoGPT's converter writes it: without batch counters."""
    state = network.state_dict()
    return {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}


def test_names_and_counts_are_those_of_the_public_file(network):
    state = file_state(network)
    assert len(state) == 287
    # The TensorFlow graph has no batch-norm gain: 12,704,544 numbers besides it.
    assert sum(v.numel() for k, v in state.items() if not k.endswith("bn.weight")) == 12_704_544
    assert state["Conv3d_1a_7x7.conv3d.weight"].shape == (64, 3, 7, 7, 7)
    assert state["Mixed_4e.b1b.conv3d.weight"].shape == (288, 144, 3, 3, 3)
    assert state["Mixed_5c.b3b.bn.running_var"].shape == (128,)
    assert state["logits.conv3d.bias"].shape == (400,)
    branches = {k.split(".")[1] for k in state if k.startswith("Mixed")}
    assert branches == {"b0", "b1a", "b1b", "b2a", "b2b", "b3b"}
    assert network.Mixed_3b.b0.bn.eps == 1e-3


@pytest.mark.parametrize("size", range(1, 20))
@pytest.mark.parametrize(("kernel", "stride"), [(7, 2), (3, 1), (3, 2), (2, 2), (1, 1), (1, 2)])
def test_same_padding_against_the_definition(size, kernel, stride):
    front, back = same_padding(size, kernel, stride)
    # SAME: ceil(size / stride) windows, no more padding than they need, the smaller half in front.
    windows = -(-size // stride)
    needed = max((windows - 1) * stride + kernel - size, 0)
    assert front + back == needed
    assert front == needed // 2


def test_same_convolution_against_brute_force():
    rng = torch.Generator().manual_seed(1)
    video = torch.randn(1, 1, 5, 6, 7, generator=rng)
    kernel = torch.randn(1, 1, 3, 3, 3, generator=rng)
    got = F.conv3d(pad_same(video, (3, 3, 3), (2, 2, 2)), kernel, stride=2)[0, 0]
    assert got.shape == (3, 3, 4)

    def at(place: list[int]) -> float:
        inside = all(0 <= p < n for p, n in zip(place, (5, 6, 7), strict=True))
        return float(video[0, 0, place[0], place[1], place[2]]) if inside else 0.0

    fronts = [same_padding(n, 3, 2)[0] for n in (5, 6, 7)]
    for window in [(0, 0, 0), (2, 2, 3), (1, 2, 0)]:
        total = 0.0
        for tap in torch.cartesian_prod(*[torch.arange(3)] * 3).tolist():
            place = [2 * w + t - f for w, t, f in zip(window, tap, fronts, strict=True)]
            total += float(kernel[0, 0, tap[0], tap[1], tap[2]]) * at(place)
        assert float(got[window]) == pytest.approx(total, rel=1e-4, abs=1e-5)


def test_pooling_by_two_leaves_even_sizes_unpadded():
    video = torch.rand(1, 2, 4, 14, 14)
    pooled = SamePool((2, 2, 2), (2, 2, 2))(video)
    assert torch.equal(pooled, F.max_pool3d(video, 2))
    assert SamePool((1, 3, 3), (1, 2, 2))(video).shape == (1, 2, 4, 7, 7)


def test_logits_of_nine_frames_and_no_fewer(network):
    assert network(torch.randn(1, 3, 9, 224, 224)).shape == (1, 400)
    with pytest.raises(RuntimeError):
        network(torch.randn(1, 3, 8, 224, 224))


def test_batch_rows_are_independent_and_batch_norm_eps_matters(network):
    videos = torch.randn(2, 3, 10, 224, 224, generator=torch.Generator().manual_seed(2))
    both = network(videos)
    torch.testing.assert_close(network(videos[1:]), both[1:], rtol=1e-4, atol=1e-4)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.eps = 1e-2
    assert (network(videos[1:]) - both[1:]).abs().max() > 1e-3
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.eps = 1e-3


def test_port_is_loaded_by_name_and_prepares_its_input(network, tmp_path):
    path = tmp_path / "i3d_pretrained_400.pt"
    torch.save(file_state(network), path)
    detector = load_i3d_port(path, sha256="abc", device="cpu")
    rng = torch.Generator().manual_seed(3)
    videos = torch.randint(0, 256, (1, 9, 30, 40, 3), generator=rng, dtype=torch.uint8)
    frames = torch.stack([v.movedim(-1, 0) for v in videos[0]]).float()  # t c h w
    frames = F.interpolate(frames, size=(224, 224), mode="bilinear", align_corners=False)
    expected = network((frames / 255 * 2 - 1).movedim(0, 1)[None])
    torch.testing.assert_close(detector(videos, batch=4), expected, rtol=1e-3, atol=1e-4)
    with pytest.raises(MetricError, match=r"i3d-port cannot read clips of 8 frames.*at least 9"):
        detector(videos[:, :8], batch=4)
    with pytest.raises(MetricError, match=r"expected uint8 \(b, t, h, w, 3\)"):
        detector(videos.float(), batch=4)


def test_foreign_state_dicts_are_refused(network, tmp_path):
    path = tmp_path / "other.pt"
    state = file_state(network)
    state["logits.conv3d.bias"] = torch.zeros(600)
    torch.save(state, path)
    with pytest.raises(MetricError, match=r"not VideoGPT's I3D.*logits.conv3d.bias"):
        load_i3d_port(path, sha256="abc", device="cpu")


class Scripted(torch.nn.Module):
    """Stands for the TorchScript file: the same call, something simple inside."""

    def forward(
        self, x, rescale: bool = False, resize: bool = False, return_features: bool = False
    ):
        assert rescale
        assert resize
        assert return_features
        assert x.dtype == torch.uint8
        return x.float().mean(dim=[3, 4]).flatten(1) / 255 * 2 - 1


class Unpooled(torch.nn.Module):
    def forward(
        self, x, rescale: bool = False, resize: bool = False, return_features: bool = False
    ):
        return x.float().mean(dim=2)


def test_torchscript_is_called_as_the_field_calls_it(tmp_path):
    path = tmp_path / "scripted.pt"
    torch.jit.script(Scripted()).save(str(path))
    detector = load_i3d_torchscript(path, sha256="abc", device="cpu")
    rng = torch.Generator().manual_seed(3)
    videos = torch.randint(0, 256, (3, 10, 6, 8, 3), generator=rng, dtype=torch.uint8)
    expected = videos.float().mean(dim=(2, 3)).movedim(-1, 1).flatten(1) / 255 * 2 - 1
    torch.testing.assert_close(detector(videos, batch=2), expected, rtol=1e-5, atol=1e-5)
    torch.jit.script(Unpooled()).save(str(path))
    other = load_i3d_torchscript(path, sha256="abc", device="cpu")
    with pytest.raises(MetricError, match="one row per video and place"):
        other(videos, batch=2)


def test_detectors_are_frozen(network, tmp_path):
    torch.jit.script(Scripted()).save(str(tmp_path / "s.pt"))
    detector = load_i3d_torchscript(tmp_path / "s.pt", sha256="abc", device="cpu")
    assert replace(detector, sha256="def").sha256 == "def"
    with pytest.raises(AttributeError):
        detector.sha256 = "def"
