"""Text embeddings on disk: safetensors shards in bfloat16, a tensor per caption.

`text/text.json` names the encoder; a shard's tensors are named by a hash of the caption,
so that each caption is encoded once, for any number of videos.

Axis legend: `b` batch, `n` tokens, `d` width.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hpdm_core.data.metadata import parse_typed
from hpdm_core.errors import DataError
from hpdm_core.files import atomic_path, write_text

FOLDER, INDEX = "text", "text.json"


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
    for shard in sorted((folder / FOLDER).glob("text-*.safetensors")):
        try:
            with safe_open(shard, framework="pt") as opened:
                if (opened.metadata() or {}).get("fingerprint") == fingerprint:
                    keys.update(dict.fromkeys(opened.keys(), shard))
                    continue
        except (SafetensorError, OSError):
            pass  # a damaged shard is made again
        shard.unlink()
    return keys


def write_shard(folder: Path, tensors: dict[str, Tensor], fingerprint: str) -> None:
    """Write one more shard of (n, d) embeddings by caption key."""
    number = 0
    while (path := folder / FOLDER / f"text-{number:05d}.safetensors").exists():
        number += 1
    with atomic_path(path) as partial:
        save_file(tensors, partial, metadata={"fingerprint": fingerprint})


def longest_stored(folder: Path) -> int:
    """Return the most tokens of any stored caption."""
    longest = 0
    for shard in (folder / FOLDER).glob("text-*.safetensors"):
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
        self._shards: dict[str, Path] | None = None
        self._opened: dict[Path, safe_open] = {}

    def __getstate__(self) -> dict:
        # Without open files: every process maps the shards itself.
        return self.__dict__ | {"_shards": None, "_opened": {}}

    def check(self, captions: Iterable[str]) -> None:
        """Raise DataError unless every caption is stored."""
        shards = self._map()
        missing = [caption for caption in captions if caption_key(caption) not in shards]
        if missing:
            raise DataError(
                f"{len(missing)} captions have no text embedding, such as {missing[0]!r}",
                remedy="run `hpdm prep captions` again with --text-encoder: it adds what is new",
            )

    def get(self, caption: str) -> Tensor:
        """Return (n, d) bfloat16."""
        key = caption_key(caption)
        shard = self._map()[key]
        if shard not in self._opened:
            self._opened[shard] = safe_open(shard, framework="pt")
        return self._opened[shard].get_tensor(key)

    def batch(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return embeddings (b, n, d) float32 and mask (b, n) bool; n is the same for any batch."""
        return pad_tokens([self.get(caption) for caption in captions], self.index.longest)

    def _map(self) -> dict[str, Path]:
        if self._shards is None:
            self._shards = stored_keys(self._folder, self.index.fingerprint)
        return self._shards


def pad_tokens(tokens: Sequence[Tensor], length: int) -> tuple[Tensor, Tensor]:
    """Pad (n_i, d) embeddings with zeros to (b, length, d) float32; the mask marks real tokens."""
    padded = torch.zeros(len(tokens), length, tokens[0].shape[1])
    mask = torch.zeros(len(tokens), length, dtype=torch.bool)
    for row, embedding in enumerate(tokens):
        padded[row, : len(embedding)] = embedding.float()
        mask[row, : len(embedding)] = True
    return padded, mask
