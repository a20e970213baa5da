"""A stand-in run that `test_faults.py` kills: `python killed_run.py FOLDER`. Exits with 130 when
it was asked to stop and has saved, as the command line does."""

import sys
import time
from pathlib import Path

from tests.unit.training.standins import make_plan, run, tiny_loss

STEPS = 60


def slow_loss(network, batch, *, seed, step):
    time.sleep(0.002)  # so that kills fall between steps as well as into saving
    return tiny_loss(network, batch, seed=seed, step=step)


def plan():
    return make_plan(steps=STEPS, checkpoint_every=3)


if __name__ == "__main__":
    try:
        run(Path(sys.argv[1]), plan=plan(), loss=slow_loss)
    except KeyboardInterrupt:
        sys.exit(130)
