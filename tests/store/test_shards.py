"""What is written is what is read; what was changed, cut or written by someone else is refused by name."""

from __future__ import annotations

import dataclasses
import os
import resource
import signal
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from stored_samples import assert_same, flipped_bit, sample

from hpcrl.data import Ragged, Trajectories
from hpcrl.errors import CorruptFileError, InputError
from hpcrl.store.manifest import FileRecord
from hpcrl.store.seal import Seal
from hpcrl.store.shards import read_attributes, read_shard, write_shard, write_shard_by_scratch

EMPTY = Trajectories(
    np.zeros(1, np.int64),
    {"rewards": np.zeros(0, np.float32), "observations": np.zeros((0, 4), np.float32)},
    {"ending": np.zeros(0, np.uint8)},
    {"frames": Ragged(np.zeros((0, 8, 8), np.uint8), np.zeros(1, np.int64))},
)
LANES = Trajectories(
    np.zeros(4, np.int64), {}, {"episode": np.arange(3)}, {"actions": Ragged(np.arange(5), np.array([0, 2, 2, 5]))}
)
BARE = Trajectories(np.array([0, 2], np.int64))


def write(path: Path, trajectories: Trajectories | None = None, **keywords: object) -> FileRecord:
    return write_shard(path, trajectories or sample(), attributes={"block": 3, "stage": "rollout"}, **keywords)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "trajectories", [sample(), sample((1,)), sample((0, 0)), sample((2, 0, 7) * 40), EMPTY, LANES, BARE]
)
@pytest.mark.parametrize("memory_map", [True, False])
def test_reading_gives_back_what_was_written(tmp_path: Path, trajectories: Trajectories, memory_map: bool) -> None:
    record = write(tmp_path / "s.h5", trajectories)
    assert_same(trajectories, read_shard(tmp_path / "s.h5", record=record, memory_map=memory_map))
    assert_same(trajectories, read_shard(tmp_path / "s.h5", memory_map=memory_map))
    assert (record.rows, record.trajectories) == (trajectories.num_steps, trajectories.num_trajectories)
    assert record.bytes == (tmp_path / "s.h5").stat().st_size


@pytest.mark.parametrize("count", [1, 20, 300])
def test_any_number_of_fields_with_long_names(tmp_path: Path, count: int) -> None:
    fields = {f"{index}-{'é' * 40}": np.full((2, 1, 1, 1, 1), index) for index in range(count)}
    many = Trajectories(np.array([0, 2]), fields)
    record = write(tmp_path / "s.h5", many)
    assert_same(many, read_shard(tmp_path / "s.h5", record=record))


@pytest.mark.parametrize("kind", ["gzip", "lzf"])
@pytest.mark.parametrize("trajectories", [sample((2, 0, 7) * 40), EMPTY])
def test_compression_is_a_choice_per_field(tmp_path: Path, kind: str, trajectories: Trajectories) -> None:
    compression = {"observations": kind, "frames": kind, "ending": kind}
    record = write(tmp_path / "s.h5", trajectories, compression=compression)
    assert_same(trajectories, read_shard(tmp_path / "s.h5", record=record))
    with h5py.File(tmp_path / "s.h5", "r") as file:
        assert file["steps/rewards"].chunks is None
        assert (file["ragged/frames/values"].compression == kind) == (trajectories.num_steps > 0)


def test_the_same_steps_give_the_same_bytes(tmp_path: Path) -> None:
    one = write(tmp_path / "s.h5", compression={"frames": "gzip"})
    (tmp_path / "s.h5").rename(tmp_path / "earlier.h5")
    time.sleep(1.1)  # HDF5 keeps times in seconds
    assert write(tmp_path / "s.h5", compression={"frames": "gzip"}) == one
    assert (tmp_path / "s.h5").read_bytes() == (tmp_path / "earlier.h5").read_bytes()


def test_fields_can_be_read_alone(tmp_path: Path) -> None:
    write(tmp_path / "s.h5")
    part = read_shard(tmp_path / "s.h5", fields=["rewards", "tokens"])
    assert part.fields() == ("rewards", "tokens")
    assert_same(sample().only(["rewards", "tokens"]), part)
    with pytest.raises(InputError, match=r"s\.h5: want fields reward, given observations, "):
        read_shard(tmp_path / "s.h5", fields=["reward"])


