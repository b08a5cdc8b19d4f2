"""A checkpoint comes back bit for bit, opens in other tools, and is refused when anything in it changed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from stored_samples import flipped_bit

from hpcrl.errors import CorruptFileError, InputError
from hpcrl.store.checkpoint import read_checkpoint, write_checkpoint

RNG = np.random.default_rng(0)
ROLES = {
    "actor": {
        "trunk.weight": RNG.normal(size=(3, 5)).astype(np.float32),
        "trunk.bias": RNG.normal(size=5),
        "count": np.array(7),
        "empty": np.zeros((0, 3), np.float32),
    },
    "actor.optimizer": {
        "m": RNG.normal(size=4).astype(np.float16),
        "mask": np.array([True, False]),
        "bytes": np.arange(5, dtype=np.uint8),
    },
    "none": {},
}
STATE = {"cursor": {"epoch": 1, "minibatch": 3}, "kl_coef": 0.1 + 0.2, "seed": 2**63 + 1, "none": None}


def assert_roles(found: dict[str, dict[str, np.ndarray]]) -> None:
    assert list(found) == list(ROLES)
    for group, arrays in ROLES.items():
        assert list(found[group]) == list(arrays)
        for name, array in arrays.items():
            assert (found[group][name].dtype, found[group][name].shape) == (array.dtype, array.shape)
            assert found[group][name].tobytes() == array.tobytes()


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    records = write_checkpoint(tmp_path / "checkpoint", ROLES, STATE)
    assert [record.name for record in records] == [
        "actor.safetensors",
        "actor.optimizer.safetensors",
        "none.safetensors",
        "state.json",
    ]
    for given in (None, records, [record.under("attempt-0001/checkpoint") for record in records]):
        checkpoint = read_checkpoint(tmp_path / "checkpoint", given)
        assert_roles(checkpoint.roles)  # type: ignore[arg-type]
        assert checkpoint.state == STATE


def test_groups_can_be_read_alone(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, ROLES, STATE)
    assert list(read_checkpoint(tmp_path, groups=["actor"]).roles) == ["actor"]
    with pytest.raises(InputError, match=r"want groups critic, given actor, actor\.optimizer, none"):
        read_checkpoint(tmp_path, groups=["critic"])


def test_other_tools_open_it(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, ROLES, STATE)
    found = load_file(tmp_path / "actor.safetensors")
    assert np.array_equal(found["trunk.weight"], ROLES["actor"]["trunk.weight"])


def test_the_same_arrays_give_the_same_bytes(tmp_path: Path) -> None:
    assert write_checkpoint(tmp_path / "a", ROLES, STATE) == write_checkpoint(tmp_path / "b", ROLES, STATE)


@pytest.mark.parametrize("name", ["actor.safetensors", "actor.optimizer.safetensors", "state.json"])
def test_every_flipped_bit_is_refused(tmp_path: Path, name: str) -> None:
    records = write_checkpoint(tmp_path, ROLES, STATE)
    path = tmp_path / name
    for place in range(path.stat().st_size):
        with flipped_bit(path, place, place % 8):
            for given in (None, records):
                with pytest.raises(CorruptFileError, match=name.replace(".", r"\.")):
                    read_checkpoint(tmp_path, given)
    read_checkpoint(tmp_path, records)


@pytest.mark.parametrize("name", ["actor.safetensors", "state.json"])
def test_truncation_is_refused_at_every_length(tmp_path: Path, name: str) -> None:
    records = write_checkpoint(tmp_path, ROLES, STATE)
    path = tmp_path / name
    for size in range(path.stat().st_size - 1, -1, -3):
        os.truncate(path, size)
        for given in (None, records):
            with pytest.raises(CorruptFileError, match=name.replace(".", r"\.")):
                read_checkpoint(tmp_path, given)


def test_missing_and_exchanged_files_are_refused(tmp_path: Path) -> None:
    records = write_checkpoint(tmp_path / "a", ROLES, STATE)
    other = {**ROLES, "actor": {**ROLES["actor"], "count": np.array(8)}}
    write_checkpoint(tmp_path / "b", other, STATE)
    with pytest.raises(CorruptFileError, match=r"actor\.safetensors is recorded differently"):
        read_checkpoint(tmp_path / "b", records)
    os.replace(tmp_path / "b/actor.safetensors", tmp_path / "a/actor.safetensors")
    with pytest.raises(CorruptFileError, match=r"actor\.safetensors: count does not match"):
        read_checkpoint(tmp_path / "a", records)
    (tmp_path / "a/actor.safetensors").unlink()
    with pytest.raises(CorruptFileError, match=r"actor\.safetensors: missing"):
        read_checkpoint(tmp_path / "a", records)
    with pytest.raises(CorruptFileError, match=r"state\.json: missing"):
        read_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ({"actor": {"w": np.zeros((4, 4)).T[:, :2]}}, "actor: w: want a C-contiguous array"),
        ({"actor": {"w": np.array(["a"])}}, "actor: w: want a C-contiguous array of bool"),
        ({"actor": {"w": np.zeros(2, ">f4")}}, "actor: w: want"),
        ({"a/b": {}}, "checkpoint group: want a file name without '/'"),
    ],
)
def test_what_cannot_be_stored_is_refused(
    tmp_path: Path, roles: dict[str, dict[str, np.ndarray]], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        write_checkpoint(tmp_path, roles, {})


def test_state_that_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="checkpoint: want numbers"):
        write_checkpoint(tmp_path, {}, {"x": object()})
