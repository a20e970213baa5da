"""Tables of the paper as data: rows as overrides of a recipe, the paper's figures, and scales.

A table is a YAML file in recipes/tables. Nothing here runs anything.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from hpdm_core.errors import RecipeError, did_you_mean
from hpdm_core.recipe.fields import BY_LEVEL, AboveZero
from hpdm_core.recipe.load import shipped_tables
from hpdm_core.recipe.schema import Positive, Section
from hpdm_core.recipe.yaml_tree import parse

Value = bool | int | float | str | tuple | None
Overrides = dict[str, Value]
ScaleName = Literal["paper", "tiny", "smoke"]
SCALES: tuple[ScaleName, ...] = ("paper", "tiny", "smoke")
QUALITY = ("flicker", "hh", "seams", "seams_space", "seams_time", "high_frequency")
SCORES = ("fvd", "kvd", "is", *QUALITY)
STEP_FIGURES = ("videos_per_second", "relative_speed", "memory")
SAMPLER_FIGURES = (
    "passes", "seconds", "distance", "fvd", "kernel", "flicker", "hh", "seams", "high_frequency",
    "named_right",
)  # fmt: skip


class Measure(Section):
    """How a column is measured."""

    kind: Literal["score", "step", "count", "recipe", "sampler"] = Field(
        description="score: of generated videos; step: a timed training step; count: on the meta "
        "device; recipe: a field of the recipe; sampler: quality or cost of a row's schedule"
    )
    of: str = Field(
        description="fvd, kvd, is or a measure of quality; videos_per_second, relative_speed "
        "(over the baseline's, steps of both alternating), memory; a key of counts; a field; of a "
        f"sampler {', '.join(SAMPLER_FIGURES)}"
    )
    protocol: str | None = Field(None, description="of a score, such as fvd512_level0")

    @model_validator(mode="after")
    def _sound(self) -> "Measure":
        known = {"score": SCORES, "step": STEP_FIGURES, "sampler": SAMPLER_FIGURES}
        if self.kind in known and self.of not in known[self.kind]:
            raise ValueError(f"a {self.kind} is of {' or '.join(known[self.kind])}, got {self.of}")
        if (self.kind == "score") != (self.protocol is not None):
            raise ValueError("a score, and nothing else, has a protocol")
        return self


class Column(Section):
    """A column of the paper's table."""

    key: str
    heading: str = Field(description="as the paper has it")
    about: str = Field(description="what the figure means")
    better: Literal["lower", "higher", "neither"] = "neither"
    unit: str = ""
    factor: float = Field(1.0, description="what is measured times this is the figure")
    at: str | None = Field(None, description="which of a row's variants is measured")
    measure: Measure


class Change(Section):
    """What a row, a variant of it or a scale changes in a recipe."""

    base: str | None = Field(None, description="another recipe than the scale's")
    use: tuple[str, ...] = Field((), description="named sets of overrides, applied first")
    set: Overrides = Field(default_factory=dict, description="overrides")


class RowChange(Change):
    """What a row, or a scale in a row, changes in a recipe, and in sampling after training."""

    sampling: Overrides = Field(
        default_factory=dict, description="fields of `sampling` that change after training"
    )


class Row(RowChange):
    """A row: its setup, and the paper's figures."""

    key: str
    title: str
    about: str = ""
    paper: dict[str, float | int | str] = Field(default_factory=dict)
    reference: str | None = Field(None, description="why the row is the paper's alone, and not run")
    at: dict[str, Change] = Field(default_factory=dict, description="variants, by column")
    gpu: bool = Field(False, description="left out on a CPU, unless it is named")
    part: float = Field(1.0, gt=0, le=1, description="score the checkpoint after this share")
    checkpoint: str | None = Field(None, description="a run that exists: nothing is trained")
    level: int | None = Field(None, description="score this level as if it were the finest")


class Shapes(Section):
    """The built-in data set, generated if absent."""

    num: Positive
    size: Positive
    frames: Positive


