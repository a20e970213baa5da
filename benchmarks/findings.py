"""The tables' findings, in README.md and docs/results/README.md, from docs/results alone.

    python benchmarks/findings.py            # prints the lines
    python benchmarks/findings.py --write    # puts them between the marks of both pages

Nothing is run: every line is made of the rows.jsonl that `hpdm ablate TABLE --out docs/results`
left. A test holds both pages against it.
"""

import argparse
from pathlib import Path

from hpdm_core.files import read_whole_lines, write_text
from hpdm_core.reports.ablations import choose_rows, load_table
from hpdm_core.reports.results import collect
from hpdm_core.reports.summary import HEAD, Part, line
from hpdm_core.runs.ablate.trials import make_trials

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
SCALE = "tiny"
PAGES = {ROOT / "README.md": "docs/results/", RESULTS / "README.md": ""}
BEGIN, END = "<!-- findings: python benchmarks/findings.py --write -->", "<!-- end of findings -->"
LINES = {
    "Table 1": ("table1",),
    "Tables 2 and 6": ("table2", "table6"),
    "Table 3": ("table3",),
    "Table 4": ("table4",),
    "Tables 5 and 7": ("table5", "table7"),
    "Table 8": ("table8",),
    "Fig. 8": ("fig8",),
    "claims": ("claims",),
}


def part(name: str, prefix: str) -> Part:
    """Return what was measured for a table.

    Args:
        name: of the table, such as table3.
        prefix: the way from the page to docs/results.
    """
    table = load_table(name)
    settings = table.scales[SCALE]
    rows = tuple(row for row in choose_rows(table, settings, []) if not row.gpu)
    keys = {trial.key for trial in make_trials(table, settings, rows, seed=0)}
    folder = f"{name}-{SCALE}"
    lines = read_whole_lines(RESULTS / folder / "rows.jsonl")
    results = collect(table, lines, name=name, scale=SCALE, keys=keys)
    return Part(results=results, wanted=len(keys), link=f"{prefix}{folder}/table.md")


def findings(prefix: str) -> str:
    """Return the table of findings, eight lines below its head."""
    lines = [line(title, [part(name, prefix) for name in names]) for title, names in LINES.items()]
    return "\n".join([*HEAD, *lines])


def between_marks(page: str) -> str:
    """Return what stands between the marks of a page."""
    return page.split(BEGIN)[1].split(END)[0].strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="into both pages")
    args = parser.parse_args()
    for path, prefix in PAGES.items():
        page, made = path.read_text(encoding="utf-8"), findings(prefix)
        print(made)
        if args.write:
            before, after = page.split(BEGIN)[0], page.split(END)[1]
            write_text(path, f"{before}{BEGIN}\n{made}\n{END}{after}")


if __name__ == "__main__":
    main()
