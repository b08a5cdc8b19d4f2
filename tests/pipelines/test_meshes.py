"""Meshes and policy lag: where stages stand and who waits changes no bit; a lag is exactly what it says."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from hpcrl.store.run_folder import RunFolder
from hpcrl.store.shards import read_shard
from tests.pipelines.runs import hpcrl, leftovers, published_bits, published_facts, start

MESHES = "tests/pipelines/meshes.py"


def play(path: Path, *options: object, on: str = "here") -> None:
    done = hpcrl("run", MESHES, "--on", on, *options, "--run", path)
    assert done.code == 0, done.output


@pytest.fixture(scope="module", params=[0, 1, 2])
def one_mesh(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """(policy lag, run on one mesh and one rank)."""
    path = tmp_path_factory.mktemp("one") / "run"
    play(path, "--no-play", "--policy-lag", request.param)
    return request.param, path


def test_meshes_change_no_bits(one_mesh: tuple[int, Path], tmp_path: Path) -> None:
    lag, reference = one_mesh
    play(tmp_path / "two", "--policy-lag", lag, "--mesh", "main.dp=2", on="mpi")
    play(tmp_path / "three", "--policy-lag", lag, "--evaluate-apart", "--mesh", "play.dp=2", on="mpi")
    for path in (tmp_path / "two", tmp_path / "three"):
        assert published_bits(path) == published_bits(reference)
        assert published_facts(path, "update") == published_facts(reference, "update")
        assert leftovers(path) == []


def test_a_lag_of_d_is_exactly_d(one_mesh: tuple[int, Path]) -> None:
    lag, path = one_mesh
    run = RunFolder.open(path)
    for iteration in run.iterations():
        folder = run.stage(iteration, "rollout")
        manifest = folder.manifest()
        assert manifest is not None
        for record in manifest.files:
            if "shard" in record.name:
                versions = read_shard(folder.file(record), record=record)["policy_version"]
                assert set(versions.tolist()) == {max(0, iteration - lag)}


def test_a_lag_changes_bits(tmp_path: Path) -> None:
    for lag in (0, 1):
        play(tmp_path / f"lag-{lag}", "--no-play", "--policy-lag", lag)
    bits, lagging = (published_bits(tmp_path / f"lag-{lag}") for lag in (0, 1))
    assert bits["0/rollout"] == lagging["0/rollout"]
    assert bits["1/rollout"] != lagging["1/rollout"]


def test_an_evaluation_ends_all_loops_at_the_same_update(tmp_path: Path) -> None:
    options = ("--stop", "--num-iterations", 12, "--policy-lag", 1)
    play(tmp_path / "one", "--no-play", *options)
    play(tmp_path / "two", *options, on="mpi")
    play(tmp_path / "three", *options, "--evaluate-apart", on="mpi")
    reference = published_bits(tmp_path / "one")
    assert max(int(key.split("/")[0]) for key in reference) == 2
    for name in ("two", "three"):
        bits = published_bits(tmp_path / name)
        beyond = {key for key in bits if int(key.split("/")[0]) > 2}
        assert beyond <= {"3/rollout", "3/advantage"}  # before the trainer; unused
        assert {key: value for key, value in bits.items() if key not in beyond} == reference


@pytest.mark.parametrize(
    ("number", "resumed_with", "on"), [(signal.SIGTERM, ("--no-play",), "here"), (signal.SIGKILL, (), "mpi")]
)
def test_meshes_stop_and_resume_on_these_or_others_to_the_same_bits(
    number: int, resumed_with: tuple[str, ...], on: str, tmp_path: Path
) -> None:
    options = ("--policy-lag", 1, "--num-iterations", 30)
    play(tmp_path / "unbroken", "--no-play", *options)
    process = start("run", MESHES, "--on", "mpi", *options, "--run", tmp_path / "run")
    deadline = time.monotonic() + 60
    while not RunFolder(tmp_path / "run").stage(3, "update").is_done():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == (85 if number == signal.SIGTERM else -signal.SIGKILL), output
    assert max(RunFolder.open(tmp_path / "run").iterations()) < 29, "the run was over before the signal came"
    play(tmp_path / "run", *options, *resumed_with, on=on)
    assert published_bits(tmp_path / "run") == published_bits(tmp_path / "unbroken")
    assert leftovers(tmp_path / "run") == []


def test_several_meshes_refuse_ranks(tmp_path: Path) -> None:
    done = hpcrl("run", MESHES, "--on", "mpi", "--ranks", 3, "--run", tmp_path / "run")
    assert done.code == 2
    assert (
        "--ranks: want 2 (the meshes main, play, judge together), given 3; set one mesh's with --mesh NAME.dp=N"
        in done.output
    )
    assert not (tmp_path / "run").exists()
