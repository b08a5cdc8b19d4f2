"""`hpcrl show`: the sizes that it foretells are those that a run writes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hpcrl.cli import main
from hpcrl.cli.show import checkpoints_kept, show_text
from hpcrl.cli.sizes import Batch, Field, batch_of, fields_of, role_sizes
from hpcrl.envs import EnvDescription, Space
from hpcrl.report.record import RunRecord
from hpcrl.store.checkpoint import read_checkpoint
from hpcrl.store.retention import Keep
from hpcrl.store.run_folder import RunFolder
from hpcrl.store.shards import read_shard
from tests.report.tiny_run import finished_run, pipeline_file


@pytest.fixture(scope="module")
def record() -> RunRecord:
    return RunRecord.read(finished_run())


def blocks_of(run: RunFolder, stage: str) -> list[object]:
    folder = run.stage(2, stage)
    manifest = folder.manifest()
    assert manifest is not None
    return [read_shard(folder.file(file), record=file) for file in manifest.files if "/shard-" in file.name]


@pytest.mark.parametrize("stage", ["rollout", "advantage"])
def test_fields_are_those_of_the_shards(record: RunRecord, stage: str) -> None:
    pipeline = record.pipeline
    assert pipeline.rollout is not None
    description = pipeline.rollout.describe()
    fields = fields_of(next(entry for entry in pipeline.stages if entry.name == stage), description)
    blocks = blocks_of(record.run, stage)
    for block in blocks:
        assert {field.name for field in fields} == set(block.fields())
        for field in fields:
            array = block[field.name]
            assert (array.dtype.name, array.shape[1:]) == (field.dtype, field.shape)
    least = batch_of(pipeline, description)
    assert least is not None
    assert least.num_steps == sum(block.num_steps for block in blocks)
    actual = Batch(least.num_steps, sum(block.num_trajectories for block in blocks), 1)
    offsets = sum(block.offsets.nbytes for block in blocks)
    assert actual.bytes(fields) == sum(block.num_bytes for block in blocks) - offsets
    assert least.bytes(fields) <= actual.bytes(fields)


def test_checkpoint_bytes_are_those_of_the_checkpoint(record: RunRecord) -> None:
    assert record.pipeline.rollout is not None
    [size] = role_sizes(record.pipeline, record.pipeline.rollout.describe())
    folder = record.run.stage(2, "update")
    manifest = folder.manifest()
    assert manifest is not None
    checkpoint = read_checkpoint((folder.path / manifest.files[0].name).parent)
    assert size.bytes == sum(array.nbytes for group in checkpoint.roles.values() for array in group.values())
    # Two networks of one hidden layer of 8: (4 + 1) * 8 each, then 2 logits and 1 value from 8 + 1.
    assert size.parameters == 2 * (4 + 1) * 8 + (8 + 1) * 2 + (8 + 1)


def test_frames_are_counted_with_lead_in_and_final() -> None:
    space = Space("box", (4, 84, 84), "uint8", None, None, None, None)
    actions = Space("multi_discrete", (3,), "int64", None, (2, 3, 4), None, None)
    description = EnvDescription(space, actions, 4, "replay", 27_000)
    from hpcrl.stages import Rollout

    fields = {field.name: field for field in fields_of(Rollout(env="any"), description)}
    assert fields["actions"].shape == (3,)
    batch = Batch(num_steps=10, num_trajectories=2, frame_stack=4)
    assert batch.rows(fields["frames"]) == 10 + 2 * 4
    assert batch.bytes([fields["frames"]]) == 18 * 84 * 84
    assert Field("x", "step", (2, 3), "float32").row_bytes == 24


def test_the_text_and_that_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["show", str(pipeline_file()), "--ranks", "2", "--num-iterations", "120"]) == 0
    printed = capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    assert "tiny-cartpole: 120 iterations" in printed
    assert re.search(r"observations +float32\[192, 4\]", printed)
    assert re.search(r"ending +uint8\[>= 4\]", printed)
    assert "2 blocks of 2 environments on 2 ranks x 1 thread" in printed
    assert "rank 1: block 1, environments 2 to 3" in printed
    assert "trains actor" in printed
    assert "stops      the run when the mean return reaches 400" in printed
    assert "1 rollout kept" in printed
    assert "6 checkpoints kept at most" in printed  # 118 and 119, 0, 50 and 100, the best
    assert "reads      rewards, values, bootstrap_values" in printed


def test_bad_input_is_refused_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--ranks", "3"], ["--ranks", "0"]):
        assert main(["show", str(pipeline_file()), *arguments]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert main(["show", "missing.py"]) == 2


def test_offline_pipelines_have_no_rollout_of_their_own(record: RunRecord) -> None:
    from hpcrl import PPO, Advantage, Mlp, Pipeline, Update

    assert record.pipeline.rollout is not None
    pipeline = Pipeline(
        name="offline",
        num_iterations=1,
        inputs=str(record.run.path),
        models={"actor": Mlp()},
        stages=[Advantage(), Update(PPO())],
    )
    text = show_text(pipeline, record.pipeline.rollout.describe(), "offline.py")
    assert re.search(r"advantages +float32\[steps\]", text)
    assert "1 checkpoint kept at most" in text


def test_checkpoints_kept() -> None:
    assert checkpoints_kept(Keep(checkpoints=1, every=None, best=False), 10) == 1
    assert checkpoints_kept(Keep(checkpoints=1, every=None, best=True), 1) == 1
    assert checkpoints_kept(Keep(checkpoints=2, every=50, best=True), 100, checkpoint_every=10) == 3
