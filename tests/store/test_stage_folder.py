"""Attempts, parts, progress and the manifest: done means published, and the first publisher's files stay."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
from stored_samples import assert_same, flipped_bit, sample

from hpcrl.errors import CorruptFileError, InputError
from hpcrl.store.attempt import Attempt
from hpcrl.store.manifest import FileRecord, check_file, record_file
from hpcrl.store.run_folder import RunFolder
from hpcrl.store.shards import read_shard, write_shard
from hpcrl.store.stage_folder import StageFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", {"name": "cartpole", "seed": 1})


@pytest.fixture
def stage(run: RunFolder) -> StageFolder:
    return run.stage(17, "rollout")


def write_block(attempt: Attempt, block: int) -> FileRecord:
    return write_shard(attempt.path / f"shard-{block:05d}.h5", sample(seed=block), attributes={"block": block})


def test_a_stage_is_done_when_all_parts_are_there(stage: StageFolder) -> None:
    attempt = stage.begin_attempt(compute_threads=1)
    for block in range(3):
        assert stage.manifest() is None
        assert not stage.publish_if_complete(3)
        assert attempt.publish_part(block, [write_block(attempt, block)], {"returns": [block]})
    assert stage.publish_if_complete(3, {"note": "x"}, lambda parts: {"all": [part["returns"] for part in parts]})
    manifest = stage.manifest()
    assert manifest is not None
    assert (manifest.stage, manifest.iteration, manifest.attempt) == ("rollout", 17, 1)
    assert (manifest.rows, manifest.trajectories) == (27, 9)
    assert manifest.extra == {"all": [[0], [1], [2]], "note": "x"}
    assert manifest.machine["compute_threads"] == 1
    assert manifest.versions["numpy"]
    assert manifest.other_machines == []
    for block in range(3):
        record = manifest.find(f"shard-{block:05d}.h5")
        assert_same(sample(seed=block), read_shard(stage.file(record), record=record))
    with pytest.raises(KeyError, match=r"shard-00009\.h5: want a file of stage 'rollout'"):
        manifest.find("shard-00009.h5")


def test_parts_of_several_attempts_make_one_manifest(stage: StageFolder) -> None:
    first = stage.begin_attempt(compute_threads=1)
    first.publish_part(0, [write_block(first, 0)])
    write_block(first, 1)  # killed before publishing
    second = stage.begin_attempt(compute_threads=2)
    stage.remove_leftovers(keep=second)
    assert second.number == 2
    assert sorted(stage.parts()) == [0]
    second.publish_part(1, [write_block(second, 1)])
    assert stage.publish_if_complete(2)
    stage.remove_leftovers()
    manifest = stage.manifest()
    assert manifest is not None
    assert [file.name for file in manifest.files] == ["attempt-0001/shard-00000.h5", "attempt-0002/shard-00001.h5"]
    assert [machine["compute_threads"] for machine in manifest.other_machines] == [2]
    assert sorted(path.name for path in stage.path.iterdir()) == ["attempt-0001", "attempt-0002", "manifest.json"]


def test_the_loser_of_a_part_drops_its_own_files(stage: StageFolder) -> None:
    first, second = stage.begin_attempt(), stage.begin_attempt()
    assert first.publish_part(0, [write_block(first, 0)])
    assert not second.publish_part(0, [write_block(second, 0)])
    assert not first.publish_part(0, [FileRecord("shard-00000.h5", 1, "")])  # its own published file stays
    assert [path.name for path in first.path.iterdir()] == ["shard-00000.h5"]
    assert list(second.path.iterdir()) == []
    second.drop()
    first.drop()
    assert stage.attempts() == [1]


def test_a_late_attempt_after_the_manifest_drops_its_own(stage: StageFolder) -> None:
    first, late = stage.begin_attempt(), stage.begin_attempt()
    assert first.publish([write_block(first, 0)], {"kl": 0.5})
    assert not late.publish([write_block(late, 0)])
    assert not late.publish_part(0, [write_block(late, 0)])
    assert stage.publish_if_complete(1)
    assert list(late.path.iterdir()) == []
    stage.remove_leftovers()
    assert stage.attempts() == [1]
    manifest = stage.manifest()
    assert manifest is not None
    assert manifest.extra == {"kl": 0.5}


def test_a_dead_attempts_number_is_not_taken_again(stage: StageFolder) -> None:
    """A process of attempt 1 that lives on elsewhere must never write into our folder."""
    for number in (1, 2, 3):
        attempt = stage.begin_attempt()
        assert attempt.number == number
        stage.remove_leftovers(keep=attempt)
        assert stage.attempts() == [number]


def test_ranks_can_share_an_attempt(stage: StageFolder) -> None:
    one, other = stage.begin_attempt(4), stage.begin_attempt(4)
    assert one.path == other.path
    assert stage.begin_attempt().number == 5


def _finish(path: Path, block: int, start: object) -> None:
    stage = StageFolder(path, 0, "rollout")
    attempt = stage.begin_attempt()
    record = write_block(attempt, block % 4)
    start.wait()  # type: ignore[attr-defined]
    attempt.publish_part(block % 4, [record])
    stage.publish_if_complete(4)


def test_eight_processes_race_to_finish_four_parts(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start = context.Barrier(8)
    workers = [context.Process(target=_finish, args=(tmp_path, block, start)) for block in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 8
    stage = StageFolder(tmp_path, 0, "rollout")
    assert stage.attempts() == list(range(1, 9))
    manifest = stage.manifest()
    assert manifest is not None
    for block in range(4):
        record = manifest.find(f"shard-{block:05d}.h5")
        assert_same(sample(seed=block), read_shard(stage.file(record), record=record))
    stage.remove_leftovers()
    assert len(stage.attempts()) == 4
    assert not list(stage.path.glob("part-*"))


def test_damage_to_manifest_and_part_is_refused(stage: StageFolder) -> None:
    attempt = stage.begin_attempt()
    attempt.publish_part(0, [write_block(attempt, 0)])
    stage.publish_if_complete(1)
    part, manifest = stage.path / "part-00000.json", stage.path / "manifest.json"
    for place in range(0, manifest.stat().st_size, 5):
        with flipped_bit(manifest, place), pytest.raises(CorruptFileError, match=r"manifest\.json"):
            stage.manifest()
    for place in range(0, part.stat().st_size, 50):
        with flipped_bit(part, place), pytest.raises(CorruptFileError, match=r"part-00000\.json"):
            stage.parts()


def write_text(text: str) -> object:
    def write(folder: Path) -> list[FileRecord]:
        (folder / "state.txt").write_text(text)
        return [record_file(folder / "state.txt")]

    return write


def test_the_newest_progress_wins_and_older_is_gone(stage: StageFolder) -> None:
    assert stage.load_progress() is None
    first = stage.begin_attempt()
    first.save_progress(write_text("a"), {"epoch": 0})  # type: ignore[arg-type]
    second = stage.begin_attempt()
    stage.remove_leftovers(keep=second)
    assert stage.attempts() == [1, 2]  # the first attempt's progress is still the newest
    assert second.save_progress(write_text("b"), {"epoch": 1}) == 2  # type: ignore[arg-type]
    progress = stage.load_progress()
    assert progress is not None
    assert progress.extra == {"epoch": 1}
    check_file(stage.path / progress.files[0].name, progress.files[0])
    assert (stage.path / progress.folder / "state.txt").read_text() == "b"
    assert list(first.path.iterdir()) == []
    second.publish([], {})
    stage.remove_leftovers()
    assert stage.load_progress() is None
    assert sorted(path.name for path in stage.path.iterdir()) == ["attempt-0002", "manifest.json"]
    assert list(second.path.iterdir()) == []


def test_damaged_progress_is_refused_not_skipped(stage: StageFolder) -> None:
    attempt = stage.begin_attempt()
    attempt.save_progress(write_text("a"))  # type: ignore[arg-type]
    path = stage.path / "progress-000001.json"
    for place in range(0, path.stat().st_size, 9):
        with flipped_bit(path, place), pytest.raises(CorruptFileError, match=r"progress-000001\.json"):
            stage.load_progress()


def test_unpublished_progress_is_never_loaded(stage: StageFolder) -> None:
    attempt = stage.begin_attempt()
    (attempt.path / "progress-000001").mkdir()
    assert stage.load_progress() is None
    assert attempt.save_progress(write_text("a")) == 2  # type: ignore[arg-type]


def test_recorded_files_are_checked(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    record = record_file(tmp_path / "a.txt")
    check_file(tmp_path / "a.txt", record)
    with flipped_bit(tmp_path / "a.txt", 2), pytest.raises(CorruptFileError, match=r"a\.txt: content differs"):
        check_file(tmp_path / "a.txt", record)
    (tmp_path / "a.txt").write_text("texts")
    with pytest.raises(CorruptFileError, match=r"a\.txt: want 4 bytes as published, given 5"):
        check_file(tmp_path / "a.txt", record)
    with pytest.raises(CorruptFileError, match=r"b\.txt: missing"):
        check_file(tmp_path / "b.txt", record)


def test_a_run_folder_is_begun_once(tmp_path: Path, run: RunFolder) -> None:
    assert run.pipeline() == {"name": "cartpole", "seed": 1}
    with pytest.raises(InputError, match="want a folder without a run"):
        RunFolder.create(run.path, {})
    with pytest.raises(InputError, match=r"elsewhere: want a run folder, given one without pipeline\.json"):
        RunFolder.open(tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()
    run.replace_pipeline({"name": "cartpole", "seed": 1, "num_iterations": 9})
    assert RunFolder.open(run.path).pipeline()["num_iterations"] == 9


def test_a_run_folder_lists_what_is_there(run: RunFolder) -> None:
    assert (run.iterations(), run.stages(0), run.removed()) == ([], [], [])
    for iteration, name in ((0, "rollout"), (0, "update"), (12, "rollout")):
        run.stage(iteration, name).begin_attempt()
    assert run.iterations() == [0, 12]
    assert [stage.stage for stage in run.stages(0)] == ["rollout", "update"]


def test_setting_a_run_aside_deletes_nothing(run: RunFolder) -> None:
    run.stage(0, "rollout").begin_attempt()
    aside = run.set_aside()
    assert aside.name == "run.old-1"
    assert not run.path.exists()
    assert RunFolder.open(aside).iterations() == [0]
    again = RunFolder.create(run.path, {"seed": 2})
    assert again.set_aside().name == "run.old-2"


def test_a_read_only_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **keywords: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("hpcrl.store.publish.os.open", refuse)
    with pytest.raises(InputError, match=r"no permission while writing .*pipeline\.json"):
        RunFolder.create(tmp_path, {})
