"""What the fuzzers share: seeded mutations, a limit on time, and the memory in use.

`HPDM_FUZZ_SEED=1234 pytest -m slow tests/fuzz` repeats one case, `HPDM_FUZZ_SEED=0-999` runs some.
"""

import gc
import os
import random
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

# A case that computes on is told by the processor's time, one that waits by the clock: a busy
# machine is no fault.
LONGEST_SECONDS, LONGEST_WAIT = 20, 180
LIMITS = (
    (signal.ITIMER_PROF, signal.SIGPROF, LONGEST_SECONDS),
    (signal.ITIMER_REAL, signal.SIGALRM, LONGEST_WAIT),
)
MOST_GROWTH = 150 * 2**20
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF)


def cases(count: int) -> Iterator[int]:
    """Yield the seeds of `count` cases, or those that HPDM_FUZZ_SEED names."""
    first, _, last = os.environ.get("HPDM_FUZZ_SEED", f"0-{count - 1}").partition("-")
    yield from range(int(first), min(int(last or first) + 1, count))


def enough(number: int, least: int, *, of: str) -> None:
    """Print how many cases passed their reader, and check that a whole run tries what follows."""
    print(f"{number} {of}")
    assert number > least or "HPDM_FUZZ_SEED" in os.environ


@contextmanager
def within_time(seed: int) -> Iterator[random.Random]:
    """Yield the case's generator; a case that fails or hangs is told by its seed."""

    def ring(*_: object) -> None:
        raise TimeoutError(f"seed {seed} hangs")

    previous = {number: signal.signal(number, ring) for _, number, _ in LIMITS}
    for timer, _, seconds in LIMITS:
        signal.setitimer(timer, seconds)
    try:
        yield random.Random(seed)
    except BaseException:
        print(f"HPDM_FUZZ_SEED={seed} repeats this case", file=sys.stderr)
        raise
    finally:
        for timer, number, _ in LIMITS:
            signal.setitimer(timer, 0)
            signal.signal(number, previous[number])


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
