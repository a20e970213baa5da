"""Figures in human units: 2.36 M weights, 2.4 TFLOP, 226 GB, 12 min, 784 GPU-years."""

_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")
_HOURS_A_YEAR = 365.25 * 24


def count(number: float) -> str:
    """Format a number with three digits: 950, 2.36 M, 4.1 G."""
    return _scaled(number).rstrip()


def number_of(number: int, what: str) -> str:
    """Format a number of things: 1 video, 1,024 videos, 2 classes."""
    return f"{number:,} {what}{'' if number == 1 else 'es' if what.endswith('s') else 's'}"


def flop(number: float) -> str:
    """Format floating-point operations: 2.4 TFLOP."""
    return f"{_scaled(number)}FLOP"


def size(number: float) -> str:
    """Format bytes: 425 kB, 226 GB."""
    return f"{_scaled(number)}B"


def resolution(sides: list[int]) -> str:
    """Format frames, height and width: 16x64x64."""
    return "x".join(map(str, sides))


def duration(seconds: float) -> str:
    """Format a time span by its largest unit: 12 s, 34 min, 5.6 h, 2.1 days, 3.2 years."""
    if seconds >= 2 * 3600 * _HOURS_A_YEAR:
        return f"{count(seconds / 3600 / _HOURS_A_YEAR)} years"
    for name, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {name}"
    return f"{seconds:.3g} s"


def gpu_hours(hours: float) -> str:
    """Format hours of one GPU, with years where they are many."""
    text = f"{count(hours)} GPU-hours"
    years = hours / _HOURS_A_YEAR
    return f"{text} = {count(years)} GPU-years" if years > 0.5 else text


def _scaled(number: float) -> str:
    """Return three digits, a space and the prefix."""
    for prefix in _PREFIXES:
        if abs(number) < 999.5 or prefix == _PREFIXES[-1]:
            break
        number /= 1000
    return f"{number:.3g} {prefix}"
