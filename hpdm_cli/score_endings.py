"""The lines that `hpdm eval-fvd` ends with."""

from pathlib import Path

from hpdm_cli.tables import Shown
from hpdm_cli.units import duration


def scored(result: dict, *, command: str) -> Shown:
    """Return the ending of `hpdm eval-fvd`, also of its dry run: then `command` is what follows."""
    lines = [("score", _score(score)) for score in result.get("scores", [])]
    sets = [f"{result[k].get('count', '')} {k}".strip() for k in ("fakes", "reals") if result[k]]
    lines.append(("sets", f"{', '.join(sets)}; protocol {result['protocol']}"))
    if result.get("dry_run"):  # a comparison logs them
        lines += [("warning", warning) for warning in result["warnings"]]
    if "detectors_to_fetch" in result:
        lines.append(("fetch", result["detectors_to_fetch"]))
    lines += [("to do", f"{result[f'{k}_to_do']} {k}") for k in ("fakes", "reals")
              if f"{k}_to_do" in result]  # fmt: skip
    if "file" in result:
        lines += [("in", result["file"]), ("took", duration(result["seconds"]))]
        command = "hpdm eval-fvd --list"  # of other metrics and protocols
    return Shown(lines=[*lines, ("next", command)])


def scores_listed(result: dict) -> Shown:
    """Return the tables of `hpdm eval-fvd --list`."""
    detectors = [
        {
            "--detector": row["detector"],
            "for": row["metrics"],
            "here": "yes" if row["here"] else f"no {Path(row['files'][0]).name}",
        }
        for row in result["detectors"]
    ]
    tables = {
        "Metrics": result["metrics"],
        "Protocols": result["protocols"],
        "Detectors": detectors,
    }
    folder = Path(result["detectors"][1]["files"][0]).parent
    names = "only i3d gives FVD and KVD, only c3d IS; other detectors' scores bear their names"
    return Shown(tables=tables, lines=[("names", names), ("folder", str(folder))])


def _score(score: dict) -> str:
    if score["value"] is None:
        return f"{score['name']} undefined for all videos"
    spread = "" if score["std"] is None else f" ± {score['std']:.2g}"
    real, right = score.get("real_value"), score.get("named_right")
    beside = "" if real is None else f" (real videos {real:.4g})"
    if right is not None:
        beside = f" ({right:.0%} recognised as their class)"
    return f"{score['name']} {score['value']:.4g}{spread}{beside}"
