"""The C3D port: shapes of the public arrays, its preprocessing, the loader."""

import numpy as np
import pytest
import torch

from hpdm_core.errors import MetricError
from hpdm_core.metrics.c3d import (
    C3D,
    CONVS,
    LINEARS,
    _pool,
    load_c3d_port,
    load_c3d_torchscript,
)


def test_pooling_rounds_up():
    video = torch.arange(7.0).repeat(1, 1, 2, 7, 1)
    pooled = _pool(video, time=2)
    assert pooled.shape == (1, 1, 1, 4, 4)
    assert pooled[0, 0, 0, 0].tolist() == [1, 3, 5, 6]


def write_arrays(folder, rng):
    """Small random weights under the names that TGANv2 uses; linear layers stay zero."""
    arrays = {}
    for name, (c_in, c_out) in CONVS.items():
        scale = (2 / (27 * c_in)) ** 0.5
        arrays[f"{name}/W"] = rng.normal(size=(c_out, c_in, 3, 3, 3), scale=scale).astype("f")
        arrays[f"{name}/b"] = np.zeros(c_out, "f")
    for name, (d_in, d_out) in LINEARS.items():
        weight = np.zeros((d_out, d_in), np.int8)  # small on disk; read as float32
        weight[np.arange(d_out), np.arange(d_out) * 7 % d_in] = 1
        arrays[f"{name}/W"], arrays[f"{name}/b"] = weight, np.zeros(d_out, "f")
    np.savez(folder / "conv3d_deepnetA_ucf.npz", **arrays)
    mean = rng.uniform(90, 110, size=(3, 16, 128, 171)).astype("f")
    np.savez(folder / "mean2.npz", mean=mean)
    return mean


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("c3d")
    write_arrays(folder, np.random.default_rng(0))
    return folder


def test_port_reads_the_public_arrays_and_returns_probabilities(folder):
    detector = load_c3d_port(
        folder / "conv3d_deepnetA_ucf.npz", folder / "mean2.npz", sha256="abc", device="cpu"
    )
    rng = torch.Generator().manual_seed(0)
    videos = torch.randint(0, 256, (1, 16, 20, 24, 3), generator=rng, dtype=torch.uint8)
    rows = detector(videos, batch=1)
    assert rows.shape == (1, 101)
    assert float(rows.sum()) == pytest.approx(1, abs=1e-5)
    with pytest.raises(MetricError, match=r"c3d-port cannot read clips of 64 frames.*at most 16"):
        detector.check_frames(64)


def test_preprocessing_swaps_channels_scales_and_subtracts_the_mean():
    with torch.device("meta"):
        network = C3D()
    seen = []

    class Stop(Exception):
        pass

    class Probe(torch.nn.Module):
        def forward(self, x):
            seen.append(x)
            raise Stop

    network.conv1a = Probe()
    network.mean = torch.full((3, 16, 112, 112), 100.0)
    videos = torch.zeros(1, 16, 112, 112, 3, dtype=torch.uint8)
    videos[..., 0] = 255  # red: 128 * 1 + 128 - 100 in the last of B, G, R
    with pytest.raises(Stop):
        network(videos)
    assert seen[0][0, :, 0, 0, 0].tolist() == [-100, -100, 156]


def test_other_arrays_are_refused(folder, tmp_path):
    good, mean = folder / "conv3d_deepnetA_ucf.npz", folder / "mean2.npz"
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    with pytest.raises(MetricError, match="has no array 'conv1a/W'"):
        load_c3d_port(tmp_path / "a.npz", mean, sha256="abc", device="cpu")
    with pytest.raises(MetricError, match="has no array 'mean'"):
        load_c3d_port(good, tmp_path / "a.npz", sha256="abc", device="cpu")
    np.savez(tmp_path / "m.npz", mean=np.zeros((3, 8, 128, 171)))
    with pytest.raises(MetricError, match="not TGANv2's C3D"):
        load_c3d_port(good, tmp_path / "m.npz", sha256="abc", device="cpu")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(MetricError, match="not a file of arrays"):
        load_c3d_port(tmp_path / "text.npz", mean, sha256="abc", device="cpu")
    np.savez(tmp_path / "pickle.npz", **{"conv1a/W": np.array([{}], dtype=object)})
    with pytest.raises(MetricError, match="not a file of arrays"):
        load_c3d_port(tmp_path / "pickle.npz", mean, sha256="abc", device="cpu")


class Scripted(torch.nn.Module):
    def forward(self, x):
        assert x.dtype == torch.uint8
        return x.float().mean(dim=[2, 3, 4]).softmax(dim=1)


def test_torchscript_takes_uint8_channels_first(tmp_path):
    torch.jit.script(Scripted()).save(str(tmp_path / "c3d.pt"))
    detector = load_c3d_torchscript(tmp_path / "c3d.pt", sha256="abc", device="cpu")
    videos = torch.randint(0, 256, (3, 16, 8, 8, 3), dtype=torch.uint8)
    expected = videos.float().mean(dim=(1, 2, 3)).softmax(dim=1)
    torch.testing.assert_close(detector(videos, batch=2), expected)
    assert detector.output == "probabilities"
