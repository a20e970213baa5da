"""A frozen text encoder (T5 in the paper), used by `prep` and for prompts, never in training.

Axis legend: `n` tokens, `d` width.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor

from hpdm_core.data.text_store import (
    TextIndex,
    caption_key,
    longest_stored,
    read_text_index,
    stored_keys,
    write_keys,
    write_shard,
    write_text_index,
)
from hpdm_core.errors import DataError
from hpdm_core.progress import Progress

MAX_TOKENS = 128
CAPTIONS_PER_SHARD = 512
CAPTIONS_AT_ONCE = 16
# A tokenizer knows nearly as many tokens as its encoder has embeddings (some are padding).
LEAST_SHARE_OF_VOCABULARY = 0.9
MOST_UNKNOWN = 0.3
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class TextEncoder:
    """Any text encoder that transformers loads by name or from a folder.

    Args:
        name: name on the Hugging Face hub, or a local folder.
        device: where it computes.
        dtype: bfloat16 or float32; T5 overflows in float16, which is refused.
        max_tokens: longer texts are truncated.

    Raises:
        DataError: neither cached nor reachable, not a text encoder, a tokenizer that does not
            belong to it, or float16.
    """

    def __init__(
        self,
        name: str,
        *,
        device: torch.device,
        dtype: Literal["bfloat16", "float32"] = "bfloat16",
        max_tokens: int = MAX_TOKENS,
    ) -> None:
        if dtype not in DTYPES:
            raise DataError(
                f"a text encoder cannot compute in {dtype}: T5 overflows to NaN in half precision",
                expected="bfloat16 or float32",
            )
        self.name = name
        self.max_tokens = max_tokens
        self.dtype = dtype
        self._tokenizer, self._model = _load(name, DTYPES[dtype])
        # Only now is a name's revision certainly in the cache.
        self.fingerprint = fingerprint(name, dtype=dtype, max_tokens=max_tokens) or name
        self._model.to(device).eval().requires_grad_(False)
        self._device = device
        self.width = self.encode([""])[0].shape[1]

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens of a text before truncation."""
        return len(self._tokenizer(text)["input_ids"])

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        """Return an embedding (n_i, d) bfloat16 on the CPU for every text, without padding.

        Raises:
            DataError: the tokenizer does not know the words.
        """
        tokens = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_tokens,
            return_tensors="pt",
        )  # fmt: skip
        self._check_known(texts, tokens["input_ids"], tokens["attention_mask"])
        mask = tokens["attention_mask"].to(self._device)
        output = self._model(input_ids=tokens["input_ids"].to(self._device), attention_mask=mask)
        hidden = output.last_hidden_state
        if not torch.isfinite(hidden).all():
            raise DataError(f"text encoder {self.name} gives values that are not finite")
        hidden = hidden.to("cpu", torch.bfloat16)
        return [h[m.bool()].clone() for h, m in zip(hidden, tokens["attention_mask"], strict=True)]

    def _check_known(self, texts: Sequence[str], tokens: Tensor, mask: Tensor) -> None:
        unknown = self._tokenizer.unk_token_id
        if unknown is None:
            return
        counted = mask.bool()
        share = (tokens[counted] == unknown).float().mean().item()
        if len(tokens[counted]) > len(texts) and share > MOST_UNKNOWN:
            raise DataError(
                f"the tokenizer of {self.name} maps {share:.0%} of the tokens of "
                f"{texts[0]!r} ... to 'unknown'",
                remedy="give an encoder for the captions' language, with its own tokenizer files",
            )


def _load(name: str, dtype: torch.dtype) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModelForTextEncoding, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        config = AutoConfig.from_pretrained(name)
        check_tokenizer(name, len(tokenizer), getattr(config, "vocab_size", 0))
        # Safetensors only: no pickle is read from a file that a user was given.
        model, report = AutoModelForTextEncoding.from_pretrained(
            name, torch_dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, ImportError, KeyError, RuntimeError, SafetensorError) as error:
        where = "a folder" if Path(name).is_dir() else "neither a folder here nor on the hub"
        raise DataError(
            f"text encoder {name!r} cannot be loaded ({where}): {str(error).splitlines()[0]}",
            expected="a name on the Hugging Face hub (cached, or with a connection), or a folder "
            "with config.json, tokenizer files and model.safetensors",
        ) from error
    if report["missing_keys"]:
        raise DataError(
            f"text encoder {name!r} lacks weights, such as {min(report['missing_keys'])}",
            remedy="fetch its files again, or name another encoder",
        )
    return tokenizer, model


