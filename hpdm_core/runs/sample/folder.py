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
from typing import Any

import numpy as np
from einops import rearrange
from PIL import Image, ImageSequence
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from hpdm_core.data.entries import write_json_lines
from hpdm_core.data.pictures import contact_sheet, video_grid, write_webp
from hpdm_core.data.video_io import decode_sequential, write_mp4
from hpdm_core.errors import HpdmError, did_you_mean
from hpdm_core.files import append_line, atomic_path, read_whole_lines, remove_partials
from hpdm_core.locks import lock_folder
from hpdm_core.pipeline.conditions import Request
from hpdm_core.pipeline.videos import WRITERS

LINES, SHEET, PREVIEW = "samples.jsonl", "contact_sheet.png", "preview.webp"
COMPARISON = "compare"
PREVIEW_HEIGHT = 96
MAX_IN_SHEET = 24
# What tells a video from the others of a folder: index, seed, class and prompt.
Key = tuple[int, int, str, str]


_TEXT = str | None
_LINE = TypeAdapter(
    TypedDict(
        "_LINE",
        {"index": int, "seed": int, "class": _TEXT, "prompt": _TEXT, "file": str,
         "files": list[str], "settings": dict[str, Any]},
    )
)  # fmt: skip


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
                remedy=did_you_mean(unknown[0], WRITERS) if unknown else None,
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
        """Return the finished videos' lines of all processes, without a partial last line.

        Raises:
            HpdmError: a line was not written by `hpdm sample`.
        """
        lines = []
        for path in sorted(self.folder.glob("samples*.jsonl")):
            for line in read_whole_lines(path):
                try:
                    _LINE.validate_python(line, strict=True)
                except ValidationError as error:
                    raise HpdmError(
                        f"{path} holds a line that `hpdm sample` did not write",
                        got=ascii(line)[:60],
                        remedy="remove the line, or give another --out",
                    ) from error
                lines.append(line)
        return lines

    def missing(self, requests: Sequence[Request]) -> list[Request]:
        """Return the requests whose video is missing."""
        done = {
            _key_of(line)
            for line in self.lines()
            if all((self.folder / name).is_file() for name in line["files"])
            and {Path(name).suffix[1:] for name in line["files"]} >= set(self.formats)
        }
        return [request for request in requests if _key(request) not in done]

    def write(self, request: Request, video: np.ndarray, extra: dict[str, np.ndarray]) -> None:
        """Write one video in all formats, its extra videos as MP4, and its line.

        Args:
            video: (t, h, w, 3) uint8.
            extra: more videos by the suffix of their names; `COMPARISON` also gets a picture of
                its middle frame.

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
            if COMPARISON in extra:
                files.append(f"{request.stem}_{COMPARISON}.png")
                middle = extra[COMPARISON][len(video) // 2]
                with atomic_path(self.folder / files[-1]) as partial:
                    Image.fromarray(middle).save(partial)
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
        lines = {_key_of(line): line for line in self.lines()}
        write_json_lines(self.folder / LINES, [lines[key] for key in sorted(lines)])
        for path in self.folder.glob("samples-*.jsonl"):
            path.unlink()
        wanted = sorted({_key(request) for request in requests} & lines.keys())
        shown = [lines[key] for key in wanted[:MAX_IN_SHEET]]
        videos = [_read_back(self.folder / line["file"], line["settings"]) for line in shown]
        captions = [_caption(line) for line in shown]
        with atomic_path(self.folder / SHEET) as partial:
            contact_sheet(videos, captions).save(partial)
        columns = math.ceil(math.sqrt(len(videos)))
        grid = video_grid(np.stack(videos), columns=columns, min_height=PREVIEW_HEIGHT)
        write_webp(self.folder / PREVIEW, grid, self.fps)

    def comparisons(self, requests: Sequence[Request]) -> list[str]:
        """Return the pictures and videos of overlaps side by side."""
        names = [f"{r.stem}_{COMPARISON}.{kind}" for r in requests for kind in ("png", "mp4")]
        return [str(self.folder / name) for name in names if (self.folder / name).is_file()]


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


def _key(request: Request) -> Key:
    return request.index, request.seed, request.class_name or "", request.prompt or ""


def _key_of(line: dict) -> Key:
    return line["index"], line["seed"], line["class"] or "", line["prompt"] or ""


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
