"""Evaluation protocols as names: how many fakes, how many frames, which frames (Sec. 5, appendix).

`fvd10k_16f` is 10,000 fakes and the first 16 frames of each; `PROTOCOLS` lists the common ones.

Axis legend: `t` frames.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from hpdm_core.errors import MetricError, did_you_mean

NAME = re.compile(
    r"fvd(?P<fakes>full|\d+k?)_(?:(?P<frames>\d+)f(?:_stride(?P<stride>\d+))?|level(?P<level>\d+))"
)
# Any other numbers are allowed.
PROTOCOLS = {
    "fvd10k_16f": "10,000 fakes, the first 16 frames of each (Tables 2 and 6)",
    "fvd2048_16f": "2,048 fakes, 16 frames (Table 6)",
    "fvd512_16f": "512 fakes, 16 frames",
    "fvd2048_64f": "2,048 fakes, 64 frames (Table 6)",
    "fvd10k_16f_stride4": "every fourth of 64 frames, of fakes and reals (wording of Sec. 5.1)",
    "fvd512_level0": "512 fakes of level 0 at its own resolution (Tables 3 and 4)",
    "fvdfull_16f": "all fakes in the folder, 16 frames",
}
EXAMPLES = ", ".join(PROTOCOLS)
# Below this many videos of either set, a Frechet distance is dominated by its bias.
MIN_VIDEOS = 256


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What is compared.

    Args:
        num_fakes: number of generated videos, None for all available.
        frames: number of frames of a clip; None where a pyramid level decides.
        stride: a clip takes every n-th frame.
        level: the pyramid level whose own resolution and frame rate are compared, or None.
    """

    num_fakes: int | None
    frames: int | None
    stride: int = 1
    level: int | None = None

    @property
    def name(self) -> str:
        fakes = "full" if self.num_fakes is None else _short(self.num_fakes)
        if self.level is not None:
            return f"fvd{fakes}_level{self.level}"
        stride = f"_stride{self.stride}" if self.stride > 1 else ""
        return f"fvd{fakes}_{self.frames}f{stride}"


def _short(num: int) -> str:
    return str(num) if num % 1000 else f"{num // 1000}k"


def parse_protocol(name: str) -> Protocol:
    """Return the protocol of a name such as `fvd10k_16f`.

    Raises:
        MetricError: for a name that is none.
    """
    match = NAME.fullmatch(name)
    if match is None:
        raise MetricError(
            f"unknown protocol {name!r}",
            expected=f"a name such as {EXAMPLES}",
            remedy=did_you_mean(name, PROTOCOLS),
        )
    fakes = match["fakes"]
    num_fakes = None if fakes == "full" else int(fakes.removesuffix("k"))
    if num_fakes is not None and fakes.endswith("k"):
        num_fakes *= 1000
    numbers = {key: int(match[key]) for key in ("frames", "stride", "level") if match[key]}
    protocol = Protocol(**{"num_fakes": num_fakes, "frames": None} | numbers)
    if num_fakes == 0 or protocol.frames == 0 or protocol.stride == 0:
        raise MetricError(f"protocol {name!r} compares nothing", expected="numbers of at least 1")
    return protocol
