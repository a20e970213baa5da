"""5,000 weights files made to break their reader: each is read and used, or refused."""

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from hpdm_core.errors import HpdmError
from hpdm_core.pipeline.conditions import make_requests
from hpdm_core.pipeline.pipeline import Pipeline
from hpdm_core.pipeline.pretrained import model_name
from hpdm_core.training.checkpoint import read_header
from tests.unit.runs.conftest import make_weights  # noqa: F401

from .fuzzing import Memory, cases, enough, mutated, within_time

pytestmark = pytest.mark.slow

HEADERS = {
    "step": ["", "many", "-1", "1e9", "²", "9" * 5000, "9" * 18, "0x10", " 6", "None", "nan"],
    "seconds": ["", "nan", "-1", "1e300", "inf", "9" * 5000, "12.5"],
    "classes": [
        "", "[", "[" * 50_000, "{}", "null", "[1]", '["a"]', '["a", "b", "c", "d"]', '["a", 1, 2]',
        '["\\ud800", "b", "c"]', '["a\\n", "b", "c"]', '["", "b", "c"]', '["a", "a", "a"]', "NaN",
        '["a", "b", "' + "c" * 100_000 + '"]',
    ],
    "kind": ["", "model", "\n"],
    "hpdm_version": ["", "9" * 1000, "\n"],
}  # fmt: skip
RECIPES = [
    ("fps: 25.0", "fps: 1e300"), ("fps: 25.0", "fps: 1e-300"), ("fps: 25.0", "fps: .inf"),
    ("name: tiny", "name: ../../x"), ("name: tiny", "name: /abs"),
    ("num_classes: 3", "num_classes: 9"), ("num_classes: 3", "num_classes: null"),
    ("data_width: 16", "data_width: 99999999999"),
    ("data_width: 16", "data_width: 32"), ("steps: [2, 2]", "steps: [2]"),
    ("steps: [2, 2]", "steps: [999999999999, 2]"), ("conditioning: class", "conditioning: text"),
    ("conditioning: class", "conditioning: none"),
    ("levels_per_block: [1, 2]", "levels_per_block: []"),
    ("patch: [2, 8, 8]", "patch: [2, 8, 999999999999]"), ("mlp_ratio: 4", "mlp_ratio: 0"),
]  # fmt: skip
TENSORS = [
    torch.zeros(()), torch.zeros(0), torch.zeros(4, 16, dtype=torch.int64),
    torch.zeros(4, 16, dtype=torch.bfloat16), torch.full((4, 16), float("nan")),
    torch.full((4, 16), 3e38), torch.zeros(5, 16), torch.zeros(4, 16, dtype=torch.bool),
]  # fmt: skip


def hostile_file(rng: random.Random, tensors: dict, header: dict[str, str]) -> bytes:
    tensors, header = dict(tensors), dict(header)
    for _ in range(rng.choice((1, 1, 2))):
        kind = rng.randrange(5)
        if kind == 0:
            name = rng.choice(list(HEADERS))
            header[name] = rng.choice(HEADERS[name])
        elif kind == 1:
            header.pop(rng.choice(list(header)), None)
        elif kind == 2:
            header["recipe"] = header.get("recipe", "").replace(*rng.choice(RECIPES))
        elif kind == 3:
            tensors["latents"] = rng.choice(TENSORS)
        else:
            tensors.pop(rng.choice(list(tensors)))
    data = save(tensors, metadata=header)
    if rng.random() < 0.4:
        head = int.from_bytes(data[:8], "little") + 8
        part = mutated(rng, data[:head], [b"\xff", b"9" * 5000, b"[" * 2000, b'"', b"\\ud800"])
        data = part + data[head:]
    return data


def test_every_file_is_used_or_refused(make_weights, tmp_path: Path):  # noqa: F811
    path, memory, used = make_weights(), Memory(warm_up=200), 0
    tensors, header = load_file(path), read_header(path)
    path = path.with_name("hostile.safetensors")  # `tensors` are mapped: their file must stay whole
    assert json.loads(header["classes"]) == ["circle", "square", "star"]
    for seed in cases(5_000):
        with within_time(seed) as rng:
            path.write_bytes(hostile_file(rng, tensors, header))
            refused = ""
            try:
                pipe = Pipeline.from_pretrained(path, device="cpu")
                if pipe.recipe.model.conditioning != "text":
                    requests = make_requests(
                        pipe.recipe, pipe.classes, classes=[], prompts=[], seeds=[0]
                    )
                    assert all(request.stem.isascii() for request in requests)
                if rng.random() < 0.05:
                    pipe(seeds=0, steps=(1, 1))
                    pipe.save_pretrained(tmp_path / "export")
                assert "/" not in model_name(path)
                used += 1
            except HpdmError as error:
                refused = str(error)
            assert len(refused) < 2_000
        memory.note()
    enough(used, 20, of="weights files used")
