"""2,048 fakes of 16 x 256 x 256 stream through in constant memory."""

import subprocess
import sys

import pytest

# In a process of its own, so that the peak is its own.
SCRIPT = """
import resource, sys
from pathlib import Path
import numpy as np
from hpdm_core.metrics.bundled import load_bundled
from hpdm_core.metrics.detectors import Detector
from hpdm_core.metrics.extract import extract
from hpdm_core.metrics.store import FeatureStore

class Clips:
    def __len__(self):
        return 2048
    def clips(self, start, stop):
        for place in range(start, stop):
            yield np.random.default_rng(place).integers(0, 256, (16, 256, 256, 3), dtype=np.uint8)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

network = load_bundled()
detector = Detector(name="b", output="features", sha256="", min_frames=4, run=network.features)
store = FeatureStore(Path(sys.argv[1]), {})
before = peak()
extract(Clips(), [(detector, store)], count=64, batch=4)
early = peak()
extract(Clips(), [(detector, store)], count=2048, batch=4)
assert store.get(2048).outputs.shape == (2048, 269)
print(before, early, peak())
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_fakes(tmp_path, root):
    pytest.importorskip("resource")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    before, early, late = map(int, done.stdout.split())
    kilobytes_per_gib = 2**20
    assert late - before < 2 * kilobytes_per_gib
    assert late - early < 0.1 * kilobytes_per_gib