def check_tokenizer(name: str, tokens: int, vocabulary: int) -> None:
    """Refuse the default tokenizer that transformers builds if its files are missing.

    Args:
        tokens: size of the tokenizer's vocabulary.
        vocabulary: number of the encoder's embeddings.
    """
    if tokens < LEAST_SHARE_OF_VOCABULARY * vocabulary:
        raise DataError(
            f"the tokenizer of {name!r} does not belong to its encoder: are its files missing?",
            got=f"{tokens} tokens",
            expected=f"some {vocabulary}",
            remedy="put the tokenizer files (tokenizer.json or spiece.model) into the folder",
        )


def fingerprint(name: str, *, dtype: str, max_tokens: int) -> str | None:
    """Return a fingerprint of the encoder's files, without loading it.

    None where the encoder is neither a folder nor in the cache.
    """
    folder = Path(name)
    if folder.is_dir():
        files = sorted(f for f in folder.iterdir() if f.is_file())
        state = [(f.name, f.stat().st_size, _ends(f)) for f in files]
        revision = hashlib.sha256(json.dumps(state).encode()).hexdigest()[:16]
    else:
        revision = _cached_revision(name)
    return None if revision is None else f"{name} {revision} {dtype} {max_tokens}"


def _ends(file: Path, length: int = 1 << 20) -> str:
    """Hash a file's first and last megabyte: weights of another training differ there."""
    with file.open("rb") as opened:
        head = opened.read(length)
        opened.seek(max(length, file.stat().st_size - length))
        return hashlib.sha256(head + opened.read()).hexdigest()


def _cached_revision(name: str) -> str | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(name, "config.json")
    except HFValidationError:  # not a valid name: loading reports it
        return None
    return Path(config).parent.name if isinstance(config, str) else None


def store_embeddings(
    folder: Path,
    captions: Sequence[str],
    *,
    encoder_name: str,
    device: torch.device,
    progress: Progress,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    max_tokens: int = MAX_TOKENS,
) -> dict[str, Any]:
    """Encode every caption that is not stored yet, and the empty one.

    The encoder is only loaded if something is missing.

    Returns:
        Counts: captions, encoded, truncated, and the fields of the index.
    """
    wanted = list(dict.fromkeys(["", *captions]))
    encoder = None
    mark = fingerprint(encoder_name, dtype=dtype, max_tokens=max_tokens)
    if mark is None:
        encoder = TextEncoder(encoder_name, device=device, dtype=dtype, max_tokens=max_tokens)
        mark = encoder.fingerprint
    known = stored_keys(folder, mark)
    missing = [caption for caption in wanted if caption_key(caption) not in known]
    index = read_text_index(folder)
    if not missing and index is not None and index.fingerprint == mark:
        write_keys(folder)
        return {"captions": len(wanted) - 1, "encoded": 0, "cut": 0, **asdict(index)}
    encoder = encoder or TextEncoder(
        encoder_name, device=device, dtype=dtype, max_tokens=max_tokens
    )
    progress.start("encoding captions", len(missing))
    try:
        for tensors in _encode_shards(encoder, missing, progress):
            write_shard(folder, tensors, mark)
    finally:
        progress.stop()
    index = TextIndex(
        encoder=encoder_name,
        fingerprint=mark,
        width=encoder.width,
        max_tokens=max_tokens,
        longest=longest_stored(folder),
        dtype=dtype,
    )
    write_keys(folder)
    write_text_index(folder, index)
    cut = sum(encoder.count_tokens(caption) > max_tokens for caption in missing)
    return {"captions": len(wanted) - 1, "encoded": len(missing), "cut": cut, **asdict(index)}


def _encode_shards(
    encoder: TextEncoder, captions: Sequence[str], progress: Progress
) -> Iterator[dict[str, Tensor]]:
    # Sorted by length, to minimise padding.
    ordered = sorted(captions, key=len)
    for first in range(0, len(ordered), CAPTIONS_PER_SHARD):
        shard: dict[str, Tensor] = {}
        end = min(first + CAPTIONS_PER_SHARD, len(ordered))
        for start in range(first, end, CAPTIONS_AT_ONCE):
            texts = ordered[start : min(start + CAPTIONS_AT_ONCE, end)]
            for text, embedding in zip(texts, encoder.encode(texts), strict=True):
                shard[caption_key(text)] = embedding
            progress.advance(len(texts))
        yield shard
