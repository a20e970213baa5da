"""Names that become parts of paths: of recipes, of data sets, of files."""

import hashlib
import unicodedata

LONGEST_NAME = 200
# Control characters (including NUL and line breaks), lone surrogates, and Unicode's line ends.
_UNPRINTABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})


def plain_name(name: str) -> str:
    """Return `name` if it is one component of a path that can be used on any file system.

    Raises:
        ValueError: it is empty, has a slash, is not printable, or is too long.
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
    """Return whether a text holds control characters, line ends or lone surrogates."""
    return any(unicodedata.category(c) in _UNPRINTABLE for c in text)


def is_unicode(text: str) -> bool:
    """Return whether a text can be encoded as UTF-8: JSON and YAML may hold lone surrogates."""
    return not any("\ud800" <= c <= "\udfff" for c in text)


def as_unicode(text: str) -> str:
    r"""Return a text with bytes that are not UTF-8 and lone surrogates written as \udcff."""
    return text.encode("utf-8", "backslashreplace").decode()


def short_name(name: str) -> str:
    """Return a file's name, its end replaced by a hash if it is longer than `LONGEST_NAME`."""
    data = name.encode("utf-8", "surrogatepass")
    if len(data) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(data).hexdigest()[:12]
    return data[: LONGEST_NAME - 13].decode("utf-8", "ignore") + f"-{digest}"
