"""What earlier preparations of a data set found: from its manifest, and from an interrupted run."""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpdm_core.data.dataset import (
    MANIFEST,
    REJECTED,
    VideoEntry,
    entry_from_json,
    read_header,
    read_json_lines,
    read_manifest,
)
from hpdm_core.data.plan import Plan
from hpdm_core.errors import DataError

JOURNAL = "prep.journal.jsonl"


@dataclass
class Findings:
    """What is known about each source so far, by its name."""

    entries: dict[str, VideoEntry] = field(default_factory=dict)
    rejected: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped: int = 0
    notes: Counter = field(default_factory=Counter)


def earlier_findings(plan: Plan) -> Findings:
    """Read what earlier runs found, as far as it still holds under the plan's settings."""
    header = read_header(plan.folder)
    begun, lines = _read_journal(plan.folder / JOURNAL)
    for earlier in (header, begun):
        if earlier and (earlier["kind"], earlier["source"]) != (plan.kind, plan.source):
            raise DataError(
                f"{plan.folder} holds another data set",
                got=f"{earlier['kind']} from {earlier['source']}",
                expected=f"{plan.kind} from {plan.source}",
                remedy="choose another --name, or delete that folder",
            )
    known = Findings()
    if header and header["settings"] == plan.settings:
        known.entries = {e.source: e for e in read_manifest(plan.folder / MANIFEST)}
        known.rejected = {r["source"]: r for r in read_json_lines(plan.folder / REJECTED)}
    if begun and begun["settings"] == plan.settings:
        for line in lines:
            learn(known, line)
    return known


def _read_journal(path: Path) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    lines = []
    if path.is_file():
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:  # the line that the interruption cut off
                break
    return (lines[0], lines[1:]) if lines else (None, [])


def learn(found: Findings, line: dict[str, Any]) -> None:
    """Take one line of the journal into what was found."""
    name = line["source"]
    found.entries.pop(name, None)
    found.rejected.pop(name, None)
    if "problem" in line:
        found.rejected[name] = line
    else:
        found.entries[name] = entry_from_json(line)
