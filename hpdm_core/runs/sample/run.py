"""`hpdm sample`: generate videos from a checkpoint into a folder.

Run again, the same command generates only missing videos.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from hpdm_core.build import build_sampling
from hpdm_core.data.pictures import labelled_row
from hpdm_core.device import available_memory
from hpdm_core.inference.generate import SamplingSettings
from hpdm_core.inference.shard import TileShard
from hpdm_core.pipeline.conditions import Request
from hpdm_core.pipeline.pipeline import Pipeline
from hpdm_core.pipeline.plan import (
    BatchSizes,
    check_overlaps,
    memory_verdict,
    plan_sampling,
    with_options,
)
from hpdm_core.pipeline.pretrained import describe_model, model_name
from hpdm_core.pipeline.resources import Resources
from hpdm_core.pipeline.videos import to_uint8
from hpdm_core.progress import NoProgress, Progress
from hpdm_core.records import SAMPLING_VERSION
from hpdm_core.runs.sample.folder import COMPARISON, LINES, PREVIEW, SHEET, SampleStore, free_folder
from hpdm_core.runs.sample.given import TakenVideo, take_given
from hpdm_core.runs.sample.options import SampleOptions, requests_of
from hpdm_core.training.parallel import Parallel, start_parallel

logger = logging.getLogger("hpdm.runs")

# Generates a batch under given `settings`: per level (b, c, t, h, w).
SampleFn = Callable[..., tuple[Tensor, ...]]


def run_sample(options: SampleOptions, *, progress: Progress | None = None) -> dict:
    """Generate videos into a folder, or plan it.

    Args:
        options: of the command.
        progress: progress bar.

    Returns:
        videos and their folder, or with `dry_run` the plan.

    Raises:
        HpdmError: it cannot be done, with the remedy.
        KeyboardInterrupt: interrupted; finished videos are kept.
    """
    compare, progress = check_overlaps(options.compare_overlaps), progress or NoProgress()
    parallel = start_parallel(options.device, mode="ddp")
    try:
        pipeline, recipe = None, options.recipe
        if recipe is None:
            pipeline = Pipeline.from_pretrained(options.checkpoint, device=parallel.device)
            recipe = pipeline.recipe
        settings = with_options(
            build_sampling(recipe, preset=options.preset),
            overlap=options.overlap,
            steps=options.steps,
            guidance=options.guidance,
            text=recipe.model.conditioning == "text",
            pyramid=recipe.pyramid.build(),
            size=options.size,
        )
        taken = take_given(options.given, recipe, settings)
        settings = settings if taken is None else taken.settings
        plan = partial(
            plan_sampling,
            recipe,
            settings,
            cached=options.cache != "off",
            videos=options.batch,
            tiles=options.tile_batch,
            guided=taken is not None and taken.guides,
        )
        windows = {} if taken is None else {"windows": taken.windows}
        if pipeline is None:
            return plan(where=f"recipe {recipe.name}") | windows
        requests = requests_of(options, pipeline)
        if options.dry_run:
            sizes = pipeline.batch_sizes(settings, len(requests), options.resources(TileShard()))
            verdict = memory_verdict(recipe, sizes, free=available_memory(parallel.device))
            plan_here = {"videos": len(requests), "memory_verdict": verdict}
            plan_here["checkpoint"] = str(pipeline.path)
            return plan(where=describe_model(pipeline.path)) | plan_here | windows
        job = SampleJob(
            pipeline=pipeline,
            settings=settings,
            taken=taken,
            options=options,
            compare=compare,
            parallel=parallel,
            progress=progress if parallel.is_main else NoProgress(),
        )
        return job.run(requests)
    finally:
        parallel.close()


@dataclass(frozen=True, kw_only=True)
class SampleJob:
    """One process's part of `hpdm sample`.

    Args:
        pipeline: the model.
        settings: solver and tiles.
        taken: a given video on the levels' grids, or None.
        options: batch sizes, sharding and formats.
        compare: overlaps to put side by side, parsed.
        parallel: this process's rank and device.
        progress: progress bar.
    """

    pipeline: Pipeline
    settings: SamplingSettings
    taken: TakenVideo | None
    options: SampleOptions
    compare: list[str]
    parallel: Parallel
    progress: Progress

    def run(self, requests: list[Request]) -> dict:
        """Generate missing videos and return the summary."""
        began = time.monotonic()
        conditions = self.pipeline.conditions(requests, text_encoder=self.options.text_encoder)
        store = self._store()
        with store.opened():
            missing = store.missing(requests)
            resources = self.options.resources(self._tile_shard())
            sizes = self.pipeline.batch_sizes(self.settings, len(missing), resources)
            self._log_plan(store, len(requests), len(missing), sizes, resources)
            generate = partial(
                self.pipeline.generate,
                tile_batch=sizes.tiles,
                resources=resources,
                advance=self._step_counter(),
                given=None if self.taken is None else self.taken.given,
            )
            self.parallel.barrier()
            self.progress.start("generating videos", len(missing))
            for chunk in self._own_chunks(missing, sizes.videos):
                draw = partial(generate, [r.seed for r in chunk], conditions.of(chunk))
                levels = draw(settings=self.settings)
                self._write(store, chunk, levels[-1], self._extras(levels, draw))
                self.progress.advance(len(chunk))
            self.progress.stop()
            self.parallel.barrier()
            if self.parallel.is_main:
                store.finish(requests)
        return self._summary(store, requests, made=len(missing), began=began)

    def _summary(
        self, store: SampleStore, requests: list[Request], *, made: int, began: float
    ) -> dict:
        data = self.pipeline.data_folder
        return {
            "out": str(store.folder),
            "videos": len(requests),
            "made": made,
            "contact_sheet": str(store.folder / SHEET),
            "preview": str(store.folder / PREVIEW),
            "comparisons": store.comparisons(requests),
            "list": str(store.folder / LINES),
            "checkpoint": str(self.pipeline.path),
            "data": data if os.path.isdir(data) else None,
            "settings": store.settings,
            "seconds": round(time.monotonic() - began, 1),
        }

    def _store(self) -> SampleStore:
        recorded = {
            "checkpoint": self.pipeline.path.name,
            "sha256": self.pipeline.sha256,
            "step": self.pipeline.step,
            "recipe": self.pipeline.recipe.name,
            "sampling_version": SAMPLING_VERSION,
            "resolution": list(self.settings.size or self.pipeline.pyramid.resolution),
            "compare_overlaps": [overlap or "none" for overlap in self.compare],
            "save_levels": self.options.save_levels,
            **asdict(self.settings),
            "steps": [solver.steps for solver in self.settings.solvers],
            "overlap": self.settings.overlap or "none",
        }
        if self.taken is not None:
            recorded |= {**self.taken.facts, "resolution": list(self.taken.size)}
        settings = json.loads(json.dumps(recorded))  # as read back from JSON
        return SampleStore(
            folder=self.options.out or free_folder(model_name(self.pipeline.path), settings),
            formats=self.options.formats,
            fps=self.pipeline.recipe.sampling.fps,
            settings=settings,
            rank=self.parallel.rank,
        )

    def _own_chunks(self, missing: list[Request], batch: int) -> Iterator[list[Request]]:
        """Yield this process's batches: its part of the videos, or all if tiles are sharded."""
        if self.options.shard == "videos":
            missing = missing[self.parallel.rank :: self.parallel.world_size]
        for start in range(0, len(missing), batch):
            yield missing[start : start + batch]

    def _extras(self, levels: tuple[Tensor, ...], draw: SampleFn) -> dict[str, Tensor]:
        """Return what is written besides the videos, uint8 (b, t, h, w, 3), by ending of the name:
        lower levels, and the same seeds under other overlaps."""
        extras: dict[str, Tensor] = {}
        if self.options.save_levels:
            extras |= {f"level{k}": to_uint8(video) for k, video in enumerate(levels[:-1])}
        if self.compare:
            extras[COMPARISON] = self._compare(draw, levels[-1])
        return extras

    def _write(
        self, store: SampleStore, chunk: list[Request], finest: Tensor, extras: dict[str, Tensor]
    ) -> None:
        if self.options.shard == "tiles" and not self.parallel.is_main:
            return
        videos = to_uint8(finest).numpy()
        for place, request in enumerate(chunk):
            extra = {ending: video[place].numpy() for ending, video in extras.items()}
            store.write(request, videos[place], extra)

    def _step_counter(self) -> Callable[[int, int], None]:
        """Return what shows a level's solver steps; they count anew in each batch."""
        done = [0] * len(self.settings.solvers)
        windows = 1 if self.taken is None else self.taken.windows

        def advance(level: int, calls: int) -> None:
            total = calls * windows
            done[level] = done[level] % total + 1
            self.progress.advance(
                0, level=f"{level + 1}/{len(done)}", step=f"{done[level]}/{total}"
            )

        return advance

    def _compare(self, draw: SampleFn, finest: Tensor) -> Tensor:
        """Return the same seeds under other overlaps, side by side and labelled: (b, t, h, w, 3).

        Small videos are enlarged.
        """
        parts = []
        for overlap in self.compare:
            if overlap != self.settings.overlap:
                parts.append(draw(settings=replace(self.settings, overlap=overlap))[-1])
            else:
                parts.append(finest)
        labels = [f"overlap {overlap or 'none'}" for overlap in self.compare]
        videos = zip(*(to_uint8(part).numpy() for part in parts), strict=True)
        return torch.from_numpy(np.stack([labelled_row(row, labels) for row in videos]))

    def _tile_shard(self) -> TileShard:
        if self.options.shard == "videos" or self.parallel.world_size == 1:
            return TileShard()
        return TileShard(
            rank=self.parallel.rank,
            world_size=self.parallel.world_size,
            sum_over_processes=dist.all_reduce,
        )

    def _log_plan(
        self, store: SampleStore, videos: int, missing: int, sizes: BatchSizes, resources: Resources
    ) -> None:
        if missing < videos:
            done = videos - missing
            logger.info("already in %s: %d of %d videos", store.folder, done, videos)
        if not missing:
            return
        cache = resources.cache_maker(self.parallel.device)()
        if cache is None:
            where = "off"
        elif sizes.cache_bytes <= cache.device_budget:
            where = f"kept on {self.parallel.device}"
        elif sizes.cache_bytes <= cache.host_budget:
            where = "kept in host memory"
        else:
            where = "kept as far as it fits"
        logger.info(
            "%s on %s: videos in batches of %d, tiles of %d; activation cache (%.2f GB): %s",
            describe_model(self.pipeline.path), self.parallel.device, sizes.videos, sizes.tiles,
            sizes.cache_bytes / 1e9, where,
        )  # fmt: skip
