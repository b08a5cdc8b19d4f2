"""Blocks and Mesh: who owns which lanes, and what is refused."""

import pytest

from hpcrl.data.blocks import Blocks
from hpcrl.data.mesh import Mesh
from hpcrl.errors import InputError


def test_lanes_of_all_blocks_are_all_lanes_in_order() -> None:
    blocks = Blocks(num_blocks=4, num_lanes=64)
    assert [lane for block in range(4) for lane in blocks.lanes(block)] == list(range(64))
    assert blocks.lanes_per_block == 16


@pytest.mark.parametrize("num_blocks", [1, 2, 4, 5, 7, 16])
def test_every_block_has_one_owner_on_any_number_of_ranks(num_blocks: int) -> None:
    blocks = Blocks(num_blocks, num_lanes=3 * num_blocks)
    for size in range(1, num_blocks + 1):
        owned = [blocks.owned(rank, size) for rank in range(size)]
        assert [block for blocks_of_rank in owned for block in blocks_of_rank] == list(range(num_blocks))
        assert max(map(len, owned)) - min(map(len, owned)) <= 1
        for rank, blocks_of_rank in enumerate(owned):
            assert [blocks.owner(block, size) for block in blocks_of_rank] == [rank] * len(blocks_of_rank)


def test_lanes_that_do_not_divide_are_refused_with_the_nearest_that_do() -> None:
    with pytest.raises(InputError, match=r"num_lanes: want a multiple of num_blocks=4, given 30; use 28 or 32"):
        Blocks(num_blocks=4, num_lanes=30)
    with pytest.raises(InputError, match=r"given 3; use 4$"):
        Blocks(num_blocks=4, num_lanes=3)


def test_more_ranks_than_blocks_are_refused_with_the_reason() -> None:
    blocks = Blocks(num_blocks=4, num_lanes=8)
    for call in (lambda: blocks.owned(0, 5), lambda: blocks.owner(0, 5), lambda: blocks.check_ranks(5)):
        with pytest.raises(InputError, match=r"want at most num_blocks=4, given 5.*whole blocks.*num_blocks >= 5"):
            call()


@pytest.mark.parametrize("count", [0, -1, 1.5, "4", True])
def test_counts_are_positive_integers(count: object) -> None:
    with pytest.raises(InputError, match="num_blocks: want an integer >= 1"):
        Blocks(num_blocks=count, num_lanes=8)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="num_lanes: want an integer >= 1"):
        Blocks(num_blocks=1, num_lanes=count)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"mesh\.tp: want an integer >= 1"):
        Mesh(tp=count)  # type: ignore[arg-type]


def test_places_outside_are_an_error() -> None:
    blocks = Blocks(num_blocks=4, num_lanes=8)
    for call in (lambda: blocks.lanes(4), lambda: blocks.owned(2, 2), lambda: blocks.owner(-1, 2)):
        with pytest.raises(IndexError, match="want 0 <="):
            call()


def test_a_mesh_has_the_product_of_its_degrees() -> None:
    assert Mesh().size == 1
    assert Mesh(dp=2, tp=3, pp=4).size == 24


@pytest.mark.parametrize("world", ["", "a b", "../up", "-x"])
def test_a_world_must_be_a_name(world: str) -> None:
    with pytest.raises(InputError, match=r"mesh\.world: want a name"):
        Mesh(world=world)
