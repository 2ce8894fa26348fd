"""What an allocation costs and what it leaves unusable: the block pool against malloc.

malloc runs in a process of its own (`python -m vglm.bench.allocators`), because its statistics are of a
whole heap and its options are for good. There a sequence is one contiguous piece, as an engine without paging
has it.
"""

from __future__ import annotations

import ctypes
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from vglm.bench.occupancy import _NoMemory
from vglm.engine.block_pool import BlockPool
from vglm.errors import VGLMError

_TOKEN_BYTES = 64  # of the scaled-down heap: only ratios of sizes matter to fragmentation
_M_MMAP_MAX = -4
_BLOCK_SIZE = 16
_MANY = 64  # blocks of a prompt of a thousand tokens
_MALLINFO = (
    "arena",
    "ordblks",
    "smblks",
    "hblks",
    "hblkhd",
    "usmblks",
    "fsmblks",
    "uordblks",
    "fordblks",
    "keepcost",
)


class _MallInfo(ctypes.Structure):
    """glibc's struct mallinfo2; sizes in bytes."""

    _fields_ = [(name, ctypes.c_size_t) for name in _MALLINFO]


def latency_table(block_bytes: int, rounds: int = 20000) -> list[dict[str, Any]]:
    """Nanoseconds for an allocation and its release, all called from Python; best of several runs."""
    libc = _libc()
    pool = BlockPool(4096, _BLOCK_SIZE, _NoMemory())
    pool.allocate(512)

    def pool_one() -> None:
        pool.release(pool.allocate(1)[0])

    def pool_many() -> None:
        for block in pool.allocate(_MANY):
            pool.release(block)

    def two_calls() -> None:
        libc.labs(libc.labs(block_bytes))

    def malloc() -> None:
        libc.free(libc.malloc(block_bytes))

    def malloc_and_write() -> None:
        place = libc.malloc(block_bytes)
        ctypes.memset(place, 0, block_bytes)
        libc.free(place)

    def numpy_empty() -> None:
        np.empty(block_bytes, np.uint8)

    few = max(rounds // 100, 10)
    actions: list[tuple[str, Callable[[], None], int, int]] = [
        ("block pool, one block", pool_one, rounds, 1),
        (f"block pool, each of {_MANY} blocks", pool_many, few, _MANY),
        ("numpy.empty", numpy_empty, rounds, 1),
        ("malloc and free", malloc, rounds, 1),
        ("malloc, first write, free", malloc_and_write, few, 1),
        ("two calls into libc that do nothing", two_calls, rounds, 1),
    ]
    return [{"allocator": name, "nanoseconds": _nanoseconds(f, n) / each} for name, f, n, each in actions]


def _libc() -> Any:
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    libc.labs.restype, libc.labs.argtypes = ctypes.c_long, [ctypes.c_long]
    libc.mallinfo2.restype, libc.mallinfo2.argtypes = _MallInfo, []
    return libc


def _nanoseconds(action: Callable[[], None], rounds: int) -> float:
    best = float("inf")
    for _ in range(5):
        begin = time.perf_counter_ns()
        for _ in range(rounds):
            action()
        best = min(best, (time.perf_counter_ns() - begin) / rounds)
    return best


def fragmentation_table(lengths: list[int], live: int, rounds: int, seed: int = 0) -> list[dict[str, Any]]:
    """Memory that nobody uses after random ends and starts of sequences of these lengths, `live` at once."""
    command = [sys.executable, "-m", "vglm.bench.allocators", str(live), str(rounds), str(seed)]
    child = subprocess.run(command, input=json.dumps(lengths), capture_output=True, text=True)
    if child.returncode:
        raise VGLMError(f"the malloc measurement failed: {child.stderr.strip().splitlines()[-1:]}")
    return [_pool_workload(lengths, live, rounds, seed), json.loads(child.stdout)]


def _pool_workload(lengths: list[int], live: int, rounds: int, seed: int) -> dict[str, Any]:
    pool = BlockPool(live * -(-max(lengths) // _BLOCK_SIZE), _BLOCK_SIZE, _NoMemory())

    def allocate(tokens: int) -> list[int]:
        blocks = pool.allocate(pool.blocks_for(tokens))
        for block in blocks[:-1]:
            pool.set_valid(block, _BLOCK_SIZE)
        pool.set_valid(blocks[-1], tokens - _BLOCK_SIZE * (len(blocks) - 1))
        return blocks

    def free(blocks: list[int]) -> None:
        for block in blocks:
            pool.release(block)

    _random_workload(lengths, live, rounds, seed, allocate, free)
    before = pool.stats()
    pool.compact()
    return {
        "allocator": "block pool",
        "external": before.external_fragmentation,
        "internal": before.internal_fragmentation,
        "usable": 1.0,  # any free block serves any sequence
        "after_compaction": pool.stats().external_fragmentation,
    }


def _malloc_workload(lengths: list[int], live: int, rounds: int, seed: int) -> dict[str, Any]:
    libc = _libc()
    libc.mallopt(
        _M_MMAP_MAX, 0
    )  # large pieces come from the heap too, as they would from one reserved KV mapping
    idle = libc.mallinfo2()
    _random_workload(
        lengths, live, rounds, seed, lambda tokens: libc.malloc(tokens * _TOKEN_BYTES), libc.free
    )
    now = libc.mallinfo2()
    heap, used = now.arena - idle.uordblks, now.uordblks - idle.uordblks
    largest = _TOKEN_BYTES * max(lengths)
    return {
        "allocator": "malloc, contiguous",
        "external": 1 - used / heap,
        "internal": 0.0,
        "usable": _share_for(libc, largest, heap - used),
        "after_compaction": None,
    }


def _share_for(libc: Any, size: int, free_bytes: int) -> float:
    """The part of the heap's free memory that pieces of `size` bytes fit into before the heap has to grow."""
    limit = libc.mallinfo2().arena
    served = 0
    while True:
        libc.malloc(size)
        if libc.mallinfo2().arena > limit:
            return served / free_bytes if free_bytes else 1.0
        served += size


def _random_workload(
    lengths: list[int],
    live: int,
    rounds: int,
    seed: int,
    allocate: Callable[[int], Any],
    free: Callable[[Any], Any],
) -> None:
    """Fill up to `live` sequences, then `rounds` times end a random one and start another."""
    chance = random.Random(seed)
    held = [allocate(chance.choice(lengths)) for _ in range(live)]
    for _ in range(rounds):
        i = chance.randrange(live)
        free(held[i])
        held[i] = allocate(chance.choice(lengths))


if __name__ == "__main__":
    _live, _rounds, _seed = map(int, sys.argv[1:4])
    print(json.dumps(_malloc_workload(json.load(sys.stdin), _live, _rounds, _seed)))
