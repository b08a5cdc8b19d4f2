"""What a resumed run must find, keep and clear: each test is a way in which one was lost or left behind."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcrl.runner.position import has_leftovers, previous_scores
from hpcrl.store.run_folder import RunFolder
from tests.pipelines.forked import forked
from tests.pipelines.runs import TINY, leftovers, published_bits
from tests.pipelines.test_kill import TIDY_ALWAYS, assert_same

RUN = ("run", TINY, "--on", "here")
TIDY_NEVER = "import hpcrl.runner.loop; hpcrl.runner.loop._TIDY_SECONDS = 1e9"
OFFLINE = """
from hpcrl import *

def offline() -> Pipeline:
    return Pipeline(name="offline", num_iterations=3, inputs={inputs!r}, models={{"actor": Mlp(hidden=(8,))}}, stages=[
        Advantage(), Update(PPO(num_minibatches=2, num_epochs=1)), {evaluate}
    ])
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory where there is one, so that the disk adds no time."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place) as name:
        yield Path(name)


def killed(*arguments: object, folder: Path, at: str, setup: str = "") -> None:
    done = forked(*arguments, folder=folder, kill_at=at, setup=setup)
    assert done.code == -signal.SIGKILL, (at, done)


def finished(*arguments: object, folder: Path, setup: str = "") -> str:
    done = forked(*arguments, folder=folder, setup=setup)
    assert done.code == 0, done.output
    return done.output


def test_a_manifest_whose_parts_are_all_there_is_published(folder: Path) -> None:
    """Nobody has a block left to play, so nobody would look whether the stage is complete."""
    killed(*RUN, "--run", folder / "run", folder=folder, at="manifest.before_write")
    assert len(list((folder / "run/iteration-000000/rollout").glob("part-*.json"))) == 4
    began = time.monotonic()
    finished(*RUN, "--run", folder / "run", folder=folder)
    assert time.monotonic() - began < 60
    finished(*RUN, "--run", folder / "unbroken", folder=folder)
    assert_same(folder / "run", folder / "unbroken")


def test_retention_keeps_what_the_updates_being_redone_read(folder: Path) -> None:
    """Killed before its first checkpoint, a run redoes three updates; tidying up after one must spare the next."""
    options = ("--no-keep-all", "--checkpoint-every", 3, "--num-iterations", 6)
    finished(*RUN, *options, "--run", folder / "unbroken", folder=folder)
    killed(*RUN, *options, "--run", folder / "run", folder=folder, at="checkpoint.before_write", setup=TIDY_ALWAYS)
    assert RunFolder(folder / "run").iterations() == [0, 1, 2]
    finished(*RUN, *options, "--run", folder / "run", folder=folder, setup=TIDY_ALWAYS)
    assert_same(folder / "run", folder / "unbroken")


def test_fewer_updates_between_checkpoints_from_a_resume_on(folder: Path) -> None:
    """Updates of the first launch have no checkpoint, whatever the second launch's `checkpoint_every` would say."""
    options = ("--no-keep-all", "--num-iterations", 9, "--run", folder / "run", "--checkpoint-every")
    # 6 optimiser steps an iteration: killed in iteration 4, whose newest checkpoint is iteration 2's.
    killed(*RUN, *options, 3, folder=folder, at="optimizer.after_step:28", setup=TIDY_ALWAYS)
    for steps in (3, 8):
        killed(*RUN, *options, 1, folder=folder, at=f"optimizer.after_step:{steps}", setup=TIDY_ALWAYS)
    finished(*RUN, *options, 1, folder=folder, setup=TIDY_ALWAYS)
    finished(*RUN, *options[:3], "--run", folder / "unbroken", folder=folder)
    bits, expected = published_bits(folder / "run"), published_bits(folder / "unbroken")
    assert {key: bits[key] for key in bits if bits[key]} == {key: expected[key] for key in bits if bits[key]}
    assert bits["8/update"] == expected["8/update"] != {}
    assert leftovers(folder / "run") == []


def test_parts_of_old_iterations_are_cleared(folder: Path) -> None:
    """A launch tidies up every few seconds; one that was killed before has left parts in all of its iterations."""
    killed(*RUN, "--run", folder / "run", folder=folder, at="optimizer.after_step:20", setup=TIDY_NEVER)
    stages = [stage for iteration in (0, 1) for stage in RunFolder(folder / "run").stages(iteration)]
    assert any(has_leftovers(stage) for stage in stages)
    finished(*RUN, "--run", folder / "run", folder=folder)
    assert not any(has_leftovers(stage) for stage in stages)
    assert leftovers(folder / "run") == []


def test_scores_of_earlier_launches_count(folder: Path) -> None:
    finished(*RUN, "--run", folder / "run", folder=folder)
    scores = previous_scores(RunFolder(folder / "run"))
    assert sorted(scores) == [1, 3]
    assert all(score > 0 for score in scores.values())


def test_an_evaluation_that_may_stop_the_run_has_a_checkpoint(folder: Path) -> None:
    text = TINY.read_text().replace("max_steps=40)", "max_steps=40, stop_when=Reached('length', 1))")
    (folder / "stops.py").write_text(text.replace("import PPO", "import PPO, Reached"))
    finished(
        "run", folder / "stops.py", "--on", "here", "--checkpoint-every", 3, "--run", folder / "run", folder=folder
    )
    run = RunFolder(folder / "run")
    assert run.iterations() == [0, 1]
    manifest = run.stage(1, "update").manifest()
    assert manifest is not None
    assert manifest.holds_checkpoint


def test_offline_training_reads_what_was_kept_when_it_began(folder: Path) -> None:
    source = (*RUN, "--run", folder / "source", "--num-iterations")
    finished(*source, 2, folder=folder)
    evaluate = "Evaluate(env='CartPole-v1', every=1, episodes=2, max_steps=20)"
    (folder / "offline.py").write_text(OFFLINE.format(inputs=str(folder / "source"), evaluate=evaluate))
    offline = ("run", folder / "offline.py", "--on", "here", "--run")
    finished(*offline, folder / "unbroken", folder=folder)
    killed(*offline, folder / "run", folder=folder, at="optimizer.after_step:3")
    finished(*source, 4, folder=folder)
    finished(*offline, folder / "run", folder=folder)
    assert_same(folder / "run", folder / "unbroken")
    assert "bit-identical, 0 differ" in finished("replay", folder / "run", folder=folder)


def test_another_machine_is_noted(folder: Path) -> None:
    killed(*RUN, "--run", folder / "run", folder=folder, at="optimizer.after_step:20")
    setup = (
        "import hpcrl.runner.position as p\n"
        "facts = p.machine_facts\n"
        "p.machine_facts = lambda threads: {**facts(threads), 'cpu': 'Another'}"
    )
    output = finished(*RUN, "--run", folder / "run", folder=folder, setup=setup)
    assert "note: cpu was " in output
    assert "is Another; from here on bits may differ" in output


def test_ctrl_c_before_the_run_listens_is_one_line(folder: Path) -> None:
    setup = "import hpcrl.cli.run as r\ndef load(*x):\n    raise KeyboardInterrupt\nr.load_pipeline = load"
    done = forked(*RUN, "--run", folder / "run", folder=folder, setup=setup)
    assert done.code == -signal.SIGINT
    assert done.output == "hpcrl run: interrupted\n"
    assert not (folder / "run").exists()
