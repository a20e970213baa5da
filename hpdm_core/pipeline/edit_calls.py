"""`Pipeline.upscale`, `edit`, `inpaint` and `extend`: calls that are given a video."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hpdm_core.pipeline.editing import Edit
from hpdm_core.pipeline.inputs import as_source, read_mask
from hpdm_core.pipeline.resources import Resources
from hpdm_core.pipeline.videos import Videos
from hpdm_core.progress import Progress
from hpdm_core.recipe.sampling import Preset

if TYPE_CHECKING:
    from hpdm_core.pipeline.pipeline import Pipeline


def upscale(
    pipe: "Pipeline",
    video: object,
    *,
    level: int | None = None,
    consistent: bool = True,
    context_noise: float | None = None,
    classes: str | int | Sequence[str | int] = (),
    prompts: str | Sequence[str] = (),
    seeds: int | Sequence[int] | None = None,
    preset: Preset | None = None,
    overlap: str | None = None,
    steps: Sequence[int] | None = None,
    guidance: float | None = None,
    text_encoder: str | None = None,
    size: Sequence[int] | None = None,
    resources: Resources | None = None,
    progress: Progress | None = None,
) -> Videos:
    """Take a video for the finished lower levels, and generate the finer ones.

    Args:
        video: a file's path, (t, h, w, 3) uint8, or generated `Videos` of one.
        level: that it is brought to; None: the finest lower level no larger than the video.
        consistent: whether the result, brought down again, is the video.
        context_noise: noise level at which finer levels see it; None: the recipe's.

    The others are those of a call; without classes the video is made without one.

    Raises:
        HpdmError: the video, or an option, cannot be used.
    """
    given = Edit(
        source=as_source(video),
        upscale=True,
        level=level,
        consistent=consistent,
        context_noise=context_noise,
    )
    return pipe(
        classes=classes, prompts=prompts, seeds=seeds, preset=preset, overlap=overlap, steps=steps,
        guidance=guidance, text_encoder=text_encoder, size=size, resources=resources,
        progress=progress, given=given,
    )  # fmt: skip


def edit(
    pipe: "Pipeline",
    video: object,
    *,
    strength: float | Sequence[float],
    classes: str | int | Sequence[str | int] = (),
    prompts: str | Sequence[str] = (),
    seeds: int | Sequence[int] | None = None,
    preset: Preset | None = None,
    overlap: str | None = None,
    steps: Sequence[int] | None = None,
    guidance: float | None = None,
    text_encoder: str | None = None,
    size: Sequence[int] | None = None,
    resources: Resources | None = None,
    progress: Progress | None = None,
) -> Videos:
    """Generate from the video with noise, in place of noise alone (SDEdit), on every level.

    Args:
        video: a file's path, (t, h, w, 3) uint8, or generated `Videos` of one.
        strength: fraction of each level's schedule that is sampled, 0 keeps the video and 1
            uses nothing of it; one for all levels, or one for each, coarsest first.

    The others are those of a call; without classes the video is made without one.

    Raises:
        HpdmError: the video, or an option, cannot be used.
    """
    given = Edit(
        source=as_source(video),
        strength=(strength,) if isinstance(strength, int | float) else tuple(strength),
    )
    return pipe(
        classes=classes, prompts=prompts, seeds=seeds, preset=preset, overlap=overlap, steps=steps,
        guidance=guidance, text_encoder=text_encoder, size=size, resources=resources,
        progress=progress, given=given,
    )  # fmt: skip


def inpaint(
    pipe: "Pipeline",
    video: object,
    mask: object,
    *,
    repeats: int | Sequence[int] = 1,
    classes: str | int | Sequence[str | int] = (),
    prompts: str | Sequence[str] = (),
    seeds: int | Sequence[int] | None = None,
    preset: Preset | None = None,
    overlap: str | None = None,
    steps: Sequence[int] | None = None,
    guidance: float | None = None,
    text_encoder: str | None = None,
    size: Sequence[int] | None = None,
    resources: Resources | None = None,
    progress: Progress | None = None,
) -> Videos:
    """Generate the pixels under a mask; the others are those of the video.

    Args:
        video: a file's path, (t, h, w, 3) uint8, or generated `Videos` of one.
        mask: a box (x, y, width, height), an array (h, w) or (t, h, w), not 0 where pixels are
            generated, or the path of an image or video, white there.
        repeats: how often each step is made, with noise added in between (RePaint); one for
            all levels, or one for each.

    The others are those of a call; without classes the video is made without one.

    Raises:
        HpdmError: the video, or an option, cannot be used.
    """
    source = as_source(video)
    given = Edit(
        source=source,
        mask=read_mask(mask, source),
        repeats=(repeats,) if isinstance(repeats, int) else tuple(repeats),
    )
    return pipe(
        classes=classes, prompts=prompts, seeds=seeds, preset=preset, overlap=overlap, steps=steps,
        guidance=guidance, text_encoder=text_encoder, size=size, resources=resources,
        progress=progress, given=given,
    )  # fmt: skip


def extend(
    pipe: "Pipeline",
    video: object,
    *,
    frames: int | None = None,
    first_frames: int | None = None,
    classes: str | int | Sequence[str | int] = (),
    prompts: str | Sequence[str] = (),
    seeds: int | Sequence[int] | None = None,
    preset: Preset | None = None,
    overlap: str | None = None,
    steps: Sequence[int] | None = None,
    guidance: float | None = None,
    text_encoder: str | None = None,
    size: Sequence[int] | None = None,
    resources: Resources | None = None,
    progress: Progress | None = None,
) -> Videos:
    """Continue a video in time, in windows that overlap and hold the frames before.

    Args:
        video: a file's path, (t, h, w, 3) uint8, or generated `Videos` of one.
        frames: to add; None: up to the model's length.
        first_frames: of the video, which are kept; None: all.

    The others are those of a call; without classes the video is made without one.

    Raises:
        HpdmError: the video, or an option, cannot be used.
    """
    given = Edit(source=as_source(video), continues=True, first_frames=first_frames, extend=frames)
    return pipe(
        classes=classes, prompts=prompts, seeds=seeds, preset=preset, overlap=overlap, steps=steps,
        guidance=guidance, text_encoder=text_encoder, size=size, resources=resources,
        progress=progress, given=given,
    )  # fmt: skip
