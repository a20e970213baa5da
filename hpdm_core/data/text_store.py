"""Text embeddings on disk: safetensors shards in bfloat16, a tensor per caption.

`text/text.json` names the encoder; a shard's tensors are named by a hash of the caption,
so that each caption is encoded once, for any number of videos. `text/keys.npy` says where each
one lies; it is searched on disk, so that no process holds a list of captions.

Axis legend: `b` batch, `n` tokens, `d` width.
"""

import hashlib
import json
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hpdm_core.data.metadata import parse_typed
from hpdm_core.errors import DataError
from hpdm_core.files import atomic_path, irregular, write_text

FOLDER, INDEX, KEYS = "text", "text.json", "keys.npy"
_AGAIN = "run `hpdm prep captions` again with --text-encoder"
# Sorted by key, each once: 16 bytes of a hash, a shard, tokens, the first byte in its file.
_PLACE = np.dtype([("key", "S16"), ("shard", "<i4"), ("tokens", "<i4"), ("offset", "<i8")])
_TYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class TextIndex:
    """Metadata of stored embeddings.

    Args:
        encoder: name or path of the text encoder.
        fingerprint: of its files.
        width: d of the embeddings.
        max_tokens: captions were truncated to this many tokens.
        longest: most tokens that any caption has.
        dtype: of computation and storage.
    """

    encoder: str
    fingerprint: str
    width: int
    max_tokens: int
    longest: int
    dtype: str


_INDEX = TypeAdapter(TextIndex)


def caption_key(caption: str) -> str:
    """Return the name of a caption's tensor."""
    return hashlib.sha256(caption.encode()).hexdigest()[:32]


def read_text_index(folder: Path) -> TextIndex | None:
    """Return the metadata in a data set's folder, or None."""
    path = folder / FOLDER / INDEX
    if not path.is_file():
        return None
    return parse_typed(path.read_bytes(), _INDEX, str(path))


def write_text_index(folder: Path, index: TextIndex) -> None:
    """Write the metadata of the stored embeddings, atomically."""
    write_text(folder / FOLDER / INDEX, json.dumps(asdict(index), indent=1) + "\n")


def stored_keys(folder: Path, fingerprint: str) -> dict[str, Path]:
    """Return the shard of every stored caption; shards of other encoders are removed."""
    keys = {}
    for shard in _shards(folder):
        try:
            with safe_open(shard, framework="pt") as opened:
                if (opened.metadata() or {}).get("fingerprint") == fingerprint:
                    keys.update(dict.fromkeys(opened.keys(), shard))
                    continue
        except (SafetensorError, OSError):
            pass  # a damaged shard is made again
        (folder / FOLDER / KEYS).unlink(missing_ok=True)
        shard.unlink()
    return keys


def write_shard(folder: Path, tensors: dict[str, Tensor], fingerprint: str) -> None:
    """Write one more shard of (n, d) embeddings by caption key."""
    number = 0
    while (path := _shard(folder, number)).exists():
        number += 1
    (folder / FOLDER / KEYS).unlink(missing_ok=True)
    with atomic_path(path) as partial:
        save_file(tensors, partial, metadata={"fingerprint": fingerprint})


def write_keys(folder: Path) -> int:
    """Write where each stored caption lies, atomically; return the number of captions."""
    places = _places(folder)
    with atomic_path(folder / FOLDER / KEYS) as partial:
        np.save(partial, places, allow_pickle=False)
    return len(places)


def _places(folder: Path) -> np.ndarray:
    """Return where each stored caption lies, from the headers of all shards."""
    rows = []
    for path in _shards(folder):
        try:
            number = int(path.stem.removeprefix("text-"))
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(min(size, path.stat().st_size)))
            header.pop("__metadata__", None)
            rows.extend(
                (bytes.fromhex(key), number, about["shape"][0], 8 + size + about["data_offsets"][0])
                for key, about in header.items()
            )
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is damaged", got=error, remedy=_AGAIN) from error
    places = np.array(rows, dtype=_PLACE)
    return places[np.unique(places["key"], return_index=True)[1]]


def _shards(folder: Path) -> list[Path]:
    """Return the shards there are; what is no file is refused unopened, as a pipe would block."""
    shards = sorted((folder / FOLDER).glob("text-*.safetensors"))
    for path in shards:
        if fault := irregular(path):
            raise DataError(f"cannot read {path}", got=fault, remedy=f"remove it; {_AGAIN}")
    return shards


