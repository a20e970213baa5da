"""The search for the best-fitting rendering, against renderings and noise of known size."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from hpdm_core.data.shapes import SHAPE_CLASSES, SHAPES, render

FILE = Path(__file__).parents[2] / "benchmarks" / "shape_fit.py"
SPEC = importlib.util.spec_from_file_location("shape_fit", FILE)
shape_fit = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(shape_fit)


@pytest.mark.parametrize("label", [0, 9, 17])
def test_a_rendered_frame_fits_its_own_shape_and_no_other(label):
    shape = SHAPE_CLASSES[label].split("-")[0]
    frame = render(3, label, frames=4, size=64).frames[2]
    fits = {name: shape_fit.best_psnr(frame, name) for name in SHAPES}
    assert fits[shape] > 50
    assert max(fit for name, fit in fits.items() if name != shape) < 40


def test_noise_lowers_the_fit_to_its_own_level():
    """White noise of deviation s grey levels: 20 log10(255 / s) dB."""
    frame = render(4, 7, frames=4, size=64).frames[0]
    noise = np.random.default_rng(0).normal(0, 8, frame.shape)
    noisy = (frame + noise).round().clip(0, 255).astype(np.uint8)
    assert shape_fit.best_psnr(noisy, "square") == pytest.approx(20 * np.log10(255 / 8), abs=0.3)
