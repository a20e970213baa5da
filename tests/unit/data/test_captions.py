"""Captioned videos and images, and text embeddings: encoded once, guarded, padded with a mask."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hpdm_core.data import text_encoder as text_encoder_module
from hpdm_core.data.dataset import open_dataset
from hpdm_core.data.entries import read_json_lines
from hpdm_core.data.loader import PatchLoader
from hpdm_core.data.text_encoder import TextEncoder, check_tokenizer, store_embeddings
from hpdm_core.data.text_store import FOLDER, TextStore, caption_key, read_text_index
from hpdm_core.data.video_io import write_mp4
from hpdm_core.errors import DataError
from hpdm_core.geometry.pyramid import Pyramid
from hpdm_core.progress import NoProgress
from hpdm_core.runs.prep import run_prep_captions

from .conftest import smooth_video

SILENT = NoProgress()
CPU = torch.device("cpu")
PYRAMID = Pyramid(patch=(4, 24, 24), levels=((4, 24, 24), (8, 48, 48)))
WORDS = [
    "a",
    "red",
    "blue",
    "wave",
    "rolls",
    "slowly",
    "over",
    "the",
    "sea",
    "beach",
    "at",
    "night",
]


@pytest.fixture(scope="session")
def encoder(tmp_path_factory) -> str:
    """A folder with a tiny T5, random weights, and a tokenizer of a few words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    folder = tmp_path_factory.mktemp("encoder")
    vocabulary = {word: k for k, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="</s>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    T5EncoderModel(
        T5Config(vocab_size=len(vocabulary), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    ).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def source(tmp_path) -> Path:
    """Four videos and an image in a list, one video with two captions, some lines no good."""
    folder = tmp_path / "source"
    for index in range(4):
        write_mp4(folder / f"clips/{index}.mp4", smooth_video(index), 12)
    Image.fromarray(smooth_video(8)[0]).save(folder / "still.png")
    (folder / "broken.jpg").write_bytes(b"not a picture")
    (folder / "notes.txt").write_text("x")
    lines = [
        {"file": "clips/0.mp4", "caption": "a red wave rolls over the beach"},
        {"file": "./clips/0.mp4", "caption": "a wave rolls"},
        {"path": "clips/1.mp4", "text": "a blue wave slowly", "split": "test"},
        {"video": "clips/2.mp4", "prompt": ["the sea at night", "night"]},
        {"file": "still.png", "caption": "the beach"},
        {"file": "clips/3.mp4", "caption": "  "},
        {"file": "gone.mp4", "caption": "a wave"},
        {"file": "broken.jpg", "caption": "a wave"},
        {"file": "notes.txt", "caption": "a wave"},
    ]
    (folder / "list.jsonl").write_text("".join(json.dumps(line) + "\n\n" for line in lines))
    return folder / "list.jsonl"


def prep(root: Path, source: Path, **options):
    return run_prep_captions(root, source=source, progress=SILENT, **options)


def test_videos_and_images_come_with_their_captions(tmp_path, source, in_process):
    result = prep(tmp_path, source)
    entries = {e.source: e for e in open_dataset(tmp_path, "captions").entries}
    assert {
        name: (e.caption, e.more_captions, e.split, e.is_image) for name, e in entries.items()
    } == {
        "clips/0.mp4": ("a red wave rolls over the beach", ("a wave rolls",), "train", False),
        "clips/1.mp4": ("a blue wave slowly", (), "test", False),
        "clips/2.mp4": ("the sea at night", ("night",), "train", False),
        "still.png": ("the beach", (), "train", True),
    }
    assert entries["still.png"].num_frames == 1
    rejected = read_json_lines(tmp_path / "captions/rejected.jsonl")
    assert {line["source"]: line["problem"] for line in rejected} == {
        "clips/3.mp4": "mislabelled",
        "gone.mp4": "unreadable",
        "broken.jpg": "not a video",
        "notes.txt": "not a video",
    }
    assert result["usable"].startswith("4 of 8 videos usable: 2 not a video")
    assert prep(tmp_path, source)["skipped_unchanged"] == 5


def test_csv_says_the_same(tmp_path, source, in_process):
    table = 'file,caption\nclips/0.mp4,"a red wave, slowly"\nclips/1.mp4,night\n'
    source.with_suffix(".csv").write_text("\ufeff" + table, encoding="utf-8")
    prep(tmp_path, source.with_suffix(".csv"))
    captions = [e.caption for e in open_dataset(tmp_path, "captions").entries]
    assert captions == ["a red wave, slowly", "night"]


def test_files_elsewhere_do_not_leave_the_data_set(tmp_path, source, in_process):
    outside = tmp_path / "lists/list.jsonl"
    outside.parent.mkdir()
    outside.write_text(json.dumps({"file": "../source/clips/0.mp4", "caption": "night"}))
    prep(tmp_path, outside)
    (entry,) = open_dataset(tmp_path, "captions").entries
    assert entry.path.startswith("videos/elsewhere/")
    assert (tmp_path / "captions" / entry.path).is_file()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.jsonl", "{oops", r"l\.jsonl:1 is not JSON.*expected \{\"file\""),
        ("l.jsonl", "[1]", r"l\.jsonl:1 is not a JSON object"),
        ("l.jsonl", '{"caption": "x"}', r"l\.jsonl:1 names no file; got the fields caption"),
        ("l.jsonl", '{"file": "a", "caption": [1]}', r"a caption that is not text"),
        ("l.csv", "name,words\na,b\n", r"l\.csv:2 names no file; got the fields name, words"),
        ("l.jsonl", "", r"lists no video"),
    ],
)
def test_a_bad_list_is_named_with_its_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        prep(tmp_path, tmp_path / name)
    with pytest.raises(DataError, match="no such file"):
        prep(tmp_path, tmp_path / "nowhere.jsonl")


