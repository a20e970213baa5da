"""`hpdm ablate --list`: the tables, their rows and scales."""

from hpdm_core.recipe.load import shipped_tables
from hpdm_core.reports.ablations import read_table


def list_tables() -> list[dict]:
    """Return name, title, rows and scales of every table of the paper."""
    tables = [(path.stem, read_table(path)) for path in shipped_tables()]
    return [
        {
            "table": name,
            "title": table.title,
            "rows": [row.key for row in table.rows],
            "scales": list(table.scales),
        }
        for name, table in tables
    ]
