"""One rank of two is killed at random moments: the run resumes, and ends as an undisturbed one."""

import multiprocessing
import random
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hpdm_core.training import checkpoint
from tests.unit.training import killed_ranks
from tests.unit.training.test_parallel import LONG, free_port, process_environment

KILLS = 5


class Ranks:
    """Two ranks of a run; as torchrun does, `end` kills the one whose partner has died."""

    def __init__(self, folder: Path, mode: str, kind: str, log: Path) -> None:
        # Forked from a process that has imported torch, which may take a minute on a busy machine.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([killed_ranks.__name__])
        env = process_environment(2, free_port())
        self.processes = [
            context.Process(
                target=killed_ranks.rank_of_run,
                args=(folder, mode, kind, log, env | {"RANK": str(rank), "LOCAL_RANK": str(rank)}),
            )
            for rank in range(2)
        ]
        for process in self.processes:
            process.start()

    def running(self) -> bool:
        return all(process.is_alive() for process in self.processes)

    def end(self) -> list[int | None]:
        for process in self.processes:
            process.kill()
            process.join()
        return [process.exitcode for process in self.processes]


def saved(folder: Path) -> list[str]:
    return [path.name for path in checkpoint.list_checkpoints(folder / "checkpoints")]


def kill_one(folder: Path, mode: str, kind: str, log: Path, rng: random.Random) -> bool:
    """Run until a checkpoint is new and a random moment longer; kill a rank. Whether it ran."""
    before = saved(folder)
    ranks = Ranks(folder, mode, kind, log)
    limit = time.monotonic() + LONG
    try:
        while saved(folder) == before and ranks.running() and time.monotonic() < limit:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.3))
        ran = ranks.running()
        ranks.processes[rng.randrange(2)].kill()
        time.sleep(rng.uniform(0, 0.2))  # the other may still write
        return ran
    finally:
        ranks.end()


def finished(folder: Path, mode: str, kind: str, log: Path) -> dict[str, torch.Tensor]:
    ranks = Ranks(folder, mode, kind, log)
    try:
        for process in ranks.processes:
            process.join(LONG)
    finally:
        codes = ranks.end()
    assert codes == [0, 0], log.read_text()[-4000:]
    return load_file(folder / "end.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["between", "beside"])
@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_killed_ranks_lose_nothing(tmp_path, mode, kind):
    """Twenty kills over the four cases."""
    rng, log, kills = random.Random(f"{mode} {kind}"), tmp_path / "log", 0
    folder = tmp_path / "killed"
    for _ in range(3 * KILLS):
        kills += kill_one(folder, mode, kind, log, rng)
        for path in checkpoint.list_checkpoints(folder / "checkpoints"):
            assert checkpoint.damage(path) is None, path
        if kills == KILLS:
            break
    assert kills == KILLS, log.read_text()[-4000:]
    found = finished(folder, mode, kind, log)
    expected = finished(tmp_path / "undisturbed", mode, kind, log)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
