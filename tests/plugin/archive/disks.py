"""What the tests put into archives.

One rule: no two runs differ.
"""

import random

CLUSTER = 65536


def disk(clusters: int, seed: int = 1, tail: int = 0) -> bytes:
    """Of that many clusters and `tail` bytes: some random, some empty, some with holes of 4 KiB."""
    dice = random.Random(seed)
    out = []
    for number in range(clusters):
        match number % 5:
            case 0 | 1:
                out.append(dice.randbytes(CLUSTER))
            case 2:
                out.append(bytes(CLUSTER))
            case 3:
                out.append(b"".join(dice.randbytes(4096) if dice.random() < 0.5 else bytes(4096) for _ in range(16)))
            case _:
                out.append(b"text that packs well, " * 2979)
    return b"".join(each[:CLUSTER].ljust(CLUSTER, b".") for each in out) + dice.randbytes(tail)
