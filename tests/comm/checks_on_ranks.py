"""What four ranks check together. Started once by test_ranks.py under mpiexec; each check is a test of its own there.

Usage: mpiexec -n 4 python -m mpi4py checks_on_ranks.py RESULTS.json
"""

import hashlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import hpcrl.comm.mpi as mpi
from hpcrl.comm import Collectives, TreeSum, open_world
from hpcrl.errors import InputError

WORLD_SIZE = 4


def subsets(world: Collectives) -> Iterator[Collectives]:
    """Worlds of 1, 2, 3 and 4 ranks, on the ranks that belong to each."""
    for size in range(1, world.size + 1):
        subset = world.split(0 if world.rank < size else None, world.rank)
        if subset is not None:
            assert subset.size == size
            yield subset
            subset.finalize()


def wild(num_blocks: int, shape: tuple[int, ...], dtype: type) -> list[np.ndarray]:
    """One array per block whose sum depends on the order of additions, with every special value among them."""
    random = np.random.default_rng(7 * num_blocks)
    leaves = [
        (random.standard_normal(shape) * 10.0 ** random.uniform(-8, 8, shape)).astype(dtype) for _ in range(num_blocks)
    ]
    special = [np.nan, np.inf, -np.inf, -0.0, 0.0, np.finfo(dtype).tiny / 8, np.finfo(dtype).max]
    for leaf in leaves:
        flat = leaf.reshape(-1)
        flat[: len(special)] = random.permutation(special)[: flat.size]
        flat[len(special) : len(special) + 2] = -0.0  # in every block: their sum is -0.0 only if nothing else is added
    return leaves


def oracle(leaves: list[np.ndarray]) -> np.ndarray:
    """The same tree, row by row, on one process."""
    row = list(leaves)
    with np.errstate(invalid="ignore", over="ignore"):
        while len(row) > 1:
            pairs = [left + right for left, right in zip(row[::2], row[1::2], strict=False)]
            row = pairs + row[len(row) - len(row) % 2 :]
    return row[0]


def same_bits(got: np.ndarray, want: np.ndarray) -> bool:
    """Equal bit for bit; NaNs only need to stand in the same places (their payload is the processor's choice)."""
    nan = np.isnan(want)
    bits = f"u{want.itemsize}"
    return bool((np.isnan(got) == nan).all() and (got[~nan].view(bits) == want[~nan].view(bits)).all())


def tree_has_the_same_bits_on_any_number_of_ranks(world: Collectives) -> None:
    digests: dict[str, set[str]] = {}
    for comm in subsets(world):
        for num_blocks in (4, 5, 7, 8):
            for dtype in (np.float32, np.float64):
                for segment_bytes in (0, 1 << 40):
                    leaves = wild(num_blocks, (3, 67), dtype)
                    tree = TreeSum(comm, num_blocks, segment_bytes=segment_bytes)
                    with np.errstate(invalid="ignore", over="ignore"):
                        got = tree.sum([leaves[block].copy() for block in tree.owned])
                    assert got.dtype == dtype
                    assert got.shape == (3, 67)
                    assert same_bits(got, oracle(leaves)), (comm.size, num_blocks, dtype, segment_bytes)
                    digests.setdefault(f"{num_blocks} {dtype}", set()).add(hashlib.sha256(got).hexdigest())
    together = [digest for per_rank in world.all_gather(digests) for digest in per_rank.items()]
    for case in {case for case, _ in together}:
        assert len(set.union(*(digest for name, digest in together if name == case))) == 1, case


