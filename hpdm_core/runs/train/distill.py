"""`hpdm finetune --distill`: the teacher of a student, and what the student saves."""

import json
from pathlib import Path

from hpdm_core.build import build_diffusion, build_distillation, build_sampling
from hpdm_core.errors import CheckpointError, RecipeError
from hpdm_core.files import write_text
from hpdm_core.pipeline.plan import describe_sampling
from hpdm_core.pipeline.pretrained import find_model, read_header, read_network
from hpdm_core.recipe.schema import Recipe
from hpdm_core.training.loop import Loss
from hpdm_core.training.parallel import Parallel

TEACHER = "teacher.json"  # in the student's run: which weights taught it


def check_teacher(recipe: Recipe, init_from: str | Path | None) -> None:
    """Refuse a student's recipe without a teacher of the same network.

    Raises:
        RecipeError: there is no teacher, or it has another network or pyramid.
        CheckpointError: it cannot be read.
    """
    if recipe.train.distill is None:
        return
    if init_from is None:
        raise RecipeError(
            "a student needs a teacher",
            got=f"train.distill {list(recipe.train.distill)} without a base model",
            remedy="run `hpdm finetune RECIPE --from RUN --distill N,N,N`",
        )
    _check_same_network(recipe, read_header(find_model(init_from)).recipe)


def build_loss(
    recipe: Recipe, init_from: str | Path | None, *, out: Path, parallel: Parallel
) -> Loss:
    """Return the loss of a recipe; a student's run remembers its teacher's weights.

    Args:
        recipe: of the run.
        init_from: the teacher, for a student's recipe.
        out: the run's folder.
        parallel: this process's rank and device.

    Raises:
        CheckpointError: there is no such teacher, or the run has another one.
    """
    if recipe.train.distill is None:
        return build_diffusion(recipe).loss
    path = find_model(init_from)
    header = read_header(path)
    network, sha256 = read_network(path, header)
    _check_same_teacher(out / TEACHER, path, sha256)
    if parallel.is_main:
        write_text(out / TEACHER, json.dumps({"sha256": sha256, "recipe": header.recipe.name}))
    return build_distillation(recipe, header.recipe, network.to(parallel.device)).loss


def plan_distillation(recipe: Recipe, init_from: str | Path) -> dict[str, int]:
    """Return the block passes of one video: the teacher's by its own recipe, and the student's."""
    teacher = read_header(find_model(init_from)).recipe
    return {
        name: sum(row["block_passes_cached"] for row in describe_sampling(own, build_sampling(own)))
        for name, own in (("teacher", teacher), ("student", recipe))
    }


def _check_same_network(student: Recipe, teacher: Recipe) -> None:
    differing = []
    for section in ("pyramid", "model", "diffusion"):
        own, its = (dict(getattr(recipe, section)) for recipe in (student, teacher))
        for name in own:
            # Class counts may come from the data; level and noise laws are of training alone.
            free = ("num_classes", "dropout", "level_weights", "noise_mean", "noise_std",
                    "clean_context", "condition_dropout")  # fmt: skip
            if own[name] != its[name] and name not in free:
                differing.append(f"{section}.{name}: {its[name]} -> {own[name]}")
    if differing:
        raise RecipeError(
            f"the student differs from its teacher {teacher.name} ({'; '.join(differing)})",
            remedy="give the recipe that the teacher was trained by, and no overrides of these",
        )


def _check_same_teacher(record: Path, path: Path, sha256: str) -> None:
    if not record.is_file():
        return
    try:
        before = json.loads(record.read_bytes())["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{record} is damaged", got=error, remedy="give another --out to start again"
        ) from error
    if before != sha256:
        raise CheckpointError(
            f"the run in {record.parent} has another teacher",
            got=f"{path} ({sha256[:12]})",
            expected=f"the weights {str(before)[:12]} that it was started from",
            remedy="name the checkpoint of the teacher that it was started from, or give another "
            "--out to start again",
        )
