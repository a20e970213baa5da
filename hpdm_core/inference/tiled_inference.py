"""One evaluation of a whole level: denoise every tile, average where tiles overlap (Sec. 4.4).

The average of overlapping predictions is MultiDiffusion's (Bar-Tal et al. 2023); the solver then
updates the whole level at once.

Axis legend: `b` samples, `i` items (sample, tile), `c` channels, `t h w` video, `n` tokens,
`d` width.
"""

import logging
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hpdm_core.device import available_memory
from hpdm_core.diffusion.denoiser import LevelDenoiser
from hpdm_core.errors import DeviceError
from hpdm_core.files import gigabytes
from hpdm_core.geometry.pyramid import Pyramid
from hpdm_core.geometry.tiles import make_ancestry, tile_counts, tile_slices
from hpdm_core.inference.activation_cache import ActivationCache
from hpdm_core.inference.context import ContextSource, gather_patches
from hpdm_core.inference.shard import TileShard
from hpdm_core.records import Condition

logger = logging.getLogger("hpdm.inference")

# Share of the free main memory that latents may fill in their own type.
HOST_FILL = 0.8


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    """Tiles of one call of the network: (i,) items, and where they lie.

    `sample` (i,) and `offsets` (i, 3) are on the device, so that a step copies nothing to it.
    """

    items: Tensor
    sample: Tensor
    offsets: Tensor
    slices: list[tuple]


