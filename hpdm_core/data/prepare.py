"""The common part of every `hpdm prep`: parallel decoding, journal, manifest, summary.

Each finished video is written to a journal at once, so that an interrupted run resumes where it
stopped; the manifest is written at the end, atomically. Run again, unchanged files are skipped.
"""

import json
import os
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hpdm_core.data.dataset import REJECTED, write_header
from hpdm_core.data.entries import NO_CLASS, Rejection, VideoEntry, write_json_lines
from hpdm_core.data.journal import JOURNAL, Findings, earlier_findings, learn
from hpdm_core.data.manifest import write_manifest
from hpdm_core.data.objects import RemoteFile
from hpdm_core.data.plan import VIDEOS, Job, Plan, SourceVideo, targets
from hpdm_core.data.pool import Mark, WorkerLost, WorkerPool, attempt, run_tasks, usable_cores
from hpdm_core.data.remote_jobs import RemoteJournal, RemoteMake
from hpdm_core.data.transcode import Refused, Transcoded
from hpdm_core.errors import DataError
from hpdm_core.files import remove_partials
from hpdm_core.names import as_unicode
from hpdm_core.progress import Progress

# Starting processes takes longer than making this many videos.
WORTH_WORKERS = 4
# A two-hour film takes a core about 20 minutes.
HUNG_SECONDS = 4 * 3600.0


def describe(plan: Plan) -> dict[str, Any]:
    """Return what `prepare` would do, without decoding anything (`--dry-run`)."""
    listed = [v.file for v in plan.own]
    known = [f.known[0] for f in listed if isinstance(f, RemoteFile) and f.known]
    local = [f.stat().st_size for f in listed if isinstance(f, Path) and os.path.isfile(f)]
    return {
        "dry_run": True,
        "name": plan.name,
        "folder": plan.place,
        "source": plan.source,
        "files": len(plan.own),
        "bytes": sum(known + local),
        "classes": len(plan.classes),
        "splits": dict(Counter(v.split for v in plan.own)),
        "settings": plan.settings,
        "notes": list(plan.notes),
    }


def prepare(plan: Plan, progress: Progress) -> dict[str, Any]:
    """Transcode every usable video and write the manifest.

    Returns:
        Counts, sizes and notes, which the command line prints as a table.

    Raises:
        DataError: the folder holds another data set, or no video is usable.
    """
    known = earlier_findings(plan)
    plan.records.mkdir(parents=True, exist_ok=True)
    # Other shards write beside this one, and what a killed one left is written again.
    remove_partials(plan.records)
    found = _make_all(plan, known, progress)
    rejected = [found.rejected[v.name] for v in plan.own if v.name in found.rejected]
    write_json_lines(plan.records / REJECTED, [asdict(line) for line in rejected])
    if not found.entries and plan.shard is None:
        raise DataError(
            f"{usable_line(len(plan.videos), _problems(rejected))} ({plan.source})",
            remedy=f"{plan.folder / REJECTED} lists each with its reason",
        )
    entries = [found.entries[v.name] for v in plan.own if v.name in found.entries]
    if plan.shard is None:
        _remove_stale(plan.folder, entries)
    write_manifest(plan.records, entries)
    write_header(plan.records, _header(plan))
    (plan.records / JOURNAL).unlink(missing_ok=True)
    return _result(plan, found, entries, rejected)


def usable_line(total: int, problems: Counter[str]) -> str:
    """Return a one-line summary: '9 of 180 videos usable: 160 too short, 11 unreadable'."""
    listed = ", ".join(f"{count} {problem}" for problem, count in problems.most_common())
    line = f"{total - problems.total()} of {total} videos usable"
    return f"{line}: {listed}" if listed else line


def _problems(rejected: Sequence[Rejection]) -> Counter[str]:
    return Counter(line.problem for line in rejected)


