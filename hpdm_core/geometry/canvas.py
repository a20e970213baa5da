"""Canvases: videos larger than a model was trained on.

Level 0 of a canvas is larger than a patch. Windows of one patch cover it, overlapping by half, and
the window of a level-0 patch is the frame of reference of all that is nested in it.
"""

from dataclasses import replace

from hpdm_core.errors import HpdmError
from hpdm_core.geometry.pyramid import AXIS_NAMES, Pyramid, Size3, window_step

MOST_SIDE = 1 << 16


def on_canvas(pyramid: Pyramid, size: Size3 | None) -> Pyramid:
    """Return a pyramid whose finest level has `size`; None returns it as it is.

    An axis is the trained one plus any number of half windows, each of half a patch of level 0.

    Raises:
        HpdmError: an axis is smaller than the trained one, or not covered by whole half windows.
    """
    if size is None:
        return pyramid
    nearest = tuple(_nearest(pyramid, axis, wanted) for axis, wanted in enumerate(size))
    wrong = [name for name, a, b in zip(AXIS_NAMES, size, nearest, strict=True) if a != b]
    if wrong:
        steps = (_unit(pyramid, axis) for axis in range(3))
        raise HpdmError(
            f"the size does not divide into windows along {' and '.join(wrong)}",
            got="x".join(str(n) for n in size),
            expected="{}x{}x{} plus multiples of {}, {}, {}".format(*pyramid.resolution, *steps),
            remedy="the nearest that does is {},{},{}".format(*nearest),
        )
    return replace(pyramid, canvas=None if tuple(size) == pyramid.resolution else tuple(size))


def _unit(pyramid: Pyramid, axis: int) -> int:
    """Return half a window in pixels of the finest level."""
    return window_step(pyramid.patch[axis]) * pyramid.stride(0)[axis]


def _nearest(pyramid: Pyramid, axis: int, wanted: int) -> int:
    trained, unit = pyramid.resolution[axis], _unit(pyramid, axis)
    most = (MOST_SIDE - trained) // unit
    return trained + unit * min(max(0, round((wanted - trained) / unit)), most)