@dataclass(kw_only=True)
class TiledLevel:
    """The denoiser of a whole level; call it with (x, sigma).

    Args:
        denoiser: the network.
        pyramid: the levels.
        level: index of the level.
        overlap: axes with 50% overlap, as `parse_overlap` returns them.
        condition: (b,) rows.
        lower: per lower level (b, c, t, h, w) the finished video at noise level `context_sigma`.
        context_sigma: noise level of the lower levels.
        tile_batch: tiles per call of the network, over samples and tiles together.
        cache: activation cache; None recomputes in every step.
        self_conditioning: whether latents start from those of the previous step.
        shard: this process's part of the tiles.
        branch: name of these rows in the cache, which guidance shares.
    """

    denoiser: LevelDenoiser
    pyramid: Pyramid
    level: int
    overlap: str
    condition: Condition
    lower: tuple[Tensor, ...]
    context_sigma: float
    tile_batch: int
    cache: ActivationCache | None
    self_conditioning: bool
    shard: TileShard = field(default_factory=TileShard)
    branch: str = "conditional"
    _source: ContextSource | None = None
    # One buffer (i, m, d) for all of this process's tiles, filled by the first step.
    _latents: Tensor | None = None
    _latents_on_host: bool = False
    _latents_dtype: torch.dtype = torch.float32
    _stepped: bool = False
    # The sum over tiles of the step that is under way, and how many items it has.
    _total: Tensor | None = None
    _done: int = 0

    def __post_init__(self) -> None:
        self._ancestry = make_ancestry(self.pyramid, self.level, self.overlap)
        self._offsets = self._ancestry.offsets[self.level]
        self._counts = tile_counts(self.pyramid, self.level, self.overlap)
        self._chunks: list[_Chunk] = []
        self._prepared = False

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """Return the averaged estimate of the clean video.

        If memory runs out, tile batches shrink and the cache moves off the device.

        Args:
            x: (b, c, t, h, w) at noise level `sigma`; the network sees it in float32.

        Returns:
            the estimate in the dtype of `x`.

        Raises:
            DeviceError: not even one tile fits.
        """
        while True:
            try:
                total = self._own_tiles(x.float(), sigma)
                break
            except torch.cuda.OutOfMemoryError as error:
                reason = str(error).splitlines()[0]
            self._shrink(reason)  # out here, where the exception no longer references tensors
        self.shard.sum_over_processes(total)
        return (total / self._counts).to(x.dtype)

    def pulled_back(self, x: Tensor, sigma: float, weight: Tensor) -> Tensor:
        """Return J^T weight, where J is the Jacobian in `x` of the estimate of the last call.

        One tile at a time, which takes the memory of a training step of one patch. Gradients need
        tensors that were not made in inference mode.

        Args:
            x, sigma: those of the last call.
            weight: (b, c, t, h, w).
        """
        share = (weight / self._counts).float()
        total, patches = torch.zeros_like(share), x.float()
        for number, chunk in enumerate(self._chunks):
            context = self._source.context(number, chunk.items)
            for k, region in enumerate(chunk.slices):
                row = slice(k, k + 1)
                item = number * self.tile_batch + k
                latents = None if self._latents is None else self._latents[item : item + 1]
                sample, offsets = chunk.sample[row], chunk.offsets[row]
                with torch.enable_grad():
                    patch = gather_patches(self.pyramid, patches, sample, offsets).requires_grad_()
                    result = self.denoiser.denoise(
                        patch,
                        sigma,
                        level=self.level,
                        condition=self.condition.select(sample),
                        context=tuple(term[row] for term in context),
                        latents=None if latents is None else latents.to(x.device, torch.float32),
                    )
                    (gradient,) = torch.autograd.grad(result.output, patch, share[region][None])
                total[region] += gradient[0]
        self.shard.sum_over_processes(total)
        return total.to(x.dtype)

    def _own_tiles(self, x: Tensor, sigma: float) -> Tensor:
        """Denoise this process's tiles; return their sum over the level.

        Called again after memory ran out it continues: the latents of tiles that are done have been
        replaced by new ones.
        """
        if self._source is None:
            self._prepare(x)
        if self._total is None:
            self._total = torch.zeros_like(x)
        for number, chunk in enumerate(self._chunks):
            place = slice(number * self.tile_batch, number * self.tile_batch + len(chunk.items))
            if place.start < self._done:
                continue
            start = (
                self._latents[place].to(x.device, self._latents_dtype) if self._stepped else None
            )
            result = self.denoiser.denoise(
                gather_patches(self.pyramid, x, chunk.sample, chunk.offsets),
                sigma,
                level=self.level,
                condition=self.condition.select(chunk.sample),
                context=self._source.context(number, chunk.items),
                latents=start,
            )
            for region, patch in zip(chunk.slices, result.output, strict=True):
                self._total[region] += patch  # in a fixed order
            if self.self_conditioning:
                self._keep_latents(place, result.latents)
            del result, patch  # or they would take memory during the next pass
            self._done = place.stop
        if self.cache is not None:
            self._source.settle(range(len(self._chunks)))
        total, self._total, self._done = self._total, None, 0
        self._stepped = self._latents is not None
        return total

    def _keep_latents(self, place: slice, latents: Tensor) -> None:
        """Write (i, m, d) latents into the buffer."""
        if self._latents is None:
            self._latents = self._buffer(latents)
        self._latents[place] = latents.to(self._latents)

    def _buffer(self, latents: Tensor) -> Tensor:
        """Return an empty buffer (i, m, d) for all tiles' latents.

        On the device if half of what is free holds it, or in main memory; there in bfloat16 if it
        does not fit otherwise (each value is then off by 2^-8 of itself at most).
        """
        self._latents_dtype = latents.dtype
        items = sum(len(chunk.items) for chunk in self._chunks)
        shape = (items, *latents.shape[1:])
        size = math.prod(shape) * latents.element_size()
        room = available_memory(latents.device)
        if not (self._latents_on_host or (room is not None and 2 * size > room)):
            return latents.new_empty(shape)
        host, dtype = available_memory(torch.device("cpu")), latents.dtype
        if host is not None and size * self.shard.world_size > HOST_FILL * host:
            dtype = torch.bfloat16
            logger.info(
                "level %d: latents of %s are kept in bfloat16: main memory has %s free",
                self.level, gigabytes(size), gigabytes(host),
            )  # fmt: skip
        return latents.new_empty(shape, device="cpu", dtype=dtype)

    def _prepare(self, x: Tensor) -> None:
        """Cut this process's tiles into chunks, and run the ancestors.

        Again after memory ran out, and then alone: the other processes are elsewhere.
        """
        shard = TileShard() if self._prepared else self.shard
        self._prepared, self._counts = True, self._counts.to(x.device)
        items = self.shard.part_of(torch.arange(len(x) * len(self._offsets)))
        parts = items.split(self.tile_batch) if len(items) else ()
        self._chunks = [self._chunk(part, x.device) for part in parts]
        self._source = ContextSource(
            denoiser=self.denoiser,
            pyramid=self.pyramid,
            ancestry=self._ancestry,
            videos=self.lower,
            sigma=self.context_sigma,
            condition=self.condition,
            batch=self.tile_batch,
            cache=self.cache,
            shard=shard,
            branch=self.branch,
            latents=[],
        )
        self._source.prepare(self_conditioning=self.self_conditioning)

    def _chunk(self, items: Tensor, device: torch.device) -> _Chunk:
        sample, offsets = items // len(self._offsets), self._offsets[items % len(self._offsets)]
        places = zip(sample.tolist(), offsets.tolist(), strict=True)
        return _Chunk(
            items=items,
            sample=sample.to(device),
            offsets=offsets.to(device),
            slices=[(s, slice(None), *tile_slices(self.pyramid, offset)) for s, offset in places],
        )

    def _shrink(self, reason: str) -> None:
        """Free memory: fewer tiles at a time, a smaller cache on the device, no latents."""
        cache = self.cache
        held = 0 if cache is None else cache.nbytes[0]
        if self.tile_batch == 1 and held == 0:
            raise DeviceError(
                "one tile does not fit into the device's memory",
                got=reason,
                remedy="generate fewer videos at a time, or use another device",
            )
        if cache is not None:
            cache.device_budget = held // 2 if self.tile_batch > 1 else 0
            cache.clear()
        # Tiles that are done stay done: their number is a multiple of the new size too.
        half = max(1, self.tile_batch // 2)
        self.tile_batch = max(n for n in range(1, half + 1) if self._done % n == 0)
        self._latents_on_host = True
        self._latents = None if self._latents is None else self._latents.cpu()
        self._source = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