def test_embeddings_are_those_of_the_encoder_without_padding(tmp_path, encoder):
    from transformers import AutoTokenizer, T5EncoderModel

    texts = ["a red wave", "night", ""]
    store_embeddings(tmp_path, texts, encoder_name=encoder, device=CPU, progress=SILENT)
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    model = T5EncoderModel.from_pretrained(encoder, torch_dtype=torch.bfloat16)
    store = TextStore(tmp_path)
    for text in texts:
        expected = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        stored = store.get(text)
        assert stored.dtype == torch.bfloat16
        assert stored.shape == (len(text.split()) + 1, 16)
        torch.testing.assert_close(stored, expected, rtol=0.05, atol=0.05)
    embeddings, mask = store.batch(["night", "a red wave"])
    assert embeddings.shape == (2, 4, 16)
    assert mask.tolist() == [[True, True, False, False], [True] * 4]
    assert torch.equal(embeddings[0, :2], store.get("night").float())
    assert not embeddings[0, 2:].any()


def test_nothing_is_encoded_twice(tmp_path, encoder, monkeypatch):
    options = {"encoder_name": encoder, "device": CPU, "progress": SILENT}
    first = store_embeddings(tmp_path, ["a wave", "night", "a wave"], **options)
    assert (first["captions"], first["encoded"]) == (2, 3)  # with the empty one
    before = TextStore(tmp_path).get("night")
    more = store_embeddings(tmp_path, ["a wave", "night", "the sea"], **options)
    assert more["encoded"] == 1
    assert torch.equal(TextStore(tmp_path).get("night"), before)

    def refuse(*_, **__):
        raise AssertionError("the encoder was loaded for nothing")

    monkeypatch.setattr(text_encoder_module, "TextEncoder", refuse)
    again = store_embeddings(tmp_path, ["the sea", "night"], **options)
    assert again["encoded"] == 0
    assert again["longest"] == 3


def test_an_interrupted_encoding_goes_on(tmp_path, encoder, monkeypatch):
    monkeypatch.setattr(text_encoder_module, "CAPTIONS_PER_SHARD", 2)
    monkeypatch.setattr(text_encoder_module, "CAPTIONS_AT_ONCE", 2)
    captions = ["a", "red", "a wave", "a red wave", "a blue wave rolls"]

    class Interrupt(NoProgress):
        calls = 0

        def advance(self, amount: int = 1, **fields: str) -> None:
            self.calls += 1
            if self.calls == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store_embeddings(tmp_path, captions, encoder_name=encoder, device=CPU, progress=Interrupt())
    with pytest.raises(DataError, match="--text-encoder"):
        TextStore(tmp_path)
    (tmp_path / FOLDER / "text-00009.safetensors").write_bytes(b"cut off")
    result = store_embeddings(tmp_path, captions, encoder_name=encoder, device=CPU, progress=SILENT)
    assert (result["captions"], result["encoded"]) == (5, 2)
    TextStore(tmp_path).check(captions)


def test_another_encoder_or_other_files_make_all_anew(tmp_path, encoder):
    copy = shutil.copytree(encoder, tmp_path / "copy")
    options = {"device": CPU, "progress": SILENT}
    store_embeddings(tmp_path, ["night"], encoder_name=str(copy), **options)
    config = copy / "config.json"
    config.write_text(config.read_text() + "\n")
    assert store_embeddings(tmp_path, ["night"], encoder_name=str(copy), **options)["encoded"] == 2
    result = store_embeddings(
        tmp_path, ["night"], encoder_name=str(copy), dtype="float32", **options
    )
    assert result["encoded"] == 2
    assert read_text_index(tmp_path).dtype == "float32"
    assert len(list((tmp_path / FOLDER).glob("*.safetensors"))) == 1


