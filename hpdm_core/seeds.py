"""Seeds derived from what they are for, so that no draw depends on the order of work."""

import hashlib


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that is a pure function of `parts`."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
