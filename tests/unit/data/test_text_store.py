"""Where captions' embeddings lie: found on disk, equal to what safetensors reads."""

import os
import pickle

import pytest
import torch
from safetensors.torch import load_file

from hpdm_core.data.text_store import (
    FOLDER,
    KEYS,
    TextIndex,
    TextStore,
    caption_key,
    longest_stored,
    stored_keys,
    write_keys,
    write_shard,
    write_text_index,
)
from hpdm_core.errors import DataError

CAPTIONS = [f"caption {i}" for i in range(300)]
# Hashes that end in a zero byte, which NumPy strips.
CAPTIONS += [text for i in range(4000) if caption_key(text := f"zero {i}").endswith("00")]


@pytest.fixture(params=["bfloat16", "float32"])
def folder(request, tmp_path):
    kind = getattr(torch, request.param)
    generator = torch.Generator().manual_seed(0)
    for first in range(0, len(CAPTIONS), 100):
        shard = {
            caption_key(text): torch.randn(1 + len(text) % 3, 8, generator=generator).to(kind)
            for text in CAPTIONS[first : first + 100]
        }
        (tmp_path / FOLDER).mkdir(exist_ok=True)
        write_shard(tmp_path, shard, "f")
    write_keys(tmp_path)
    index = TextIndex(
        encoder="e", fingerprint="f", width=8, max_tokens=9, longest=3, dtype=request.param
    )
    write_text_index(tmp_path, index)
    return tmp_path


def all_tensors(folder):
    shards = (folder / FOLDER).glob("text-*.safetensors")
    return {key: tensor for shard in shards for key, tensor in load_file(shard).items()}


@pytest.mark.parametrize("with_keys", [True, False], ids=["keys", "earlier-version"])
def test_every_embedding_is_found(folder, with_keys):
    if not with_keys:
        (folder / FOLDER / KEYS).unlink()
    store = pickle.loads(pickle.dumps(TextStore(folder)))
    expected = all_tensors(folder)
    assert len(expected) == len(CAPTIONS) > 310
    for text in CAPTIONS:
        assert torch.equal(store.get(text), expected[caption_key(text)])
    store.check(CAPTIONS)
    with pytest.raises(DataError, match="1 captions have no text embedding, such as 'new'"):
        store.check([*CAPTIONS, "new"])
    with pytest.raises(DataError, match="--text-encoder"):
        store.get("new")


def test_a_new_shard_makes_the_old_places_invalid(folder):
    write_shard(folder, {caption_key("new"): torch.zeros(1, 8)}, "f")
    assert not (folder / FOLDER / KEYS).exists()


@pytest.mark.parametrize("data", [b"", b"\x93NUMPY", b"[1, 2]"])
def test_damaged_places_are_named(folder, data):
    (folder / FOLDER / KEYS).write_bytes(data)
    with pytest.raises(DataError, match=r"keys\.npy is damaged"):
        TextStore(folder).get(CAPTIONS[0])


def test_a_shard_that_is_cut_short_is_named(folder):
    for shard in (folder / FOLDER).glob("text-*.safetensors"):
        shard.write_bytes(b"")
    with pytest.raises(DataError, match="cut short"):
        TextStore(folder).get(CAPTIONS[0])


def test_a_pipe_in_place_of_a_shard_is_named_and_not_waited_for(folder):
    store = TextStore(folder)
    store.get(CAPTIONS[0])
    for shard in (folder / FOLDER).glob("text-*.safetensors"):
        shard.unlink()
        os.mkfifo(shard)
    for read in (
        lambda: store.get(CAPTIONS[0]),
        lambda: stored_keys(folder, "f"),
        lambda: longest_stored(folder),
        lambda: write_keys(folder),
    ):
        with pytest.raises(DataError, match=r"text-00000\.safetensors; got it is a pipe"):
            read()
