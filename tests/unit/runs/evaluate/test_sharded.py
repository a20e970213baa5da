"""A score of two processes equals that of one."""

import json
import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from hpdm_core.runs.evaluate.run import run_eval_fvd
from tests.unit.runs.evaluate.evalkit import write_shapes


def score(folder: str, name: str) -> None:
    result = run_eval_fvd(
        samples=Path(folder) / "fakes",
        real=Path(folder) / "real",
        protocol="fvdfull_8f",
        metrics=["fvd"],
        detector="bundled",
        device="cpu",
        force=True,
        out=Path(folder) / name,
        cache=Path(folder) / name,
    )
    Path(folder, f"{name}.json").write_text(json.dumps(result["scores"]))


def score_with_another(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    score(folder, "two")


def test_a_score_of_two_processes_is_that_of_one(tmp_path):
    write_shapes(tmp_path / "fakes", 40, seed=1)
    write_shapes(tmp_path / "real", 20, seed=2)
    folder = str(tmp_path)
    mp.start_processes(score_with_another, args=(folder,), nprocs=2, start_method="spawn")
    score(folder, "one")
    assert json.loads((tmp_path / "one.json").read_text())[0]["value"] > 0
    assert (tmp_path / "one.json").read_text() == (tmp_path / "two.json").read_text()
    assert len(list((tmp_path / "two").glob("*.json"))) == 1
