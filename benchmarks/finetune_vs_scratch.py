"""Does fine-tuning from a base model pay off? `python benchmarks/finetune_vs_scratch.py --json`.

The paper trains its text-to-video models at low resolution first and gives the high-resolution
pyramid only 15k steps, 3% of the base's (Sec. 5, Table 8). Here the same is measured on the
built-in shapes, with `recipes/learning_tiny.yaml` and its level 0 alone, for each of several
seeds:

    finetune       N steps of all levels, started from a base model
    scratch        N steps of all levels, started from random weights
    scratch_longer steps of all levels for the FLOPs of base and fine-tuning together

Every model is scored with the bundled detector against the training videos (docs/metrics.md): lower
is better; the scores are not FVD. Run again, it resumes where it stopped.
"""

import argparse
import json
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from hpdm_core.build import describe
from hpdm_core.data.dataset import open_dataset
from hpdm_core.recipe.load import load_recipe
from hpdm_core.recipe.schema import Recipe
from hpdm_core.runs.evaluate.run import run_eval_fvd
from hpdm_core.runs.prep import run_prep_shapes
from hpdm_core.runs.train.preflight import with_classes
from hpdm_core.runs.train.run import run_train

ARMS = ("finetune", "scratch", "scratch_longer")


class Lines:
    """Progress as a line per piece of work, on stderr."""

    def start(self, description: str, total: int | None, done: int = 0) -> None:
        print(f"{description} ({total})", file=sys.stderr, flush=True)

    def advance(self, amount: int = 1, **fields: str) -> None: ...

    def stop(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is measured.

    Args:
        out: folder for data, runs and features.
        videos: training videos.
        base_steps: steps of level 0 alone.
        steps: steps of all levels.
        fakes: videos per score.
        seeds: of weights, data order and noise.
        overrides: of the recipe, for all models.
    """

    out: Path
    videos: int
    base_steps: int
    steps: int
    fakes: int
    seeds: tuple[int, ...]
    overrides: tuple[str, ...]


def main() -> None:
    setting, as_json = _arguments()
    run_prep_shapes(setting.out / "data", num=setting.videos, progress=Lines())
    rows = []
    for seed in setting.seeds:
        for arm in ARMS:
            rows.append(_row(setting, arm, seed))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    result = {
        "setting": {**asdict(setting), "out": str(setting.out)},
        "rows": rows,
        **{arm: _summary([row["distance"] for row in rows if row["arm"] == arm]) for arm in ARMS},
        "finetune_wins": _wins(rows, "scratch"),
        "finetune_wins_at_equal_cost": _wins(rows, "scratch_longer"),
    }
    print(json.dumps(result, indent=1) if as_json else _table(result))


def _row(setting: Setting, arm: str, seed: int) -> dict:
    """Train one model and score it."""
    run = setting.out / "runs" / f"{arm}-{seed}"
    base_recipe, recipe = _recipes(setting, seed, longer=arm == "scratch_longer")
    base = None
    if arm == "finetune":
        base = setting.out / "runs" / f"base-{seed}"
        _train(base_recipe, base)
    trained = _train(recipe, run, init_from=base)
    scored = run_eval_fvd(
        checkpoint=run,
        protocol="fvd512_16f",
        metrics=["fvd"],
        detector="bundled",
        num_fakes=setting.fakes,
        out=setting.out / "evals",
        device="cpu",
        force=True,
        progress=Lines(),
        cache=setting.out / "cache",
    )
    (score,) = scored["scores"]
    return {
        "seed": seed,
        "arm": arm,
        "steps": trained["steps"],
        "loss": trained["last"].get("loss"),
        "distance": score["value"],
        "std": score["std"],
    }


def _train(recipe: Recipe, out: Path, *, init_from: Path | None = None) -> dict:
    summary = run_train(
        recipe, out=out, device="cpu", dry_run=False, progress=Lines(), init_from=init_from
    )
    if not summary["last"]:  # finished before: the last line that it wrote
        lines = (out / "metrics.jsonl").read_text().splitlines()
        summary["last"] = json.loads(lines[-1])
    return summary


def _recipes(setting: Setting, seed: int, *, longer: bool) -> tuple[Recipe, Recipe]:
    """Return the recipes of the base and of all levels."""
    common = ["data.name=shapes", f"data.root={setting.out / 'data'}", f"train.seed={seed}",
              "train.keep_checkpoints=1", *setting.overrides]  # fmt: skip
    recipe = load_recipe("learning_tiny", [f"train.steps={setting.steps}", *common])
    coarsest = recipe.pyramid.levels[0]
    base = load_recipe(
        "learning_tiny",
        [
            *common,
            f"pyramid.levels=[{list(coarsest)}]",
            f"data.frame_stride={recipe.pyramid.levels[-1][0] // coarsest[0]}",
            f"model.levels_per_block={[1] * len(recipe.model.levels_per_block)}",
            *(
                f"diffusion.{name}=[{getattr(recipe.diffusion, name)[0]}]"
                for name in ("sigma_in", "noise_mean", "noise_std", "level_weights")
            ),
            "diffusion.clean_context=0",
            f"sampling.steps=[{recipe.sampling.steps[0]}]",
            f"train.steps={setting.base_steps}",
        ],
    )
    if longer:
        extra = setting.base_steps * _cost(setting, base) / _cost(setting, recipe)
        recipe = recipe.with_fields("train", {"steps": setting.steps + round(extra)})
    return base, recipe


def _cost(setting: Setting, recipe: Recipe) -> float:
    """Return the arithmetic of a training step, per video."""
    dataset = open_dataset(str(setting.out / "data"), "shapes")
    return describe(with_classes(recipe, dataset))["flops_per_video_training"]


def _summary(values: list[float]) -> dict:
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "std_over_seeds": spread}


def _wins(rows: list[dict], other: str) -> int:
    """Count the seeds for which fine-tuning has the smaller distance."""
    found = {(row["seed"], row["arm"]): row["distance"] for row in rows}
    seeds = {row["seed"] for row in rows}
    return sum(found[seed, "finetune"] < found[seed, other] for seed in seeds)


def _table(result: dict) -> str:
    lines = ["| seed | model | steps of all levels | distance on bundled features |",
             "|---|---|---|---|"]  # fmt: skip
    for row in result["rows"]:
        lines.append(
            f"| {row['seed']} | {row['arm'].replace('_', ' ')} | {row['steps']:,} "
            f"| {row['distance']:.3g} ± {row['std']:.2g} |"
        )
    for arm in ARMS:
        lines.append(f"| all | {arm.replace('_', ' ')} | | {result[arm]['mean']:.3g} |")
    return "\n".join(lines)


def _arguments() -> tuple[Setting, bool]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/finetune_vs_scratch"))
    parser.add_argument("--videos", type=int, default=900)
    parser.add_argument("--base-steps", type=int, default=2500)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--fakes", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("overrides", nargs="*", help="of the recipe, such as optim.lr=1e-3")
    args = parser.parse_args()
    setting = Setting(
        out=args.out,
        videos=args.videos,
        base_steps=args.base_steps,
        steps=args.steps,
        fakes=args.fakes,
        seeds=tuple(range(args.seeds)),
        overrides=tuple(args.overrides),
    )
    return setting, args.json


if __name__ == "__main__":
    main()
