"""Any one job of a run, queued or running, may be cancelled at any time: the run finishes, with the same bits.

The moment and the victim are drawn from a seed. HPCRL_LOST_JOB_SEEDS names others: "7" or "0-30".
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path

import pytest

from hpcrl.launch.submission import Run, submit
from hpcrl.scheduler import Job, Slurm
from tests.pipelines.meshes import meshes
from tests.slurm.dev_cluster import DevCluster
from tests.slurm.submitted import Bits, finish, jobs_of, login_node, reference_bits, site_for

NUM_ITERATIONS = 2
LONGEST_SECONDS = 6.0
"""About what a run lasts that nobody disturbs; the moment is drawn from it."""


def seeds() -> list[int]:
    """As HPCRL_LOST_JOB_SEEDS names them."""
    first, _, last = os.environ.get("HPCRL_LOST_JOB_SEEDS", "1-3").partition("-")
    return list(range(int(first), int(last or first) + 1))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Bits]:
    """Policy lag -> what a run publishes that nobody disturbs."""
    words = ("tests/pipelines/meshes.py", "--no-play", "--num-iterations", NUM_ITERATIONS)
    return {
        policy_lag: reference_bits(tmp_path_factory.mktemp("undisturbed"), *words, "--policy-lag", policy_lag)
        for policy_lag in (0, 1)
    }


class Campaign:
    """One run, and the job that it loses."""

    def __init__(self, seed: int, run: Path) -> None:
        self.run, self.numbers = run, random.Random(seed)
        self.policy_lag = self.numbers.randrange(2)
        self.moment = self.numbers.uniform(0.0, LONGEST_SECONDS)
        self.victim: Job | None = None
        self.began = 0.0

    def submit(self) -> None:
        pipeline = meshes(num_iterations=NUM_ITERATIONS, play_world="play", array=2, policy_lag=self.policy_lag)
        submit(pipeline, site_for(sys.executable), run=self.run, door="sbatch")
        self.began = time.monotonic()

    def strike(self) -> bool:
        """Cancels a job when the moment has come; True when it has. Of an array one element, or all that are left."""
        if self.victim is not None or time.monotonic() < self.began + self.moment:
            return self.victim is not None
        jobs = [job for job in Slurm().queue(jobs_of(self.run)) if job.state in ("PENDING", "RUNNING")]
        if not jobs:
            return False
        self.victim = self.numbers.choice(jobs)
        whole = self.victim.array_id is not None and self.numbers.random() < 0.5
        Slurm().cancel([self.victim.array_id if whole and self.victim.array_id else self.victim.id])
        return True

    def __str__(self) -> str:
        victim = "nobody" if self.victim is None else f"{self.victim.name} ({self.victim.id}, {self.victim.state})"
        return f"lag {self.policy_lag}: {victim} after {self.moment:.1f} s"


def test_a_run_that_loses_any_one_job_finishes(
    cluster: DevCluster, tmp_path: Path, undisturbed: dict[int, Bits]
) -> None:
    campaigns = [Campaign(seed, tmp_path / f"run-{seed}") for seed in seeds()]
    with login_node(cluster):
        for one in campaigns:
            one.submit()
        to_come = campaigns
        while to_come:
            assert not any(one.victim is None and Run(one.run).is_finished() for one in to_come), "nobody left to lose"
            to_come = [one for one in to_come if not one.strike()]
            time.sleep(0.1)
        for one in campaigns:
            assert finish(cluster, one.run, 120) == undisturbed[one.policy_lag], str(one)
            print(one)
