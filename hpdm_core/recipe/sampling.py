"""The section `sampling` of a recipe: solver by level, tiles, and schedules of other costs."""

import math
from collections.abc import Mapping
from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from hpdm_core.geometry.pyramid import AXES
from hpdm_core.recipe.fields import (
    BY_LEVEL,
    AboveZero,
    NotNegative,
    Positive,
    Section,
    Solver,
)

Preset = Literal["paper", "fast"]
PRESETS: tuple[Preset, ...] = get_args(Preset)
# A fast schedule that no recipe gives: this fraction of the steps, but not fewer than these.
FAST_FRACTION, FEWEST_FAST_STEPS = 0.25, 4


class ScheduleRecipe(Section):
    """Fields of `sampling` that a preset changes; it takes the others from `sampling`."""

    solver: Annotated[tuple[Solver, ...] | None, BY_LEVEL] = Field(None, description="solver")
    steps: Annotated[tuple[Positive, ...] | None, BY_LEVEL] = Field(
        None, description="solver steps"
    )
    sigma_min: Annotated[tuple[AboveZero, ...] | None, BY_LEVEL] = Field(
        None, description="smallest noise level"
    )
    sigma_max: Annotated[tuple[AboveZero, ...] | None, BY_LEVEL] = Field(
        None, description="largest noise level"
    )
    churn: Annotated[tuple[NotNegative, ...] | None, BY_LEVEL] = Field(
        None, description="stochasticity (EDM's S_churn)"
    )

    def given(self) -> dict[str, tuple]:
        """Return the fields that are set."""
        return {name: value for name, value in dict(self).items() if value is not None}


def student_overrides(sampling: "SamplingRecipe", evaluations: tuple[int, ...]) -> list[str]:
    """Return the overrides of a recipe for a student with so many evaluations per level.

    Its noise levels are those of EDM's schedule with one step more, whose smallest one is left out:
    a few evaluations are too many to spend one on noise that cannot be seen.

    Args:
        sampling: of the recipe.
        evaluations: per level, coarsest first.
    """
    levels, power = len(evaluations), 1 / sampling.rho
    ranges = zip(
        evaluations,
        sampling.by_level("sigma_max", levels),
        sampling.by_level("sigma_min", levels),
        strict=False,  # a wrong number of levels is refused with the recipe
    )
    smallest = [
        (high**power + (count - 1) / count * (low**power - high**power)) ** sampling.rho
        if count > 1
        else low
        for count, high, low in ranges
    ]
    presets = [f"sampling.{preset}.{field}" for preset in PRESETS
               for field in ScheduleRecipe.model_fields]  # fmt: skip
    return [
        f"train.distill={list(evaluations)}",
        f"sampling.steps={list(evaluations)}",
        f"sampling.sigma_min={[float(f'{sigma:.4g}') for sigma in smallest]}",
        "sampling.solver=euler",
        "sampling.churn=0",
        "sampling.guidance=1",
        "sampling.guidance_interval=null",
        *(f"{name}=null" for name in presets),
        f"sampling.fast.steps={list(evaluations)}",  # a student knows one schedule
    ]


class SamplingRecipe(Section):
    """Solver by level, and tiles (Sec. 4.4, appendix A; Karras et al. 2022)."""

    solver: Annotated[tuple[Solver, ...], BY_LEVEL] = Field(
        ("euler",), description="heun and euler can be stochastic, the multistep dpmpp_* cannot"
    )
    steps: Annotated[tuple[Positive, ...], BY_LEVEL] = Field(description="solver steps")
    sigma_min: Annotated[tuple[AboveZero, ...], BY_LEVEL] = Field(
        (0.002,), description="smallest noise level"
    )
    sigma_max: Annotated[tuple[AboveZero, ...], BY_LEVEL] = Field(
        (80.0,), description="largest noise level"
    )
    rho: AboveZero = Field(7.0, description="exponent of EDM's noise schedule")
    churn: Annotated[tuple[NotNegative, ...], BY_LEVEL] = Field(
        (0.0,), description="stochasticity (EDM's S_churn); 0 is deterministic"
    )
    s_min: Annotated[tuple[NotNegative, ...], BY_LEVEL] = Field(
        (0.05,), description="smallest noise level with stochasticity (EDM's S_min)"
    )
    s_max: Annotated[tuple[AboveZero, ...], BY_LEVEL] = Field(
        (50.0,), description="largest noise level with stochasticity (EDM's S_max)"
    )
    s_noise: Annotated[tuple[AboveZero, ...], BY_LEVEL] = Field(
        (1.003,), description="factor on added noise (EDM's S_noise)"
    )
    clip_denoised: bool = Field(False, description="clip each estimate of the video to [-1, 1]")
    overlap: str = Field(
        "hw", description="axes along which tiles overlap by half: none or letters of fhw"
    )
    guidance: NotNegative = Field(1.0, description="classifier-free guidance scale; 1 disables it")
    guidance_interval: tuple[NotNegative, NotNegative] | None = Field(
        None, description="smallest and largest noise level with guidance; default: all"
    )
    fps: AboveZero = Field(25.0, description="frames per second of written videos")
    paper: ScheduleRecipe = Field(
        ScheduleRecipe(),
        description="`--preset paper`: as many steps as the paper takes; default: the above",
    )
    fast: ScheduleRecipe = Field(
        ScheduleRecipe(),
        description="`--preset fast`: fewer block passes; default: a quarter of the steps and of "
        "churn, or the above where `paper` is set",
    )

    @model_validator(mode="after")
    def _sound(self) -> "SamplingRecipe":
        letters = "" if self.overlap == "none" else self.overlap
        if self.overlap == "" or set(letters) - set(AXES) or len(set(letters)) != len(letters):
            raise ValueError(
                f"overlap is {self.overlap!r}, expected none, f, h, w, fh, fw, hw or fhw"
            )
        interval = self.guidance_interval
        if interval is not None and interval[0] >= interval[1]:
            raise ValueError(
                f"guidance_interval {list(interval)} is empty; give the smaller noise level first"
            )
        return self

    def by_level_fields(self) -> list[str]:
        """Return the fields that hold one value for all levels, or a list of one per level."""
        fields = type(self).model_fields.items()
        return [name for name, field in fields if BY_LEVEL in field.metadata]

    def with_preset(self, preset: Preset | None) -> "SamplingRecipe":
        """Return the section with a preset's schedule; None returns it as it is."""
        if preset is None:
            return self
        given: Mapping[str, tuple] = getattr(self, preset).given()
        if preset == "fast" and not given and not self.paper.given():
            fewest = FEWEST_FAST_STEPS
            fast = (max(min(n, fewest), math.ceil(n * FAST_FRACTION)) for n in self.steps)
            churn = tuple(value * FAST_FRACTION for value in self.churn)
            given = {"steps": tuple(fast), "churn": churn}
        return self.model_copy(update=given)

    def by_level(self, name: str, levels: int) -> tuple:
        """Return a field's value for each level; a single value holds for all of them."""
        values = getattr(self, name)
        return values * levels if len(values) == 1 else values
