"""Sec. 4.1, Eq. 6: patches of video tensors are those that the data loader makes from files.

A loader with one level yields whole clips; with the same seed it draws the same clips as one with
several levels, whose patches must then come out of the whole clips.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from hpdm_core.data.dataset import open_dataset
from hpdm_core.data.folders import plan_folder
from hpdm_core.data.loader import PatchLoader
from hpdm_core.data.plan import DecodingOptions
from hpdm_core.data.prepare import prepare
from hpdm_core.data.video_io import write_mp4
from hpdm_core.diffusion.patch_diffusion import PatchDiffusion
from hpdm_core.errors import DataError
from hpdm_core.geometry.patches import draw_offsets, extract_patches
from hpdm_core.geometry.pyramid import Pyramid
from hpdm_core.progress import NoProgress
from hpdm_core.records import Condition, PatchBatch
from tests.paper.tiny import make_network, make_offsets, make_preconditioning, make_pyramid

PYRAMIDS = {
    "time grows": Pyramid(patch=(2, 8, 8), levels=((2, 8, 8), (4, 16, 16), (8, 32, 32))),
    "time stays": Pyramid(patch=(8, 8, 8), levels=((8, 8, 8), (8, 16, 16), (8, 32, 32))),
    "uneven growth": Pyramid(patch=(2, 4, 8), levels=((2, 4, 8), (2, 12, 16), (8, 24, 16))),
    "one level": Pyramid(patch=(4, 16, 16), levels=((4, 16, 16),)),
}
# Videos are in [-1, 1]: eight times the spacing of float32 there.
ROUNDING = 1e-6


@pytest.fixture(scope="module")
def noise_videos(tmp_path_factory):
    """Return a data set of four videos of coarse noise, 12 frames of 32x32."""
    source = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(0)
    for name in ("a/0", "a/1", "b/2", "b/3"):
        frames = rng.integers(0, 256, size=(12, 16, 16, 3), dtype=np.uint8)
        write_mp4(source / f"{name}.mp4", frames.repeat(2, axis=1).repeat(2, axis=2), 12.0)
    root = tmp_path_factory.mktemp("data")
    options = DecodingOptions(min_frames=2)
    prepare(plan_folder(root / "n", name="n", source=source, options=options, workers=1),
            NoProgress())  # fmt: skip
    return open_dataset(root, "n")


def load_clips_and_patches(dataset, pyramid: Pyramid) -> tuple[torch.Tensor, PatchBatch]:
    """Return whole clips (b, c, t, h, w) and the loader's patches of the same clips."""
    whole = Pyramid(patch=pyramid.resolution, levels=(pyramid.resolution,))
    clips, patches = (
        next(
            PatchLoader(
                dataset, pyramid=levels, batch_size=4, seed=5, flip=True, conditioning="class"
            ).batches(1)
        )
        for levels in (whole, pyramid)
    )
    assert clips.keys == patches.keys
    return clips.patches[0], patches


@pytest.mark.parametrize("downsampling", ["stride", "average"])
@pytest.mark.parametrize("name", PYRAMIDS)
def test_patches_are_those_of_the_loader(noise_videos, name, downsampling):
    pyramid = replace(PYRAMIDS[name], temporal_downsampling=downsampling)
    clips, batch = load_clips_and_patches(noise_videos, pyramid)
    patches = extract_patches(clips, pyramid, batch.offsets)
    assert len(patches) == pyramid.num_levels
    for found, expected in zip(patches, batch.patches, strict=True):
        assert torch.allclose(found, expected, rtol=0, atol=ROUNDING)
        assert found.std() > 0.05


@pytest.mark.parametrize("downsampling", ["stride", "average"])
def test_the_loss_of_a_video_tensor_is_that_of_the_loaders_batch(noise_videos, downsampling):
    pyramid = replace(make_pyramid(3), temporal_downsampling=downsampling)
    diffusion = PatchDiffusion(
        pyramid=pyramid,
        preconditioning=make_preconditioning(3),
        noise_mean=(-1.2, -1.2, -1.2),
        noise_std=(1.2, 1.2, 1.2),
        level_weights=(1.0, 2.0, 1.0),
        condition_dropout=0.3,
        clean_context=0.3,
        context_sigma=0.002,
        self_conditioning=0.0,
    )
    network = make_network(3)
    clips, batch = load_clips_and_patches(noise_videos, pyramid)
    own = PatchBatch(
        patches=extract_patches(clips, pyramid, batch.offsets),
        offsets=batch.offsets,
        condition=Condition(labels=batch.condition.labels),
    )
    expected, found = (diffusion.loss(network, b, seed=2, step=7) for b in (batch, own))
    assert found.total.item() == pytest.approx(expected.total.item(), rel=1e-4)
    assert torch.allclose(found.per_level, expected.per_level, rtol=1e-4)


