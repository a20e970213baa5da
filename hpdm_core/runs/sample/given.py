"""Options of `hpdm sample` on a given video."""

from dataclasses import dataclass
from pathlib import Path

from hpdm_core.errors import HpdmError
from hpdm_core.geometry.canvas import on_canvas
from hpdm_core.geometry.pyramid import Size3
from hpdm_core.inference.generate import SamplingSettings
from hpdm_core.inference.given import Continuation, Given, num_windows
from hpdm_core.pipeline.editing import Edit
from hpdm_core.pipeline.inputs import Source, read_mask
from hpdm_core.recipe.schema import Recipe


@dataclass(frozen=True, kw_only=True)
class GivenOptions:
    """A given video and what is done with it, as on the command line; see `Edit`.

    Args:
        input: the video's file.
        upscale: take it for the finished lower levels.
        consistent: whether an upscaled video, brought down again, is the given one.
        strength: fraction of each level's schedule that is sampled.
        mask: box x,y,w,h, or the path of an image or video, white where pixels are generated.
        repeats: how often each step is made, with a mask.
        first_frames: frames that are kept, the others being generated.
        extend: frames to add.
        context_noise: noise level of finished levels in the context of finer ones.
    """

    input: Path | None = None
    upscale: bool = False
    consistent: bool = True
    strength: tuple[float, ...] | None = None
    mask: str | None = None
    repeats: tuple[int, ...] | None = None
    first_frames: int | None = None
    extend: int | None = None
    context_noise: float | None = None

    def edit(self) -> Edit | None:
        """Return what is done with the video, None without one.

        Raises:
            HpdmError: options that need a video without one, or that exclude each other; the
                video or the mask cannot be read.
        """
        given = {
            "--upscale": self.upscale or None, "--strength": self.strength, "--mask": self.mask,
            "--first-frames": self.first_frames, "--extend": self.extend,
            "--context-noise": self.context_noise,
            "--no-consistent": None if self.consistent else True,
            "--repeats": self.repeats,
        }  # fmt: skip
        named = [name for name, value in given.items() if value is not None]
        if self.input is None:
            if named:
                raise HpdmError(f"{named[0]} is about a given video", remedy="add --input VIDEO")
            return None
        source = Source(path=self.input)
        continues = self.first_frames is not None or self.extend is not None
        return Edit(
            source=source,
            upscale=self.upscale,
            consistent=self.consistent,
            strength=self.strength or (),
            mask=None if self.mask is None else read_mask(self.mask, source),
            repeats=self.repeats or (1,),
            continues=continues,
            first_frames=self.first_frames,
            extend=self.extend,
            context_noise=self.context_noise,
        )


@dataclass(frozen=True, kw_only=True)
class TakenVideo:
    """A given video as sampling takes it.

    Args:
        given: on the levels' grids.
        settings: sampling settings that start where it says.
        facts: what the result depends on besides the settings.
        size: (t, h, w) of the result.
        windows: how many videos are sampled one after another.
        guides: whether known pixels guide level 0.
    """

    given: Given | Continuation
    settings: SamplingSettings
    facts: dict[str, object]
    size: Size3
    windows: int
    guides: bool


def take_given(
    options: GivenOptions, recipe: Recipe, settings: SamplingSettings
) -> TakenVideo | None:
    """Read a given video, None if there is none.

    Raises:
        HpdmError: the video, the mask or the options cannot be used.
    """
    edit = options.edit()
    if edit is None:
        return None
    pyramid = on_canvas(recipe.pyramid.build(), settings.size)
    settings = edit.settings(settings, pyramid)
    given = edit.given(pyramid, fps=recipe.sampling.fps)
    windows, size = 1, edit.result_size(pyramid, given)
    guides = isinstance(given, Continuation) or given.guides(0)
    if isinstance(given, Continuation):
        have = given.known.shape[2]
        windows = num_windows(pyramid, have=have, frames=given.frames)
    return TakenVideo(
        given=given,
        settings=settings,
        facts=edit.facts(),
        size=size,
        windows=windows,
        guides=guides,
    )
