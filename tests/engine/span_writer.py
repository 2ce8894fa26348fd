"""A process that writes spans until it is killed: `python span_writer.py DIRECTORY FIRST`, and says how many there are."""

from __future__ import annotations

import sys
from hashlib import blake2b
from itertools import count
from pathlib import Path

import numpy as np

from vglm.engine.span_files import SpanFiles
from vglm.engine.span_segments import PageArray, SavedSpan

BLOCK_BYTES = 3000
LIMIT = 2 << 20
IDENTITY = {"model": "written until killed"}


def span(number: int) -> SavedSpan:
    """A span that its number determines."""
    key = blake2b(str(number).encode(), digest_size=32).digest()
    rng = np.random.default_rng(number)
    pages: PageArray = rng.integers(0, 256, (1 + number % 3, BLOCK_BYTES), np.uint8)
    parents = (blake2b(key).digest()[:32],) * (number % 2)
    return SavedSpan(key, number, parents, (16,) * (number % 3) + (1 + number % 16,), pages)


def main() -> None:
    files = SpanFiles(Path(sys.argv[1]), IDENTITY, BLOCK_BYTES, LIMIT)
    for number in count(int(sys.argv[2])):
        assert files.append(span(number))
        print(number, flush=True)


if __name__ == "__main__":
    main()