@pytest.mark.parametrize("downsampling", ["stride", "average"])
def test_gradients_are_shared_among_the_pixels_that_a_patch_covers(downsampling):
    """Each pixel of a patch is a mean of n pixels, so each of these has a gradient of 1 / n."""
    pyramid = replace(make_pyramid(2), temporal_downsampling=downsampling)
    offsets = torch.tensor([[[0, 0, 0], [1, 3, 2]]])
    t, h, w = pyramid.resolution
    for level, (steps, start) in enumerate([((2, 2, 2), (0, 0, 0)), ((1, 1, 1), (1, 3, 2))]):
        video = torch.randn(1, 3, t, h, w, requires_grad=True)
        extract_patches(video, pyramid, offsets)[level].sum().backward()
        expected = torch.zeros_like(video)
        step = steps[0] if downsampling == "stride" else 1
        frames, rows, columns = (
            slice(o * k, (o + p) * k) for o, k, p in zip(start, steps, pyramid.patch, strict=True)
        )
        expected[:, :, frames, rows, columns][:, :, ::step] = step / np.prod(steps)
        assert torch.allclose(video.grad, expected)


def test_patches_keep_dtype_and_take_any_number_of_channels():
    pyramid = make_pyramid(2)
    for dtype, channels in ((torch.float64, 1), (torch.bfloat16, 4)):
        videos = torch.ones(2, channels, *pyramid.resolution, dtype=dtype)
        for patch in extract_patches(videos, pyramid, make_offsets(pyramid, 2)):
            assert patch.dtype == dtype
            assert patch.shape == (2, channels, *pyramid.patch)


def test_drawn_offsets_are_nested_and_functions_of_their_generator():
    pyramid = PYRAMIDS["uneven growth"]
    draws = [
        draw_offsets(pyramid, 50, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert draws[0].shape == (50, 3, 3)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert len(draws[0].unique(dim=0)) > 25
    extract_patches(torch.zeros(50, 1, *pyramid.resolution), pyramid, draws[0])  # accepts them


def test_without_a_generator_offsets_follow_torchs_seed():
    draws = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        draws.append(draw_offsets(make_pyramid(3), 8))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((2, 3, 8, 8, 8), torch.float32, r"got \(2, 3, 8, 8, 8\); expected \(b, c, 4, 8, 8\)"),
        ((3, 4, 8, 8), torch.float32, r"wrong shape; got \(3, 4, 8, 8\).*pyramid.levels"),
        ((2, 3, 4, 8, 8), torch.uint8, r"got torch.uint8; .*float\(\) / 127.5 - 1"),
    ],
)
def test_unfit_videos_are_refused(shape, dtype, message):
    pyramid = make_pyramid(2)
    with pytest.raises(DataError, match=message):
        extract_patches(torch.zeros(shape, dtype=dtype), pyramid, make_offsets(pyramid, shape[0]))


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        (torch.zeros(2, 2, 3).long(), r"got \(2, 2, 3\) torch.int64; expected \(1, 2, 3\)"),
        (torch.zeros(1, 3, 3).long(), r"got \(1, 3, 3\) torch.int64.*draw_offsets"),
        (torch.zeros(1, 2, 3), r"got \(1, 2, 3\) torch.float32"),
        (torch.tensor([[[0, 1, 0], [0, 1, 0]]]),
         r"video 0 on level 0 is not inside the level; got an offset of 1 along height; "
         "expected 0 to 0"),
        (torch.tensor([[[0, 0, 0], [0, 0, 5]]]),
         r"on level 1 is not inside its patch on level 0; got an offset of 5 along width; "
         "expected 0 to 4"),
        (torch.tensor([[[0, 0, 0], [-1, 0, 0]]]), r"an offset of -1 along frames"),
    ],
)  # fmt: skip
def test_unfit_offsets_are_refused(offsets, message):
    pyramid = make_pyramid(2)
    with pytest.raises(DataError, match=message):
        extract_patches(torch.zeros(1, 3, *pyramid.resolution), pyramid, offsets)
