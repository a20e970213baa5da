"""What is measured on a card: `bash benchmarks/gpu.sh [--device cpu --scale tiny] [--out DIR]`.

Each part is a process with its own time limit, so that one that fails or hangs costs only itself;
the limits add up to 8 minutes. Writes DIR/<card>.json, and the table of all cards to DIR.md.
"""

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from hpdm_core.build import build_network, build_sampling, describe
from hpdm_core.device import device_name, resolve_device, set_precision
from hpdm_core.diffusion.samplers import Solver
from hpdm_core.pipeline.pipeline import Pipeline
from hpdm_core.pipeline.resources import Resources
from hpdm_core.recipe.load import load_recipe
from hpdm_core.runs.ablate.profiling import measure_memory
from hpdm_core.runs.train.fit import training_memory

ROOT = Path(__file__).resolve().parents[1]
# Seconds of each part, a start taking about ten of them; more on a CPU, which only shows that it
# works.
LIMITS = {"table1": 200, "tf32": 60, "bf16": 60, "sampling": 80, "memory": 30, "tests": 50}
PATIENCE = {"cuda": 1, "cpu": 3}
# Recipe, fields, solver steps of each level, the divisor of train_step.py, and Table 1's scale.
SCALES = {
    "paper": ("hpdm_s", ["model.num_classes=101"], (4, 2, 1), 1, "paper"),
    "tiny": ("ablation_smoke", ["model.num_classes=9"], (2, 1, 1), 16, "smoke"),
}
TABLE = re.compile("(?<=<!-- table -->\n).*?(?=<!-- end -->)", re.DOTALL)


def main() -> None:
    options = arguments()
    if options.part:
        part = {"sampling": sampling, "memory": memory}[options.part]
        print(json.dumps(part(options.device, options.scale)))
        return
    card = device_name(resolve_device(options.device))
    found = {
        "card": card,
        "device": options.device,
        "scale": options.scale,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "parts": {},
    }
    began = time.perf_counter()
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / f"{re.sub('[^a-z0-9]+', '-', card.lower()).strip('-')}.json"
    with tempfile.TemporaryDirectory() as scratch:
        for name, command in commands(options, scratch).items():
            limit = PATIENCE[options.device] * LIMITS[name]
            found["parts"][name] = run(name, command, limit=limit)
            found["seconds"] = round(time.perf_counter() - began, 1)
            # After each part: what was measured is kept if the machine is taken away.
            file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    write_page(options.out)
    print(f"{file}: {found['seconds']} s")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--scale", default="paper", choices=sorted(SCALES))
    parser.add_argument("--out", type=Path, default=ROOT / "docs/gpu")
    parser.add_argument("--part", choices=["sampling", "memory"], help=argparse.SUPPRESS)
    return parser.parse_args()


def commands(options: argparse.Namespace, scratch: str) -> dict[str, list[str]]:
    """Return the command of each part."""
    place = ["--device", options.device]
    *_, divisor, table_scale = SCALES[options.scale]
    step = ["benchmarks/train_step.py", "--json", *place, "--scale", str(divisor)]
    step += ["--rounds", "2"]
    own = ["benchmarks/gpu.py", *place, "--scale", options.scale, "--part"]
    table = ["-m", "hpdm_cli", "ablate", "table1", "--scale", table_scale, *place, "--json"]
    return {
        "table1": [*table, "--out", scratch],
        "tf32": [*step, "--precision", "tf32"],
        "bf16": [*step, "--precision", "bf16"],
        "sampling": [*own, "sampling"],
        "memory": [*own, "memory"],
        "tests": ["-m", "pytest", "-q", "-m", "gpu", "tests/gpu"],
    }


def run(name: str, command: list[str], *, limit: int) -> dict:
    """Return a part's result, or how it failed, and its seconds."""
    print(f"{name} ...", flush=True)
    began = time.perf_counter()
    try:
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, timeout=limit, check=False,
            capture_output=True, text=True,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"failed": f"more than {limit} s", "seconds": limit}
    seconds = round(time.perf_counter() - began, 1)
    lines = (done.stdout.strip() or done.stderr.strip() or "nothing was printed").splitlines()
    if name == "tests":
        return {"result": lines[-1], "seconds": seconds}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or lines)[-1], "seconds": seconds}
    return {"result": json.loads(done.stdout), "seconds": seconds}