def _shard(folder: Path, number: int) -> Path:
    return folder / FOLDER / f"text-{number:05d}.safetensors"


def longest_stored(folder: Path) -> int:
    """Return the most tokens of any stored caption."""
    longest = 0
    for shard in _shards(folder):
        with safe_open(shard, framework="pt") as opened:
            shapes = (opened.get_slice(key).get_shape() for key in opened.keys())  # noqa: SIM118
            longest = max([longest, *(shape[0] for shape in shapes)])
    return longest


class TextStore:
    """Stored embeddings, read from memory-mapped shards. Picklable.

    Args:
        folder: the data set's folder.

    Raises:
        DataError: it holds none.
    """

    def __init__(self, folder: Path) -> None:
        index = read_text_index(folder)
        if index is None:
            raise DataError(
                f"{folder} holds no text embeddings",
                remedy="run `hpdm prep captions` with --text-encoder, or change model.conditioning",
            )
        self.index = index
        self._folder = folder
        self._keys: np.ndarray | None = None

    def __getstate__(self) -> dict:
        # Without the mapping: every process maps the file itself.
        return self.__dict__ | {"_keys": None}

    def check(self, captions: Iterable[str]) -> None:
        """Raise DataError unless every caption is stored."""
        missing = [caption for caption in captions if self._find(caption) is None]
        if missing:
            raise _not_stored(len(missing), missing[0])

    def get(self, caption: str) -> Tensor:
        """Return (n, d) in the type of storage.

        Raises:
            DataError: the caption is not stored, or its shard is damaged.
        """
        place = self._find(caption)
        if place is None:
            raise _not_stored(1, caption)
        kind, shape = _TYPES[self.index.dtype], (int(place["tokens"]), self.index.width)
        size = shape[0] * shape[1] * kind.itemsize
        path = _shard(self._folder, place["shard"])
        if fault := irregular(path):  # a pipe would block
            raise DataError(f"cannot read {path}", got=fault, remedy=_AGAIN)
        try:
            with path.open("rb") as file:
                file.seek(int(place["offset"]))
                data = file.read(size)
        except (OSError, ValueError) as error:
            raise DataError(f"cannot read {path}", got=error, remedy=_AGAIN) from error
        if len(data) < size or size <= 0:
            raise DataError(f"{path} is cut short", remedy=_AGAIN)
        return torch.frombuffer(bytearray(data), dtype=kind).reshape(shape)

    def batch(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return embeddings (b, n, d) float32 and mask (b, n) bool; n is the same for any batch."""
        return pad_tokens([self.get(caption) for caption in captions], self.index.longest)

    def _find(self, caption: str) -> np.void | None:
        if self._keys is None:
            self._keys = _open_keys(self._folder)
        # NumPy strips zeros from the ends of byte strings.
        key = bytes.fromhex(caption_key(caption)).rstrip(b"\0")
        column = self._keys["key"]
        position = bisect_left(column, key)
        found = position < len(column) and column[position] == key
        return self._keys[position] if found else None


def _open_keys(folder: Path) -> np.ndarray:
    path = folder / FOLDER / KEYS
    if not path.is_file():
        return _places(folder)  # an earlier version wrote none
    try:
        keys = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is damaged", got=error, remedy="delete it") from error
    if keys.dtype != _PLACE or keys.ndim != 1:
        raise DataError(f"{path} is damaged", got=keys.dtype, remedy="delete it")
    return keys


def _not_stored(number: int, example: str) -> DataError:
    return DataError(
        f"{number} captions have no text embedding, such as {example!r}",
        remedy=f"{_AGAIN}: it adds what is new",
    )


def pad_tokens(tokens: Sequence[Tensor], length: int) -> tuple[Tensor, Tensor]:
    """Pad (n_i, d) embeddings with zeros to (b, length, d) float32; the mask marks real tokens."""
    padded = torch.zeros(len(tokens), length, tokens[0].shape[1])
    mask = torch.zeros(len(tokens), length, dtype=torch.bool)
    for row, embedding in enumerate(tokens):
        padded[row, : len(embedding)] = embedding.float()
        mask[row, : len(embedding)] = True
    return padded, mask
