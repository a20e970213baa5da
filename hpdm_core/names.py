"""Names that become parts of paths: of recipes, of data sets, of files."""

import hashlib
import unicodedata

LONGEST_NAME = 200
# Control characters (NUL and line breaks too), halves of characters, and Unicode's line ends.
_UNPRINTABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})


def plain_name(name: str) -> str:
    """Return `name` if it is one component of a path that can be used on any file system.

    Raises:
        ValueError: it is empty, leads elsewhere, cannot be printed, or is too long.
    """
    if not name.strip() or name in (".", ".."):
        problem = "names no folder"
    elif "/" in name or "\\" in name:
        problem = "holds a slash, so it would lead to another folder"
    elif has_unprintable(name):
        problem = "holds a character that cannot be printed"
    elif len(name.encode()) > LONGEST_NAME:
        problem = f"is longer than {LONGEST_NAME} bytes"
    else:
        return name
    shown = name if len(name) <= 60 else f"{name[:60]}..."
    raise ValueError(f"{shown!a} {problem}; expected one plain name, such as 'clips_64'")


def has_unprintable(text: str) -> bool:
    """Say whether a text holds control characters, line ends or halves of characters."""
    return any(unicodedata.category(c) in _UNPRINTABLE for c in text)


def is_unicode(text: str) -> bool:
    """Say whether a text can be written as UTF-8: JSON and YAML may spell out half a character."""
    return not any("\ud800" <= c <= "\udfff" for c in text)


def as_unicode(text: str) -> str:
    r"""Return a text with bytes that are not UTF-8 and halves of characters written as \udcff."""
    return text.encode("utf-8", "backslashreplace").decode()


def short_name(name: str) -> str:
    """Return a file's name, its end replaced by a hash where it is longer than `LONGEST_NAME`."""
    data = name.encode("utf-8", "surrogatepass")
    if len(data) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(data).hexdigest()[:12]
    return data[: LONGEST_NAME - 13].decode("utf-8", "ignore") + f"-{digest}"
