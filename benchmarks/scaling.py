"""The table of docs/scaling.md: `python benchmarks/scaling.py`.

Nothing is measured: the arithmetic is that of `hpdm train RECIPE --dry-run --devices N`.
"""

from hpdm_core.build import describe
from hpdm_core.recipe.load import load_recipe
from hpdm_core.runs.train.fit import fit_micro_batch
from hpdm_core.runs.train.scaling import H100, simulate

DEVICES = (8, 16, 32, 64, 128, 256, 512)
RECIPE = "hpdm_t2v"


def main() -> None:
    print("\n".join(table()))


def table() -> list[str]:
    """Return the table's lines."""
    titles = "GPUs | copies | micro-batch x passes | memory a GPU | sent a GPU and step "
    titles += "| computing | sending | step | videos/s | computing share"
    lines = [f"| {titles} |", f"|{'---|' * titles.count('|')}---|"]
    for devices in DEVICES:
        copies = {1, max(1, devices // H100.per_machine)}
        lines += [_row(devices, replicas) for replicas in sorted(copies)]
    return lines


def _row(devices: int, replicas: int) -> str:
    recipe = load_recipe(RECIPE, [f"train.replicas={replicas}"])
    figures = describe(recipe)
    fit = fit_micro_batch(recipe, figures["parameters"], devices=devices, free=H100.memory)
    found = simulate(recipe, figures, fit, devices=devices)
    cells = [
        f"{devices}",
        f"{replicas}",
        f"{found['micro_batch']} x {found['passes']}",
        f"{found['memory_bytes'] / 1e9:.0f} GB",
        f"{found['sent_bytes'] / 1e9:,.0f} GB",
        f"{found['compute_seconds']:.1f} s",
        f"{found['communication_seconds']:.1f} s",
        f"{found['step_seconds']:.1f} s",
        f"{found['videos_per_second']:.0f}",
        f"{found['efficiency']:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
