"""Ancestors: no more of them is computed than their tiles read, by all processes together."""

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hpdm_core.geometry.tiles import make_ancestry
from hpdm_core.inference.generate import evaluations
from hpdm_core.inference.shard import TileShard
from hpdm_core.inference.tiled_inference import TiledLevel
from tests.paper.tiny import (
    draw,
    make_condition,
    make_network,
    make_pyramid,
    make_settings,
    make_work,
)

SETTINGS = make_settings((1, 2, 2), overlap="w", sigma_max=5.0)
CONDITIONED = replace(SETTINGS, self_conditioning=True)


class CountedNetwork:
    """A network that notes the patches of each call: (level, patches, latents only).

    Args:
        network: the real one.
        fails_at: index of a call for the ancestors at which memory runs out, once.
    """

    def __init__(self, network, fails_at: int | None = None) -> None:
        self.network, self.fails_at = network, fails_at
        self.calls: list[tuple[int, int, bool]] = []

    def run_level(self, inputs, *rest, level, latents_only=False, **options):
        if latents_only and self.fails_at is not None:
            self.fails_at -= 1
            if self.fails_at < 0:
                self.fails_at = None
                raise torch.cuda.OutOfMemoryError("no room")
        self.calls.append((level, len(inputs), latents_only))
        return self.network.run_level(
            inputs, *rest, level=level, latents_only=latents_only, **options
        )

    def context(self, features, boxes):
        return self.network.context(features, boxes)

    @property
    def ancestors(self) -> int:
        return sum(count for _, count, only in self.calls if only)


def test_ancestors_leave_out_the_last_write_and_the_output():
    pyramid, network, rows = make_pyramid(3), make_network(3, self_conditioning=True), []
    hooks = [
        module.register_forward_hook(lambda _, args, __: rows.append(len(args[0])))
        for module in (network.detokenizer, network.blocks[-1].write)
    ]
    draw(network, pyramid, CONDITIONED)
    for hook in hooks:
        hook.remove()
    own = sum(
        len(make_ancestry(pyramid, level, "w").offsets[level]) * evaluations(CONDITIONED, level)
        for level in range(3)
    )
    assert sum(rows) == 2 * own


def test_latents_and_features_need_no_output():
    network = make_network(2, self_conditioning=True)
    inputs, c_noise = torch.randn(3, 3, 2, 4, 4), torch.zeros(3)
    asked = {"level": 0, "condition": make_condition(3), "context": (), "latents": None}
    with torch.no_grad():
        whole = network.run_level(inputs, c_noise, **asked)
        short = network.run_level(inputs, c_noise, latents_only=True, **asked)
    assert short.output.numel() == 0
    assert torch.equal(short.latents, whole.latents)
    for a, b in zip(short.features, whole.features, strict=True):
        assert torch.equal(a, b)


def shared_draw(
    networks: list, settings, *, tile_batch: int = 5, budgets: list[int] | None = None
) -> list[tuple[Tensor, ...]]:
    """Draw one video by threads that share its tiles, each with a network of its own."""
    meet = threading.Barrier(len(networks), timeout=60)
    given: list[Tensor | None] = [None] * len(networks)
    videos: list = [None] * len(networks)

    def summing(rank: int) -> Callable[[Tensor], None]:
        def add(tensor: Tensor) -> None:
            given[rank] = tensor.clone()
            meet.wait()
            assert len({x.shape for x in given}) == 1, "processes sum different tensors"
            tensor.copy_(sum(given[1:], given[0]))
            meet.wait()

        return add

    def run(rank: int) -> None:
        shard = TileShard(rank=rank, world_size=len(networks), sum_over_processes=summing(rank))
        budget = 1 << 40 if budgets is None else budgets[rank]
        work = replace(make_work(tile_batch=tile_batch, device_budget=budget), shard=shard)
        try:
            videos[rank] = draw(networks[rank], make_pyramid(3), settings, work=work)
        except BaseException:
            meet.abort()
            raise

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(networks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    return videos


@pytest.mark.parametrize("settings", [SETTINGS, CONDITIONED], ids=["plain", "self-conditioned"])
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_that_share_the_tiles_share_the_ancestors(settings, processes):
    real = make_network(3, self_conditioning=settings.self_conditioning)
    alone = CountedNetwork(real)
    expected = draw(alone, make_pyramid(3), settings, work=make_work(tile_batch=5))
    networks = [CountedNetwork(real) for _ in range(processes)]
    for video in shared_draw(networks, settings):
        for a, b in zip(video, expected, strict=True):
            assert torch.allclose(a, b, atol=1e-5)
    # Level 0 has one ancestor: a process without any runs it too, for the table's shapes.
    extra = (processes - 1) * 2 * (1 + settings.self_conditioning)
    assert sum(network.ancestors for network in networks) == alone.ancestors + extra
    assert max(network.ancestors for network in networks) < alone.ancestors


@pytest.mark.parametrize("fails_at", [0, 1, 2, 3])
@pytest.mark.parametrize("settings", [SETTINGS, CONDITIONED], ids=["plain", "self-conditioned"])
def test_none_waits_for_a_process_whose_memory_runs_out(settings, fails_at):
    real = make_network(3, self_conditioning=settings.self_conditioning)
    expected = draw(real, make_pyramid(3), settings)
    networks = [CountedNetwork(real), CountedNetwork(real, fails_at)]
    for video in shared_draw(networks, settings, tile_batch=2):
        for a, b in zip(video, expected, strict=True):
            assert torch.allclose(a, b, atol=1e-5)
    assert networks[1].fails_at is None


def test_processes_agree_on_what_their_caches_hold():
    real = make_network(3)
    expected = draw(real, make_pyramid(3), SETTINGS)
    networks = [CountedNetwork(real), CountedNetwork(real)]
    for video in shared_draw(networks, SETTINGS, budgets=[1 << 40, 100]):
        for a, b in zip(video, expected, strict=True):
            assert torch.allclose(a, b, atol=1e-5)


def test_tiles_are_cut_into_chunks_once_per_level(monkeypatch):
    """A step copies no indices to the device: they lie there from the first step on."""
    made = []
    chunk = TiledLevel._chunk
    monkeypatch.setattr(
        TiledLevel, "_chunk", lambda self, *rest: made.append(self.level) or chunk(self, *rest)
    )
    draw(make_network(3), make_pyramid(3), make_settings((3, 3, 3), overlap=""))
    assert made == [0, 1, 2]