def sampling(device: str, scale: str) -> dict:
    """Sample a video with and without the cache, with full overlap, by a network not trained."""
    name, fields, steps, *_ = SCALES[scale]
    recipe, place = load_recipe(name, fields), resolve_device(device)
    set_precision("tf32", device=place)
    torch.manual_seed(0)
    network = build_network(recipe).to(place).eval().requires_grad_(False)
    pipeline = Pipeline(recipe=recipe, network=network, device=place)
    settings = build_sampling(recipe)
    solvers = zip(settings.solvers, steps, strict=True)
    settings = replace(
        settings, overlap="fhw", clip_denoised=True,
        solvers=tuple(replace(solver, steps=count) for solver, count in solvers),
    )  # fmt: skip

    def sample(solvers: tuple[Solver, ...], cache: str) -> torch.Tensor:
        resources = Resources(cache=cache)
        return pipeline.generate(
            [0], pipeline.condition_of([0]), settings=replace(settings, solvers=solvers),
            resources=resources, tile_batch=pipeline.batch_sizes(settings, 1, resources).tiles,
            advance=lambda level, total: None,
        )[-1]  # fmt: skip

    # Two levels first: what is loaded at the first pass would be charged to the cache.
    sample(tuple(replace(solver, steps=1) for solver in settings.solvers[:2]), "auto")
    seconds, videos, peak = {}, {}, {}
    for cache in ("auto", "off"):
        if place.type == "cuda":
            torch.cuda.reset_peak_memory_stats(place)
        began = time.perf_counter()
        videos[cache] = sample(settings.solvers, cache)
        seconds[cache] = round(time.perf_counter() - began, 2)
        peak[cache] = torch.cuda.max_memory_allocated(place) if place.type == "cuda" else None
    return {
        "resolution": list(recipe.pyramid.levels[-1]),
        "steps": list(steps),
        "seconds_cached": seconds["auto"],
        "seconds_uncached": seconds["off"],
        "speedup": round(seconds["off"] / seconds["auto"], 2),
        "max_abs_diff": float((videos["auto"] - videos["off"]).abs().max()),
        "peak_bytes": peak,
    }


def memory(device: str, scale: str) -> dict:
    """Compare the memory of a training step with one video with its estimate."""
    name, fields, *_ = SCALES[scale]
    recipe = load_recipe(name, fields)
    estimate = training_memory(recipe, describe(recipe)["parameters"], devices=1).needed(1)
    measured = measure_memory(recipe, resolve_device(device))
    return {"measured_bytes": measured["value"], "estimated_bytes": estimate["total"]}


def write_page(out: Path) -> None:
    """Write the table of all cards into the page beside the folder, where there is one."""
    page = out.with_suffix(".md")
    if not page.is_file():
        return
    rows = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(out.glob("*.json"))]
    lines = ["| card | scale | part | result |", "|---|---|---|---|"]
    for row in rows:
        for name, part in row["parts"].items():
            shown = part.get("failed") or _shown(name, part["result"])
            lines.append(f"| {row['card']} | {row['scale']} | {name} | {shown} |")
    text = page.read_text(encoding="utf-8")
    page.write_text(TABLE.sub("\n".join(lines) + "\n", text), encoding="utf-8")


def _shown(name: str, result: dict | str) -> str:
    if isinstance(result, str):
        return result
    if name == "table1":
        cells = [cell for cell in result["cells"] if cell.get("shown")]
        return "; ".join(f"{cell['setup']}: {cell['shown']['ours']}" for cell in cells)
    flat = {key: value for key, value in result.items() if isinstance(value, int | float)}
    return ", ".join(f"{key} {value:,.4g}" for key, value in flat.items())


if __name__ == "__main__":
    main()
