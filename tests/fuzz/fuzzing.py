"""What the fuzzers share: seeded mutations, a limit on time, and the memory in use.

`HPDM_FUZZ_SEED=1234 pytest -m slow tests/fuzz` repeats one case.
"""

import gc
import os
import random
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

LONGEST_SECONDS = 20
MOST_GROWTH = 150 * 2**20
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF)


def cases(count: int) -> Iterator[int]:
    """Yield the seeds of `count` cases; one alone where HPDM_FUZZ_SEED names it."""
    one = os.environ.get("HPDM_FUZZ_SEED")
    yield from range(count) if one is None else [int(one)]


@contextmanager
def within_time(seed: int) -> Iterator[random.Random]:
    """Yield the case's generator; a case that fails or hangs is told by its seed."""

    def ring(*_: object) -> None:
        raise TimeoutError(f"seed {seed} hangs")

    previous = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, LONGEST_SECONDS)
    try:
        yield random.Random(seed)
    except BaseException:
        print(f"HPDM_FUZZ_SEED={seed} repeats this case", file=sys.stderr)
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


class Memory:
    """Compares the memory in use after a warm-up with that at the end."""

    def __init__(self, warm_up: int) -> None:
        self._left = warm_up
        self._begun = 0

    def note(self, resident: int | None = None) -> None:
        """Take one case into account; `resident` bytes of the process that ran it."""
        self._left -= 1
        if self._left == 0:
            self._begun = resident or resident_bytes()
        elif self._left < 0 and self._left % 100 == 0:
            growth = (resident or resident_bytes()) - self._begun
            assert growth < MOST_GROWTH, f"{growth / 2**20:.0f} MiB more after {-self._left} cases"


def resident_bytes() -> int:
    """Return the memory that this process holds."""
    gc.collect()
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except FileNotFoundError:
        pytest.skip("no /proc here")


def mutated(rng: random.Random, data: bytes, tokens: Sequence[bytes] = ()) -> bytes:
    """Return `data` with some bytes flipped, cut, doubled, overwritten, or tokens put in."""
    result = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        place = rng.randrange(len(result) + 1)
        length = min(rng.choice((1, 2, 4, 8, 64)), len(result) - place)
        kind = rng.randrange(7 if tokens else 6)
        if kind == 0 and length:
            result[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            result[place : place + length] = rng.randbytes(length)
        elif kind == 2:
            result[place : place + length] = bytes([rng.choice(NUMBERS)]) * length
        elif kind == 3:
            del result[place : place + length]
        elif kind == 4:
            result[place:place] = result[place : place + length * 4]
        elif kind == 5 and rng.random() < 0.2:
            del result[place:]
        elif kind == 6:
            result[place:place] = rng.choice(tokens)
    return bytes(result)
