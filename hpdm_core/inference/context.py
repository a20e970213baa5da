"""Context of tiles from the finished lower levels, computed once per level (Sec. 4.4, 4.5).

Information flows from coarse to fine only, so neither the features of an ancestor nor the
context of a tile depends on the tile's own noise: caching them over the steps is exact. Ancestors
are shared (the 343 tiles of the last level for UCF-101 have 27 parents), so their features are
computed once each, then each tile's context from them.

Items are pairs (sample, patch), flattened with the patch running fastest.

Axis legend: `b` samples, `i` items, `c` channels, `t h w` video, `n` tokens, `d` width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hpdm_core.diffusion.denoiser import LevelDenoiser
from hpdm_core.geometry.boxes import Box, level_box
from hpdm_core.geometry.pyramid import Pyramid
from hpdm_core.geometry.tiles import Ancestry
from hpdm_core.inference.activation_cache import ActivationCache, Entry
from hpdm_core.inference.shard import TileShard
from hpdm_core.records import Condition, LevelOutput


@dataclass(frozen=True, kw_only=True)
class ContextSource:
    """Computes and caches the context of tiles.

    Args:
        denoiser: the network.
        pyramid: the levels.
        ancestry: the tiles and their ancestors.
        videos: per lower level (b, c, t, h, w) the finished video at noise level `sigma`.
        sigma: noise level of the lower levels.
        condition: (b,) rows.
        batch: patches per call of the network.
        cache: activation cache; None recomputes on every call.
        shard: this process's part of the ancestors.
        branch: name of these rows in the cache, which guidance shares with those without condition.
        latents: per lower level (i, n, d) the ancestors' latents of an earlier pass; empty without
            latent self-conditioning.
    """

    denoiser: LevelDenoiser
    pyramid: Pyramid
    ancestry: Ancestry
    videos: tuple[Tensor, ...]
    sigma: float
    condition: Condition
    batch: int
    cache: ActivationCache | None
    shard: TileShard
    branch: str
    latents: list[Tensor]

    def context(self, key: object, items: Tensor) -> tuple[Tensor, ...]:
        """Return the context of the tiles `items` (i,), cached under `key`."""
        if self.ancestry.level == 0:
            return ()
        kept = None if self.cache is None else self.cache.get(self._context_key(key))
        if kept is not None:
            return kept
        context = self._context(self.ancestry.level, self._chain(self.ancestry.level, items))
        if self.cache is not None:
            # Recomputing a context from features on the device is faster than a host transfer.
            lower = range(self.ancestry.level)
            near = all(self.cache.on_device(self._features_key(k)) for k in lower)
            self.cache.put(self._context_key(key), context, device_only=near)
        return context

    def prepare(self, *, self_conditioning: bool) -> None:
        """Run every ancestor once, coarse to fine, and cache its features.

        With latent self-conditioning each ancestor runs twice, as in training: its latents of a
        first pass start the second. Several processes run a part of the ancestors each.
        """
        shard = self.shard
        for level in range(self.ancestry.level):
            if self_conditioning:
                table, shard = self._table(level, lambda result: (result.latents,), shard)
                self.latents.append(table[0])
            if self.cache is not None:
                table, shard = self._table(
                    level, lambda result: result.features, shard, cached=True
                )
                if table is not None:
                    self.cache.put(self._features_key(level), table)

    def settle(self, keys: Sequence[object]) -> None:
        """Drop the ancestors' features once the context of all `keys` is cached."""
        if all(self.cache.has(self._context_key(key)) for key in keys):
            for level in range(self.ancestry.level):
                self.cache.drop(self._features_key(level))

    def _table(
        self,
        level: int,
        pick: Callable[[LevelOutput], Entry],
        shard: TileShard,
        *,
        cached: bool = False,
    ) -> tuple[Entry | None, TileShard]:
        """Return what `pick` takes of every ancestor of a level, one row for each.

        If one process runs out of memory, each goes on alone, so that none waits for another.

        Args:
            level: of the ancestors.
            pick: takes tensors of one row per patch.
            shard: this process's part of the ancestors.
            cached: return None if it does not fit into the cache, which is checked before
                anything is computed beyond the first chunk.

        Returns:
            the table, and the part of the ancestors that this process runs from now on.
        """
        everything = torch.arange(self._num_items(level))
        own, device = shard.part_of(everything), self.videos[0].device
        # A process without ancestors runs one for the table's shapes.
        chunks = (own if len(own) else everything[:1]).split(self.batch)
        first, failed = shard.attempt(lambda: pick(self._run(level, chunks[0])), device)
        if failed:
            return self._table(level, pick, TileShard(), cached=cached)
        rows = len(everything)
        if cached:
            whole = tuple(x.new_empty(rows, *x.shape[1:], device="meta") for x in first)
            if shard.any_process(not self.cache.fits(whole), device):
                return None, shard

        def fill() -> Entry:
            table = tuple(x.new_zeros(rows, *x.shape[1:]) for x in first)
            for number, items in enumerate(chunks if len(own) else ()):
                part = first if number == 0 else pick(self._run(level, items))
                for x, values in zip(table, part, strict=True):
                    x[items.to(x.device)] = values
            return table

        table, failed = shard.attempt(fill, device)
        if failed:
            return self._table(level, pick, TileShard(), cached=cached)
        for x in table:
            shard.sum_over_processes(x)
        return table, shard

    def _chain(self, level: int, items: Tensor) -> list[Tensor]:
        """Return per level the items in which those of `level` are nested, themselves last."""
        chain = [items]
        for k in range(level, 0, -1):
            sample, patch = self._split(k, chain[0])
            parent = self.ancestry.parents[k][patch]
            chain.insert(0, sample * len(self.ancestry.offsets[k - 1]) + parent)
        return chain

    def _context(self, level: int, chain: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the context of the patches chain[level], from the features of their ancestors."""
        if level == 0:
            return ()
        boxes = tuple(self._boxes(k, chain[k]) for k in range(level + 1))
        features: list[tuple[Tensor, ...]] = []
        for k in range(level):
            kept = None if self.cache is None else self.cache.get(self._features_key(k), chain[k])
            if kept is None:
                # Run whole: it is the cost that the cache is compared with.
                context = self.denoiser.context(features, boxes[: k + 1]) if k > 0 else ()
                latents = self._latents(k, chain[k])
                kept = self._denoise(k, chain[k], context, latents).features
            features.append(kept)
        return self.denoiser.context(features, boxes)

    def _run(self, level: int, items: Tensor) -> LevelOutput:
        """Run ancestors for their latents and features."""
        context = self._context(level, self._chain(level, items))
        return self._denoise(level, items, context, self._latents(level, items), latents_only=True)

    def _denoise(
        self,
        level: int,
        items: Tensor,
        context: tuple[Tensor, ...],
        latents: Tensor | None,
        *,
        latents_only: bool = False,
    ) -> LevelOutput:
        sample, patch = self._split(level, items)
        video = self.videos[level]
        return self.denoiser.denoise(
            gather_patches(self.pyramid, video, sample, self.ancestry.offsets[level][patch]),
            self.sigma,
            level=level,
            condition=self.condition.select(sample.to(video.device)),
            context=context,
            latents=latents,
            latents_only=latents_only,
        )

    def _boxes(self, level: int, items: Tensor) -> Box:
        _, patch = self._split(level, items)
        levels = zip(self.pyramid.levels[0], self.pyramid.levels[level], strict=True)
        growth = torch.tensor([fine // coarse for coarse, fine in levels])
        # In the frame of reference of the window, which is what the network was trained on.
        offsets = self.ancestry.offsets[level][patch] - growth * self.ancestry.windows[level][patch]
        return level_box(self.pyramid, level, offsets.to(self.videos[0].device))

    def _latents(self, level: int, items: Tensor) -> Tensor | None:
        if level >= len(self.latents):
            return None
        return self.latents[level][items.to(self.latents[level].device)]

    def _context_key(self, key: object) -> object:
        return self.branch, "context", key

    def _features_key(self, level: int) -> object:
        return self.branch, "features", level

    def _split(self, level: int, items: Tensor) -> tuple[Tensor, Tensor]:
        count = len(self.ancestry.offsets[level])
        return items // count, items % count

    def _num_items(self, level: int) -> int:
        return len(self.videos[0]) * len(self.ancestry.offsets[level])


def gather_patches(pyramid: Pyramid, video: Tensor, sample: Tensor, offsets: Tensor) -> Tensor:
    """Extract patches from videos.

    Args:
        video: (b, c, t, h, w).
        sample: (i,) index of each patch's video.
        offsets: (i, 3) of the patches in pixels.

    Returns:
        (i, c, t, h, w) of the patch size.
    """
    windows = video
    for axis, size in enumerate(pyramid.patch, start=2):
        windows = windows.unfold(axis, size, 1)  # a view of the patch at every offset
    t, h, w = offsets.to(video.device).unbind(1)
    return windows[sample.to(video.device), :, t, h, w]
