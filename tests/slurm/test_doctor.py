"""hpcrl doctor on a real cluster: what is well, and what is not, each told in its line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hpcrl.launch.doctor import doctor
from hpcrl.scheduler import Launch, Limits, Resources, Site, Slurm
from tests.slurm.dev_cluster import DevCluster


class Told:
    """The lines of one examination, and its exit code."""

    def __init__(self, cluster: DevCluster, site: Site, folder: Path, *, wait_seconds: float = 90) -> None:
        self.lines: list[str] = []
        slurm = Slurm(cluster.environment, patience_seconds=5)
        self.code = doctor(site, folder=folder, slurm=slurm, say=self.lines.append, wait_seconds=wait_seconds)

    def line(self, name: str) -> str:
        """The one line of a check. Raises: AssertionError with all lines."""
        found = [line for line in self.lines if line[9:].startswith(name)]
        assert len(found) == 1, "\n".join(self.lines)
        return found[0]

    def verdict(self, name: str) -> str:
        return self.line(name).split()[0]


def interpreted(launch: Launch | None = None, **settings: object) -> Site:
    return Site(launch=launch or Launch(python=sys.executable), **settings)  # type: ignore[arg-type]


def jobs_left(cluster: DevCluster) -> str:
    return cluster.output("squeue", "--noheader")


def test_a_site_that_is_right(cluster: DevCluster, tmp_path: Path) -> None:
    pytest.importorskip("mpi4py", reason="mpi4py is not installed: pip install 'hpcrl[mpi]'")
    site = interpreted(default=Resources(partition="cpu", time_minutes=5), limits=Limits(signal_lead_seconds=30))
    told = Told(cluster, site, tmp_path / "runs")
    assert told.code == 0, "\n".join(told.lines)
    assert {line.split()[0] for line in told.lines[:-1]} == {"ok"}
    assert "2 ranks met on n1, n2" in told.line("MPI (resources)")
    assert "cpu has 2 of 2 nodes" in told.line("partition (resources)")
    assert "n1 and this host see each other's files there" in told.line("shared folder (resources)")
    assert "n1 may submit jobs" in told.line("submitting from jobs (resources)")
    assert " ran " in told.line("job (resources)")
    assert told.lines[-1] == f"{len(told.lines) - 1} checks: {len(told.lines) - 1} ok, 0 failed, 0 unknown"
    assert not (tmp_path / "runs").exists()  # nothing is left
    assert jobs_left(cluster) == ""


def test_singletons_are_caught_and_gpus_that_are_none(cluster: DevCluster, tmp_path: Path) -> None:
    pytest.importorskip("mpi4py", reason="mpi4py is not installed: pip install 'hpcrl[mpi]'")
    site = interpreted(
        Launch(python=sys.executable, mpi="srun --mpi=none --kill-on-bad-exit=1"),
        default=Resources(partition="cpu"),
        segments={"learn": Resources(partition="gpu", gpus_per_rank=1)},
    )
    told = Told(cluster, site, tmp_path)
    assert told.code == 1
    for table in ("resources", "segments.learn"):
        line = told.line(f"MPI ({table})")
        assert line.startswith("failed")
        assert "given 2 separate processes that each see 1" in line
        assert "correct launch.mpi (given: srun --mpi=none" in line
        assert told.verdict(f"shared folder ({table})") == "ok"
    if cluster.output("sinfo", "--noheader", "--partition=gpu", "--format=%G") != "(null)":
        assert "SLURM gave 1, PyTorch sees 0" in told.line("GPUs (segments.learn)")
    kept = Path(told.lines[-1].partition("scripts and logs are in ")[2])
    assert list(kept.glob("job-*/jobs/probe.sbatch"))
    assert list(kept.glob("job-*/logs/probe_*.out"))


def test_a_partition_that_is_not_there_and_one_that_does_not_fit(cluster: DevCluster, tmp_path: Path) -> None:
    site = interpreted(
        default=Resources(partition="cpus"), segments={"learn": Resources(partition="gpu", gpus_per_rank=9)}
    )
    told = Told(cluster, site, tmp_path)
    assert told.code == 1
    assert "given 'cpus'; choose from debug, cpu, gpu, urgent" in told.line("partition (resources)")
    assert told.verdict("partition (segments.learn)") == "failed"
    assert not [line for line in told.lines if " job (" in line]
    assert list(tmp_path.iterdir()) == []


def test_an_interpreter_that_is_not_there(cluster: DevCluster, tmp_path: Path) -> None:
    site = interpreted(Launch(python="/nowhere/python"), default=Resources(partition="cpu"))
    told = Told(cluster, site, tmp_path)
    assert told.code == 1
    line = told.line("job (resources)")
    assert "ended as FAILED" in line
    assert "/nowhere/python" in line


def test_a_job_that_does_not_start_is_cancelled_and_called_unknown(cluster: DevCluster, tmp_path: Path) -> None:
    site = interpreted(default=Resources(partition="cpu", extra=("--begin=now+1hour",)))
    told = Told(cluster, site, tmp_path, wait_seconds=2)
    assert told.code == 0
    line = told.line("job (resources)")
    assert line.startswith("unknown")
    assert "is PENDING (BeginTime)" in line
    cluster.wait_for(lambda: jobs_left(cluster) == "", 20, "the job to be cancelled")
    assert list(tmp_path.iterdir()) == []


def test_what_slurm_refuses_is_told_in_its_words(cluster: DevCluster, tmp_path: Path) -> None:
    told = Told(cluster, interpreted(default=Resources(partition="cpu", qos="nothing")), tmp_path)
    assert told.code == 1
    assert "Invalid qos specification; set resources.qos" in told.line("job (resources)")


def test_an_array_size_above_the_clusters(cluster: DevCluster, tmp_path: Path) -> None:
    site = interpreted(default=Resources(partition="nowhere"), limits=Limits(max_array_size=5000))
    assert "limits.max_array_size is 5000, the cluster takes 1001" in Told(cluster, site, tmp_path).line("limits")


def test_a_controller_that_does_not_answer(cluster: DevCluster, tmp_path: Path) -> None:
    cluster.stop_controller()
    told = Told(cluster, interpreted(), tmp_path)
    assert (told.code, len(told.lines)) == (1, 3)
    assert "no answer from SLURM's controller" in told.line("controller")


def test_root_and_nobody_cannot_write_everywhere(cluster: DevCluster, tmp_path: Path) -> None:
    taken = tmp_path / "runs"
    taken.write_text("a file, not a folder")
    told = Told(cluster, interpreted(default=Resources(partition="cpu")), taken / "below")
    assert told.code == 1
    assert "cannot be written to" in told.line("folder")
