"""What doctor concludes from what jobs tell, where no cluster is needed: the shared folder, facts, ends."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from hpcrl.launch import doctor_facts, shared_folder
from hpcrl.launch.doctor import doctor
from hpcrl.launch.doctor_job import Ending, Probe, follow, kinds_of_jobs, last_words, read_facts
from hpcrl.launch.findings import Finding
from hpcrl.launch.probe import MARK, main
from hpcrl.launch.shared_folder import leave, meet
from hpcrl.scheduler import Job, Launch, Resources, Site, Slurm
from hpcrl.scheduler.jobs import parse_queue
from tests.scheduler.fakes import FakeCommands, recorded, recorded_jobs

VERSIONS = {"hpcrl": "1", "python": "3", "torch": "2"}
NODE: dict[str, Any] = {
    "what": "node",
    "node": "n1",
    "versions": VERSIONS,
    "instruction_set": ["avx2"],
    "cpus": 2,
    "shared": [],
    "submit": "",
    "scratch": {"path": "/tmp", "free": 2**30, "trouble": ""},
    "gpus": {"given": 0, "driver": "none", "pytorch": {"cuda": None, "names": []}, "kernels": False},
}
RANK: dict[str, Any] = {
    "what": "rank",
    "rank": 0,
    "size": 2,
    "node": "n1",
    "met": True,
    "library": "M",
    "cuda_aware": False,
}
RANKS = [RANK, {**RANK, "rank": 1, "node": "n2"}]
ID = recorded_jobs()
JOBS = {job.id: job for job in parse_queue(recorded("squeue_late")[0])}
COMPLETED, FAILED_JOB = JOBS[ID["dependency"]], JOBS[ID["failed"]]


def ending(
    folder: Path, facts: list[Mapping[str, Any]], job: Job | None = COMPLETED, gpus: int = 0, log: str = ""
) -> Ending:
    """A probe's end, with its log and the files that login and job leave."""
    made = Probe(("resources",), gpus, folder, "token", "7", 1795576146.0)
    made.log.parent.mkdir(exist_ok=True)
    made.log.write_text("".join(f"{MARK}{json.dumps(one)}\n" for one in facts) + log)
    if not (folder / "job.txt").exists():
        assert leave(folder, "job", "token") == []
    return Ending(made, job, 1795576270.0)


def findings(
    folder: Path, facts: list[Mapping[str, Any]], site: Site | None = None, **settings: Any
) -> dict[str, Finding]:
    found = doctor_facts.findings_of_job(ending(folder, facts, **settings), site or Site(), VERSIONS)
    return {finding.name.removesuffix(" (resources)"): finding for finding in found}


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_facts, "_LOG_SECONDS", 0.0)
    monkeypatch.setattr(doctor_facts, "_LOG_SECONDS_AFTER_FAILURE", 0.0)


# The shared folder.


def test_two_hosts_that_share_a_folder(tmp_path: Path) -> None:
    assert leave(tmp_path, "login", "abc") == []
    assert meet(tmp_path, "login", "abc") == []
    assert leave(tmp_path, "job", "abc") == []
    assert meet(tmp_path, "job", "abc") == []


def test_a_folder_that_is_not_shared(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert leave(tmp_path / "a", "login", "abc") == []
    assert meet(tmp_path / "b", "login", "abc") == ["the other host's file is not seen: No such file or directory"]


def test_stale_content_is_seen(tmp_path: Path) -> None:
    leave(tmp_path, "login", "old")
    assert meet(tmp_path, "login", "new") == ["the other host's file is seen with another content"]


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: object, target: object) -> None:
        raise PermissionError(1, "Operation not permitted", source, None, target)

    monkeypatch.setattr(os, "link", refuse)
    assert leave(tmp_path, "login", "abc") == ["link(2) failed: Operation not permitted"]


def test_a_file_system_whose_link_and_exclusive_creation_overwrite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def overwrite(source: Path, target: Path) -> None:
        target.unlink(missing_ok=True)
        link(source, target)

    monkeypatch.setattr(os, "link", overwrite)
    monkeypatch.setattr(shared_folder, "_make_exclusively", lambda path: path.touch())
    assert leave(tmp_path, "login", "abc") == [
        "link(2) takes a name that is there (its own)",
        "O_EXCL takes a name that is there (its own)",
    ]
    assert meet(tmp_path, "login", "abc") == [
        "link(2) takes a name that is there (another host's)",
        "O_EXCL takes a name that is there (another host's)",
    ]


# What a job told.


def test_a_job_that_is_well(tmp_path: Path) -> None:
    found = findings(tmp_path, [NODE, *RANKS])
    assert {finding.verdict for finding in found.values()} == {"ok"}
    assert list(found) == [
        *("job", "shared folder", "interpreter", "scratch", "submitting from jobs", "MPI", "GPUs"),
    ]
    assert found["MPI"].words == "2 ranks met on n1, n2; M"


