"""`hpcrl status`: of runs that go on, that are done, that were cut off."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

from hpcrl.cli import main
from hpcrl.report.status import status_text
from hpcrl.store.checkpoint import write_checkpoint
from hpcrl.store.documents import seal
from hpcrl.store.lease import Holder, Lease
from hpcrl.store.processes import Process
from hpcrl.store.run_folder import RunFolder
from tests.report.tiny_run import add_launch, digests, drop_iterations, read_manifest, stage_path, unpublish


def lines_of(path: Path) -> dict[str, str]:
    return {name.strip(): text for name, text in ((line[:11], line[12:]) for line in status_text(path).splitlines())}


def test_a_finished_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = digests(run)
    assert main(["status", str(run)]) == 0
    assert digests(run) == before
    lines = lines_of(run)
    assert capsys.readouterr().out.strip() == status_text(run)
    assert lines["state"] == "all 3 iterations are done"
    assert lines["iteration"] == "3 of 3"
    assert lines["rollout"].startswith("done ")
    assert "evaluate" not in lines  # not due in the third iteration
    evaluation = read_manifest(run, 1, "evaluate").extra
    assert lines["evaluation"].startswith(f"{evaluation['return_mean']:.4g} after iteration 2 (4 episodes, ")
    assert lines["lease"] == "nobody"
    assert "ends" not in lines


def test_a_run_in_the_middle_of_an_update(copy: Path) -> None:
    unpublish(copy, 2, "update")
    folder = RunFolder(copy).stage(2, "update")
    attempt = folder.begin_attempt(7)
    attempt.save_progress(
        lambda path: write_checkpoint(path, {}, {"cursor": {"epoch": 1, "minibatch": 0, "early_stop": False}})
    )
    with Lease.acquire(copy):
        lines = lines_of(copy)
    assert lines["state"].startswith(f"running: pid {os.getpid()} on ")
    assert lines["lease"].endswith(", alive")
    assert lines["rollout"].startswith("done ")
    assert lines["update"] == "running (attempt 7, saved at epoch 1, minibatch 0)"
    assert "1 iteration left" in lines["ends"]
    assert "unless its evaluation stops it before" in lines["ends"]
    # Given back, it is no longer running.
    lines = lines_of(copy)
    command = json.loads((copy / "launches/launch-0001.json").read_text())["command"]
    assert lines["state"] == f"stopped after iteration 2 of 3; go on with: {command}"
    assert lines["update"].startswith("unfinished (attempt 7")
    assert lines["next"] == command
    assert "ends" not in lines


def test_blocks_of_a_stage_in_parts_are_counted(copy: Path) -> None:
    for stage in ("update", "advantage"):
        unpublish(copy, 2, stage)
    folder = RunFolder(copy).stage(2, "advantage")
    folder.begin_attempt(2).publish_part(1, [])
    lines = lines_of(copy)
    assert lines["advantage"] == "unfinished (attempt 2, 1 of 2 blocks published)"
    assert lines["update"].startswith("waiting (attempt ")


def test_between_two_iterations(copy: Path) -> None:
    drop_iterations(copy, 2)
    with Lease.acquire(copy):
        lines = lines_of(copy)
    assert lines["iteration"] == "3 of 3"
    assert (lines["rollout"], lines["advantage"]) == ("running", "waiting")


def test_a_dead_holder_is_told_from_a_living_one(copy: Path) -> None:
    unpublish(copy, 2, "update")
    dead = dataclasses.replace(Process.this(), start_time=1)
    holder = dataclasses.replace(Holder.new({}, None), process=dead)
    (copy / "lease").write_bytes(seal("lease", dataclasses.asdict(holder)))
    lines = lines_of(copy)
    assert lines["lease"].endswith(", dead")
    assert lines["state"].startswith("cut off after iteration 2 of 3: pid ")


def test_a_holder_on_another_host_is_judged_by_its_heartbeat(copy: Path) -> None:
    unpublish(copy, 2, "update")
    away = dataclasses.replace(Process.this(), host="node-7", boot="another")
    holder = dataclasses.replace(Holder.new({"SLURM_JOB_ID": "4711"}, None), process=away)
    (copy / "lease").write_bytes(seal("lease", dataclasses.asdict(holder)))
    lines = lines_of(copy)
    assert lines["state"].startswith("running: pid ")
    assert "on node-7, job 4711, since" in lines["lease"]
    os.utime(copy / "lease", (0, 0))
    lines = lines_of(copy)
    assert lines["state"].startswith("cut off after iteration 2 of 3: ")
    assert "on another host, last heartbeat" in lines["lease"]


def test_launches_are_counted(copy: Path) -> None:
    add_launch(copy, 2, "2099-01-01T00:00:00+00:00")
    assert lines_of(copy)["launches"].startswith("2; the newest on ")


def test_a_run_that_has_just_begun(copy: Path) -> None:
    drop_iterations(copy, 0)
    lines = lines_of(copy)
    assert lines["iteration"] == "1 of 3"
    assert lines["rollout"] == "unfinished"
    assert lines["state"].startswith("stopped before its first of 3 iterations was done")
    assert "return" not in lines


def test_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert str(tmp_path) in printed.err
    assert stage_path(tmp_path, 0, "rollout").parent.exists() is False