def _make_all(plan: Plan, known: Findings, progress: Progress) -> Findings:
    found = Findings()
    jobs = _jobs(plan, known, found)
    head = {"kind": plan.kind, "source": plan.source, "settings": plan.settings}
    done = map(asdict, [*found.entries.values(), *found.rejected.values()])
    write_json_lines(plan.records / JOURNAL, [head, *done])
    progress.start(f"preparing {plan.name}", len(jobs))
    path = plan.records / JOURNAL
    remote = None if plan.store is None else RemoteJournal(plan.store, _inside(plan, path))
    try:
        with path.open("a", encoding="utf-8", buffering=1) as journal:
            for job, outcome in _outcomes(plan, jobs):
                line = _line(plan, job, outcome, known, found)
                learn(found, line)
                journal.write(json.dumps(asdict(line)) + "\n")
                if remote is not None:
                    remote.save(path)
                progress.advance(
                    1, usable=str(len(found.entries)), rejected=str(len(found.rejected))
                )
    finally:
        progress.stop()
        remove_partials(plan.records)
        if remote is not None:
            remote.save(path, now=True)
    return found


def _inside(plan: Plan, path: Path) -> str:
    return path.relative_to(plan.folder).as_posix()


@dataclass(frozen=True)
class _Make:
    """Adapts `Plan.make` to the pool, which offers to note progress within a task."""

    make: Callable[[Job], Transcoded | Refused]

    def __call__(self, job: Job, _mark: Mark) -> Transcoded | Refused:
        return self.make(job)


def _outcomes(
    plan: Plan, jobs: Sequence[Job]
) -> Iterator[tuple[Job, Transcoded | Refused | Exception]]:
    remote = RemoteMake(plan.make, store=plan.store, folder=plan.folder)
    far = plan.store is not None or any(isinstance(j.video.file, RemoteFile) for j in jobs)
    make = _Make(remote if far else plan.make)
    if len(jobs) < WORTH_WORKERS:
        yield from ((job, attempt(make, job, lambda _: None)) for job in jobs)
        return
    workers = min(plan.workers or usable_cores(), len(jobs))
    with WorkerPool(make, workers=workers, timeout=HUNG_SECONDS, preload=__name__) as pool:
        yield from run_tasks(pool, jobs, ahead=2 * workers)


def _jobs(plan: Plan, known: Findings, found: Findings) -> list[Job]:
    """Return the videos left to make; known results go to `found`."""
    files = targets(plan.videos)
    jobs = []
    for video in plan.own:
        old = known.entries.get(video.name)
        old_rejected = known.rejected.get(video.name)
        if video.problem is not None:
            kind, detail = video.problem
            found.rejected[video.name] = _rejection(video, Refused(problem=kind, detail=detail))
        elif old and _still_there(plan, old, files[video.name]) and _same_file(video, old):
            found.entries[video.name] = _relabel(plan, video, old)
            found.skipped += 1
        elif old_rejected and _same_file(video, old_rejected):
            found.rejected[video.name] = old_rejected
            found.skipped += 1
        else:
            known_sha256 = old.source_sha256 if old and old.path == files[video.name] else ""
            target = plan.folder / files[video.name]
            jobs.append(Job(video=video, target=target, known_sha256=known_sha256))
    return jobs


def _still_there(plan: Plan, entry: VideoEntry, target: str) -> bool:
    if entry.path != target:
        return False
    return plan.store.exists(target) if plan.store else (plan.folder / target).is_file()


def _same_file(video: SourceVideo, line: VideoEntry | Rejection) -> bool:
    return _stat(video.file) == (line.source_bytes, line.source_mtime_ns)


def _stat(file: Path | RemoteFile | None) -> tuple[int, int]:
    if isinstance(file, RemoteFile):
        return file.stat()
    if file is None or not os.path.exists(file):
        return 0, 0
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


