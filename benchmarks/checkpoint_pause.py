"""How long training pauses for a checkpoint: `python benchmarks/checkpoint_pause.py --json`.

Saves the state of a recipe's training alternately in between steps and beside them
(`train.async_checkpoints`); the fastest of several rounds of each counts, and the first beside
them is also given: it fetches the memory that later ones fill again.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

from hpdm_core.build import build_network, build_optimizer
from hpdm_core.recipe.load import load_recipe
from hpdm_core.training.ema import Ema
from hpdm_core.training.parallel import start_parallel
from hpdm_core.training.store import CheckpointStore, TrainState


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--recipe", default="small")
    parser.add_argument("--width", type=int, default=128, help="of data tokens and latents")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    options = parser.parse_args()
    widths = [f"model.data_width={options.width}", f"model.latent_width={options.width}"]
    recipe = load_recipe(options.recipe, ["model.num_classes=9", *widths])
    found = measure(recipe, options.device, rounds=options.rounds)
    print(json.dumps(found) if options.json else found)


def measure(recipe, device: str, *, rounds: int) -> dict[str, float]:
    """Return the pauses in seconds and their ratio."""
    parallel = start_parallel(device, mode="ddp")
    network = build_network(recipe).to(parallel.device)
    optimizer = build_optimizer(network, recipe)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = TrainState(
        network=network, module=network, optimizer=optimizer, ema=Ema(network, half_life=1, ramp=1)
    )
    pauses: dict[bool, list[float]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as folder:
        stores = [
            CheckpointStore(
                folder=Path(folder), keep=1, every=1, recipe="", metadata={}, parallel=parallel,
                asynchronous=beside,
            )
            for beside in (False, True)
        ]  # fmt: skip
        for number in range(2 * rounds):
            beside, state.step = number % 2 == 1, number + 1
            store = stores[beside]
            began = time.perf_counter()
            assert store.save(state, wait=not beside) is not None
            pauses[beside].append(time.perf_counter() - began)
            assert store.wait()
    between, beside = min(pauses[False]), min(pauses[True])
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "pause_in_between": round(between, 3),
        "pause_beside": round(beside, 3),
        "first_pause_beside": round(pauses[True][0], 3),
        "ratio": round(beside / between, 3),
    }


if __name__ == "__main__":
    main()
