"""The loader against a slow, obvious reference, and its promise: a batch per seed and step."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from einops import rearrange, reduce

from hpdm_core.data import loader as loader_module
from hpdm_core.data.dataset import VideoDataset
from hpdm_core.data.entries import NO_CLASS
from hpdm_core.data.loader import PatchLoader
from hpdm_core.data.pool import WorkerPool
from hpdm_core.data.video_io import decode_sequential
from hpdm_core.errors import DataError
from hpdm_core.geometry.pyramid import Pyramid
from hpdm_core.records import NO_CLASS as RECORDS_NO_CLASS
from hpdm_core.records import PatchBatch

# The videos are 48x64: a clip of 48x48 needs no resizing, one of 24x32 does.
EXACT = Pyramid(patch=(4, 12, 12), levels=((4, 12, 12), (8, 24, 24), (16, 48, 48)))
RESIZED = Pyramid(patch=(4, 8, 16), levels=((4, 8, 16), (16, 24, 32)))


def loader(dataset: VideoDataset, pyramid: Pyramid = EXACT, **options) -> PatchLoader:
    return PatchLoader(dataset, pyramid=pyramid, batch_size=4, seed=3, **options)


def take(patch_loader: PatchLoader, start: int, count: int) -> list[PatchBatch]:
    batches = patch_loader.batches(start)
    taken = [next(batches) for _ in range(count)]
    batches.close()
    return taken


def assert_equal(one: PatchBatch, two: PatchBatch) -> None:
    assert one.keys == two.keys
    assert torch.equal(one.offsets, two.offsets)
    assert all(torch.equal(a, b) for a, b in zip(one.patches, two.patches, strict=True))


def whole_clips(dataset: VideoDataset, key: str, *, frames: int) -> torch.Tensor:
    """Return every clip of a video, (start, c, t, h, w) in 0..255, at its own size."""
    video = np.stack(list(decode_sequential(dataset.folder / key)))
    starts = range(len(video) - frames + 1)
    clips = np.stack([video[start : start + frames] for start in starts])
    return rearrange(torch.from_numpy(clips).float(), "s t h w c -> s c t h w")


def reference_patches(clip: torch.Tensor, pyramid: Pyramid, offsets: torch.Tensor):
    """Cut a batch's patches from whole levels of clips (s, c, t, h, w)."""
    for level, offset in enumerate(offsets.tolist()):
        t, h, w = pyramid.stride(level)
        whole = reduce(clip[:, :, ::t], "s c t (h i) (w j) -> s c t h w", "mean", i=h, j=w)
        area = [slice(o, o + p) for o, p in zip(offset, pyramid.patch, strict=True)]
        yield whole[:, :, area[0], area[1], area[2]]


@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_patches_are_area_means_and_strides_of_one_clip(dataset, memory):
    for batch in take(loader(dataset, memory_cache_bytes=memory), 0, 3):
        for sample, key in enumerate(batch.keys):
            clips = whole_clips(dataset, key, frames=16)[..., 8:56]
            expected = list(reference_patches(clips, EXACT, batch.offsets[sample]))
            found = [(patch[sample] + 1) * 127.5 for patch in batch.patches]
            errors = sum(
                (a - b).abs().amax(dim=(1, 2, 3, 4)) for a, b in zip(expected, found, strict=True)
            )
            # One and the same start explains the patches of every level.
            assert errors.min() < 1e-2


@pytest.mark.parametrize("workers", [1, 3])
def test_the_batch_does_not_depend_on_the_number_of_workers(dataset, workers):
    alone = take(loader(dataset), 0, 4)
    for one, two in zip(alone, take(loader(dataset, workers=workers), 0, 4), strict=True):
        assert_equal(one, two)


def test_a_run_goes_on_in_the_middle_of_an_epoch(dataset):
    whole = take(loader(dataset), 0, 5)
    for one, two in zip(whole[3:], take(loader(dataset), 3, 2), strict=True):
        assert_equal(one, two)


def test_ranks_share_the_batch(dataset):
    whole = take(loader(dataset), 2, 1)[0]
    for rank in (0, 1):
        part = take(loader(dataset, rank=rank, world_size=2), 2, 1)[0]
        assert part.indices.tolist() == [2 * rank, 2 * rank + 1]
        assert part.keys == whole.keys[2 * rank : 2 * rank + 2]
        assert torch.equal(part.patches[2], whole.patches[2][2 * rank : 2 * rank + 2])


