"""What stages hand on: in memory or read back, verified; facts of blocks in one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hpcrl.data import Trajectories
from hpcrl.errors import CorruptFileError
from hpcrl.runner.handoff import Handoff, Source, merge_facts, read_block
from hpcrl.store.run_folder import RunFolder
from hpcrl.store.shards import write_shard


def steps(count: int, name: str) -> Trajectories:
    return Trajectories(np.array([0, count]), {name: np.arange(count, dtype=np.float32)})


def published(run: RunFolder, stage: str, part: Trajectories, *, whole: bool) -> Source:
    folder = run.stage(0, stage)
    attempt = folder.begin_attempt(1)
    record = write_shard(attempt.path / "shard-00000.h5", part, attributes={})
    attempt.publish_part(0, [record])
    if whole:
        folder.publish_if_complete(1)
        folder.remove_leftovers()
    return Source(run, 0, stage)


def test_facts_of_blocks_are_joined() -> None:
    parts = [
        {"returns": [1.0], "steps": 3, "seconds": 2.0, "env": "a"},
        {"returns": [2.0, 3.0], "steps": 4, "seconds": 1.0},
    ]
    assert merge_facts(parts) == {"returns": [1.0, 2.0, 3.0], "steps": 7, "seconds": 2.0, "env": "a"}
    assert merge_facts([]) == {}


@pytest.mark.parametrize("whole", [False, True])
def test_a_block_is_read_from_its_part_or_its_manifest(whole: bool, tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", {})
    source = published(run, "rollout", steps(3, "rewards"), whole=whole)
    assert read_block(source, "shard-00000.h5")["rewards"].tolist() == [0.0, 1.0, 2.0]
    with pytest.raises(
        CorruptFileError, match=r"rollout: want a published shard-00001.h5, found none; .* resume the run"
    ):
        read_block(source, "shard-00001.h5")


def test_a_manifest_published_between_two_looks_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder.create(tmp_path / "run", {})
    source = published(run, "rollout", steps(3, "rewards"), whole=False)
    folder = source.folder()
    monkeypatch.setattr(Source, "folder", lambda self: folder)

    def parts_gone_meanwhile() -> object:
        monkeypatch.delattr(folder, "parts")
        folder.publish_if_complete(1)
        folder.remove_leftovers()
        return folder.parts()

    monkeypatch.setattr(folder, "parts", parts_gone_meanwhile, raising=True)
    assert read_block(source, "shard-00000.h5").num_steps == 3


def test_fields_of_several_stages_are_one_set_in_memory_and_from_disk(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", {})
    sources = [
        published(run, "rollout", steps(3, "rewards"), whole=True),
        published(run, "advantage", steps(3, "advantages"), whole=True),
    ]
    for mode in ("memory", "disk"):
        handoff = Handoff(mode)  # type: ignore[arg-type]
        handoff.put(
            0, "rollout", 0, steps(3, "rewards").with_fields(steps={"rewards": np.full(3, 9, np.float32)}), None
        )
        fields = handoff.fields(sources, 0)
        assert set(fields.steps) == {"rewards", "advantages"}
        assert fields["rewards"].tolist() == ([9.0] * 3 if mode == "memory" else [0.0, 1.0, 2.0])
        handoff.forget(before=1)
        assert handoff.fields(sources, 0)["rewards"].tolist() == [0.0, 1.0, 2.0]


def test_shards_of_different_iterations_do_not_mix(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", {})
    sources = [
        published(run, "rollout", steps(3, "rewards"), whole=True),
        published(run, "advantage", steps(4, "advantages"), whole=True),
    ]
    with pytest.raises(CorruptFileError, match=r"advantage: want offsets equal .* \(3 steps\), given 4 steps"):
        Handoff("disk").fields(sources, 0)
