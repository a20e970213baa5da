"""Consistency of a recipe's fields: number of levels, kind of block, tokens.

Each check yields messages; the schema raises them together.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hpdm_core.recipe.sampling import PRESETS

if TYPE_CHECKING:  # the schema imports this module
    from hpdm_core.recipe.sampling import SamplingRecipe
    from hpdm_core.recipe.schema import ModelRecipe, Recipe

STOCHASTIC_SOLVERS = ("heun", "euler")


def block_problems(model: "ModelRecipe") -> Iterator[str]:
    """Yield fields that a kind of block requires or forbids."""
    if model.block != "transformer":
        for name in ("latent_width", "num_latents"):
            if getattr(model, name) is None:
                yield f"model.{name} is missing, which block: {model.block} needs"
        return
    if model.data_width % model.head_width:
        yield (
            f"model.head_width {model.head_width} does not divide model.data_width "
            f"{model.data_width}, as block: transformer needs; change one of them"
        )
    if model.self_conditioning > 0:
        yield (
            f"model.self_conditioning is {model.self_conditioning:g}, expected 0 with block: "
            "transformer, which has no latents; set it to 0"
        )


def level_problems(recipe: "Recipe") -> Iterator[str]:
    """Yield lists whose length is not the number of levels, and invalid solver settings."""
    levels = len(recipe.pyramid.levels)
    diffusion, sampling = recipe.diffusion, recipe.sampling
    lists = {
        f"diffusion.{name}": getattr(diffusion, name)
        for name in ("sigma_in", "noise_mean", "noise_std", "level_weights")
    }
    many = {f"sampling.{name}": getattr(sampling, name) for name in sampling.by_level_fields()}
    for preset in PRESETS:
        given = getattr(sampling, preset).given().items()
        many |= {f"sampling.{preset}.{name}": values for name, values in given}
    lists |= {name: values for name, values in many.items() if len(values) != 1}
    wrong = {name: len(values) for name, values in lists.items() if len(values) != levels}
    for name, count in wrong.items():
        yield f"{name} has {count} values, expected {levels}: one per level of pyramid.levels"
    if not any(name.startswith("sampling.") for name in wrong):
        yield from _solver_problems(sampling, levels, "sampling")
        for preset in PRESETS:
            if getattr(sampling, preset).given():
                yield from _solver_problems(
                    sampling.with_preset(preset), levels, f"sampling.{preset}"
                )
    distill = recipe.train.distill
    if distill is not None:
        yield from _student_problems(sampling, distill, levels)
    most = max(recipe.model.levels_per_block, default="nothing")
    if most != levels:
        yield (
            f"model.levels_per_block goes up to {most}, expected {levels}: "
            "a block must run on every level"
        )


def _solver_problems(sampling: "SamplingRecipe", levels: int, section: str) -> Iterator[str]:
    names = ("sigma_min", "sigma_max", "s_min", "s_max", "churn", "solver")
    columns = [sampling.by_level(name, levels) for name in names]
    for level, (low, high, s_low, s_high, churn, solver) in enumerate(zip(*columns, strict=True)):
        if low >= high:
            yield (
                f"{section}.sigma_min {low:g} must be below {section}.sigma_max {high:g} "
                f"(level {level})"
            )
        if s_low >= s_high:
            yield (
                f"{section}.s_min {s_low:g} must be below {section}.s_max {s_high:g} "
                f"(level {level})"
            )
        if churn > 0 and solver not in STOCHASTIC_SOLVERS:
            yield (
                f"{section}.churn is {churn:g} on level {level}, whose solver {solver} is "
                f"deterministic; set it to 0 or take {' or '.join(STOCHASTIC_SOLVERS)}"
            )


def _student_problems(
    sampling: "SamplingRecipe", distill: tuple[int, ...], levels: int
) -> Iterator[str]:
    if len(distill) != levels:
        yield (
            f"train.distill has {len(distill)} values, expected {levels}: "
            "one per level of pyramid.levels"
        )
        return
    euler = {*sampling.solver} == {"euler"} and not any(sampling.churn)
    if not euler or sampling.guidance != 1 or sampling.by_level("steps", levels) != distill:
        yield (
            f"train.distill {list(distill)} needs a student's schedule under sampling: solver "
            f"euler, churn 0, guidance 1 and steps {list(distill)}, as `hpdm finetune --distill` "
            "sets it"
        )


def token_problems(recipe: "Recipe") -> Iterator[str]:
    """Yield axes of the patch that tokens do not divide."""
    for axis, patch, token in zip(
        ("frames", "height", "width"), recipe.pyramid.patch, recipe.model.token, strict=True
    ):
        if patch % token:
            yield (
                f"pyramid.patch has {axis} {patch}, which model.token's {token} does not divide; "
                "change one of them"
            )
