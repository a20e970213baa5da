"""`hpdm sample`: generate videos of a checkpoint into a folder.

The same command run again resumes with the videos that are missing.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from hpdm_core.build import build_sampling
from hpdm_core.device import available_memory, set_precision
from hpdm_core.errors import HpdmError
from hpdm_core.inference.activation_cache import ActivationCache
from hpdm_core.inference.generate import (
    TOKENS_PER_CALL,
    ExecutionOptions,
    SamplingSettings,
    generate,
)
from hpdm_core.inference.tiled_inference import TileShard
from hpdm_core.progress import NoProgress, Progress
from hpdm_core.recipe.schema import Recipe
from hpdm_core.runs.models import LoadedModel, cache_maker, load_model, to_uint8
from hpdm_core.runs.sample.conditions import Conditions, Request, make_requests
from hpdm_core.runs.sample.folder import LINES, PREVIEW, SampleStore, free_folder
from hpdm_core.runs.sample.plan import (
    BatchSizes,
    check_overlaps,
    choose_batch_sizes,
    describe_sampling,
    plan_sampling,
    with_options,
)
from hpdm_core.training.parallel import Parallel, start_parallel

# Generates the requested videos under given settings: per level (b, c, t, h, w).
SampleFn = Callable[[SamplingSettings, list[Request]], tuple[Tensor, ...]]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How `hpdm sample` was called, apart from what is to be drawn; see its help."""

    out: Path | None
    formats: tuple[str, ...]
    save_levels: bool
    compare: list[str]
    cache: str
    cache_gb: float | None
    batch: int | None
    tile_batch: int | None
    shard: str


def run_sample(
    *,
    checkpoint: str | None,
    recipe: Recipe | None,
    overlap: str | None,
    num: int | None,
    classes: list[str],
    prompts: list[str],
    prompt_file: Path | None,
    text_encoder: str | None,
    guidance: float | None,
    steps: tuple[int, ...] | None,
    seed: int,
    out: Path | None,
    formats: tuple[str, ...],
    save_levels: bool,
    compare_overlaps: list[str],
    cache: str,
    cache_gb: float | None,
    batch: int | None,
    tile_batch: int | None,
    shard: str,
    device: str,
    dry_run: bool,
    progress: Progress,
) -> dict:
    """Generate videos, or say what that would take.

    Args: as the options of `hpdm sample`; `recipe` stands in for a checkpoint in a dry run.

    Returns:
        what was made and where, or with `dry_run` the figures that matter.

    Raises:
        HpdmError: something stands against it.
        KeyboardInterrupt: interrupted; finished videos are kept.
    """
    options = Options(
        out=out, formats=formats, save_levels=save_levels, compare=check_overlaps(compare_overlaps),
        cache=cache, cache_gb=cache_gb, batch=_positive(batch, "--batch"),
        tile_batch=_positive(tile_batch, "--tile-batch"), shard=shard,
    )  # fmt: skip
    if recipe is not None and not dry_run:
        raise HpdmError("--recipe plans only", remedy="add --dry-run, or give --checkpoint")
    parallel = start_parallel(device, mode="ddp")
    try:
        model = None
        if recipe is None:
            model = load_model(checkpoint, parallel.device, say=progress.say)
            recipe = model.recipe
        settings = with_options(
            build_sampling(recipe), overlap=overlap, steps=steps, guidance=guidance,
            text=recipe.model.conditioning == "text",
        )  # fmt: skip
        plan = partial(
            plan_sampling, recipe, settings, cached=cache != "off", videos=batch, tiles=tile_batch
        )
        if model is None:
            return plan(where=f"recipe {recipe.name}")
        requests = make_requests(
            recipe, model.classes, num=num, seed=seed, classes=classes, prompts=prompts,
            prompt_file=prompt_file,
        )  # fmt: skip
        if dry_run:
            return plan(where=str(model.path)) | {"videos": len(requests)}
        conditions = Conditions(recipe, requests, text_encoder=text_encoder, device=parallel.device)
        job = SampleJob(
            model=model, settings=settings, options=options, parallel=parallel,
            progress=progress if parallel.is_main else NoProgress(),
        )  # fmt: skip
        return job.run(requests, conditions)
    finally:
        parallel.close()


