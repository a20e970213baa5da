"""Statistics merged over two processes equal those of one."""

import json
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from hpdm_core.metrics.frechet import FeatureStats, frechet_distance, merge_over_ranks
from hpdm_core.runs.evaluate.run import run_eval_fvd
from tests.unit.runs.evaluate.evalkit import write_shapes


def features(seed: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(301, 20, generator=rng, dtype=torch.float64) * 3 + 50


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    mine = features(0)[rank::2]
    merged = merge_over_ranks(FeatureStats.of(mine))
    torch.save((merged.count, merged.mean, merged.scatter), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    mp.start_processes(work, args=(str(tmp_path),), nprocs=2, start_method="spawn")
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert results[0][0] == 301
    assert torch.equal(results[0][1], results[1][1])
    assert torch.equal(results[0][2], results[1][2])
    count, mean, scatter = results[0]
    merged = FeatureStats(count=count, mean=mean, scatter=scatter)
    whole, other = FeatureStats.of(features(0)), FeatureStats.of(features(1))
    assert frechet_distance(merged, other) == pytest.approx(
        frechet_distance(whole, other), rel=1e-10
    )


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