@pytest.mark.parametrize(
    ("changes", "name", "words"),
    [
        ({"shared": ["link(2) failed: x"]}, "shared folder", "on n1: link(2) failed: x; put runs on a file system"),
        ({"versions": {**VERSIONS, "hpcrl": "2"}}, "interpreter", "hpcrl 1 here, 2 there; correct launch.python"),
        ({"versions": {}}, "interpreter", "hpcrl 1 here, missing there"),
        ({"scratch": {"path": "/x", "free": 0, "trouble": "cannot"}}, "scratch", "/x: cannot; correct launch.scratch"),
        ({"submit": "no"}, "submitting from jobs", "n1: no; set launch.submit_from_jobs = false"),
    ],
)
def test_what_is_wrong_on_a_node(changes: dict[str, Any], name: str, words: str, tmp_path: Path) -> None:
    found = findings(tmp_path, [{**NODE, **changes}, *RANKS])
    assert found[name].verdict == "failed"
    assert words in found[name].words
    assert [finding.name for finding in found.values() if finding.verdict == "failed"] == [f"{name} (resources)"]


def test_other_library_versions_are_told_but_may_be_meant(tmp_path: Path) -> None:
    found = findings(tmp_path, [{**NODE, "versions": {**VERSIONS, "torch": "3"}}, *RANKS])
    assert found["interpreter"].verdict == "unknown"
    assert "torch 2 here, 3 there" in found["interpreter"].words


def test_a_site_whose_nodes_may_not_submit(tmp_path: Path) -> None:
    site = Site(launch=Launch(submit_from_jobs=False))
    assert findings(tmp_path, [{**NODE, "submit": "no"}, *RANKS], site)["submitting from jobs"].verdict == "ok"
    hint = findings(tmp_path, [NODE, *RANKS], site)["submitting from jobs"]
    assert (hint.verdict, "submit_from_jobs = true is possible" in hint.words) == ("ok", True)


@pytest.mark.parametrize(
    ("ranks", "words"),
    [
        ([], "want 2 ranks of one world, given 0 that came up; its log ends with: srun: no such plugin"),
        ([{"what": "rank", "node": "n1", "refused": "ranks: want 2, given 2 separate"}], "given 2 separate; correct"),
        (RANKS[:1], "want 2 ranks of one world, given 1 that came up"),
        ([{**one, "size": 1} for one in RANKS], "want 2 ranks of one world"),
        ([{**one, "met": False} for one in RANKS], "want 2 ranks of one world"),
        ([RANK, RANK], "want 2 ranks of one world"),
    ],
)
def test_a_world_that_is_not_one(ranks: list[Mapping[str, Any]], words: str, tmp_path: Path) -> None:
    found = findings(tmp_path, [NODE, *ranks], log="srun: no such plugin\n")
    assert found["MPI"].verdict == "failed"
    assert words in found["MPI"].words
    assert "correct launch.mpi (given: srun --mpi=pmi2" in found["MPI"].words


@pytest.mark.parametrize(
    ("gpus", "verdict", "words"),
    [
        (
            {"given": 2, "pytorch": {"cuda": "13.0", "names": ["H100", "H100"]}, "driver": 2},
            "ok",
            "H100, H100; our kernels",
        ),
        ({"given": 0}, "failed", "asked for 2 per rank (gpu:2), SLURM gave 0"),
        ({"given": 2, "driver": 2}, "failed", "SLURM gave 2, PyTorch sees 0 (the driver lists 2; our kernels without"),
        ({"given": 2, "pytorch": "ImportError: x"}, "failed", "PyTorch cannot be loaded (ImportError: x)"),
        ({"given": 2, "kernels": "ImportError: y"}, "failed", "our kernels cannot be loaded (ImportError: y)"),
    ],
)
def test_gpus(gpus: dict[str, Any], verdict: str, words: str, tmp_path: Path) -> None:
    found = findings(tmp_path, [{**NODE, "gpus": {**NODE["gpus"], **gpus}}, *RANKS], gpus=2)
    assert found["GPUs"].verdict == verdict
    assert words in found["GPUs"].words


@pytest.mark.parametrize(
    ("answers", "verdict", "words"),
    [
        ((True, True), "ok", "found: MPI takes GPU memory"),
        ((False, False), "ok", "not found: what ranks exchange goes through"),
        ((None, None), "unknown", "does not say"),
        ((True, False), "unknown", "does not say"),
    ],
)
def test_cuda_aware_mpi(answers: tuple[bool | None, ...], verdict: str, words: str, tmp_path: Path) -> None:
    ranks = [{**rank, "cuda_aware": answer} for rank, answer in zip(RANKS, answers, strict=True)]
    found = findings(tmp_path, [NODE, *ranks], gpus=1)
    assert (found["CUDA-aware MPI"].verdict, words in found["CUDA-aware MPI"].words) == (verdict, True)


