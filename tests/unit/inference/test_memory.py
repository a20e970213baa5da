"""Where memory is short: the cache moves or shrinks, tile batches shrink, videos stay the same."""

from dataclasses import replace

import pytest
import torch

from hpdm_core.build import build_sampling
from hpdm_core.errors import DeviceError
from hpdm_core.geometry.tiles import make_ancestry
from hpdm_core.inference import tiled_inference
from hpdm_core.inference.activation_cache import ActivationCache
from hpdm_core.pipeline import resources as resources_module
from hpdm_core.pipeline.plan import choose_batch_sizes, describe_sampling, memory_estimate
from hpdm_core.pipeline.resources import Resources
from hpdm_core.recipe.load import load_recipe
from hpdm_core.records import LevelOutput
from tests.paper.tiny import (
    draw,
    make_network,
    make_pyramid,
    make_settings,
    make_work,
)

SETTINGS = make_settings((1, 2, 2), overlap="w", sigma_max=5.0)


class SmallDevice:
    """A network on a device that holds so many patches at a time.

    Args:
        network: the real one.
        room: patches per call before memory runs out.
        after: calls that still succeed whatever their size.
    """

    def __init__(self, network, room: int, after: int = 0) -> None:
        self.network, self.room, self.after = network, room, after
        self.sizes: list[int] = []
        self.refusals = 0

    def run_level(self, inputs, *rest, **options) -> LevelOutput:
        if len(inputs) > self.room and self.after <= 0:
            self.refusals += 1
            self.sizes.clear()
            raise torch.cuda.OutOfMemoryError(f"no room for {len(inputs)} patches\nmore lines")
        self.after -= 1
        self.sizes.append(len(inputs))
        return self.network.run_level(inputs, *rest, **options)

    def context(self, features, boxes):
        return self.network.context(features, boxes)


