"""The simulated cluster against sums done by hand, and the page against its command."""

import sys
from pathlib import Path

import pytest

from hpdm_core.build import describe
from hpdm_core.recipe.load import load_recipe
from hpdm_core.runs.train.fit import fit_micro_batch
from hpdm_core.runs.train.scaling import H100, sent_bytes, simulate

ROOT = Path(__file__).resolve().parents[4]
P = 1000


def recipe(**train: object):
    return load_recipe("hpdm_t2v", []).with_fields("train", train)


@pytest.mark.parametrize(
    ("train", "devices", "shards", "copies"),
    [
        # Three gathers a pass and one scatter, of 4 bytes a weight, 3/4 of it from each of four.
        ({"parallel": "fsdp"}, 4, (3 * 2 + 1) * 3000, 0),
        ({"parallel": "fsdp", "replicas": 2}, 4, (3 * 2 + 1) * 2000, 2 * 2000 // 2),
        ({"parallel": "fsdp", "replicas": 4}, 4, 0, 2 * 4000 * 3 // 4),
        ({"parallel": "ddp"}, 4, 0, 2 * 4000 * 3 // 4),
        ({"parallel": "fsdp"}, 1, 0, 0),
    ],
)
def test_bytes_that_a_device_sends(train, devices, shards, copies):
    sent = sent_bytes(recipe(**train), P, devices=devices, passes=2)
    assert (sent["shards"], sent["copies"]) == (shards, copies)


def simulated(devices: int, **train: object) -> dict:
    chosen = recipe(**train)
    figures = describe(chosen)
    fit = fit_micro_batch(chosen, figures["parameters"], devices=devices, free=H100.memory)
    return simulate(chosen, figures, fit, devices=devices)


def test_time_by_hand():
    found = simulated(64)
    flops = describe(recipe())["flops_per_video"] * (4 + 1) * 128  # with recomputed blocks
    assert found["compute_seconds"] == pytest.approx(flops / (0.4 * 495e12))
    sent = (3 * found["passes"] + 1) * 4 * 3932496932 * 63 / 64
    assert found["communication_seconds"] == pytest.approx(sent / 50e9)
    assert found["step_seconds"] == found["compute_seconds"] + found["communication_seconds"]
    near = simulated(64, replicas=8)
    assert near["communication_seconds"] < found["communication_seconds"]
    assert near["memory_bytes"] < H100.memory
    assert simulated(8)["communication_seconds"] < simulated(16)["communication_seconds"]


def test_the_page_has_what_its_command_prints():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from scaling import table
    finally:
        sys.path.pop(0)
    assert "\n".join(table()) in (ROOT / "docs/scaling.md").read_text(encoding="utf-8")
