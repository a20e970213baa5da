"""The common part of every `hpdm prep`: decode in parallel, journal, manifest, table of findings.

Each finished video is written to a journal at once, so that an interrupted run goes on where it
stopped; the manifest appears only at the end, whole. Prepared again, unchanged files are skipped.
"""

import json
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from hpdm_core.data.atomic import remove_partials
from hpdm_core.data.dataset import (
    MANIFEST,
    NO_CLASS,
    REJECTED,
    Kind,
    VideoEntry,
    read_header,
    read_json_lines,
    read_manifest,
    write_header,
    write_json_lines,
    write_manifest,
)
from hpdm_core.data.pool import Mark, WorkerLost, WorkerPool, attempt, run_tasks, usable_cores
from hpdm_core.data.transcode import Refused, Transcode, Transcoded, transcode
from hpdm_core.data.video_io import CRF, GOP, Problem
from hpdm_core.errors import DataError
from hpdm_core.progress import Progress

JOURNAL = "prep.journal.jsonl"
VIDEOS = "videos"
MIN_FRAMES = 16
# Starting processes takes longer than making this many videos does.
WORTH_WORKERS = 4
# A film of two hours takes a core some 20 minutes.
HUNG_SECONDS = 4 * 3600.0


@dataclass(frozen=True, kw_only=True)
class SourceVideo:
    """A video that a scan of the source found.

    Args:
        file: where it lies; None where it is made on the spot.
        name: what to call it, unique, relative to the source, with forward slashes.
        class_name, caption, split, is_image: as in `VideoEntry`.
        problem: why it is refused without being decoded, as (kind, words).
    """

    file: Path | None
    name: str
    class_name: str | None = None
    caption: str | None = None
    split: str = "train"
    is_image: bool = False
    problem: tuple[Problem, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """One video for a worker to make.

    Args:
        video: its source.
        target: the canonical MP4 to write.
        known_sha256: hash of the source when `target` was last written, '' if never.
    """

    video: SourceVideo
    target: Path
    known_sha256: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one preparation shall make.

    Args:
        folder: the data set's folder.
        name, kind, classes: as in `VideoDataset`.
        source: the source in words, for the header.
        videos: everything that the scan found.
        make: writes one canonical video; importable by name, for it runs in workers.
        settings: what every canonical video depends on besides its source; others are made anew.
        workers: processes; None takes every core.
        notes: what the user should know about the scan.
    """

    folder: Path
    name: str
    kind: Kind
    classes: tuple[str, ...]
    source: str
    videos: Sequence[SourceVideo]
    make: Callable[[Job], Transcoded | Refused]
    settings: dict[str, Any]
    workers: int | None = None
    notes: tuple[str, ...] = ()


@dataclass
class Findings:
    """What is known about each source so far, by its name."""

    entries: dict[str, VideoEntry] = field(default_factory=dict)
    rejected: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped: int = 0
    notes: Counter = field(default_factory=Counter)


@dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """How files become canonical.

    Args:
        min_frames: videos with fewer decoded frames are refused (stills are not).
        size: (h, w) that larger videos are shrunk to cover, None for the original size.
    """

    min_frames: int = MIN_FRAMES
    size: tuple[int, int] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        size = None if self.size is None else list(self.size)
        return {"crf": CRF, "gop": GOP, "size": size, "min_frames": self.min_frames}

    def __call__(self, job: Job) -> Transcoded | Refused:
        return transcode(
            Transcode(
                source=job.video.file,
                target=job.target,
                is_image=job.video.is_image,
                min_frames=self.min_frames,
                size=self.size,
                known_sha256=job.known_sha256,
            )
        )


def describe(plan: Plan) -> dict[str, Any]:
    """Return what `prepare` would do, without decoding anything (`--dry-run`)."""
    files = [v.file for v in plan.videos if v.file is not None and v.file.is_file()]
    return {
        "dry_run": True,
        "name": plan.name,
        "folder": str(plan.folder),
        "source": plan.source,
        "files": len(plan.videos),
        "bytes": sum(file.stat().st_size for file in files),
        "classes": len(plan.classes),
        "splits": dict(Counter(v.split for v in plan.videos)),
        "settings": plan.settings,
        "notes": list(plan.notes),
    }


def prepare(plan: Plan, progress: Progress) -> dict[str, Any]:
    """Make every usable video canonical and write the manifest.

    Returns:
        Counts, sizes and notes: what the command line prints as a table.

    Raises:
        DataError: the folder holds another data set, or no video at all is usable.
    """
    known = _known(plan)
    plan.folder.mkdir(parents=True, exist_ok=True)
    remove_partials(plan.folder)
    found = _make_all(plan, known, progress)
    rejected = [found.rejected[v.name] for v in plan.videos if v.name in found.rejected]
    write_json_lines(plan.folder / REJECTED, rejected)
    if not found.entries:
        raise DataError(
            f"{usable_line(len(plan.videos), rejected)} ({plan.source})",
            remedy=f"{plan.folder / REJECTED} lists each with its reason",
        )
    entries = [found.entries[v.name] for v in plan.videos if v.name in found.entries]
    _remove_stale(plan.folder, entries)
    write_manifest(plan.folder / MANIFEST, entries)
    write_header(plan.folder, _header(plan))
    (plan.folder / JOURNAL).unlink(missing_ok=True)
    return _result(plan, found, entries, rejected)


def usable_line(total: int, rejected: Sequence[dict[str, Any]]) -> str:
    """Say it in one line: '9 of 180 videos usable: 160 too short, 11 unreadable'."""
    reasons = Counter(line["problem"] for line in rejected)
    listed = ", ".join(f"{count} {problem}" for problem, count in reasons.most_common())
    line = f"{total - len(rejected)} of {total} videos usable"
    return f"{line}: {listed}" if listed else line


def targets(videos: Sequence[SourceVideo]) -> dict[str, str]:
    """Return the canonical file of each source name; names that would clash keep their suffix."""
    stems = Counter(_stem(video.name).lower() for video in videos)
    result = {}
    for video in videos:
        stem = _stem(video.name)
        unique = stem if stems[stem.lower()] == 1 else video.name
        result[video.name] = f"{VIDEOS}/{unique}.mp4"
    return result


def _stem(name: str) -> str:
    folder, slash, last = name.rpartition("/")
    return folder + slash + (last.rpartition(".")[0] or last)


def _known(plan: Plan) -> Findings:
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
            _learn(known, line)
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


def _learn(found: Findings, line: dict[str, Any]) -> None:
    name = line["source"]
    found.entries.pop(name, None)
    found.rejected.pop(name, None)
    if "problem" in line:
        found.rejected[name] = line
    else:
        found.entries[name] = VideoEntry(**line)


def _make_all(plan: Plan, known: Findings, progress: Progress) -> Findings:
    found = Findings()
    jobs = _jobs(plan, known, found)
    head = {"kind": plan.kind, "source": plan.source, "settings": plan.settings}
    done = [*map(asdict, found.entries.values()), *found.rejected.values()]
    write_json_lines(plan.folder / JOURNAL, [head, *done])
    progress.start(f"preparing {plan.name}", len(jobs))
    try:
        with (plan.folder / JOURNAL).open("a", encoding="utf-8", buffering=1) as journal:
            for job, outcome in _outcomes(plan, jobs):
                line = _line(plan, job, outcome, known, found)
                _learn(found, line)
                journal.write(json.dumps(line) + "\n")
                progress.advance(
                    1, usable=str(len(found.entries)), rejected=str(len(found.rejected))
                )
    finally:
        progress.stop()
        remove_partials(plan.folder)
    return found


@dataclass(frozen=True)
class _Make:
    """Adapts `Plan.make` to the pool, which offers to note progress within a task."""

    make: Callable[[Job], Transcoded | Refused]

    def __call__(self, job: Job, _mark: Mark) -> Transcoded | Refused:
        return self.make(job)


def _outcomes(
    plan: Plan, jobs: Sequence[Job]
) -> Iterator[tuple[Job, Transcoded | Refused | Exception]]:
    make = _Make(plan.make)
    if len(jobs) < WORTH_WORKERS:
        yield from ((job, attempt(make, job, lambda _: None)) for job in jobs)
        return
    workers = min(plan.workers or usable_cores(), len(jobs))
    with WorkerPool(make, workers=workers, timeout=HUNG_SECONDS) as pool:
        yield from run_tasks(pool, jobs, ahead=2 * workers)


def _jobs(plan: Plan, known: Findings, found: Findings) -> list[Job]:
    """Return what is left to make; what is already clear goes to `found`."""
    files = targets(plan.videos)
    jobs = []
    for video in plan.videos:
        old = known.entries.get(video.name)
        old_rejected = known.rejected.get(video.name)
        if video.problem is not None:
            kind, detail = video.problem
            found.rejected[video.name] = _rejection(video, Refused(problem=kind, detail=detail))
        elif old and _still_there(plan, old, files[video.name]) and _same_file(video, asdict(old)):
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
    return entry.path == target and (plan.folder / target).is_file()


def _same_file(video: SourceVideo, line: dict[str, Any]) -> bool:
    size, mtime = _stat(video.file)
    return (size, mtime) == (line["source_bytes"], line["source_mtime_ns"])


def _stat(file: Path | None) -> tuple[int, int]:
    if file is None or not file.exists():
        return 0, 0
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


def _relabel(plan: Plan, video: SourceVideo, entry: VideoEntry) -> VideoEntry:
    """Take class, caption and split from the new scan; they do not touch the pixels."""
    label = NO_CLASS if video.class_name is None else plan.classes.index(video.class_name)
    return replace(
        entry,
        label=label,
        class_name=video.class_name,
        caption=entry.caption if video.caption is None else video.caption,
        split=video.split,
    )


def _line(
    plan: Plan,
    job: Job,
    outcome: Transcoded | Refused | Exception,
    known: Findings,
    found: Findings,
) -> dict[str, Any]:
    """Turn a worker's answer into a line of the manifest or of rejected.jsonl."""
    video = job.video
    if isinstance(outcome, WorkerLost):
        outcome = Refused(problem="crashed the decoder", detail=str(outcome))
    if isinstance(outcome, Exception):
        raise outcome
    if isinstance(outcome, Refused):
        job.target.unlink(missing_ok=True)
        return _rejection(video, outcome)
    size, mtime = _stat(video.file)
    found.notes.update(outcome.notes)
    if outcome.unchanged:
        found.skipped += 1
        entry = replace(known.entries[video.name], source_mtime_ns=mtime)
    else:
        entry = VideoEntry(
            path=job.target.relative_to(plan.folder).as_posix(),
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
    return asdict(_relabel(plan, video, entry))


def _rejection(video: SourceVideo, refused: Refused) -> dict[str, Any]:
    size, mtime = _stat(video.file)
    return {
        "source": video.name,
        "problem": refused.problem,
        "detail": refused.detail,
        "source_bytes": size,
        "source_mtime_ns": mtime,
        "source_sha256": refused.sha256,
    }


def _remove_stale(folder: Path, entries: Sequence[VideoEntry]) -> None:
    """Remove canonical videos that no entry names: their sources are gone or refused."""
    kept = {folder / entry.path for entry in entries}
    for file in (folder / VIDEOS).rglob("*.mp4"):
        if file not in kept:
            file.unlink()


def _header(plan: Plan) -> dict[str, Any]:
    return {
        "name": plan.name,
        "kind": plan.kind,
        "source": plan.source,
        "settings": plan.settings,
        "classes": list(plan.classes),
        "notes": list(plan.notes),
    }


def _result(
    plan: Plan, found: Findings, entries: Sequence[VideoEntry], rejected: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    frames = [entry.num_frames for entry in entries]
    sizes = Counter(f"{entry.height}x{entry.width}" for entry in entries)
    notes = [*plan.notes, *(f"{count} with {what}" for what, count in found.notes.items())]
    return {
        "name": plan.name,
        "folder": str(plan.folder),
        "source": plan.source,
        "usable": usable_line(len(plan.videos), rejected),
        "videos": len(entries),
        "rejected": dict(Counter(line["problem"] for line in rejected)),
        "skipped_unchanged": found.skipped,
        "classes": len(plan.classes),
        "splits": dict(Counter(entry.split for entry in entries)),
        "frames": {
            "min": min(frames),
            "median": int(statistics.median(frames)),
            "max": max(frames),
        },
        "sizes": dict(sizes.most_common()),
        "bytes": sum((plan.folder / entry.path).stat().st_size for entry in entries),
        "notes": notes,
    }
