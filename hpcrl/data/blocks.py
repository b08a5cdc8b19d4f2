"""Blocks: the fixed division of a run's lanes, and which rank owns which block."""

from __future__ import annotations

from dataclasses import dataclass

from hpcrl.errors import InputError


@dataclass(frozen=True)
class Blocks:
    """The run's fixed blocks; part of the configuration, never derived from the number of ranks.

    A block owns `num_lanes / num_blocks` consecutive lanes (environments or prompt slots). Ranks own whole consecutive
    blocks, so the batch of a forward, the shards and the order of every sum are the same on any number of ranks.

    Raises: InputError when a count is not a positive integer or the lanes do not divide evenly.
    Example:
        >>> blocks = Blocks(num_blocks=4, num_lanes=64)
        >>> blocks.lanes(1), blocks.owned(rank=0, size=2), blocks.owner(block=3, size=2)
        (range(16, 32), range(0, 2), 1)
    """

    num_blocks: int
    """Leaves of the reduction tree, shards per stage; the most ranks a run can use."""
    num_lanes: int
    """Environments or prompt slots over all blocks; a multiple of `num_blocks`."""

    def __post_init__(self) -> None:
        _check_count("num_blocks", self.num_blocks)
        _check_count("num_lanes", self.num_lanes)
        if self.num_lanes % self.num_blocks:
            below = self.num_lanes - self.num_lanes % self.num_blocks
            nearest = [str(n) for n in (below, below + self.num_blocks) if n]
            raise InputError(
                f"num_lanes: want a multiple of num_blocks={self.num_blocks}, given {self.num_lanes}; "
                f"use {' or '.join(nearest)}"
            )

    @property
    def lanes_per_block(self) -> int:
        """Lanes in each block: the number of rows of one policy forward."""
        return self.num_lanes // self.num_blocks

    def lanes(self, block: int) -> range:
        """Global lanes of `block`, in order. Raises IndexError for a block outside [0, num_blocks)."""
        if not 0 <= block < self.num_blocks:
            raise IndexError(f"block: want 0 <= block < {self.num_blocks}, given {block}")
        return range(block * self.lanes_per_block, (block + 1) * self.lanes_per_block)

    def owned(self, rank: int, size: int) -> range:
        """Blocks of `rank` among `size` ranks: [rank * B // size, (rank + 1) * B // size).

        Raises: InputError when there are more ranks than blocks; IndexError for a rank outside [0, size).
        """
        self.check_ranks(size)
        if not 0 <= rank < size:
            raise IndexError(f"rank: want 0 <= rank < {size}, given {rank}")
        return range(rank * self.num_blocks // size, (rank + 1) * self.num_blocks // size)

    def owner(self, block: int, size: int) -> int:
        """Rank that owns `block` among `size` ranks: the inverse of `owned`.

        Raises: InputError when there are more ranks than blocks; IndexError for a block outside [0, num_blocks).
        """
        self.check_ranks(size)
        if not 0 <= block < self.num_blocks:
            raise IndexError(f"block: want 0 <= block < {self.num_blocks}, given {block}")
        # The last rank whose first block, rank * B // size, is not beyond `block`.
        return ((block + 1) * size - 1) // self.num_blocks

    def check_ranks(self, size: int) -> None:
        """Refuses a number of ranks that these blocks cannot occupy. Raises: InputError."""
        _check_count("ranks", size)
        if size > self.num_blocks:
            raise InputError(
                f"ranks: want at most num_blocks={self.num_blocks}, given {size}. A rank owns whole blocks, and "
                f"num_blocks belongs to the run, not to the launch: it fixes the batches, the shards and the order of "
                f"every sum. Start {self.num_blocks} ranks or fewer, or begin a new run with num_blocks >= {size}"
            )


def _check_count(name: str, count: object) -> None:
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise InputError(f"{name}: want an integer >= 1, given {count!r}")