@dataclass(frozen=True, kw_only=True)
class SampleJob:
    """One process's part of `hpdm sample`.

    Args:
        model: what draws.
        settings: solver and tiles.
        options: batch sizes, sharding, and what is written.
        parallel: this process's place.
        progress: shown to the user.
    """

    model: LoadedModel
    settings: SamplingSettings
    options: Options
    parallel: Parallel
    progress: Progress

    def run(self, requests: list[Request], conditions: Conditions) -> dict:
        """Make what is missing and sum up."""
        began = time.monotonic()
        self._check_shard()
        set_precision(self.model.recipe.train.precision, device=self.parallel.device)
        store = self._open_store()
        missing = store.missing(requests)
        sizes = self._batch_sizes(len(missing))
        if len(missing) < len(requests):
            done = len(requests) - len(missing)
            self.progress.say(f"{done} of {len(requests)} videos are already in {store.folder}")
        if missing:
            self._say_how(sizes)
        self.parallel.barrier()
        self.progress.start("generating videos", len(missing))
        for chunk in self._own_chunks(missing, sizes.videos):
            self._make(store, chunk, partial(self._generate, conditions=conditions, sizes=sizes))
            self.progress.advance(len(chunk))
        self.progress.stop()
        self.parallel.barrier()
        sheet = store.finish(requests) if self.parallel.is_main else None
        return {
            "out": str(store.folder),
            "videos": len(requests),
            "made": len(missing),
            "contact_sheet": str(sheet),
            "preview": str(store.folder / PREVIEW),
            "list": str(store.folder / LINES),
            "checkpoint": str(self.model.path),
            "settings": store.settings,
            "seconds": round(time.monotonic() - began, 1),
        }

    def _open_store(self) -> SampleStore:
        recorded = {
            "checkpoint": self.model.path.name,
            "sha256": self.model.sha256,
            "step": self.model.step,
            "recipe": self.model.recipe.name,
            "resolution": list(self.model.pyramid.resolution),
            "compare_overlaps": [overlap or "none" for overlap in self.options.compare],
            "save_levels": self.options.save_levels,
            **asdict(self.settings),
            "steps": [solver.steps for solver in self.settings.solvers],
            "overlap": self.settings.overlap or "none",
        }
        settings = json.loads(json.dumps(recorded))  # as a line of the list will hold it
        store = SampleStore(
            folder=self.options.out or free_folder(self.model.recipe.name, settings),
            formats=self.options.formats,
            fps=self.model.recipe.sampling.fps,
            settings=settings,
            rank=self.parallel.rank if self.options.shard == "videos" else 0,
        )
        store.open()
        return store

    def _own_chunks(self, missing: list[Request], batch: int) -> Iterator[list[Request]]:
        """Yield this process's batches: its share of the videos, or all where tiles are shared."""
        if self.options.shard == "videos":
            missing = missing[self.parallel.rank :: self.parallel.world_size]
        for start in range(0, len(missing), batch):
            yield missing[start : start + batch]

    def _make(self, store: SampleStore, chunk: list[Request], draw: SampleFn) -> None:
        levels = draw(self.settings, chunk)
        extras: dict[str, Tensor] = {}
        if self.options.save_levels:
            extras |= {f"level{k}": to_uint8(video) for k, video in enumerate(levels[:-1])}
        if self.options.compare:
            extras["compare"] = self._compare(chunk, draw, levels[-1])
        if self.options.shard == "tiles" and not self.parallel.is_main:
            return
        videos = to_uint8(levels[-1]).numpy()
        for place, request in enumerate(chunk):
            extra = {ending: video[place].numpy() for ending, video in extras.items()}
            store.write(request, videos[place], extra)

    def _generate(
        self,
        settings: SamplingSettings,
        chunk: list[Request],
        *,
        conditions: Conditions,
        sizes: BatchSizes,
    ) -> tuple[Tensor, ...]:
        done = [0] * len(settings.solvers)

        def advance(level: int, total: int) -> None:
            done[level] += 1
            self.progress.advance(
                0, level=f"{level + 1}/{len(done)}", step=f"{done[level]}/{total}"
            )

        return generate(
            self.model.denoiser,
            self.model.pyramid,
            settings,
            seeds=tuple(request.seed for request in chunk),
            condition=conditions.of(chunk),
            work=ExecutionOptions(
                device=self.parallel.device,
                tile_batch=sizes.tiles,
                make_cache=self._make_cache(),
                shard=self._tile_shard(),
                advance=advance,
            ),
        )

    def _compare(self, chunk: list[Request], draw: SampleFn, finest: Tensor) -> Tensor:
        """Return the same seeds under other overlaps, side by side: (b, t, h, sum of w, 3)."""
        parts = []
        for overlap in self.options.compare:
            if overlap != self.settings.overlap:
                settings = replace(self.settings, overlap=overlap)
                parts.append(draw(settings, chunk)[-1])
            else:
                parts.append(finest)
        return to_uint8(torch.cat(parts, dim=-1))

    def _tile_shard(self) -> TileShard:
        if self.options.shard == "videos" or self.parallel.world_size == 1:
            return TileShard()
        return TileShard(
            rank=self.parallel.rank,
            world_size=self.parallel.world_size,
            sum_over_processes=dist.all_reduce,
        )

    def _check_shard(self) -> None:
        if self.options.shard not in ("videos", "tiles"):
            raise HpdmError(
                "--shard says what processes share", got=self.options.shard,
                expected="videos or tiles",
            )  # fmt: skip

    def _make_cache(self) -> Callable[[], ActivationCache | None]:
        limit = self.options.cache_gb
        return cache_maker(
            self.options.cache,
            self.parallel.device,
            free=available_memory(torch.device("cpu")),
            limit=None if limit is None else int(limit * 1e9),
        )

    def _batch_sizes(self, count: int) -> BatchSizes:
        recipe, options = self.model.recipe, self.options
        return choose_batch_sizes(
            recipe,
            describe_sampling(recipe, self.settings),
            free=available_memory(self.parallel.device),
            count=count,
            most_tokens=TOKENS_PER_CALL[self.parallel.device.type],
            cached=options.cache != "off",
            videos=options.batch,
            tiles=options.tile_batch,
        )

    def _say_how(self, sizes: BatchSizes) -> None:
        cache = self._make_cache()()
        if cache is None:
            where = "computed again in every step"
        elif sizes.cache_bytes <= cache.device_budget:
            where = f"kept on {self.parallel.device}"
        elif sizes.cache_bytes <= cache.host_budget:
            where = "kept in the computer's memory"
        else:
            where = "kept as far as it fits, the rest computed again in every step"
        self.progress.say(
            f"{self.model.path} on {self.parallel.device}: {sizes.videos} videos at a time, "
            f"{sizes.tiles} tiles a pass; what does not change over the steps "
            f"({sizes.cache_bytes / 1e9:.2f} GB) is {where}"
        )


def _positive(value: int | None, option: str) -> int | None:
    if value is not None and value < 1:
        raise HpdmError(f"{option} counts", got=value, expected="at least 1")
    return value
