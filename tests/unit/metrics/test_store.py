"""Detector outputs on disk: chunks, resuming, skipped clips, sharing among processes."""

import os

import pytest
import torch

from hpdm_core.metrics.detectors import Detector
from hpdm_core.metrics.extract import Skipped, extract
from hpdm_core.metrics.store import CHUNK, FeatureStore


class Counting:
    """Clip i is filled with the value i; says which places were asked for."""

    def __init__(self, num: int, bad: frozenset[int] = frozenset()) -> None:
        self.num, self.bad, self.asked = num, bad, []

    def __len__(self) -> int:
        return self.num

    def clips(self, start, stop):
        for place in range(start, stop):
            self.asked.append(place)
            if place in self.bad:
                yield Skipped(reason=f"clip {place} is broken")
            else:
                yield torch.full((4, 2, 2, 3), place, dtype=torch.uint8).numpy()


def detector(scale: float = 1.0) -> Detector:
    def run(videos: torch.Tensor) -> torch.Tensor:
        assert len(videos) <= 5
        mean = videos.float().mean(dim=(1, 2, 3, 4))
        return torch.stack([mean * scale, torch.ones_like(mean)], dim=1)

    return Detector(name="mean", output="features", sha256="abc", min_frames=1, run=run)


@pytest.fixture
def store(tmp_path) -> FeatureStore:
    return FeatureStore(tmp_path, {"videos": "v", "detector": "d"})


def test_outputs_come_back_in_order(store):
    source = Counting(40)
    done = []
    extract(source, [(detector(), store)], count=40, batch=5, on_clips=done.append)
    chunk = store.get(40)
    assert chunk.places.tolist() == list(range(40))
    assert chunk.outputs[:, 0].tolist() == list(range(40))
    assert done == [16, 16, 8]
    assert (store.folder / "key.json").is_file()
    assert not list(store.folder.glob("*.part"))


def test_what_is_there_is_not_made_again_and_more_can_be_added(store):
    source = Counting(100)
    extract(source, [(detector(), store)], count=20, batch=5)
    assert store.missing(20) == []
    assert store.missing(16) == []
    # The second chunk holds 4 of its 16 places, so it is made again for more.
    assert store.missing(50) == [(16, 32), (32, 48), (48, 50)]
    source.asked.clear()
    extract(source, [(detector(), store)], count=50, batch=5)
    assert source.asked == list(range(16, 50))
    assert store.get(50).outputs[:, 0].tolist() == list(range(50))
    assert store.get(10).outputs[:, 0].tolist() == list(range(10))


def test_an_interrupted_run_goes_on_where_it_stopped(store):
    class Breaking(Counting):
        def clips(self, start, stop):
            if start >= 32:
                raise KeyboardInterrupt
            return super().clips(start, stop)

    with pytest.raises(KeyboardInterrupt):
        extract(Breaking(64), [(detector(), store)], count=64, batch=5)
    source = Counting(64)
    extract(source, [(detector(), store)], count=64, batch=5)
    assert source.asked == list(range(32, 64))
    # A file cut off by a full disk counts as missing.
    path = store.folder / "00000016.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    assert store.missing(64) == [(16, 32)]
    path.unlink()
    os.mkfifo(path)  # not waited for
    assert store.missing(64) == [(16, 32)]


def test_skipped_clips_leave_no_row_and_keep_their_reason(store):
    bad = frozenset({0, 5, *range(CHUNK, 2 * CHUNK)})  # one chunk has no usable clip at all
    extract(Counting(40, bad), [(detector(), store)], count=40, batch=5)
    chunk = store.get(40)
    assert set(chunk.places.tolist()) == set(range(40)) - bad
    assert chunk.outputs.shape == (22, 2)
    assert chunk.skipped[0] == (0, "clip 0 is broken")
    assert len(chunk.skipped) == 18
    assert len(store.get(3).skipped) == 1


def test_a_clip_is_made_once_for_all_detectors(tmp_path):
    stores = [FeatureStore(tmp_path, {"detector": name}) for name in ("a", "b")]
    assert stores[0].folder != stores[1].folder
    source = Counting(32)
    extract(source, [(detector(), stores[0])], count=16, batch=5)
    source.asked.clear()
    targets = [(detector(), stores[0]), (detector(10.0), stores[1])]
    extract(source, targets, count=32, batch=5)
    assert source.asked == list(range(32))
    assert stores[1].get(32).outputs[:, 0].tolist() == [10.0 * i for i in range(32)]


def test_processes_share_the_chunks_without_a_gap(store):
    sources = [Counting(70) for _ in range(3)]
    for rank, source in enumerate(sources):
        extract(source, [(detector(), store)], count=70, batch=5, rank=rank, world_size=3)
    assert sorted(place for s in sources for place in s.asked) == list(range(70))
    assert sources[1].asked == [*range(16, 32), *range(64, 70)]
    assert store.get(70).outputs[:, 0].tolist() == list(range(70))


def test_equal_keys_share_a_store_whatever_their_order(tmp_path):
    first = FeatureStore(tmp_path, {"a": 1, "b": [2, 3]})
    assert first.folder == FeatureStore(tmp_path, {"b": [2, 3], "a": 1}).folder
    assert first.folder != FeatureStore(tmp_path, {"a": 1, "b": [2, 4]}).folder