def tree_differs_from_a_sum_in_another_order(world: Collectives) -> None:
    """Guards the check above: its numbers do depend on the order."""
    leaves = wild(8, (3, 67), np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        left_to_right = leaves[0] + leaves[1] + leaves[2] + leaves[3] + leaves[4] + leaves[5] + leaves[6] + leaves[7]
    assert not same_bits(left_to_right, oracle(leaves))


def tree_takes_large_small_empty_and_scalar_arrays(world: Collectives) -> None:
    for comm in subsets(world):
        tree = TreeSum(comm, 5)
        for shape in ((), (1,), (0,), (4, 0, 3), (3,), (200_001,)):
            got = tree.sum([np.full(shape, block + 1, np.float64) for block in tree.owned])
            assert got.shape == shape
            assert (got == 15).all()


def tree_writes_where_it_is_told(world: Collectives) -> None:
    for comm in subsets(world):
        for segment_bytes in (0, 1 << 40):
            tree = TreeSum(comm, 4, segment_bytes=segment_bytes)
            leaves = [np.full(101, block + 1, np.float32) for block in tree.owned]
            out = np.full(101, np.nan, np.float32)
            assert tree.sum(leaves, out=out) is out
            assert (out == 10).all()
            leaves = [np.full(101, block + 1, np.float32) for block in tree.owned]
            tree.sum(leaves, out=leaves[-1])
            assert (leaves[-1] == 10).all()
            kept = tree.sum([np.full(101, block + 1, np.float32) for block in tree.owned])
            tree.sum([np.full(101, 0, np.float32) for _ in tree.owned])
            assert (kept == 10).all(), "a result must not share memory with the next sum"


def tree_statistics_leave_their_leaves_alone(world: Collectives) -> None:
    tree = TreeSum(world, 6)
    leaves = [np.array([1.0, block, block * block]) for block in tree.owned]
    before = [leaf.copy() for leaf in leaves]
    assert tree.statistics(leaves).tolist() == [6.0, 15.0, 55.0]
    assert all((leaf == was).all() for leaf, was in zip(leaves, before, strict=True))


def tree_alternates_between_sizes(world: Collectives) -> None:
    """More sizes than buffers are kept for, in turns."""
    tree = TreeSum(world, 4)
    for _ in range(3):
        for size in (3, 1000, 5, 50_000, 7, 11):
            assert (tree.sum([np.full(size, 0.5, np.float32) for _ in tree.owned]) == 2).all()


def more_ranks_than_blocks_are_refused(world: Collectives) -> None:
    with pytest.raises(InputError, match="want at most num_blocks=3, given 4"):
        TreeSum(world, 3)


def values_travel(world: Collectives) -> None:
    mine = {"rank": world.rank, "array": np.arange(world.rank), "text": "x" * (1000 * world.rank)}
    for root in range(world.size):
        got = world.broadcast(mine, root)
        assert got["rank"] == root
        assert got["array"].tolist() == list(range(root))
        gathered = world.gather(mine, root)
        assert (gathered is None) == (world.rank != root)
        if gathered is not None:
            assert [len(value["text"]) for value in gathered] == [0, 1000, 2000, 3000]
    assert [value["rank"] for value in world.all_gather(mine)] == list(range(world.size))
    assert world.broadcast(None) is None
    for root in (-1, world.size):
        with pytest.raises(IndexError, match="want 0 <= root < 4"):
            world.broadcast(1, root)


def flags_are_seen_by_all(world: Collectives) -> None:
    assert world.any(world.rank == 3)
    assert not world.any(False)
    assert world.all(True)
    assert not world.all(world.rank != 2)


def arrays_are_exchanged_in_order(world: Collectives) -> None:
    peers = [peer for peer in range(world.size) if peer != world.rank]
    room = {peer: (np.zeros(10, np.int64), np.zeros(0), np.zeros((2, 3), np.float32)) for peer in peers}
    sent = (np.full(10, world.rank), np.zeros(0), np.full((2, 3), world.rank + 0.5, np.float32))
    world.exchange([(p, a) for p in peers for a in sent], [(p, a) for p in peers for a in room[p]])
    for peer in peers:
        assert (room[peer][0] == peer).all()
        assert (room[peer][2] == peer + 0.5).all()
    world.exchange([], [])


def long_messages_go_in_pieces(world: Collectives) -> None:
    whole = mpi.MESSAGE_BYTES
    mpi.MESSAGE_BYTES = 1000
    try:
        values_travel(world)
        arrays_are_exchanged_in_order(world)
        after, before = (world.rank + 1) % world.size, (world.rank - 1) % world.size
        received = np.empty(12_345, np.float64)
        world.exchange([(after, np.arange(12_345.0) + world.rank)], [(before, received)])
        assert (received == np.arange(12_345.0) + before).all()
    finally:
        mpi.MESSAGE_BYTES = whole


def split_orders_by_key_and_nests(world: Collectives) -> None:
    half = world.split(world.rank % 2, -world.rank)
    assert half is not None
    assert half.all_gather(world.rank) == ([2, 0] if world.rank % 2 == 0 else [3, 1])
    alone = half.split(half.rank, 0)
    assert alone is not None
    assert (alone.size, alone.all_gather("x")) == (1, ["x"])
    alone.finalize()
    half.finalize()


def waiting_costs_little_of_a_core(world: Collectives) -> None:
    for wait in (world.barrier, lambda: world.broadcast(1), lambda: world.any(False)):
        world.barrier()
        began, cpu_began = time.perf_counter(), time.thread_time()
        if world.rank == 0:
            time.sleep(0.6)
        wait()
        elapsed, cpu = time.perf_counter() - began, time.thread_time() - cpu_began
        assert elapsed >= 0.5
        assert cpu < 0.2 * elapsed, f"{cpu:.3f} s of processor time in {elapsed:.3f} s of waiting"


def two_threads_use_a_world_each(world: Collectives) -> None:
    other = world.split(0, world.rank)
    assert other is not None
    sums: list[float] = []

    def add(comm: Collectives, times: int) -> None:
        tree = TreeSum(comm, 4)
        sums.extend(float(tree.sum([np.ones(300) for _ in tree.owned])[0]) for _ in range(times))

    thread = threading.Thread(target=add, args=(other, 50))
    thread.start()
    add(world, 50)
    thread.join(60)
    assert not thread.is_alive()
    assert sums == [4.0] * 100
    other.finalize()


CHECKS: tuple[Callable[[Collectives], None], ...] = (
    tree_has_the_same_bits_on_any_number_of_ranks,
    tree_differs_from_a_sum_in_another_order,
    tree_takes_large_small_empty_and_scalar_arrays,
    tree_writes_where_it_is_told,
    tree_statistics_leave_their_leaves_alone,
    tree_alternates_between_sizes,
    more_ranks_than_blocks_are_refused,
    values_travel,
    flags_are_seen_by_all,
    arrays_are_exchanged_in_order,
    long_messages_go_in_pieces,
    split_orders_by_key_and_nests,
    waiting_costs_little_of_a_core,
    two_threads_use_a_world_each,
)


def main(results: Path) -> None:
    """Runs every check on all ranks; rank 0 writes the names of those that passed. The first failure ends the job."""
    world = open_world()
    assert world.size == WORLD_SIZE
    passed: list[str] = []
    for check in CHECKS:
        check(world)
        world.barrier()
        passed.append(check.__name__)
        if world.rank == 0:
            results.write_text(json.dumps(passed))
    world.finalize()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