def test_long_captions_are_cut_and_counted(tmp_path, encoder):
    result = store_embeddings(
        tmp_path,
        ["a red wave rolls over the sea", "night"],
        encoder_name=encoder,
        device=CPU,
        progress=SILENT,
        max_tokens=4,
    )
    assert (result["cut"], result["longest"]) == (1, 4)


def test_guards_of_the_encoder(tmp_path, encoder):
    with pytest.raises(DataError, match="float16: T5 overflows"):
        TextEncoder(encoder, device=CPU, dtype="float16")
    with pytest.raises(DataError, match=r"maps \d+% of the tokens of .* to 'unknown'"):
        TextEncoder(encoder, device=CPU).encode(["zwei Hunde im Schnee", "ein Haus"])
    bare = shutil.copytree(encoder, tmp_path / "bare")
    for file in bare.glob("*token*"):
        file.unlink()
    # transformers may invent a tokenizer, which knows hardly any word.
    with pytest.raises(DataError, match=r"to 'unknown'|does not belong|cannot be loaded"):
        TextEncoder(str(bare), device=CPU).encode(["a red wave rolls over the beach"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"cannot be loaded \(a folder\)"):
        TextEncoder(str(tmp_path / "empty"), device=CPU)


def test_a_tokenizer_with_too_few_tokens_is_refused():
    with pytest.raises(DataError, match="got 104 tokens; expected some 32128"):
        check_tokenizer("t5", 104, 32128)
    check_tokenizer("t5", 32100, 32128)


def test_an_encoder_without_all_its_weights_is_refused(tmp_path, encoder):
    from safetensors.torch import load_file, save_file

    copy = shutil.copytree(encoder, tmp_path / "copy")
    weights = load_file(copy / "model.safetensors")
    weights.pop("encoder.final_layer_norm.weight")
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"lacks weights, such as encoder\.final_layer_norm"):
        TextEncoder(str(copy), device=CPU)


@pytest.mark.parametrize("workers", [0, 2])
def test_training_gets_text_with_a_mask(tmp_path, source, encoder, in_process, workers):
    result = prep(tmp_path, source, text_encoder=encoder)
    assert result["text"]["encoded"] == 7
    dataset = open_dataset(tmp_path, "captions")
    loader = PatchLoader(
        dataset, pyramid=PYRAMID, batch_size=4, seed=0, conditioning="text", workers=workers
    )
    batches = loader.batches(0)
    seen = set()
    store = TextStore(dataset.folder)
    for _ in range(6):
        batch = next(batches)
        text, mask = batch.condition.text, batch.condition.text_mask
        assert text.shape == (4, store.index.longest, 16)
        for key, row, counted in zip(batch.keys, text, mask, strict=True):
            entry = next(e for e in dataset.entries if e.path == key)
            options = (entry.caption, *entry.more_captions)
            said = [c for c in options if torch.equal(store.get(c).float(), row[counted])]
            assert said
            seen.update(said)
        still = [k for k, key in enumerate(batch.keys) if "still" in key]
        for patch in batch.patches:
            assert torch.equal(patch[still], patch[still][:, :, :1].expand_as(patch[still]))
    batches.close()
    assert {"a red wave rolls over the beach", "a wave rolls", "the beach"} <= seen


def test_text_conditioning_needs_every_embedding(tmp_path, source, encoder, in_process):
    prep(tmp_path, source)
    options = {"pyramid": PYRAMID, "batch_size": 2, "seed": 0, "conditioning": "text"}
    with pytest.raises(DataError, match="holds no text embeddings"):
        PatchLoader(open_dataset(tmp_path, "captions"), **options)
    folder = tmp_path / "captions"
    store_embeddings(folder, ["night"], encoder_name=encoder, device=CPU, progress=SILENT)
    with pytest.raises(DataError, match=r"4 captions have no text embedding, such as 'a red"):
        PatchLoader(open_dataset(tmp_path, "captions"), **options)


def test_a_store_travels_to_other_processes(tmp_path, encoder):
    store_embeddings(tmp_path, ["night"], encoder_name=encoder, device=CPU, progress=SILENT)
    store = TextStore(tmp_path)
    here = store.get("night")
    assert torch.equal(pickle.loads(pickle.dumps(store)).get("night"), here)
    assert caption_key("night") != caption_key("night ")


def test_the_real_captions(tmp_path, shared_data):
    result = prep(tmp_path, shared_data / "captioned/captions.jsonl", dry_run=True)
    assert result["files"] == 81
    assert np.isclose(result["bytes"], 15.3e6, rtol=0.1)
