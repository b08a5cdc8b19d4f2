"""Every step once per epoch, in a counted order that no rank and no medium changes; frame stacks as they were seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from stored_samples import assert_same, image_frames, sample

from hpcrl.data import Ragged, Trajectories
from hpcrl.errors import CorruptFileError, InputError
from hpcrl.store.frames import FrameStacks
from hpcrl.store.layout import shard_name
from hpcrl.store.replay import ReplayReader, read_block
from hpcrl.store.run_folder import RunFolder
from hpcrl.store.shards import write_shard
from hpcrl.store.stage_folder import StageFolder

LENGTHS = ((3, 1, 5), (4, 0, 6, 1), (2,))


def blocks(images: bool = False) -> dict[int, Trajectories]:
    found = {}
    for block, lengths in enumerate(LENGTHS):
        steps = sample(lengths, seed=block)
        number = np.arange(steps.num_steps) + 100 * block
        steps = steps.with_fields(steps={"number": number})
        found[block] = steps.without(["observations"]) if images else steps.without(["frames"])
    return found


def store(run: RunFolder) -> list[StageFolder]:
    """A rollout, and a stage that adds a field in shards of its own."""
    stages = [run.stage(5, "rollout"), run.stage(5, "advantage")]
    for stage in stages:
        attempt = stage.begin_attempt()
        for block, steps in blocks().items():
            if stage.stage == "advantage":
                steps = Trajectories(steps.offsets, {"advantages": steps["rewards"] * 2})
            record = write_shard(attempt.path / shard_name(block), steps, attributes={"block": block})
            attempt.publish_part(block, [record])
        assert stage.publish_if_complete(3)
    return stages


def test_every_step_comes_once_in_each_epoch() -> None:
    reader = ReplayReader(blocks(), seed=7, iteration=3, num_minibatches=4)
    orders = []
    for epoch in range(2):
        minibatches = list(reader.minibatches(epoch))
        for minibatch in minibatches:
            for block, part in minibatch.parts.items():
                assert len(part["number"]) == reader.part_rows(block)[minibatch.index]
                rows = part["number"] - 100 * block
                for name, array in part.items():
                    assert np.array_equal(array, reader.blocks[block][name][rows])
        seen = np.concatenate([part["number"] for one in minibatches for part in one.parts.values()])
        assert sorted(seen) == sorted(n for one in blocks().values() for n in one["number"])
        assert sum(one.rows for one in minibatches) == len(seen)
        orders.append(seen)
    assert not np.array_equal(*orders)


def test_blocks_do_not_depend_on_each_other() -> None:
    whole = ReplayReader(blocks(), seed=7, iteration=3, num_minibatches=3)
    alone = ReplayReader({1: blocks()[1]}, seed=7, iteration=3, num_minibatches=3)
    for one, other in zip(whole.minibatches(2), alone.minibatches(2), strict=True):
        for name, array in other.parts[1].items():
            assert array.tobytes() == one.parts[1][name].tobytes()


def test_stored_steps_come_as_those_in_memory(tmp_path: Path) -> None:
    stages = store(RunFolder.create(tmp_path / "run", {}))
    fields = ["observations", "rewards", "advantages"]
    stored = ReplayReader.open(stages, blocks=range(3), seed=7, num_minibatches=4, fields=fields)
    memory = {
        block: steps.with_fields(steps={"advantages": steps["rewards"] * 2}).only(fields)
        for block, steps in blocks().items()
    }
    reader = ReplayReader(memory, seed=7, iteration=5, num_minibatches=4)
    for one, other in zip(stored.minibatches(1), reader.minibatches(1), strict=True):
        for block in range(3):
            assert {name: array.tobytes() for name, array in one.parts[block].items()} == {
                name: array.tobytes() for name, array in other.parts[block].items()
            }


def test_fields_of_several_stages_are_joined(tmp_path: Path) -> None:
    stages = store(RunFolder.create(tmp_path / "run", {}))
    whole = read_block(stages, 1)
    assert_same(blocks()[1].with_fields(steps={"advantages": blocks()[1]["rewards"] * 2}), whole)
    assert read_block(stages, 1, fields=["advantages"]).fields() == ("advantages",)
    with pytest.raises(InputError, match=r"want fields returns, given"):
        read_block(stages, 1, fields=["returns", "rewards"])
    with pytest.raises(InputError, match="want a published stage, but it is not there"):
        read_block([StageFolder(tmp_path / "run", 6, "rollout")], 1)
    stages[0].file(stages[0].manifest().files[1]).write_bytes(b"damaged")  # type: ignore[union-attr]
    with pytest.raises(CorruptFileError, match=r"shard-00001\.h5"):
        read_block(stages, 1)


@pytest.mark.parametrize("depth", [1, 4])
def test_frame_stacks_are_rebuilt_as_they_were_seen(depth: int) -> None:
    lengths = (3, 0, 5)
    frames = image_frames(np.random.default_rng(0), lengths, depth)
    steps = Trajectories(np.array([0, 3, 3, 8]), {}, {}, {"frames": frames})
    stacks = FrameStacks(steps)
    assert stacks.depth == depth
    seen = [frames[i][t : t + depth] for i, length in enumerate(lengths) for t in range(length)]
    order = np.array([7, 0, 3, 3, 2])
    assert np.array_equal(stacks.at(order), np.stack([seen[step] for step in order]))
    assert np.array_equal(stacks.final(), np.stack([frames[i][-depth:] for i in range(3)]))
    # consecutive stacks of a trajectory share all but one frame, and the last step's leads to the final observation
    assert np.array_equal(stacks.at(np.array([1]))[0, 1:], stacks.at(np.array([2]))[0, :-1])
    assert np.array_equal(stacks.at(np.array([2]))[0, 1:], stacks.final()[0, :-1])


def test_image_minibatches_hold_stacks() -> None:
    reader = ReplayReader(blocks(images=True), seed=7, iteration=3, num_minibatches=2)
    for minibatch in reader.minibatches(0, ["observations", "number"]):
        for block, part in minibatch.parts.items():
            stacks = FrameStacks(reader.blocks[block]).at(part["number"] - 100 * block)
            assert np.array_equal(part["observations"], stacks)
            assert part["observations"].shape[1:] == (4, 5, 6)


def test_frames_that_do_not_fit_are_refused() -> None:
    frames = Ragged(np.zeros((9, 2, 2), np.uint8), np.array([0, 4, 9]))
    with pytest.raises(InputError, match=r"frames: want as many rows as steps plus .* given depths 2\.\.4"):
        FrameStacks(Trajectories(np.array([0, 2, 3]), {}, {}, {"frames": frames}))
    with pytest.raises(InputError, match="frames: want a ragged field of that name, given the fields none"):
        FrameStacks(Trajectories(np.array([0, 2])))


def test_empty_blocks_and_more_parts_than_steps() -> None:
    empty = sample(()).without(["frames"])
    reader = ReplayReader({0: empty, 1: sample((2,)).without(["frames"])}, seed=7, iteration=0, num_minibatches=5)
    assert [minibatch.rows for minibatch in reader.minibatches(0)] == [0, 0, 1, 0, 1]


def test_mistakes_are_named() -> None:
    with pytest.raises(InputError, match="num_minibatches: want >= 1, given 0"):
        ReplayReader(blocks(), seed=7, iteration=0, num_minibatches=0)
    with pytest.raises(InputError, match=r"block 1: want the fields .* as in the others"):
        ReplayReader({0: blocks()[0], 1: blocks()[1].without(["rewards"])}, seed=7, iteration=0, num_minibatches=1)
    reader = ReplayReader(blocks(), seed=7, iteration=0, num_minibatches=1)
    with pytest.raises(InputError, match="block 0: want step fields reward, given"):
        next(reader.minibatches(0, ["reward"]))