class Scale(Change):
    """Model and data size of the rows."""

    about: str
    shapes: Shapes | None = Field(None, description="data to draw; else it must be prepared")
    captions_of: str | None = Field(
        None, description="train on that data set's captions, and score against it by its classes"
    )
    levels: dict[str, int] = Field(
        default_factory=dict, description="by row: train it here and score this level; no others"
    )
    detector: Literal["i3d", "bundled"] = "bundled"
    protocols: dict[str, str] = Field(default_factory=dict, description="by column, in its stead")
    rows: dict[str, RowChange] = Field(
        default_factory=dict, description="by row, after the row's own"
    )
    needs: tuple[str, ...] = Field((), description="commands to run first, for a dry run")
    seeds: Positive = 1
    vary: Literal["training", "sampling"] = Field(
        "training", description="seeds are of training and sampling, or of sampling alone"
    )
    force: bool = Field(False, description="score even fewer than 256 videos")
    shrink: Positive = Field(1, description="heights and widths of pyramids are divided by it")
    batches: tuple[Positive, ...] = Field(
        (1,), description="videos per timed step, of which the fastest counts"
    )
    rounds: Positive = Field(3, description="timed steps, of which the fastest counts")
    videos: int = Field(0, ge=0, description="videos of each row in the report")
    checkpoint: str | None = Field(None, description="rows sample from it: nothing is trained")
    sampled: int = Field(32, ge=2, description="videos that a schedule is measured on")
    step_factor: Positive = Field(1, description="times this are the solver steps of each row")
    converged: tuple[Positive, ...] = Field(
        (), description="solver steps by level of the converged solution"
    )
    converged_videos: Positive = Field(4, description="videos that are compared with it")
    sigma_max: Annotated[tuple[AboveZero, ...], BY_LEVEL] = Field(
        (80.0,), description="noise that it starts from, by level or for all"
    )

    @model_validator(mode="after")
    def _check_levels(self) -> "Scale":
        if len(self.sigma_max) not in (1, len(self.converged)):
            raise ValueError(
                f"sigma_max has {len(self.sigma_max)} values, expected 1 or one per level of "
                f"converged ({len(self.converged)})"
            )
        return self


class Finding(Section):
    """Something the paper concludes from the table."""

    text: str
    kind: Literal["beats", "close"] = Field(
        description="beats: `row` is better than each of `against`; close: it is at most `limit` "
        "percent worse"
    )
    row: str
    against: tuple[str, ...]
    column: str
    limit: float = 0.0
    size: float | None = Field(None, description="the paper's advantage in percent, if it says so")
    paper: str | None = Field(None, description="the paper's words, where it has no figures")


class Table(Section):
    """A table of the paper."""

    title: str
    about: str
    notes: tuple[str, ...] = ()
    baseline: str | None = Field(None, description="row that others are held against")
    plot: Literal["bars", "lines", "pareto", "none"] = "bars"
    cost: str | None = Field(None, description="column that pareto draws the others against")
    sets: dict[str, Overrides] = Field(default_factory=dict, description="named sets of overrides")
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    findings: tuple[Finding, ...] = ()
    scales: dict[ScaleName, Scale]

    @model_validator(mode="after")
    def _consistent(self) -> "Table":
        problems = [*_unknown(self), *(f"scale {s} is missing" for s in {*SCALES} - {*self.scales})]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def row(self, key: str) -> Row:
        return next(row for row in self.rows if row.key == key)

    def column(self, key: str) -> Column:
        return next(column for column in self.columns if column.key == key)

    @property
    def runnable(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.reference is None)


def load_table(name: str) -> Table:
    """Read a shipped table.

    Raises:
        RecipeError: there is no such table, or its file is faulty.
    """
    files = {path.stem: path for path in shipped_tables()}
    if name not in files:
        expected = ", ".join(files)
        raise RecipeError(
            f"no table is called {name}", expected=expected, remedy=did_you_mean(name, files)
        )
    return read_table(files[name])


def read_table(path: Path) -> Table:
    """Read a table's file.

    Raises:
        RecipeError: naming every mistake.
    """
    tree, problems = parse(path.read_text(encoding="utf-8"), str(path))
    try:
        table = Table.model_validate(tree.plain())
    except ValidationError as error:
        lines = [
            f"{tree.at(detail['loc']).where}: {'.'.join(map(str, detail['loc']))}: {detail['msg']}"
            for detail in error.errors(include_url=False)
        ]
        raise RecipeError("\n  ".join([f"table {path.stem}:", *problems, *lines])) from error
    if problems:
        raise RecipeError("\n  ".join([f"table {path.stem}:", *problems]))
    return table


