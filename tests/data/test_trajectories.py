"""Trajectories: identities of slicing, selecting and joining; every invariant refused by name."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcrl.data import Ragged, Trajectories, concatenate
from hpcrl.errors import InputError


def make(lengths: list[int], ragged_lengths: list[int] | None = None) -> Trajectories:
    """Trajectories whose values say where they came from."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ragged_lengths = [3 * (i % 3) for i in range(len(lengths))] if ragged_lengths is None else ragged_lengths
    ragged_offsets = np.concatenate([[0], np.cumsum(ragged_lengths)]).astype(np.int64)
    total = int(offsets[-1])
    return Trajectories(
        offsets,
        {"rewards": np.arange(total, dtype=np.float32), "observations": np.arange(2.0 * total).reshape(total, 2)},
        {"lane": np.arange(len(lengths))},
        {"frames": Ragged(np.arange(int(ragged_offsets[-1]), dtype=np.uint8), ragged_offsets)},
    )


def assert_equal(one: Trajectories, other: Trajectories) -> None:
    assert one.offsets.tolist() == other.offsets.tolist()
    assert one.fields() == other.fields()
    for name in (*one.steps, *one.per_trajectory):
        np.testing.assert_array_equal(one[name], other[name])
        assert one[name].dtype == other[name].dtype
    for name in one.ragged:
        np.testing.assert_array_equal(one.ragged[name].values, other.ragged[name].values)
        np.testing.assert_array_equal(one.ragged[name].offsets, other.ragged[name].offsets)


lengths_strategy = st.lists(st.integers(0, 7), min_size=0, max_size=8)


@given(lengths_strategy, st.data())
@settings(max_examples=60, deadline=None)
def test_split_and_concatenate_is_the_identity(lengths: list[int], data: st.DataObject) -> None:
    whole = make(lengths)
    cut = data.draw(st.integers(0, len(lengths)))
    assert_equal(concatenate([whole.slice(0, cut), whole.slice(cut, len(lengths))]), whole)


@given(lengths_strategy, st.data())
@settings(max_examples=60, deadline=None)
def test_select_agrees_with_single_slices(lengths: list[int], data: st.DataObject) -> None:
    whole = make(lengths)
    indices = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=9)) if lengths else []
    chosen = whole.select(indices)
    assert chosen.num_trajectories == len(indices)
    for position, index in enumerate(indices):
        assert_equal(chosen.slice(position, position + 1), whole.slice(index, index + 1))


def test_slices_share_memory_and_selections_do_not() -> None:
    whole = make([2, 3, 4])
    assert np.shares_memory(whole.slice(1, 3)["rewards"], whole["rewards"])
    assert not np.shares_memory(whole.select([1, 2])["rewards"], whole["rewards"])


def test_only_without_and_with_fields() -> None:
    whole = make([2, 1])
    assert whole.only(["lane"]).fields() == ("lane",)
    assert "rewards" not in whole.without(["rewards"])
    added = whole.with_fields(steps={"advantages": np.zeros(3, np.float32)})
    assert added["advantages"].shape == (3,)
    with pytest.raises(InputError, match="want values, given rewards"):
        whole.only(["values"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.array([0, 2]), {"rewards": np.zeros(3, np.float32)}), r"rewards: want length 2 \(num_steps\), given 3"),
        ((np.array([1, 2]), {}), "offsets: want a first entry 0, given 1"),
        ((np.array([0, 3, 2]), {}), "offsets: want non-decreasing entries, given 3 then 2 at 2"),
        ((np.array([0, 2], np.int32), {}), r"offsets: want int64\[n \+ 1\], given int32"),
        ((np.zeros(0, np.int64), {}), "offsets: want a first entry 0, given an empty array"),
        (([0, 2], {}), "offsets: want a NumPy int64 array, given list"),
        ((np.array([0, 2]), {"rewards": [1.0, 2.0]}), "rewards: want a NumPy array, given list"),
        ((np.array([0, 2]), {"rewards": np.zeros((4, 2))[::2][:, 0]}), "rewards: want C-contiguous memory"),
        ((np.array([0, 2]), {"names": np.array(["a", None], object)}), "names: want numbers, given dtype object"),
        ((np.array([0, 2]), {}, {"lane": np.zeros(2)}), r"lane: want length 1 \(num_trajectories\), given 2"),
        ((np.array([0, 1]), {"a": np.zeros(1)}, {"a": np.zeros(1)}), "fields: want every name once, given twice: a"),
        ((np.array([0, 1]), {}, {}, {"frames": np.zeros(1)}), "frames: want a Ragged field, given ndarray"),
    ],
)
def test_every_broken_invariant_is_named(arguments: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Trajectories(*arguments)


def test_ragged_offsets_must_count_trajectories_and_rows() -> None:
    with pytest.raises(InputError, match="ragged offsets: want a last entry 3, given 2"):
        Ragged(np.zeros(3), np.array([0, 2]))
    with pytest.raises(InputError, match=r"frames offsets: want length 3 \(num_trajectories \+ 1\), given 2"):
        Trajectories(np.array([0, 1, 2]), {}, {}, {"frames": Ragged(np.zeros(3), np.array([0, 3]))})


def test_concatenate_refuses_parts_that_differ() -> None:
    one = Trajectories(np.array([0, 1]), {"rewards": np.zeros(1, np.float32)})
    with pytest.raises(InputError, match=r"want the steps fields \['rewards'\] in every part, part 1 has \['values'\]"):
        concatenate([one, Trajectories(np.array([0, 1]), {"values": np.zeros(1, np.float32)})])
    with pytest.raises(InputError, match="rewards: want float32"):
        concatenate([one, Trajectories(np.array([0, 1]), {"rewards": np.zeros(1)})])
    with pytest.raises(InputError, match="want at least one part"):
        concatenate([])


def test_slice_and_select_refuse_indices_outside() -> None:
    whole = make([1, 2])
    with pytest.raises(InputError, match="slice: want 0 <= start <= stop <= 2"):
        whole.slice(1, 3)
    with pytest.raises(InputError, match="indices: want 0 <= index < 2"):
        whole.select([2])


def test_reading_an_unknown_field_names_the_known_ones() -> None:
    with pytest.raises(KeyError, match="advantages: want a packed field; fields here: rewards, observations"):
        make([1])["advantages"]
    with pytest.raises(KeyError, match="it is ragged"):
        make([1])["frames"]
