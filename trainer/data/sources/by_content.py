"""Which split an example belongs to, by what is in it.

An example stays where it is as others are added, and two of the same content never part.
"""

import hashlib
from collections.abc import Mapping


def split_of(content: bytes, shares: Mapping[str, float]) -> str:
    """The split of an example, "train" or one of those that `shares` gives a part of all.

    Each split has its own stretch of the hash, in the order of `shares`.
    """
    position = int.from_bytes(hashlib.sha256(content).digest()[:8], "big") / 2**64
    for split, share in shares.items():
        if 0 <= position < share:
            return split
        position -= share
    return "train"