def choose_rows(table: Table, scale: Scale, keys: list[str]) -> tuple[Row, ...]:
    """Return the rows to run, as they are at this scale: those named, or all that can be run.

    Raises:
        RecipeError: a name is not a row's, or the row is not run here.
    """
    known = {row.key: row for row in table.runnable}
    if scale.levels:
        known = {
            key: known[key].model_copy(update={"level": level, "checkpoint": None})
            for key, level in scale.levels.items()
        }
    known = {key: _at_scale(row, scale) for key, row in known.items()}
    wrong = [key for key in keys if key not in known]
    if wrong:
        raise RecipeError(
            f"--rows: {', '.join(wrong)} cannot be run",
            expected=f"of {', '.join(known)}",
            remedy=did_you_mean(wrong[0], known),
        )
    return tuple(known[key] for key in keys or known)


def _at_scale(row: Row, scale: Scale) -> Row:
    """Return a row with the scale's checkpoint, and its solver steps times the scale's factor."""
    changes: dict[str, Value | Overrides] = {}
    if scale.checkpoint is not None:
        changes["checkpoint"] = scale.checkpoint
    sampling = row.sampling | scale.rows.get(row.key, RowChange()).sampling
    if scale.step_factor > 1 and "steps" in sampling:
        steps = tuple(scale.step_factor * count for count in sampling["steps"])
        sampling = {**sampling, "steps": steps}
    changes["sampling"] = sampling
    return row.model_copy(update=changes)


def recipe_of(table: Table, scale: Scale, row: Row, column: Column | None) -> tuple[str, list[str]]:
    """Return the base recipe's name and the overrides of a row, or of its variant for a column.

    Later changes win: the scale's, the row's, the variant's, and what the scale says of the row.
    """
    variant = row.at.get(column.at, Change()) if column is not None and column.at else Change()
    changes: list[Change] = [scale, row, variant, scale.rows.get(row.key, Change())]
    base = next(change.base for change in reversed(changes) if change.base is not None)
    values: Overrides = {}
    for change in changes:
        for name in change.use:
            values |= table.sets[name]
        values |= change.set
    if scale.shrink > 1:
        values |= _shrunk(values, scale.shrink)
    return base, [f"{key}={_written(value)}" for key, value in values.items()]


def protocol_of(scale: Scale, column: Column) -> str:
    """Return the protocol of a score at this scale."""
    return scale.protocols.get(column.key, column.measure.protocol or "")


def _unknown(table: Table):
    """Yield names that stand for nothing."""
    rows, columns = {row.key for row in table.rows}, {column.key for column in table.columns}
    used = {finding.column for finding in table.findings}
    used |= {key for row in table.rows for key in row.paper}
    used |= {table.cost} - {None}
    used |= {key for scale in table.scales.values() for key in scale.protocols}
    yield from (f"no column is called {key}" for key in sorted(used - columns))
    named = {key for finding in table.findings for key in (finding.row, *finding.against)}
    named |= {key for s in table.scales.values() for key in (*s.rows, *s.levels)}
    named |= {table.baseline} - {None}
    yield from (f"no row is called {key}" for key in sorted(named - rows))
    changes = [*table.rows, *(change for row in table.rows for change in row.at.values())]
    sets = {name for change in [*changes, *table.scales.values()] for name in change.use}
    if (table.plot == "pareto") != (table.cost is not None):
        yield "a plot of the kind pareto, and no other, has a column `cost`"
    yield from (f"no set is called {name}" for name in sorted(sets - {*table.sets}))
    if len(rows) < len(table.rows) or len(columns) < len(table.columns):
        yield "two rows or two columns have the same key"


def _shrunk(values: Overrides, by: int) -> Overrides:
    """Divide heights and widths of patch and levels."""

    def shrink(size: tuple) -> tuple:
        return (size[0], size[1] // by, size[2] // by)

    shrunk: Overrides = {}
    if "pyramid.patch" in values:
        shrunk["pyramid.patch"] = shrink(values["pyramid.patch"])
    if "pyramid.levels" in values:
        shrunk["pyramid.levels"] = tuple(shrink(size) for size in values["pyramid.levels"])
    return shrunk


def _written(value: Value) -> str:
    """Write a value as an override has it."""
    if isinstance(value, tuple):
        return "[" + ", ".join(_written(item) for item in value) + "]"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