def _relabel(plan: Plan, video: SourceVideo, entry: VideoEntry) -> VideoEntry:
    """Update class, caption and split from the new scan; pixels do not depend on them."""
    label = NO_CLASS if video.class_name is None else plan.classes.index(video.class_name)
    return replace(
        entry,
        label=label,
        class_name=video.class_name,
        caption=entry.caption if video.caption is None else video.caption,
        more_captions=video.more_captions,
        split=video.split,
    )


def _line(
    plan: Plan,
    job: Job,
    outcome: Transcoded | Refused | Exception,
    known: Findings,
    found: Findings,
) -> VideoEntry | Rejection:
    """Convert a worker's result to a line of the manifest or of rejected.jsonl."""
    video = job.video
    if isinstance(outcome, WorkerLost):
        outcome = Refused(problem="crashed the decoder", detail=str(outcome))
    if isinstance(outcome, Exception):
        raise outcome
    if isinstance(outcome, Refused):
        job.target.unlink(missing_ok=True)
        if plan.store is not None:
            plan.store.remove(_inside(plan, job.target))
        return _rejection(video, outcome)
    size, mtime = _stat(video.file)
    found.notes.update(outcome.notes)
    if outcome.unchanged:
        found.skipped += 1
        entry = replace(known.entries[video.name], source_mtime_ns=mtime)
    else:
        entry = VideoEntry(
            path=_inside(plan, job.target),
            num_frames=outcome.num_frames,
            fps=outcome.fps,
            height=outcome.height,
            width=outcome.width,
            caption=outcome.caption,
            is_image=video.is_image,
            source=video.name,
            source_bytes=size,
            source_mtime_ns=mtime,
            source_sha256=outcome.sha256,
        )
    return _relabel(plan, video, entry)


def _rejection(video: SourceVideo, refused: Refused) -> Rejection:
    size, mtime = _stat(video.file)
    return Rejection(
        source=as_unicode(video.name),
        problem=refused.problem,
        detail=refused.detail,
        source_bytes=size,
        source_mtime_ns=mtime,
        source_sha256=refused.sha256,
    )


def _remove_stale(folder: Path, entries: Sequence[VideoEntry]) -> None:
    """Remove canonical videos that no entry names: their sources are gone or refused."""
    kept = {folder / entry.path for entry in entries}
    for file in (folder / VIDEOS).rglob("*.mp4"):
        if file not in kept and file.is_file():  # a class may be called c.mp4
            file.unlink()


def _header(plan: Plan) -> dict[str, Any]:
    return {
        "name": plan.name,
        "kind": plan.kind,
        "source": plan.source,
        "settings": plan.settings,
        "classes": list(plan.classes),
        "notes": list(plan.notes),
    } | ({"plan": plan.digest()} if plan.shard else {})


def _bytes(folder: Path, entries: Sequence[VideoEntry]) -> int:
    return sum((folder / entry.path).stat().st_size for entry in entries)


def _result(
    plan: Plan, found: Findings, entries: Sequence[VideoEntry], rejected: Sequence[Rejection]
) -> dict[str, Any]:
    frames = [entry.num_frames for entry in entries]
    sizes = Counter(f"{entry.height}x{entry.width}" for entry in entries)
    notes = [*plan.notes, *(f"{count} with {what}" for what, count in found.notes.items())]
    return {
        "name": plan.name,
        "folder": plan.place,
        "source": plan.source,
        "usable": usable_line(len(plan.own), _problems(rejected)),
        "videos": len(entries),
        "rejected": dict(Counter(line.problem for line in rejected)),
        "skipped_unchanged": found.skipped,
        "classes": len(plan.classes),
        "splits": dict(Counter(entry.split for entry in entries)),
        "frames": {
            "min": min(frames, default=0),
            "median": int(statistics.median(frames or [0])),
            "max": max(frames, default=0),
        },
        "sizes": dict(sizes.most_common()),
        "bytes": None if plan.store else _bytes(plan.folder, entries),
        "notes": notes,
    } | ({"shard": str(plan.shard)} if plan.shard else {})
