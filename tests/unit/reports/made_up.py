"""Made-up results of a table: lines of rows.jsonl with figures that a test chooses."""

from hpdm_core.reports.ablations import Table
from hpdm_core.reports.results import Results, collect

BUNDLED = "Fréchet distance on bundled features"
MACHINE = {
    "machine": {"name": "a test", "processor": "a test", "device": "cpu", "threads": 1},
    "versions": {"hpdm": "0"},
    "seconds": 1.0,
}


def line(row: str, seed: int, figures: dict, *, videos: tuple = ()) -> dict:
    """Return a line whose key is its row and seed."""
    return {
        "key": f"{row}/{seed}",
        "row": row,
        "seed": seed,
        "figures": figures,
        "videos": list(videos),
        **MACHINE,
    }


def score(value: float, name: str = BUNDLED, of: str = "4 videos of 4x8x8", fakes: int = 4) -> dict:
    return {"value": value, "name": name, "of": of, "num_fakes": fakes}


def results_of(
    table: Table, columns: dict[str, dict[str, list[float]]], *, scale: str = "tiny", **named: str
) -> Results:
    """Return results where row r has columns[c][r][s] with seed s in column c."""
    lines = []
    rows = {row for by_row in columns.values() for row in by_row}
    for row in sorted(rows):
        seeds = max(len(by_row.get(row, [])) for by_row in columns.values())
        for seed in range(seeds):
            figures = {
                column: score(by_row[row][seed], named.get("name", BUNDLED))
                for column, by_row in columns.items()
                if len(by_row.get(row, [])) > seed
            }
            lines.append(line(row, seed, figures))
    keys = {entry["key"] for entry in lines}
    return collect(table, lines, name="table3", scale=scale, keys=keys)
