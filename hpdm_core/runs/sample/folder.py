"""The folder of generated videos: a file and a line per video, and which are missing.

A line is written after the video's files are complete, so that a killed run resumes with exactly
the missing ones.
"""

import errno
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from einops import rearrange
from PIL import Image, ImageSequence

from hpdm_core.data.dataset import write_json_lines
from hpdm_core.data.pictures import contact_sheet, video_grid, write_webp
from hpdm_core.data.video_io import decode_sequential, write_mp4
from hpdm_core.errors import HpdmError
from hpdm_core.files import append_line, atomic_path, read_whole_lines, remove_partials
from hpdm_core.locks import lock_folder
from hpdm_core.pipeline.conditions import Request
from hpdm_core.pipeline.videos import WRITERS

LINES, SHEET, PREVIEW = "samples.jsonl", "contact_sheet.png", "preview.webp"
PREVIEW_HEIGHT = 96
MAX_IN_SHEET = 24


@dataclass(frozen=True, kw_only=True)
class SampleStore:
    """A folder of generated videos.

    Args:
        folder: output folder.
        formats: file suffixes to write.
        fps: frames per second.
        settings: everything that the videos depend on besides seed and class or prompt.
        rank: of this process; each process writes its own lines.
    """

    folder: Path
    formats: tuple[str, ...]
    fps: float
    settings: dict
    rank: int

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Make the folder, and keep other commands out of it until the block ends.

        Raises:
            HpdmError: it holds videos of other settings, another command writes to it, or an
                unknown format is asked for.
        """
        unknown = [name for name in self.formats if name not in WRITERS]
        if unknown or not self.formats:
            raise HpdmError(
                "--format names file formats",
                got=", ".join(unknown) or "none",
                expected=f"some of {', '.join(WRITERS)}",
            )
        for line in self.lines():
            if line["settings"] != self.settings:
                raise HpdmError(
                    f"{self.folder} holds videos of other settings",
                    expected="a new or empty folder",
                    remedy="give another --out",
                )
        if self.rank > 0:
            yield
            return
        remedy = "wait for it, stop it, or give another --out"
        with lock_folder(self.folder, doing="sampling into", remedy=remedy):
            remove_partials(self.folder)
            yield

    def lines(self) -> list[dict]:
        """Return the finished videos' lines of all processes, without a partial last line."""
        paths = sorted(self.folder.glob("samples*.jsonl"))
        return [line for path in paths for line in read_whole_lines(path)]

    def missing(self, requests: Sequence[Request]) -> list[Request]:
        """Return the requests whose video is missing."""
        done = {
            (line["index"], line["seed"], line["class"], line["prompt"])
            for line in self.lines()
            if all((self.folder / name).is_file() for name in line["files"])
            and {Path(name).suffix[1:] for name in line["files"]} >= set(self.formats)
        }
        return [r for r in requests if (r.index, r.seed, r.class_name, r.prompt) not in done]

    def write(self, request: Request, video: np.ndarray, extra: dict[str, np.ndarray]) -> None:
        """Write one video in all formats, its extra videos as MP4, and its line.

        Args:
            video: (t, h, w, 3) uint8.
            extra: more videos by the suffix of their names.

        Raises:
            HpdmError: the disk is full or not writable.
        """
        try:
            files = []
            for name in self.formats:
                WRITERS[name](self.folder / f"{request.stem}.{name}", video, self.fps)
                files.append(f"{request.stem}.{name}")
            for ending, other in extra.items():
                write_mp4(self.folder / f"{request.stem}_{ending}.mp4", other, self.fps)
                files.append(f"{request.stem}_{ending}.mp4")
            line = {
                "index": request.index,
                "seed": request.seed,
                "label": request.label,
                "class": request.class_name,
                "prompt": request.prompt,
                "file": files[0],
                "files": files,
                "settings": self.settings,
            }
            name = LINES if self.rank == 0 else f"samples-{self.rank}.jsonl"
            append_line(self.folder / name, line)
        except OSError as error:
            full = error.errno == errno.ENOSPC
            raise HpdmError(
                f"cannot write to {self.folder}",
                got="a full disk" if full else error,
                remedy="what was finished is kept: free space and run the same command again",
            ) from error

    def finish(self, requests: Sequence[Request]) -> None:
        """Join all processes' lines in order; draw the contact sheet and the preview."""
        wanted = {(r.index, r.seed) for r in requests}
        by_place = {(line["index"], line["seed"]): line for line in self.lines()}
        write_json_lines(self.folder / LINES, [by_place[place] for place in sorted(by_place)])
        for path in self.folder.glob("samples-*.jsonl"):
            path.unlink()
        shown = [by_place[place] for place in sorted(wanted & by_place.keys())][:MAX_IN_SHEET]
        videos = [_read_back(self.folder / line["file"], line["settings"]) for line in shown]
        captions = [_caption(line) for line in shown]
        with atomic_path(self.folder / SHEET) as partial:
            contact_sheet(videos, captions).save(partial)
        columns = math.ceil(math.sqrt(len(videos)))
        grid = video_grid(np.stack(videos), columns=columns, min_height=PREVIEW_HEIGHT)
        write_webp(self.folder / PREVIEW, grid, self.fps)


def free_folder(name: str, settings: dict) -> Path:
    """Return the folder below samples/ that holds videos of these settings, else a new one."""
    base = f"{name}_{settings['overlap']}"
    for number in range(1, 10_000):
        folder = Path("samples") / (base if number == 1 else f"{base}_{number}")
        probe = SampleStore(folder=folder, formats=(), fps=1.0, settings=settings, rank=0)
        lines = probe.lines()
        if not lines or all(line["settings"] == settings for line in lines):
            return folder
    raise HpdmError(f"samples/ holds {number} folders of {base}", remedy="give --out")


def _caption(line: dict) -> str:
    return f"seed {line['seed']}: {line['class'] or line['prompt'] or 'unconditional'}"


def _read_back(path: Path, settings: dict) -> np.ndarray:
    """Return (t, h, w, 3) uint8 of a video that `write` wrote in any of its formats."""
    if path.suffix == ".mp4":
        return np.stack(list(decode_sequential(path)))
    with Image.open(path) as image:
        if path.suffix != ".png":
            return np.stack([np.asarray(f.convert("RGB")) for f in ImageSequence.Iterator(image)])
        picture = np.asarray(image.convert("RGB"))
    t, h, w = settings["resolution"]
    rows = rearrange(picture, "(rows h) (columns w) c -> (rows columns) h w c", h=h, w=w)
    return rows[:t]
