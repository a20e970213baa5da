"""Options of `hpdm sample` with their defaults, and the requests: one per video."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hpdm_core.data.metadata import read_lines
from hpdm_core.errors import DataError, HpdmError
from hpdm_core.inference.shard import TileShard
from hpdm_core.names import has_unprintable
from hpdm_core.pipeline.conditions import Request, default_count, make_requests
from hpdm_core.pipeline.pipeline import Pipeline
from hpdm_core.pipeline.resources import CacheMode, Resources
from hpdm_core.recipe.sampling import Preset
from hpdm_core.recipe.schema import Recipe
from hpdm_core.runs.sample.given import GivenOptions

MOST_VIDEOS, MOST_AT_ONCE, MOST_CACHE_GB = 1_000_000, 1 << 24, 1e6


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """The options of `hpdm sample`; unless stated otherwise, None uses the recipe's value.

    Args:
        checkpoint: what `find_model` resolves; None uses the newest run, else the shipped model.
        recipe: in place of a checkpoint, with `dry_run` only.
        num: number of videos; None: one for each class or prompt, else for each class, or 8.
        classes: names or indices; none: all in turn.
        prompts: texts, for models conditioned on text.
        prompt_file: more of them, one per line.
        text_encoder: for prompts; None uses that of the training data.
        seed: of the first video; the next has `seed + 1`.
        overlap: axes along which tiles overlap by half, such as 'fhw'.
        preset: schedule, 'paper' or 'fast'.
        steps: solver steps of each level, coarsest first.
        guidance: classifier-free guidance scale, 1 disables it.
        compare_overlaps: overlaps to compare side by side, at the same seeds.
        size: frames, height, width of a canvas larger than the model's videos.
        given: a given video and what is done with it.
        out: folder to write to; None uses one below samples/.
        formats: any of 'mp4', 'gif', 'webp', 'png'.
        save_levels: also write the video of every level.
        cache: see `Resources`.
        cache_gb: see `Resources`.
        batch: videos at a time; None: chosen from free memory.
        tile_batch: tiles in one pass of the network; None: chosen from free memory.
        shard: split 'videos', or the 'tiles' of each video, over processes.
        device: 'auto', 'cpu' or 'cuda'.
        dry_run: compute the cost only.

    Raises:
        HpdmError: an option is out of range.
    """

    checkpoint: str | None = None
    recipe: Recipe | None = None
    num: int | None = None
    classes: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    prompt_file: Path | None = None
    text_encoder: str | None = None
    seed: int = 0
    overlap: str | None = None
    preset: Preset | None = None
    steps: tuple[int, ...] | None = None
    guidance: float | None = None
    compare_overlaps: tuple[str, ...] = ()
    size: tuple[int, ...] | None = None
    given: GivenOptions = field(default_factory=GivenOptions)
    out: Path | None = None
    formats: tuple[str, ...] = ("mp4",)
    save_levels: bool = False
    cache: CacheMode = "auto"
    cache_gb: float | None = None
    batch: int | None = None
    tile_batch: int | None = None
    shard: Literal["videos", "tiles"] = "videos"
    device: str = "auto"
    dry_run: bool = False

    def __post_init__(self) -> None:
        for value, option in ((self.batch, "--batch"), (self.tile_batch, "--tile-batch")):
            if value is not None and not 1 <= value <= MOST_AT_ONCE:
                raise HpdmError(
                    f"{option} counts", got=value, expected=f"from 1 to {MOST_AT_ONCE:,}"
                )
        if self.cache_gb is not None and not 0 <= self.cache_gb <= MOST_CACHE_GB:
            raise HpdmError("--cache-gb is a size in GB", got=self.cache_gb, expected="0 or more")
        if self.num is not None and not 1 <= self.num <= MOST_VIDEOS:
            raise HpdmError(
                "--num counts videos", got=self.num, expected=f"from 1 to {MOST_VIDEOS:,}",
                remedy="make more of them with other --seed and --out",
            )  # fmt: skip
        if self.shard not in ("videos", "tiles"):
            raise HpdmError(
                "--shard says what processes share", got=self.shard, expected="videos or tiles"
            )
        if self.recipe is not None and not self.dry_run:
            raise HpdmError("--recipe plans only", remedy="add --dry-run, or give --checkpoint")

    def resources(self, shard: TileShard) -> Resources:
        """Return what one process may use; `shard` is its part of the tiles."""
        return Resources(
            batch=self.batch,
            tile_batch=self.tile_batch,
            cache=self.cache,
            cache_gb=self.cache_gb,
            shard=shard,
        )


def requests_of(options: SampleOptions, pipeline: Pipeline) -> list[Request]:
    """Spread classes or prompts over the videos in turn, with rising seeds.

    Without `num`: one video for each class or prompt asked for, else one of a given video, else
    `default_count`.

    Raises:
        HpdmError: unknown class or unsupported condition.
    """
    classes, prompts = options.classes, (*options.prompts, *_lines(options.prompt_file))
    for prompt in prompts:
        if not prompt.strip() or has_unprintable(prompt):
            raise HpdmError("a prompt is a line of text", got=ascii(prompt)[:60])
    edited = options.given.input is not None
    default = 1 if edited else default_count(pipeline.classes)
    count = options.num or len(prompts) or len(classes) or default
    return make_requests(
        pipeline.recipe,
        pipeline.classes,
        classes=_by_turns(classes, count),
        prompts=_by_turns(prompts, count),
        seeds=range(options.seed, options.seed + count),
        edited=edited,
    )


def _by_turns(names: tuple[str, ...], count: int) -> list[str]:
    return [names[i % len(names)] for i in range(count)] if names else []


def _lines(path: Path | None) -> list[str]:
    if path is None:
        return []
    if not path.is_file():
        raise DataError("no prompt file", got=path, expected="a text file with a prompt per line")
    return [text for _, text in read_lines(path)]