@pytest.mark.parametrize("trajectories", [sample(), EMPTY, LANES, BARE])
def test_any_hdf5_tool_reads_the_same(tmp_path: Path, trajectories: Trajectories) -> None:
    """The seal, which we read by, and HDF5's own structures, which others read by, tell the same."""
    write(tmp_path / "s.h5", trajectories)
    with h5py.File(tmp_path / "s.h5", "r") as file:
        by_hdf5 = Trajectories(
            file["offsets"][...],
            {name: file["steps"][name][...] for name in file["steps"]},
            {name: file["per_trajectory"][name][...] for name in file["per_trajectory"]},
            {name: Ragged(one["values"][...], one["offsets"][...]) for name, one in file["ragged"].items()},
        )
        assert_same(trajectories, by_hdf5)


def test_attributes_come_back(tmp_path: Path) -> None:
    given = {"stage": "rollöut", "empty": "", "iteration": 17, "seed": 2**64 - 1, "share": 0.5, "bare": True}
    record = write_shard(tmp_path / "s.h5", BARE, attributes=given)
    found = read_attributes(tmp_path / "s.h5", record=record)
    assert found == {"format": "hpcrl-shard", "format_version": 1, **given}
    with pytest.raises(InputError, match="attribute where: want a number or text, given list"):
        write_shard(tmp_path / "t.h5", BARE, attributes={"where": [1]})
    assert not (tmp_path / "t.h5").exists()


def test_one_flipped_bit_in_every_byte_is_refused(tmp_path: Path) -> None:
    """Every byte of the file matters, gaps and padding too; a sample of bits keeps the test short."""
    path = tmp_path / "s.h5"
    record = write(path, sample((2, 1)), compression={"pixels": "gzip"})
    good = path.read_bytes()
    rng = np.random.default_rng(1)
    text_end = good.index(b"\0")
    places = {*range(0, text_end, 7), *range(text_end, len(good), 13), 4095, 4096, 4100, len(good) - 1}
    for place in sorted(places):
        with flipped_bit(path, place, int(rng.integers(8))):
            for given in (record, None):
                with pytest.raises(CorruptFileError, match=r"s\.h5"):
                    read_shard(path, record=given)
    assert_same(sample((2, 1)), read_shard(path, record=record))


