"""Sec. 4.1, 4.2: context and coordinates use the true times of frames.

A video whose grey rises with time goes from a file through loader, patches and resampler: what a
level gets of a coarser one must be the grey of its own frames.
"""

import numpy as np
import pytest
import torch
from einops import rearrange, reduce

from hpdm_core.data.dataset import open_dataset
from hpdm_core.data.folders import plan_folder
from hpdm_core.data.loader import PatchLoader
from hpdm_core.data.plan import DecodingOptions
from hpdm_core.data.prepare import prepare
from hpdm_core.data.video_io import write_mp4
from hpdm_core.geometry.boxes import pyramid_boxes
from hpdm_core.geometry.pyramid import Pyramid
from hpdm_core.geometry.resample import cell_centres, make_resampler
from hpdm_core.progress import NoProgress

STEP, START, FRAMES = 8, 16, 16
# H.264 moves a flat frame by up to two grey levels of the eight between frames.
CODEC = 0.26
PYRAMIDS = {
    "time doubles": ((4, 8, 8), ((4, 8, 8), (8, 16, 16), (16, 32, 32))),
    "time stays": ((16, 8, 8), ((16, 8, 8), (16, 16, 16), (16, 32, 32))),
    "uneven growth": ((4, 8, 8), ((4, 8, 8), (4, 16, 16), (16, 32, 32))),
}


@pytest.fixture(scope="module")
def ramps(tmp_path_factory):
    """One video of flat frames, each brighter than the last by the same step."""
    source = tmp_path_factory.mktemp("ramp")
    greys = START + STEP * np.arange(FRAMES)
    frames = np.broadcast_to(greys[:, None, None, None], (FRAMES, 32, 32, 3)).astype(np.uint8)
    write_mp4(source / "ramp.mp4", frames, 12.0)
    root = tmp_path_factory.mktemp("data")
    options = DecodingOptions(min_frames=2)
    plan = plan_folder(root / "ramp", name="ramp", source=source, options=options, workers=1)
    prepare(plan, NoProgress())
    return open_dataset(root, "ramp")


def exact_times(pyramid: Pyramid, offsets: torch.Tensor, level: int) -> torch.Tensor:
    """Return (b, t, 1, 1, 1): the time of every frame of a level's patches, in finest frames."""
    whole = torch.arange(float(pyramid.resolution[0])).reshape(pyramid.levels[level][0], -1)
    average = pyramid.temporal_downsampling == "average"
    times = whole.mean(1) if average else whole[:, 0]
    starts = offsets[:, level, 0]
    rows = [times[start : start + pyramid.patch[0]] for start in starts.tolist()]
    return torch.stack(rows)[:, :, None, None, None]


def make_ramp_batch(dataset, pyramid: Pyramid):
    loader = PatchLoader(dataset, pyramid=pyramid, batch_size=6, seed=1)
    return next(loader.batches(0))


def frame_times(greys: torch.Tensor) -> torch.Tensor:
    """Which finest frame (from 0) has this grey, in [-1, 1]; means of frames fall between."""
    return ((greys + 1) * 127.5 - START) / STEP


@pytest.mark.parametrize("downsampling", ["stride", "average"])
@pytest.mark.parametrize("token_frames", [1, 2])
@pytest.mark.parametrize("name", PYRAMIDS)
def test_a_ramp_along_time_comes_out_of_every_coarser_level_exactly(
    ramps, name, token_frames, downsampling
):
    """Between the coarse level's first and last cell; beyond them resampling holds the border."""
    patch, levels = PYRAMIDS[name]
    pyramid = Pyramid(patch=patch, levels=levels, temporal_downsampling=downsampling)
    batch = make_ramp_batch(ramps, pyramid)
    boxes = pyramid_boxes(pyramid, batch.offsets)
    grid = (patch[0] // token_frames, 4, 4)
    # Per level (b, t, h, w, 1): the mean time of each token's frames, as read and as it should be.
    read = [
        frame_times(
            reduce(x, "b c (t i) (h j) (w k) -> b t h w 1", "mean", i=token_frames, j=2, k=2)
        )
        for x in batch.patches
    ]
    true = [
        reduce(exact_times(pyramid, batch.offsets, level), "b (t i) h w d -> b t h w d", "mean",
               i=token_frames).expand(read[level].shape)
        for level in range(pyramid.num_levels)
    ]  # fmt: skip
    for found, expected in zip(read, true, strict=True):
        assert torch.allclose(found, expected, atol=CODEC)
    assert resamples(boxes, grid, true, atol=1e-4)
    assert resamples(boxes, grid, read, atol=CODEC)


def resamples(boxes, grid, cells: list[torch.Tensor], *, atol: float) -> bool:
    """Say whether every level's cells come out of those of every coarser one."""
    inside = 0
    for fine in range(1, len(boxes)):
        for coarse in range(fine):
            resampled = make_resampler(boxes[fine].relative_to(boxes[coarse]), grid)(cells[coarse])
            ends = cells[coarse].amin((1, 2, 3, 4)), cells[coarse].amax((1, 2, 3, 4))
            low, high = (end.reshape(-1, 1, 1, 1, 1) for end in ends)
            expected = torch.minimum(torch.maximum(cells[fine], low), high)
            if not torch.allclose(resampled, expected, atol=atol):
                return False
            inside += (expected == cells[fine]).sum().item()
    return inside > 0


@pytest.mark.parametrize("downsampling", ["stride", "average"])
@pytest.mark.parametrize("name", PYRAMIDS)
def test_coordinates_along_time_are_the_times_of_the_frames(ramps, name, downsampling):
    """-1 at the start of the first finest frame, 1 at the end of the last."""
    patch, levels = PYRAMIDS[name]
    pyramid = Pyramid(patch=patch, levels=levels, temporal_downsampling=downsampling)
    batch = make_ramp_batch(ramps, pyramid)
    for level, box in enumerate(pyramid_boxes(pyramid, batch.offsets)):
        times = frame_times(reduce(batch.patches[level], "b c t h w -> b t", "mean"))
        found = rearrange(
            cell_centres(box, (patch[0], 1, 1)), "b (t h w) d -> b t (h w d)", h=1, w=1
        )[..., 0]
        assert torch.allclose(found, 2 * (times + 0.5) / FRAMES - 1, atol=2 * CODEC / FRAMES)
