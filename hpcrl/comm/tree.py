"""Sums over blocks in one fixed order: the same bits on any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from hpcrl.comm.collectives import Collectives
from hpcrl.data.blocks import Blocks
from hpcrl.errors import InputError

Float = TypeVar("Float", bound=np.floating[Any])
Floats = npt.NDArray[Float]
Float64 = npt.NDArray[np.float64]

SEGMENT_BYTES = 128 * 1024
"""Above this many bytes to receive, each rank sums one segment of the vector and the segments are gathered: that moves
less and adds less, for one more latency. Measured by benchmarks/bench_tree.py."""

_KEPT_SIZES = 4  # gradients, statistics and a spare: buffers of other sizes are dropped, oldest first


@dataclass(frozen=True, order=True)
class Node:
    """A node of the tree over blocks: at `level` l, number `index` i covers blocks [i * 2**l, (i + 1) * 2**l)."""

    level: int
    index: int

    def covers(self, num_blocks: int) -> range:
        """The blocks under this node."""
        return range(self.index << self.level, min((self.index + 1) << self.level, num_blocks))

    def children(self, num_blocks: int) -> list[Node]:
        """The one or two nodes it sums, left to right; one: it carries the last node of an odd row up."""
        left, right = Node(self.level - 1, 2 * self.index), Node(self.level - 1, 2 * self.index + 1)
        return [left, right] if right.index << right.level < num_blocks else [left]


def root_of(num_blocks: int) -> Node:
    """The node over all blocks."""
    return Node((num_blocks - 1).bit_length(), 0)


def largest_within(blocks: range, num_blocks: int) -> list[Node]:
    """The highest nodes that lie wholly within `blocks`, left to right: what their owner can sum alone.

    Example:
        >>> [list(node.covers(5)) for node in largest_within(range(1, 5), 5)]
        [[1], [2, 3], [4]]
    """

    def walk(node: Node) -> Iterator[Node]:
        under = node.covers(num_blocks)
        if blocks.start <= under.start and under.stop <= blocks.stop:
            yield node
        elif under.start < blocks.stop and blocks.start < under.stop:
            for child in node.children(num_blocks):
                yield from walk(child)

    return list(walk(root_of(num_blocks)))


def additions(node: Node, known: Sequence[Node], num_blocks: int) -> list[tuple[int, int]]:
    """The additions that make `node` of the known nodes below it: (place of the left operand, of the right) each.

    Each sum takes the place of its left operand, so the last one leaves the whole at the place of the leftmost node.

    Example:
        >>> additions(root_of(5), [Node(0, block) for block in range(5)], 5)
        [(0, 1), (2, 3), (0, 2), (0, 4)]
    """
    steps: list[tuple[int, int]] = []

    def place(node: Node) -> int:
        if node in known:
            return known.index(node)
        places = [place(child) for child in node.children(num_blocks)]
        if len(places) == 2:
            steps.append((places[0], places[1]))
        return places[0]

    place(node)
    return steps


class TreeSum:
    """Sums one array per block over all blocks and ranks: ((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7)).

    Rows of the tree pair neighbours; the last node of an odd row is carried up. The shape depends on `num_blocks` alone
    and every element goes through it alone, so the result has the same bits for any `comm.size <= num_blocks`, also
    for sizes that do not divide. (MPI_Allreduce may choose its order by size, message length and placement.) Ranks own
    blocks as `Blocks.owned` says. NaN and infinity propagate as in any sum.

    Raises: InputError when there are more ranks than blocks.
    Example:
        >>> from hpcrl.comm.collectives import SingleProcess
        >>> tree = TreeSum(SingleProcess(), num_blocks=3)
        >>> tree.sum([np.full(2, x, np.float32) for x in (1, 2, 4)])
        array([7., 7.], dtype=float32)
    """

    def __init__(self, comm: Collectives, num_blocks: int, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        blocks = Blocks(num_blocks, num_blocks)
        every_rank = [blocks.owned(rank, comm.size) for rank in range(comm.size)]
        self.owned = every_rank[comm.rank]
        """Blocks of this rank: one leaf each, in this order."""
        self._comm = comm
        self._segment_bytes = segment_bytes
        self._peers = [peer for peer in range(comm.size) if peer != comm.rank]
        # What each rank can sum alone, and then, over all ranks' subtrees in order, the rest of the tree.
        subtrees = [largest_within(owned, num_blocks) for owned in every_rank]
        leaves = [Node(0, block) for block in self.owned]
        self._alone = [step for node in subtrees[comm.rank] for step in additions(node, leaves, num_blocks)]
        self._own_places = [leaves.index(Node(0, node.covers(num_blocks).start)) for node in subtrees[comm.rank]]
        self._rest = additions(root_of(num_blocks), [node for nodes in subtrees for node in nodes], num_blocks)
        self._counts = [len(nodes) for nodes in subtrees]
        self._rooms: dict[tuple[int, str], list[list[Floats[Any]]]] = {}

    def sum(self, leaves: Sequence[Floats[Float]], out: Floats[Float] | None = None) -> Floats[Float]:
        """The sum over all blocks, on every rank. Collective.

        Args:
            leaves: one array per owned block in block order, float32 or float64, of one shape and dtype on all ranks,
                C-contiguous. They are overwritten.
            out: where to write the sum; same shape and dtype, C-contiguous; may be one of the leaves. Default: a new
                array (of 7 MB: a millisecond of page faults, so pass one where it matters).
        Returns:
            `out`, or the new array.
        Raises:
            InputError: a wrong number of leaves, or shapes, dtypes or memory orders that differ or do not fit.
        """
        self._check(leaves, out)
        result = np.empty_like(leaves[0]) if out is None else out
        flat = result.reshape(-1)
        places = [leaf.reshape(-1) for leaf in leaves]
        if self._comm.size == 1:
            _add(self._alone, places, flat)
            return result
        for left, right in self._alone:
            np.add(places[left], places[right], out=places[left])
        own = [places[place] for place in self._own_places]
        if flat.nbytes * len(self._peers) <= self._segment_bytes:
            self._sum_whole(own, flat)
        else:
            self._sum_segments(own, flat)
        return result

    def statistics(self, leaves: Sequence[Float64]) -> Float64:
        """The sum over all blocks of one small float64 array per owned block (counts, sums, sums of squares).

        Unlike `sum` it leaves the leaves as they are. Collective. Raises: InputError for another dtype.
        """
        for leaf in leaves:
            if leaf.dtype != np.float64:
                raise InputError(f"statistics: want float64 leaves, given {leaf.dtype}; use .astype(np.float64)")
        total = np.empty(leaves[0].shape if len(leaves) else 0, np.float64)
        self.sum([leaf.copy() for leaf in leaves], out=total)
        return total

    def _sum_whole(self, own: list[Floats[Any]], result: Floats[Any]) -> None:
        """Every rank sends its subtrees to every other; each finishes the tree for itself. One latency."""
        known = self._gather_subtrees(own, [own] * self._comm.size, result)
        _add(self._rest, known, result)

    def _sum_segments(self, own: list[Floats[Any]], result: Floats[Any]) -> None:
        """Each rank finishes the tree for its segment of the elements; then the segments go to all. Two latencies."""
        rank, size = self._comm.rank, self._comm.size
        bounds = [result.size * peer // size for peer in range(size + 1)]
        segments = [slice(bounds[peer], bounds[peer + 1]) for peer in range(size)]
        mine = result[segments[rank]]
        cut = [[array[segment] for array in own] for segment in segments]
        known = self._gather_subtrees(cut[rank], cut, mine)
        _add(self._rest, known, mine)
        self._comm.exchange(
            [(peer, mine) for peer in self._peers],
            [(peer, result[segments[peer]]) for peer in self._peers],
        )

    def _gather_subtrees(
        self, own: list[Floats[Any]], to_peers: list[list[Floats[Any]]], like: Floats[Any]
    ) -> list[Floats[Any]]:
        """All ranks' subtrees in rank order; `to_peers[p]` goes to rank p, `own` stands for this rank's."""
        rooms = self._rooms_for(like)
        self._comm.exchange(
            [(peer, array) for peer in self._peers for array in to_peers[peer]],
            [(peer, room) for peer in self._peers for room in rooms[peer]],
        )
        rooms = [own if peer == self._comm.rank else room for peer, room in enumerate(rooms)]
        return [array for arrays in rooms for array in arrays]

    def _rooms_for(self, like: Floats[Any]) -> list[list[Floats[Any]]]:
        """Arrays of this size for each peer's subtrees, kept from call to call."""
        key = (like.size, like.dtype.char)
        if key not in self._rooms:
            if len(self._rooms) == _KEPT_SIZES:
                self._rooms.pop(next(iter(self._rooms)))
            self._rooms[key] = [
                [np.empty_like(like) for _ in range(0 if peer == self._comm.rank else count)]
                for peer, count in enumerate(self._counts)
            ]
        return self._rooms[key]

    def _check(self, leaves: Sequence[Floats[Any]], out: Floats[Any] | None) -> None:
        if len(leaves) != len(self.owned):
            raise InputError(
                f"leaves: want {len(self.owned)} arrays (blocks {self.owned.start} to {self.owned.stop - 1} are owned "
                f"by rank {self._comm.rank}), given {len(leaves)}; pass one per owned block, in block order"
            )
        shape, dtype = leaves[0].shape, leaves[0].dtype
        if dtype.char not in "fd":
            raise InputError(f"leaves: want float32 or float64, given {dtype}; convert with .astype")
        for i, array in enumerate(leaves if out is None else [*leaves, out]):
            name = f"leaves[{i}]" if i < len(leaves) else "out"
            if array.shape != shape or array.dtype != dtype:
                raise InputError(
                    f"{name}: want {dtype}{list(shape)} like leaves[0], given {array.dtype}{list(array.shape)}"
                )
            if not array.flags.c_contiguous:
                raise InputError(f"{name}: want C-contiguous memory, given strides {array.strides}; copy it first")


def _add(steps: Sequence[tuple[int, int]], places: Sequence[Floats[Any]], result: Floats[Any]) -> None:
    """Carries out additions, each in place of its left operand, the last one into `result`."""
    if not steps:
        np.copyto(result, places[0])
        return
    for left, right in steps[:-1]:
        np.add(places[left], places[right], out=places[left])
    left, right = steps[-1]
    np.add(places[left], places[right], out=result)
