"""Detector outputs on disk, in chunks of videos: scores can be resumed and repeated cheaply.

A store belongs to one set of videos, one clip format and one detector, which form its key. A chunk
holds a fixed range of indices, so that several processes can fill different chunks, an interrupted
run resumes where it stopped, and another protocol reuses them.

Axis legend: `n` videos, `d` output width.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hpdm_core.files import irregular

CHUNK = 16


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Outputs of the videos at places start..stop-1.

    Args:
        start, stop: range of places.
        places: (n,) int64 places that have an output, n <= stop - start.
        outputs: (n, d) float32.
        skipped: place and reason of each video that could not be used.
    """

    start: int
    stop: int
    places: Tensor
    outputs: Tensor
    skipped: tuple[tuple[int, str], ...] = ()


class FeatureStore:
    """The chunks of one key, below a folder of stores.

    Args:
        folder: of all stores.
        key: everything that the outputs depend on; written beside them.
    """

    def __init__(self, folder: Path, key: Mapping[str, object]) -> None:
        text = json.dumps(key, sort_keys=True, indent=1)
        self.folder = folder / hashlib.sha256(text.encode()).hexdigest()[:20]
        self._key_text = text

    def missing(self, count: int) -> list[tuple[int, int]]:
        """Return (start, stop) of the chunks that the first `count` places still lack."""
        ranges = [(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
        return [(start, stop) for start, stop in ranges if self._done_until(start) < stop]

    def put(self, chunk: Chunk) -> None:
        """Write a chunk; it appears whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        _write(self.folder / "key.json", self._key_text.encode())
        about = {
            "start": str(chunk.start),
            "stop": str(chunk.stop),
            "skipped": json.dumps(chunk.skipped),
        }
        tensors = {"places": chunk.places.contiguous(), "outputs": chunk.outputs.contiguous()}
        _write(self._path(chunk.start), save(tensors, metadata=about))

    def get(self, count: int) -> Chunk:
        """Return the outputs of the first `count` places as one chunk; all must be there."""
        assert not self.missing(count), "chunks are missing"
        chunks = [self._read(start) for start in range(0, count, CHUNK)]
        places = torch.cat([chunk.places for chunk in chunks])
        # Rows of an empty chunk have no width.
        outputs = torch.cat(
            [chunk.outputs for chunk in chunks if len(chunk.places)] or [_nothing()]
        )
        kept = places < count
        skipped = tuple(item for chunk in chunks for item in chunk.skipped if item[0] < count)
        return Chunk(
            start=0, stop=count, places=places[kept], outputs=outputs[kept], skipped=skipped
        )

    def _path(self, start: int) -> Path:
        return self.folder / f"{start:08d}.safetensors"

    def _done_until(self, start: int) -> int:
        if irregular(self._path(start)):  # a pipe would block
            return start
        try:
            with safe_open(self._path(start), framework="pt") as file:
                return int(file.metadata()["stop"])
        except (OSError, SafetensorError):
            return start

    def _read(self, start: int) -> Chunk:
        with safe_open(self._path(start), framework="pt") as file:
            about = file.metadata()
            skipped: Sequence[Sequence] = json.loads(about["skipped"])
            return Chunk(
                start=start,
                stop=int(about["stop"]),
                places=file.get_tensor("places"),
                outputs=file.get_tensor("outputs"),
                skipped=tuple((int(place), str(reason)) for place, reason in skipped),
            )


def _nothing() -> Tensor:
    return torch.zeros(0, 0)


def _write(path: Path, content: bytes) -> None:
    # Several processes may write one name; each has its own partial file.
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    partial.write_bytes(content)
    os.replace(partial, path)