def test_jobs_that_did_not_end_well(tmp_path: Path) -> None:
    failed = findings(tmp_path, [], job=FAILED_JOB, log="module: command not found\n")["job"]
    assert failed.verdict == "failed"
    assert "ended as FAILED (exit code 7); its log ends with: module: command not found; see" in failed.words
    silent = findings(tmp_path, [], job=JOBS[ID["timeout"]])["job"]
    assert "ended as TIMEOUT (signal 15)" in silent.words
    assert "is empty or not seen here" in silent.words
    unseen = findings(tmp_path, [], job=COMPLETED)["job"]
    assert (unseen.verdict, "is not seen here; choose a shared folder" in unseen.words) == ("failed", True)
    assert "has lost job 7" in findings(tmp_path, [], job=None)["job"].words
    waiting = findings(tmp_path, [], job=JOBS[ID["held_by_user"]])
    assert (list(waiting), waiting["job"].verdict) == (["job"], "unknown")
    assert "is PENDING (JobHeldUser) after 124 s" in waiting["job"].words


def test_facts_are_found_among_other_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert read_facts(log, wanted=0, seconds=0) == []
    log.write_text(f"module loaded\n{MARK}{json.dumps(RANK)}\nsrun: bye\n\n{MARK}{json.dumps(NODE)}\n")
    assert read_facts(log, wanted=2, seconds=60) == [RANK, NODE]
    assert last_words(log) == "module loaded"
    log.write_text("srun: one\nsrun: bye\n")
    assert last_words(log) == "srun: bye"
    assert last_words(tmp_path / "nothing") == ""


# Following jobs.


def test_jobs_are_followed_to_their_end_or_the_end_of_patience(tmp_path: Path) -> None:
    fakes = FakeCommands(tmp_path / "fakes")
    fakes.answer_as_recorded("squeue", "squeue_early", call=1)
    fakes.answer_as_recorded("squeue", "squeue_late")
    slurm = Slurm(fakes.environment, patience_seconds=0)
    probes = [
        Probe((name,), 0, tmp_path, "t", name, 0.0) for name in (ID["dependency"], ID["failed"], ID["held_by_user"])
    ]
    pauses: list[float] = []
    ended = [(one.probe.job, one.job and one.job.state) for one in follow(probes[:2], slurm, 60, pauses.append)]
    assert ended == [(ID["failed"], "FAILED"), (ID["dependency"], "COMPLETED")]
    assert len(pauses) == 1
    late = [(one.probe.job, one.job and one.job.state) for one in follow(probes[2:], slurm, -1, pauses.append)]
    assert late == [(ID["held_by_user"], "PENDING")]


def test_a_lost_job_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = FakeCommands(tmp_path / "fakes")
    fakes.answer_as_recorded("squeue", "squeue_unknown")
    now = [0.0]
    monkeypatch.setattr("hpcrl.launch.doctor_job.time.time", lambda: now[0])

    def sleep(seconds: float) -> None:
        now[0] += seconds

    probe = Probe(("resources",), 0, tmp_path, "t", "999999", 0.0)
    (ending,) = follow([probe], Slurm(fakes.environment, patience_seconds=0), 10_000, sleep)
    assert ending.job is None
    assert 60 < now[0] < 90


# What is tried.


def test_tables_that_ask_for_the_same_kind_of_job_share_one() -> None:
    base = Resources(partition="cpu")
    longer, gpu = dataclasses.replace(base, time_minutes=90), Resources(partition="gpu", gpus_per_rank=1)
    site = Site(default=base, segments={"play": longer, "learn": gpu, "score": gpu})
    assert kinds_of_jobs(site) == {("resources", "segments.play"): base, ("segments.learn", "segments.score"): gpu}


def test_without_commands_nothing_is_tried(tmp_path: Path) -> None:
    fakes = FakeCommands(tmp_path / "fakes")
    lines: list[str] = []
    code = doctor(Site(), folder=tmp_path / "runs", slurm=Slurm(fakes.environment), say=lines.append)
    assert code == 1
    assert lines[0].startswith("failed   commands: not on PATH: sbatch, squeue, scancel, scontrol, sinfo; use a login")
    assert lines[1] == "1 checks: 0 ok, 1 failed, 0 unknown"
    assert not (tmp_path / "runs").exists()


def test_the_probe_finds_its_way_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    fakes = FakeCommands(tmp_path / "fakes")
    fakes.answer_as_recorded("sbatch", "refused_partition")
    monkeypatch.setenv("PATH", fakes.environment["PATH"])
    monkeypatch.setenv("HPCRL_PROBE_SCRATCH", "$NOT_SET_ANYWHERE")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    folder = tmp_path / "shared"
    folder.mkdir()
    leave(folder, "login", "abc")
    assert main(["node", str(folder), "abc"]) == 0
    (facts,) = [json.loads(line.removeprefix(MARK)) for line in capfd.readouterr().out.splitlines()]
    assert (facts["shared"], facts["gpus"]["given"]) == ([], 2)
    assert "Invalid partition name specified" in facts["submit"]
    assert "want a value for $NOT_SET_ANYWHERE" in facts["scratch"]["trouble"]
    assert meet(folder, "job", "abc") == []