@pytest.mark.parametrize(
    ("room", "after", "budget", "self_conditioning"),
    [
        (1, 0, 1 << 40, False),
        (5, 0, None, True),
        (3, 2, 1 << 40, True),
        (3, 6, 1 << 40, False),
        (3, 6, None, False),
    ],
)
def test_tile_batches_shrink_until_they_fit(room, after, budget, self_conditioning):
    """At once, or when memory runs out in the middle of a step."""
    pyramid = make_pyramid(3, time_grows=False)
    network = make_network(3, self_conditioning=self_conditioning)
    settings = replace(SETTINGS, self_conditioning=self_conditioning)
    expected = draw(network, pyramid, settings)
    small = SmallDevice(network, room, after)
    videos = draw(small, pyramid, settings, work=make_work(tile_batch=16, device_budget=budget))
    for a, b in zip(videos, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    assert small.refusals > 0
    assert max(small.sizes) <= room  # since the last refusal


def test_a_device_without_room_for_one_tile_is_refused():
    small = SmallDevice(make_network(2), room=0)
    with pytest.raises(DeviceError, match=r"one tile does not fit.*no room for 1 patches") as error:
        draw(small, make_pyramid(2), make_settings((1, 1)), work=make_work(tile_batch=4))
    assert "more lines" not in str(error.value)


class FullDevice(SmallDevice):
    """Runs out of memory while the caches hold more than so many bytes on the device."""

    def __init__(self, network, caches: list, room: int) -> None:
        super().__init__(network, room=1 << 40)
        self.caches, self.bytes = caches, room

    def run_level(self, *args, **options) -> LevelOutput:
        if sum(cache.nbytes[0] for cache in self.caches) > self.bytes:
            self.refusals += 1
            raise torch.cuda.OutOfMemoryError("full of activations")
        return super().run_level(*args, **options)


@pytest.mark.parametrize("tile_batch", [1, 64])
def test_the_cache_moves_to_the_computers_memory(tile_batch):
    """What the device cannot hold is kept beside it, so that nothing is computed again."""
    pyramid, network, caches = make_pyramid(3, time_grows=False), make_network(3), []
    expected = draw(network, pyramid, SETTINGS)
    work = make_work(host_budget=1 << 40)

    def make_cache() -> ActivationCache:
        caches.append(work.make_cache())
        return caches[-1]

    small = FullDevice(network, caches, room=1_000)
    videos = draw(
        small,
        pyramid,
        SETTINGS,
        work=replace(work, tile_batch=tile_batch, make_cache=make_cache),
    )
    for a, b in zip(videos, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    assert small.refusals > 0
    assert caches[-1].nbytes[1] > 0


def test_contexts_stay_off_the_computers_memory_where_features_lie_on_the_device():
    """A context is made of them in less time than it takes to come back."""
    pyramid, network = make_pyramid(3, time_grows=False), make_network(3)
    expected = draw(network, pyramid, SETTINGS)
    held = {}
    for budget in (30_000, 100):
        caches = []
        work = make_work(tile_batch=4, device_budget=budget, host_budget=1 << 40)

        def make_cache(caches=caches, work=work) -> ActivationCache:
            caches.append(work.make_cache())
            return caches[-1]

        videos = draw(network, pyramid, SETTINGS, work=replace(work, make_cache=make_cache))
        for a, b in zip(videos, expected, strict=True):
            assert torch.allclose(a, b, atol=1e-5)
        held[budget] = caches[-1].nbytes
    assert held[30_000][0] > 20_000
    assert held[30_000][1] == 0
    assert held[100][1] > 0


@pytest.mark.parametrize("free", [None, 1 << 40, 1000])
def test_latents_of_all_tiles_lie_in_one_buffer(monkeypatch, free):
    """Made once and updated in place: HPDM-T2V's 3,375 tiles hold 32 GB, and not twice that."""
    made, levels = [], []  # levels are held, or a later one may get the id of an earlier
    monkeypatch.setattr(tiled_inference, "available_memory", lambda device: free)
    keep = tiled_inference.TiledLevel._keep_latents

    def watched(self, place, latents):
        keep(self, place, latents)
        levels.append(self)
        made.append((id(self), self._latents.data_ptr(), tuple(self._latents.shape)))

    monkeypatch.setattr(tiled_inference.TiledLevel, "_keep_latents", watched)
    pyramid, network = make_pyramid(3), make_network(3, self_conditioning=True)
    settings = make_settings((2, 3, 3), overlap="hw", self_conditioning=True)
    draw(network, pyramid, settings)
    assert len(set(made)) == len({level for level, *_ in made}) == 3
    tiles = [len(make_ancestry(pyramid, level, "hw").offsets[level]) for level in range(3)]
    counts = sorted({shape[0] for *_, shape in made})
    assert [count % tile for count, tile in zip(counts, tiles, strict=True)] == [0, 0, 0]


def test_latents_that_main_memory_does_not_hold_are_kept_in_half(monkeypatch, caplog):
    """The buffer is off by 2^-8 of each value, and the video by less than that of its largest."""
    pyramid, network = make_pyramid(3), make_network(3, self_conditioning=True)
    settings = make_settings((2, 3, 3), overlap="hw", self_conditioning=True)
    keep = tiled_inference.TiledLevel._keep_latents

    def watched(self, place, latents):
        keep(self, place, latents)
        kinds.add(self._latents.dtype)
        error = (self._latents[place].to(latents) - latents).abs()
        assert (error <= 2.0**-8 * latents.abs()).all()

    monkeypatch.setattr(tiled_inference.TiledLevel, "_keep_latents", watched)
    drawn = []
    for free in (1 << 40, 100):
        kinds = set()
        monkeypatch.setattr(tiled_inference, "available_memory", lambda device, free=free: free)
        with caplog.at_level("INFO", logger="hpdm.inference"):
            drawn.append(draw(network, pyramid, settings))
        assert kinds == {torch.float32 if free > 100 else torch.bfloat16}
    assert [r for r in caplog.records if "kept in bfloat16" in r.getMessage()]
    for full, half in zip(*drawn, strict=True):
        assert 0 < (full - half).abs().max() < 2.0**-8 * full.abs().max()


def test_latents_of_text_to_videos_last_level_are_in_the_plan():
    recipe = load_recipe("hpdm_t2v")
    settings = build_sampling(recipe)
    rows = describe_sampling(recipe, replace(settings, overlap="fhw"))
    assert rows[-1]["tiles"] == 3375
    assert rows[-1]["latents_bytes"] == 3375 * 768 * 3072 * 4
    options = {"count": 8, "cached": False, "videos": None, "tiles": None}
    for device_type, free, on_device in (("cuda", 80e9, True), ("cuda", 40e9, False)):
        sizes = choose_batch_sizes(recipe, rows, free=int(free), device_type=device_type, **options)
        held = sizes.latents_bytes, sizes.host_latents_bytes
        assert held == ((3375 * 768 * 3072 * 4, 0) if on_device else (0, 3375 * 768 * 3072 * 4))
        figures = memory_estimate(recipe, sizes)
        assert figures["latents_on_host_half"] == held[1] // 2
        assert figures["total"] == sum(
            figures[part] for part in ("weights", "cache", "latents", "videos", "tiles")
        )


def test_the_cache_takes_a_processs_share_of_main_memory(monkeypatch):
    monkeypatch.setattr(resources_module, "available_memory", lambda device: 800)
    for processes, room in ((None, 400), ("4", 100)):
        if processes:
            monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        cache = Resources(cache="cpu").cache_maker(torch.device("cpu"))()
        assert cache.host_budget == room
    given = Resources(cache="cpu", cache_gb=1e-6).cache_maker(torch.device("cpu"))()
    assert given.host_budget == 1000
