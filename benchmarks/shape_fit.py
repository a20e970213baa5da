"""How near a frame is to a rendered shape: the best fit over position, size and colours.

Axis legend: `h w` rows, columns, `c` colours, `n` pixels.
"""

import numpy as np
from scipy.optimize import minimize

from hpdm_core.data.shapes import coverage, texture

RADII = (0.08, 0.13, 0.18, 0.24, 0.32)
# Initial steps of the search: (y, x, radius) in units of the frame's side.
STEPS = np.array([0.03, 0.03, 0.03])


def best_psnr(frame: np.ndarray, shape: str) -> float:
    """Return the PSNR in dB of the best-fitting rendering of `shape`.

    For each position and size the colours are the least-squares ones: one for the object
    under the fixed texture, a linear shade for the background.

    Args:
        frame: (h, w, 3) uint8, square.
        shape: one of `SHAPES`.
    """
    pixels = frame / 255.0
    size = len(frame)
    start = _start(pixels)
    trials = [np.array([*start, radius]) for radius in RADII]
    best = min(trials, key=lambda place: _error(place, pixels, shape))
    corners = np.vstack([best, best + np.diag(STEPS)])
    found = minimize(
        _error,
        best,
        args=(pixels, shape),
        method="Nelder-Mead",
        options={"initial_simplex": corners, "xatol": 0.1 / size, "fatol": 1e-7, "maxfev": 120},
    )
    return float(-10 * np.log10(max(found.fun, 1e-10)))


def _start(pixels: np.ndarray) -> np.ndarray:
    """Return (y, x) of the middle of what differs from a linear shade."""
    basis = _shade(len(pixels))
    flat = pixels.reshape(-1, 3)
    ring = _border(len(pixels)).ravel()
    colours, *_ = np.linalg.lstsq(basis[ring], flat[ring], rcond=None)
    weight = abs(flat - basis @ colours).sum(axis=1) ** 2  # (n,)
    return (weight @ basis[:, 1:]) / max(weight.sum(), 1e-12)


def _error(place: np.ndarray, pixels: np.ndarray, shape: str) -> float:
    """Return the mean squared error of the rendering at (y, x, radius), colours fitted."""
    size = len(pixels)
    inside = coverage(shape, place[None, :2], place[2:], size=size)[0].reshape(-1, 1)  # (n, 1)
    basis = np.hstack([(1 - inside) * _shade(size), inside])  # (n, 4)
    target = pixels.reshape(-1, 3) - inside * texture(size).reshape(-1, 1)
    gram = basis.T @ basis + 1e-9 * np.eye(4)
    moments = basis.T @ target
    colours = np.linalg.solve(gram, moments)
    return float(((target**2).sum() - (moments * colours).sum()) / target.size)


def _shade(size: int) -> np.ndarray:
    """Return (n, 3): one, y and x of each pixel, in units of the frame's side from its centre."""
    grid = (np.indices((size, size)) + 0.5) / size - 0.5
    return np.column_stack([np.ones(size * size), grid[0].ravel(), grid[1].ravel()])


def _border(size: int) -> np.ndarray:
    """Return (h, w), True in the outermost sixteenth of the frame."""
    edge = max(1, size // 16)
    mask = np.ones((size, size), dtype=bool)
    mask[edge:-edge, edge:-edge] = False
    return mask