def test_flips_in_each_field_name_the_field(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    record = write(path)
    with path.open("rb") as file:
        fields = Seal.read(file.fileno(), path, record.bytes).fields
    assert len(fields) == 1 + 7 + 2 + 2 * 2
    extents = {name: (field.start, field.stop) for name, field in fields.items()}
    for name, (start, stop) in extents.items():
        assert start is not None
        for place in (start, stop - 1):
            with flipped_bit(path, place, 7):
                for memory_map in (True, False):
                    with pytest.raises(CorruptFileError, match=rf"s\.h5: {name} does not match"):
                        read_shard(path, record=record, memory_map=memory_map)
    start, _ = extents["steps/rewards"]
    assert start is not None
    with flipped_bit(path, start):
        assert_same(sample().without(["rewards"]), read_shard(path, fields=sample().without(["rewards"]).fields()))


def test_truncated_and_grown_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    record = write(path, sample((2, 1)))
    good = path.read_bytes()
    for size in sorted({*range(0, len(good), 97), 4095, 4096, 4104, len(good) - 1}, reverse=True):
        os.truncate(path, size)
        for given in (record, None):
            with pytest.raises(CorruptFileError, match=r"s\.h5"):
                read_shard(path, record=given)
    path.write_bytes(good + b"\0")
    for given in (record, None):
        with pytest.raises(CorruptFileError, match=r"s\.h5"):
            read_shard(path, record=given)


def test_foreign_and_missing_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "foreign.h5"
    with h5py.File(path, "w") as file:
        file["steps/rewards"] = np.zeros(3)
    with pytest.raises(CorruptFileError, match=r"foreign\.h5: not a shard that hpcrl wrote"):
        read_shard(path)
    path.write_bytes(b"")
    with pytest.raises(CorruptFileError, match=r"foreign\.h5"):
        read_shard(path)
    with pytest.raises(CorruptFileError, match=r"missing\.h5: missing"):
        read_shard(tmp_path / "missing.h5")


def test_a_foreign_file_with_a_user_block_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "foreign.h5"
    with h5py.File(path, "w", userblock_size=4096) as file:
        file["rewards"] = np.zeros(3)
    with pytest.raises(CorruptFileError, match=r"foreign\.h5: not a document that hpcrl wrote"):
        read_shard(path)


def test_another_whole_shard_is_not_the_recorded_one(tmp_path: Path) -> None:
    record = write(tmp_path / "s.h5", sample(seed=0))
    write(tmp_path / "other.h5", sample(seed=1))
    os.replace(tmp_path / "other.h5", tmp_path / "s.h5")
    read_shard(tmp_path / "s.h5")
    with pytest.raises(CorruptFileError, match=r"s\.h5: not the file that was published"):
        read_shard(tmp_path / "s.h5", record=record)
    wrong = dataclasses.replace(record, checksums={**record.checksums, "steps/rewards": "0" * 32})
    write(tmp_path / "t.h5", sample(seed=0))
    with pytest.raises(CorruptFileError, match=r"t\.h5: not the file that was published"):
        read_shard(tmp_path / "t.h5", record=wrong)


def test_verification_can_be_left_out_for_data_only(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    record = write(path)
    data = bytearray(path.read_bytes())
    start = data.index(sample()["double"].tobytes())
    data[start] ^= 1
    path.write_bytes(data)
    changed = read_shard(path, record=record, verify=False)
    assert changed["double"][0] != sample()["double"][0]
    data[5000] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptFileError):
        read_shard(path, record=record, verify=False)


@pytest.mark.parametrize(
    ("trajectories", "keywords", "message"),
    [
        (Trajectories(np.array([0, 1], np.int64), {"a/b": np.zeros(1)}), {}, "want no '/'"),
        (Trajectories(np.array([0, 1], np.int64), {"text": np.array(["x"])}), {}, "text: want bool, integer"),
        (BARE, {"compression": {"rewards": "gzip"}}, "compression: want a field"),
        (sample(), {"compression": {"rewards": "zip"}}, "compression: want gzip"),
    ],
)
def test_what_cannot_be_stored_is_refused_before_writing(
    tmp_path: Path, trajectories: Trajectories, keywords: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        write(tmp_path / "s.h5", trajectories, **keywords)
    assert not list(tmp_path.iterdir())


def test_a_shard_is_never_overwritten(tmp_path: Path) -> None:
    record = write(tmp_path / "s.h5")
    with pytest.raises(FileExistsError):
        write(tmp_path / "s.h5", sample(seed=5))
    assert_same(sample(), read_shard(tmp_path / "s.h5", record=record))


@pytest.mark.parametrize("compression", [{}, {"double": "gzip"}])
@pytest.mark.parametrize("limit", [100, 5000, 7000, 60_000])
def test_a_write_that_does_not_fit_says_so_and_leaves_nothing(
    tmp_path: Path, limit: int, compression: dict[str, str]
) -> None:
    big = sample((2000,))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(InputError, match=r"file size limit reached while writing .*s\.h5; .*ulimit"):
            write(tmp_path / "s.h5", big, compression=compression)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.iterdir())
    assert_same(big, read_shard(tmp_path / "s.h5", record=write(tmp_path / "s.h5", big)))


def test_a_shard_by_way_of_a_scratch_folder_is_the_same_file(tmp_path: Path) -> None:
    scratch, steps = tmp_path / "scratch", sample((4, 0, 3), seed=5)
    scratch.mkdir()
    direct = write_shard(tmp_path / "direct.h5", steps, attributes={"block": 1})
    copied = write_shard_by_scratch(tmp_path / "copied.h5", steps, attributes={"block": 1}, scratch=scratch)
    assert dataclasses.replace(copied, name="direct.h5") == direct
    assert (tmp_path / "copied.h5").read_bytes() == (tmp_path / "direct.h5").read_bytes()
    assert list(scratch.iterdir()) == []


def test_a_scratch_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"want a folder on this node's disk, given none; correct launch\.scratch"):
        write_shard_by_scratch(tmp_path / "a.h5", sample((2,), seed=1), attributes={}, scratch=tmp_path / "none")
    assert list(tmp_path.iterdir()) == []