def test_every_epoch_visits_every_video_once(dataset):
    keys = [key for batch in take(loader(dataset, short_clips="hold"), 0, 6) for key in batch.keys]
    epochs = [keys[start : start + 6] for start in range(0, 24, 6)]
    assert all(sorted(epoch) == sorted(e.path for e in dataset.entries) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_keeping_videos_in_memory_changes_no_pixel_where_nothing_is_resized(dataset):
    for one, two in zip(
        take(loader(dataset), 0, 3),
        take(loader(dataset, memory_cache_bytes=1 << 30), 0, 3),
        strict=True,
    ):
        assert_equal(one, two)


def test_what_is_kept_does_not_depend_on_the_order_of_reading(dataset):
    # Room for some of the videos only: the same ones are kept wherever reading begins.
    options = {"pyramid": RESIZED, "memory_cache_bytes": 3 * 24 * 24 * 32 * 3}
    late = take(loader(dataset, **options), 4, 1)[0]
    assert_equal(take(loader(dataset, **options), 0, 5)[4], late)
    assert_equal(take(loader(dataset, workers=2, **options), 3, 2)[1], late)


def test_a_flip_mirrors_the_clip_before_patches_are_cut(dataset):
    plain, flipped = (take(loader(dataset, flip=flip), 0, 2) for flip in (False, True))
    level0 = [(a.patches[0], b.patches[0]) for a, b in zip(plain, flipped, strict=True)]
    mirrored = [torch.equal(x.flip(-1), y) for a, b in level0 for x, y in zip(a, b, strict=True)]
    same = [torch.equal(x, y) for a, b in level0 for x, y in zip(a, b, strict=True)]
    assert any(mirrored)
    assert any(same)
    assert all(m or s for m, s in zip(mirrored, same, strict=True))
    for batch in flipped:
        for sample, key in enumerate(batch.keys):
            clips = whole_clips(dataset, key, frames=16)[..., 8:56]
            both = torch.cat([clips, clips.flip(-1)])
            expected = reference_patches(both, EXACT, batch.offsets[sample])
            errors = sum(
                (a - (b[sample] + 1) * 127.5).abs().amax(dim=(1, 2, 3, 4))
                for a, b in zip(expected, batch.patches, strict=True)
            )
            assert errors.min() < 1e-2


def test_image_fraction_repeats_one_frame(dataset):
    for patch in take(loader(dataset, image_fraction=1.0), 0, 1)[0].patches:
        assert torch.equal(patch, patch[:, :, :1].expand_as(patch))


def test_average_in_time_is_the_mean_of_strided_frames(dataset):
    average = replace(EXACT, temporal_downsampling="average")
    batch = take(loader(dataset, average), 0, 1)[0]
    for sample, key in enumerate(batch.keys):
        clips = whole_clips(dataset, key, frames=16)[..., 8:56]
        whole = reduce(clips, "s c (t k) (h i) (w j) -> s c t h w", "mean", k=4, i=4, j=4)
        error = (whole - (batch.patches[0][sample] + 1) * 127.5).abs().amax(dim=(1, 2, 3, 4))
        assert error.min() < 1e-2


@pytest.mark.parametrize("policy", ["loop", "hold"])
def test_short_clips_are_looped_or_held(dataset, policy):
    pyramid = Pyramid(patch=(16, 48, 48), levels=((16, 48, 48),))
    batches = take(loader(dataset, pyramid, short_clips=policy), 0, 3)
    patch = next(
        batch.patches[0][sample]
        for batch in batches
        for sample, key in enumerate(batch.keys)
        if "b/5" in key
    )
    # That video has ten frames.
    assert torch.equal(patch[:, 10:], patch[:, :6]) == (policy == "loop")
    assert torch.equal(patch[:, 10:], patch[:, 9:10].expand(-1, 6, -1, -1)) == (policy == "hold")


def test_short_clips_are_dropped(dataset):
    assert len(loader(dataset).maker.entries) == 5
    keys = {key for batch in take(loader(dataset), 0, 5) for key in batch.keys}
    assert keys == {e.path for e in dataset.entries if "b/5" not in e.path}


def test_frame_stride_skips_frames(dataset):
    pyramid = Pyramid(patch=(4, 48, 48), levels=((4, 48, 48),))
    batch = take(loader(dataset, pyramid, frame_stride=5), 0, 1)[0]
    for sample, key in enumerate(batch.keys):
        clips = whole_clips(dataset, key, frames=16)[..., 8:56][:, :, ::5]
        error = (clips - (batch.patches[0][sample] + 1) * 127.5).abs().amax(dim=(1, 2, 3, 4))
        assert error.min() < 1e-2


def test_classes_come_with_the_batch(dataset):
    batch = take(loader(dataset, conditioning="class"), 0, 1)[0]
    assert batch.condition.labels.tolist() == [int("/b/" in key) for key in batch.keys]
    assert take(loader(dataset), 0, 1)[0].condition.labels is None
    assert NO_CLASS == RECORDS_NO_CLASS


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_gone_bad_is_replaced_counted_and_named(dataset, workers, caplog):
    for name in ("videos/a/0.mp4", "videos/b/3.mp4"):
        (dataset.folder / name).write_bytes(b"gone")
    (dataset.folder / "videos/a/1.mp4").unlink()
    tested = loader(dataset, workers=workers)
    batches = take(tested, 0, 5)
    bad = {"videos/a/0.mp4", "videos/b/3.mp4", "videos/a/1.mp4"}
    assert not bad & {key for batch in batches for key in batch.keys}
    assert tested.replaced >= 12
    assert {path.relative_to(dataset.folder).as_posix() for path in tested.bad_files} == bad
    assert "a/0.mp4" in caplog.text
    # The replacement is a function of seed and step too.
    assert_equal(take(loader(dataset), 4, 1)[0], batches[4])


def test_a_slow_batch_is_waited_for_and_said_once(dataset, caplog, monkeypatch):
    """Storage that answers late loses no worker, and the batch is the same."""

    class SlowPool(WorkerPool):
        asked = 0

        def collect(self, *, within: float):
            self.asked += 1
            return [] if self.asked % 4 else super().collect()

    expected = take(loader(dataset), 0, 1)
    monkeypatch.setattr(loader_module, "WorkerPool", SlowPool)
    with caplog.at_level("INFO", logger="hpdm.data"):
        found = take(loader(dataset, workers=1), 0, 1)
    assert_equal(found[0], expected[0])
    slow = [line for line in caplog.messages if "step 0: reading its videos is slow" in line]
    assert len(slow) == 1
    assert not any("lost" in line for line in caplog.messages)


def test_when_nothing_can_be_read_it_says_so(dataset):
    for entry in dataset.entries:
        (dataset.folder / entry.path).unlink()
    with pytest.raises(DataError, match=r"20 videos in a row cannot be read \(videos/.*hpdm prep"):
        take(loader(dataset), 0, 1)


def test_refusals_name_the_remedy(dataset):
    long = Pyramid(patch=(50, 12, 12), levels=((50, 12, 12),))
    with pytest.raises(DataError, match=r"0 of 6 videos usable: 6 have fewer than 50.*short_clips"):
        loader(dataset, long)
    with pytest.raises(DataError, match=r"no videos in split 'val'; expected one of train, or all"):
        loader(dataset, split="val")
    with pytest.raises(DataError, match="4 videos on 3 devices"):
        loader(dataset, world_size=3)


def test_closing_twice_is_harmless_and_ends_the_workers(dataset):
    tested = loader(dataset, workers=1)
    batches = tested.batches(0)
    next(batches)
    processes = [worker.process for worker in tested._pool._workers]
    assert all(process.is_alive() for process in processes)
    tested.close()
    tested.close()
    assert not any(process.is_alive() for process in processes)


def test_resized_levels_are_means_of_the_resized_clip(dataset):
    """Check against Pillow, which resizes whole frames."""
    from PIL import Image

    batch = take(loader(dataset, RESIZED), 0, 1)[0]
    for sample, key in enumerate(batch.keys):
        video = np.stack(list(decode_sequential(Path(dataset.folder, key))))
        small = np.stack(
            [
                np.asarray(Image.fromarray(f).resize((32, 24), Image.Resampling.BILINEAR))
                for f in video
            ]
        )
        clips = np.stack([small[start : start + 16] for start in range(len(small) - 15)])
        clips = rearrange(torch.from_numpy(clips).float(), "s t h w c -> s c t h w")
        expected = reference_patches(clips, RESIZED, batch.offsets[sample])
        errors = sum(
            (a - (b[sample] + 1) * 127.5).abs().amax(dim=(1, 2, 3, 4))
            for a, b in zip(expected, batch.patches, strict=True)
        )
        assert errors.min() < 2.5  # Pillow rounds twice on the way
