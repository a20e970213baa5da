"""Results of earlier preparations: a data set's manifest, and an interrupted run's journal."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from hpdm_core.data.dataset import REJECTED, read_header
from hpdm_core.data.entries import (
    Rejection,
    VideoEntry,
    entry_or_rejection,
    read_rejected,
)
from hpdm_core.data.manifest import open_manifest
from hpdm_core.data.metadata import parse_typed, read_lines
from hpdm_core.data.plan import Plan
from hpdm_core.errors import DataError

JOURNAL = "prep.journal.jsonl"


@dataclass(frozen=True, kw_only=True)
class _Begun:
    """The journal's first line: the plan of its run."""

    kind: str
    source: str
    settings: dict[str, Any]


_BEGUN = TypeAdapter(_Begun)


@dataclass
class Findings:
    """Results so far, by the name of the source."""

    entries: dict[str, VideoEntry] = field(default_factory=dict)
    rejected: dict[str, Rejection] = field(default_factory=dict)
    skipped: int = 0
    notes: Counter = field(default_factory=Counter)


def earlier_findings(plan: Plan) -> Findings:
    """Read the results of earlier runs that are still valid under the plan's settings."""
    header = read_header(plan.records)
    begun, lines = _read_journal(plan.records / JOURNAL)
    for earlier in (header, begun):
        if earlier and (earlier["kind"], earlier.get("source")) != (plan.kind, plan.source):
            raise DataError(
                f"{plan.place} holds another data set",
                got=f"{earlier['kind']} from {earlier.get('source')}",
                expected=f"{plan.kind} from {plan.source}",
                remedy="choose another --name, or delete that folder",
            )
    known = Findings()
    if header and header.get("settings") == plan.settings:
        entries = open_manifest(plan.records, classes=header["classes"])
        known.entries = {entry.source: entry for entry in entries}
        known.rejected = {r.source: r for r in read_rejected(plan.records / REJECTED)}
    if begun and begun["settings"] == plan.settings:
        for line in lines:
            learn(known, line)
    return known


def _read_journal(path: Path) -> tuple[dict[str, Any] | None, list[VideoEntry | Rejection]]:
    begun, lines = None, []
    if path.is_file():
        try:
            for number, text in read_lines(path):
                if begun is None:
                    begun = asdict(parse_typed(text, _BEGUN, f"{path}:{number}"))
                else:
                    lines.append(entry_or_rejection(text, f"{path}:{number}"))
        except DataError:  # a partial line; what follows is made again
            pass
    return begun, lines


def learn(found: Findings, line: VideoEntry | Rejection) -> None:
    """Add one source's result to the findings."""
    found.entries.pop(line.source, None)
    found.rejected.pop(line.source, None)
    if isinstance(line, VideoEntry):
        found.entries[line.source] = line
    else:
        found.rejected[line.source] = line
