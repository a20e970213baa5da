"""What a part of a data set does for each video where the source or the data set is in a store."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from hpdm_core.data.objects import RemoteFile, RemoteFolder
from hpdm_core.data.plan import Job
from hpdm_core.data.transcode import Refused, Transcoded

SAVE_SECONDS = 30.0


@dataclass(frozen=True)
class RemoteMake:
    """Wraps a plan's `make`: downloads a source and uploads what was made, in the worker.

    Args:
        make: writes one canonical video from a local file.
        store: the data set in a store; None where it is a local folder.
        folder: the local folder that stands for it.
    """

    make: Callable[[Job], Transcoded | Refused]
    store: RemoteFolder | None
    folder: Path

    def __call__(self, job: Job) -> Transcoded | Refused:
        with TemporaryDirectory(prefix="hpdm-") as scratch:
            source = job.video.file
            if isinstance(source, RemoteFile):
                local = Path(scratch) / f"source{source.suffix}"
                if not source.fetch(local):
                    return Refused(problem="unreadable", detail="there is no such object")
                job = replace(job, video=replace(job.video, file=local))
            if self.store is None:
                return self.make(job)
            return self._make_and_upload(job, self.store)

    def _make_and_upload(self, job: Job, store: RemoteFolder) -> Transcoded | Refused:
        name = job.target.relative_to(self.folder).as_posix()
        try:
            if job.known_sha256 and store.exists(name):
                job.target.parent.mkdir(parents=True, exist_ok=True)
                job.target.touch()  # stands for the object, so that an unchanged one is kept
            outcome = self.make(job)
            if isinstance(outcome, Transcoded) and not outcome.unchanged:
                store.put(job.target, name)
            return outcome
        finally:
            job.target.unlink(missing_ok=True)


@dataclass
class RemoteJournal:
    """Uploads a part's journal now and then, so that a killed part goes on from there.

    Args:
        store: the data set.
        name: of the journal in it.
        clock: seconds.
    """

    store: RemoteFolder
    name: str
    clock: Callable[[], float] = time.monotonic
    _last: float = field(init=False)

    def __post_init__(self) -> None:
        self._last = self.clock()

    def save(self, journal: Path, *, now: bool = False) -> None:
        """Upload it if half a minute has passed, or now."""
        if now or self.clock() - self._last >= SAVE_SECONDS:
            self.store.put(journal, self.name)
            self._last = self.clock()
