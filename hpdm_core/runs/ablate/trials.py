"""The trials of a table: one row with one seed, each with a key.

The key hashes everything that the trial's figures depend on except machine and time, so that a
line of rows.jsonl with the same key is reused.
"""

from dataclasses import dataclass
from pathlib import Path

from hpdm_core.errors import RecipeError
from hpdm_core.files import json_sha256
from hpdm_core.recipe.load import load_recipe, recipe_to_yaml
from hpdm_core.recipe.schema import Recipe
from hpdm_core.records import SAMPLING_VERSION
from hpdm_core.reports.ablations import Row, Scale, Table, protocol_of, recipe_of

RUNS = Path("runs") / "ablate"
# Seeds of generated videos are this far apart for one seed of the table and the next.
SEED_STRIDE = 1_000_000
KEY_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One row with one seed.

    Args:
        row: of the table.
        seed: of training and sampling, or of sampling alone.
        recipe: what is trained or sampled.
        recipes: what each column is measured on.
        baselines: the baseline row's, for columns that are relative to it.
        folder: run folder of its training, or of an existing run; None where nothing is sampled.
        trained: whether this command trains it.
        real: data set that it is scored against.
        key: of its line.
    """

    row: Row
    seed: int
    recipe: Recipe
    recipes: dict[str, Recipe]
    baselines: dict[str, Recipe]
    folder: Path | None
    trained: bool
    real: Path
    key: str

    @property
    def checkpoint(self) -> Path:
        """Return the run, or the checkpoint after the row's fraction of the training."""
        assert self.folder is not None
        if not self.trained:
            return self.folder
        step = round(self.row.part * self.recipe.train.steps)
        return self.folder / "checkpoints" / f"step-{step:08d}"

    @property
    def sampling_seed(self) -> int:
        return self.seed * SEED_STRIDE


def make_trials(
    table: Table, scale: Scale, rows: tuple[Row, ...], *, seed: int
) -> tuple[Trial, ...]:
    """Return the trials: seed by seed, so that every row has a figure early.

    Raises:
        RecipeError: a row's recipe cannot be used, or a checkpoint it scores is not kept.
    """
    seeds = range(seed, seed + scale.seeds)
    return tuple(_trial(table, scale, row, seed=s, first=seed) for s in seeds for row in rows)


def _trial(table: Table, scale: Scale, row: Row, *, seed: int, first: int) -> Trial:
    trained_seed = seed if scale.vary == "training" else first
    seeded = [f"train.seed={trained_seed}"]
    base, overrides = recipe_of(table, scale, row, None)
    scored = any(column.measure.kind in ("score", "sampler") for column in table.columns)
    recipes, baselines = {}, {}
    for column in table.columns:
        own_base, own = recipe_of(table, scale, row, column)
        recipes[column.key] = load_recipe(own_base, [*own, *seeded])
        if column.measure.of == "relative_speed":
            its_base, its = recipe_of(table, scale, table.row(table.baseline), column)
            baselines[column.key] = load_recipe(its_base, [*its, *seeded])
    recipe = load_recipe(base, [*overrides, *seeded])
    trained = scored and row.checkpoint is None
    folder = None
    if scored:
        folder = run_folder(recipe) if trained else Path(row.checkpoint)
    if trained:
        _check_part(row, recipe)
    return Trial(
        row=row,
        seed=seed,
        recipe=recipe,
        recipes=recipes,
        baselines=baselines,
        folder=folder,
        trained=trained,
        real=Path(recipe.data.root) / (scale.captions_of or recipe.data.name),
        key=_key(table, scale, row, recipe=recipe, recipes=recipes, baselines=baselines, seed=seed),
    )


def run_folder(recipe: Recipe) -> Path:
    """Return the run folder of a training: the same recipe in another table is the same run."""
    shown = recipe.model_dump(mode="json")
    for name in ("name", "description"):
        shown.pop(name)
    for name in ("root", "workers", "memory_cache_gb"):
        shown["data"].pop(name)
    return RUNS / f"{recipe.name}-{json_sha256(shown)[:10]}"


def _check_part(row: Row, recipe: Recipe) -> None:
    train = recipe.train
    step = row.part * train.steps
    oldest = train.steps - train.keep_checkpoints * train.checkpoint_every
    if row.part < 1 and (step % train.checkpoint_every or step <= oldest):
        raise RecipeError(
            f"row {row.key} scores step {step:g}, where no checkpoint is kept",
            got=f"one every {train.checkpoint_every} steps, of which {train.keep_checkpoints} stay",
            remedy="change train.checkpoint_every and train.keep_checkpoints of the scale",
        )


def _key(
    table: Table,
    scale: Scale,
    row: Row,
    *,
    recipe: Recipe,
    recipes: dict[str, Recipe],
    baselines: dict[str, Recipe],
    seed: int,
) -> str:
    measured = [
        {"column": column.key, **column.measure.model_dump(mode="json")}
        | {"protocol": protocol_of(scale, column)}
        | {"recipe": recipe_to_yaml(recipes[column.key])}
        for column in table.columns
    ]
    everything = {
        "version": [KEY_VERSION, SAMPLING_VERSION],
        "row": row.key,
        "seed": seed,
        "recipe": recipe_to_yaml(recipe),
        "columns": measured,
        "sampling": row.sampling,
        "part": row.part,
        "checkpoint": row.checkpoint,
        "level": row.level,
        "detector": scale.detector,
        "captions_of": scale.captions_of,
        "shapes": None if scale.shapes is None else scale.shapes.model_dump(mode="json"),
        "timing": [scale.batches, scale.rounds],
        "videos": scale.videos,
        **(
            {"baselines": {k: recipe_to_yaml(r) for k, r in baselines.items()}} if baselines else {}
        ),
        **_sampler_facts(table, scale),
    }
    return json_sha256(everything)[:16]


def _sampler_facts(table: Table, scale: Scale) -> dict[str, object]:
    """Return what the figures of schedules depend on; nothing where there are none."""
    if all(column.measure.kind != "sampler" for column in table.columns):
        return {}
    return {
        "sampled": scale.sampled,
        "converged": [scale.converged, scale.converged_videos, scale.sigma_max],
    }
