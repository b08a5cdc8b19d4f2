"""A run of text: ranks, kills, stops and the disk change no bit; replay recomputes it without generating."""

from __future__ import annotations

import shlex
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from hpcrl.data import Ending, Trajectories
from hpcrl.runner.handoff import Source, read_block
from hpcrl.store.layout import shard_name
from hpcrl.store.run_folder import RunFolder
from tests.pipelines.killing import Shot, shoot
from tests.pipelines.runs import ROOT, environment, hpcrl, leftovers, published_bits, published_facts, start

PIPELINE = ROOT / "tests" / "pipelines" / "text_tiny.py"


@pytest.fixture(scope="module", params=["critic", "groups"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def options(kind: str) -> list[str]:
    return ["--groups"] if kind == "groups" else []


@pytest.fixture(scope="module")
def unbroken(kind: str, options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On one rank."""
    path = tmp_path_factory.mktemp(kind) / "run"
    done = hpcrl("run", PIPELINE, "--on", "here", "--run", path, *options)
    assert done.code == 0, done.output
    return path


def only_once(kind: str) -> None:
    """What does not depend on the rule is tried with one of them: `make test` has minutes, not hours."""
    if kind == "groups":
        pytest.skip("tried with the critic's pipeline")


def block(path: Path, iteration: int, stage: str, number: int = 0) -> Trajectories:
    return read_block(Source(RunFolder.open(path), iteration, stage), shard_name(number))


def test_ranks_change_no_bit(unbroken: Path, options: list[str], tmp_path: Path) -> None:
    for ranks in (2, 4):
        run = tmp_path / f"run-{ranks}"
        done = hpcrl("run", PIPELINE, "--on", "mpi", "--ranks", ranks, "--run", run, *options)
        assert done.code == 0, done.output
        assert published_bits(run) == published_bits(unbroken)
        assert published_facts(run, "evaluate") == published_facts(unbroken, "evaluate")


def test_the_disk_changes_no_bit(unbroken: Path, options: list[str], kind: str, tmp_path: Path) -> None:
    only_once(kind)
    arguments = ("--ranks", 2, "--handoff", "disk", "--run", tmp_path / "run")
    done = hpcrl("run", PIPELINE, "--on", "mpi", *arguments, *options)
    assert done.code == 0, done.output
    assert published_bits(tmp_path / "run") == published_bits(unbroken)


@pytest.mark.parametrize(
    "point",
    [
        "optimizer.after_step:4",
        *(
            pytest.param(point, marks=pytest.mark.soak)
            for point in ("shard.before_write:5", "checkpoint.before_write:4")
        ),
    ],
)
def test_a_kill_changes_no_bit(unbroken: Path, options: list[str], kind: str, tmp_path: Path, point: str) -> None:
    only_once(kind)
    run = tmp_path / "run"
    arguments = ["run", PIPELINE, "--on", "mpi", "--ranks", 2, "--run", run, *options]
    assert shoot(arguments, run, Shot("one rank", 0, point=point)).hit
    done = hpcrl(*arguments)
    assert done.code == 0, done.output
    assert published_bits(run) == published_bits(unbroken)
    assert leftovers(run) == []


def test_a_stop_ends_cleanly_and_goes_on(options: list[str], kind: str, tmp_path: Path) -> None:
    only_once(kind)
    arguments = ["run", PIPELINE, "--on", "mpi", "--ranks", 2, "--num-iterations", 12, *options]
    process = start(*arguments, "--run", tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    while process.poll() is None and not folder.stage(3, "generate").is_done():
        pass
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 85, output
    assert max(folder.iterations()) < 11, "the run was over before the signal came"
    resume = shlex.split(output.split("go on with: ")[1].splitlines()[0])
    pasted = subprocess.run(resume, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert pasted.returncode == 0, pasted.stderr
    whole = hpcrl(*arguments, "--run", tmp_path / "whole")
    assert whole.code == 0, whole.output
    assert published_bits(tmp_path / "run") == published_bits(tmp_path / "whole")


def test_replay_recomputes_without_generating(unbroken: Path) -> None:
    done = hpcrl("replay", unbroken)
    assert done.code == 0, done.output
    assert "differs" not in done.output


def test_status_report_and_show_know_text(unbroken: Path, options: list[str]) -> None:
    for arguments in (("status", unbroken), ("report", unbroken), ("show", PIPELINE, *options)):
        done = hpcrl(*arguments)
        assert done.code == 0, done.output
        assert "Traceback" not in done.output


def test_what_a_generated_block_holds(unbroken: Path, kind: str) -> None:
    """Whole groups in a block, prompts counted on, an end or a limit, and log-probabilities that the policy gives."""
    samples = 4 if kind == "groups" else 2
    generated = block(unbroken, 3, "generate", 1)
    assert generated["prompt_index"].tolist() == np.repeat([3 * 8 + 2, 3 * 8 + 3], samples).tolist()
    assert generated["sample_index"].tolist() == [*range(samples)] * 2
    assert (generated["policy_version"] == 3).all()
    assert (generated["log_probs"] <= 0).all()
    for row in range(generated.num_trajectories):
        tokens = generated["actions"][generated.offsets[row] : generated.offsets[row + 1]]
        ended = tokens[-1] == 1
        assert generated["ending"][row] == (Ending.TERMINATED if ended else Ending.TRUNCATED)
        assert ended or len(tokens) == 12
        assert not np.isin(tokens, [0, 2]).any(), "padding and beginnings are never sampled"
        assert not (tokens[:-1] == 1).any(), "nothing comes behind an end"


def test_the_policy_that_acted_agrees_with_what_it_stored(unbroken: Path, kind: str) -> None:
    """The copied reference is the policy of the first generation: its packed forward gives the stored numbers."""
    if kind == "groups":
        pytest.skip("this pipeline has no reference")
    run = RunFolder.open(unbroken)
    manifest = run.stage(1, "generate").manifest() or run.stage(1, "generate").removed()
    assert manifest is not None
    again = hpcrl("run", PIPELINE, "--on", "here", "--num-iterations", 2, "--run", unbroken.with_name("short"))
    assert again.code == 0, again.output
    for number in range(4):
        stored = block(unbroken.with_name("short"), 1, "generate", number)["log_probs"]
        reference = block(unbroken.with_name("short"), 1, "log_probs", number)["reference_log_probs"]
        np.testing.assert_allclose(stored, reference, atol=1e-5)


def test_rewards_and_values_are_what_they_are_said_to_be(unbroken: Path, kind: str) -> None:
    if kind == "groups":
        advantages = [block(unbroken, 3, "advantage", number)["advantages"] for number in range(4)]
        firsts = []
        for number, each in enumerate(advantages):
            offsets = block(unbroken, 3, "generate", number).offsets
            for row in range(len(offsets) - 1):
                of_response = each[offsets[row] : offsets[row + 1]]
                assert (of_response == of_response[0]).all()
                firsts.append(float(of_response[0]))
        assert np.mean(firsts) == pytest.approx(0.0, abs=1e-5)
        return
    generated, scores = block(unbroken, 3, "generate"), block(unbroken, 3, "score")["scores"]
    reference = block(unbroken, 3, "log_probs")["reference_log_probs"]
    rewards, values = block(unbroken, 3, "refine")["rewards"], block(unbroken, 3, "values")
    difference = (generated["log_probs"] - reference).astype(np.float64)
    wanted = -0.05 * (np.exp(-difference) - 1 + difference)
    wanted[generated.offsets[1:] - 1] += np.clip(scores, -2, 2)
    np.testing.assert_allclose(rewards, wanted, atol=1e-6)
    assert (values["bootstrap_values"][generated["ending"] == Ending.TERMINATED] == 0).all()
    returns = block(unbroken, 3, "advantage")["returns"]
    np.testing.assert_allclose(
        returns, block(unbroken, 3, "advantage")["advantages"] + values["values"], rtol=1e-5, atol=1e-6
    )
