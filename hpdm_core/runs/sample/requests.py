"""Requests of `hpdm sample`: one per video, with seed, and class or prompt."""

from pathlib import Path

from hpdm_core.errors import DataError, HpdmError
from hpdm_core.pipeline.conditions import Request, default_count, make_requests
from hpdm_core.pipeline.pipeline import Pipeline
from hpdm_core.runs.sample.options import SampleOptions


def requests_of(options: SampleOptions, pipeline: Pipeline) -> list[Request]:
    """Spread classes or prompts over the videos in turn, with rising seeds.

    Without `num`: one video for each class or prompt asked for, else `default_count`.

    Raises:
        HpdmError: unknown class or unsupported condition.
    """
    classes, prompts = options.classes, (*options.prompts, *_lines(options.prompt_file))
    if options.num is not None and options.num < 1:
        raise HpdmError("--num counts videos", got=options.num, expected="at least 1")
    count = options.num or len(prompts) or len(classes) or default_count(pipeline.classes)
    return make_requests(
        pipeline.recipe,
        pipeline.classes,
        classes=_by_turns(classes, count),
        prompts=_by_turns(prompts, count),
        seeds=range(options.seed, options.seed + count),
    )


def _by_turns(names: tuple[str, ...], count: int) -> list[str]:
    return [names[i % len(names)] for i in range(count)] if names else []


def _lines(path: Path | None) -> list[str]:
    if path is None:
        return []
    if not path.is_file():
        raise DataError("no prompt file", got=path, expected="a text file with a prompt per line")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line]
