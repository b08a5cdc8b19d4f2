"""Records what SLURM's commands print, for tests that run without a cluster: python -m tests.scheduler.record

Brings up slurm/dev-cluster (as root: some states need an administrator), makes jobs end in every way it can, and writes
one file per answer into tests/scheduler/recorded/. Takes about three minutes. The first line of a file is the command.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import signal
import sys
import time
from pathlib import Path

from hpcrl.scheduler.jobs import ACCOUNTING_FIELDS, FIELD_END, queue_format
from hpcrl.scheduler.nodes import PARTITION_FORMAT
from tests.slurm.dev_cluster import DevCluster

FOLDER = Path(__file__).parent / "recorded"
SQUEUE = ("squeue", "--noheader", "--states=all", f"--Format={queue_format()}")
SACCT = (
    *("sacct", "--noheader", "--allocations", "--duplicates", "--parsable2"),
    *(f"--delimiter={FIELD_END}", f"--format={','.join(ACCOUNTING_FIELDS)}"),
)
READING = ("env", "SLURM_BITSTR_LEN=0", "SLURM_TIME_FORMAT=%s", "SQUEUE_ARRAY_UNIQUE=1")

REFUSALS = {
    "partition": ("--partition=nowhere",),
    "account": ("--account=nobody",),
    "qos": ("--qos=nothing",),
    "array": ("--array=0-5000",),
    "time": ("--time=30-00:00:00",),
    "nodes": ("--nodes=50",),
    "cpus": ("--cpus-per-task=64",),
    "memory": ("--mem=900G",),
    "gpus": ("--gres=gpu:9",),
    "gres": ("--gres=unicorn:1",),
    "feature": ("--constraint=golden",),
    "option": ("--no-such-option",),
    "limit": ("--qos=few", "--array=0-3"),
}


class Recorder:
    """A cluster, and the files that its answers go to."""

    def __init__(self, cluster: DevCluster) -> None:
        self.cluster = cluster
        self.script = cluster.folder / "job.sbatch"
        self.script.write_text("#!/bin/bash\n#SBATCH --output=/dev/null\n#SBATCH --time=10\nsleep $1; exit ${2:-0}\n")

    def record(self, name: str, *command: str) -> None:
        """Runs a command and keeps what it printed, or if nothing, what it complained of."""
        done = self.cluster.run(*READING, *command)
        shown = shlex.join(word.replace(str(self.script), "job.sbatch") for word in command)
        shown = shown.replace(FIELD_END, "\\x1f").replace("\x1e", "\\x1e")
        text = done.stdout or done.stderr
        text = text.replace(str(self.cluster.folder), "CLUSTER")
        text = re.sub(rf"\b{re.escape(platform.node())}\b", "HOST", text)
        (FOLDER / f"{name}.txt").write_text(f"# {shown}; exit code {done.returncode}\n{text}", newline="")

    def submit(self, seconds: float, code: int = 0, *options: str) -> str:
        """A job that sleeps and ends with a code."""
        words = [
            "sbatch",
            "--parsable",
            "--comment=hpcrl recorded",
            *options,
            str(self.script),
            str(seconds),
            str(code),
        ]
        return self.cluster.output(*words)


def record_all(recorder: Recorder) -> None:
    """Every answer, the slow ones together."""
    cluster, submit = recorder.cluster, recorder.submit
    recorder.record("sinfo", "sinfo", "--noheader", "--exact", f"--format={PARTITION_FORMAT}")
    recorder.record("config", "scontrol", "show", "config")
    for name, options in REFUSALS.items():
        recorder.record(f"refused_{name}", "sbatch", "--parsable", *options, str(recorder.script), "1")
    recorder.record(
        "unknown_dependency", "sbatch", "--parsable", "--dependency=afterok:999999", str(recorder.script), "0"
    )
    jobs = {
        "timeout": submit(300, 0, "--time=1"),
        "completed": submit(0),
        "failed": submit(0, 7),
        "refused": submit(0, 2),
        "held_by_user": submit(0, 0, "--hold"),
        "held_by_admin": submit(0, 0, "--hold"),
        "begin": submit(0, 0, "--begin=now+1hour"),
        "deadline": submit(0, 0, "--begin=now+20", "--deadline=now+1minute", "--time=1"),
    }
    cluster.output("scontrol", "release", jobs["held_by_admin"])
    cluster.output("scontrol", "hold", jobs["held_by_admin"])
    jobs["array"] = submit(8, 0, "--array=0-8:2%1")
    jobs["steps"] = submit(0, 0, "--hold", "--array=0-999:3")
    jobs["never"] = submit(0, 0, f"--dependency=afterok:{jobs['failed']}")
    jobs["dependency"] = submit(0, 0, f"--dependency=afterany:{jobs['timeout']}")
    jobs["suspended"] = submit(300, 0, "--nodelist=n4")
    cluster.wait_for_state(jobs["suspended"], "RUNNING", 30)
    cluster.output("scontrol", "suspend", jobs["suspended"])
    jobs["cancelled"], jobs["requeued"] = submit(300), submit(300)
    cluster.wait_for_state(jobs["cancelled"], "RUNNING", 30)
    cluster.wait_for_state(jobs["requeued"], "RUNNING", 30)
    cluster.output("scancel", jobs["cancelled"])
    cluster.output("scontrol", "requeue", jobs["requeued"])
    time.sleep(3)
    everything = ["--jobs=" + ",".join(jobs.values())]
    recorder.record("squeue_early", *SQUEUE, *everything)
    recorder.record("requeue_finished", "scontrol", "requeue", jobs["completed"])
    recorder.record("requeue_pending", "scontrol", "requeue", jobs["begin"])
    recorder.record("cancel_finished", "scancel", jobs["completed"])
    recorder.record("cancel_unknown", "scancel", "999999")
    recorder.record("squeue_unknown", *SQUEUE, "--jobs=999999")
    recorder.record("time_left", "squeue", "--noheader", f"--Format=TimeLeft:0{FIELD_END}", f"--jobs={jobs['timeout']}")
    record_driven_out(recorder, jobs)
    everything = ["--jobs=" + ",".join(jobs.values())]
    (FOLDER / "jobs.txt").write_text("".join(f"{name} {job}\n" for name, job in jobs.items()))
    cluster.wait_for_state(jobs["timeout"], "TIMEOUT", 150)
    time.sleep(5)
    recorder.record("squeue_late", *SQUEUE, *everything)
    recorder.record("sacct", *SACCT, *everything)
    recorder.record("sacct_by_user", *SACCT, "--user=0", "--starttime=now-2days")
    os.kill(int((cluster.folder / "run" / "slurmdbd.pid").read_text()), signal.SIGTERM)
    time.sleep(2)
    recorder.record("sacct_down", *SACCT, "--jobs=1")
    cluster.stop_controller()
    recorder.record("squeue_down", *SQUEUE)
    recorder.record("sbatch_down", "sbatch", "--parsable", str(recorder.script), "1")
    cluster.start_controller()


def record_driven_out(recorder: Recorder, jobs: dict[str, str]) -> None:
    """Jobs that lose their nodes and may not come back."""
    cluster, submit = recorder.cluster, recorder.submit
    jobs["node_fail"] = submit(300, 0, "--no-requeue", "--nodelist=n1")
    jobs["preempted"] = submit(300, 0, "--no-requeue", "--nodelist=n2", "--exclusive")
    for name in ("node_fail", "preempted"):
        cluster.wait_for_state(jobs[name], "RUNNING", 60)
    submit(1, 0, "--partition=urgent", "--nodelist=n2", "--exclusive")
    cluster.crash_node(1, whole=True)
    cluster.wait_for_state(jobs["node_fail"], "NODE_FAIL", 120)
    cluster.wait_for_state(jobs["preempted"], "PREEMPTED", 60)
    cluster.start_node(1)


def record_without_accounting() -> None:
    """What sacct says where there is none."""
    cluster = DevCluster("--no-accounting")
    try:
        Recorder(cluster).record("sacct_off", *SACCT, "--jobs=1")
    finally:
        cluster.down()


def main() -> int:
    """Records; returns 0."""
    FOLDER.mkdir(exist_ok=True)
    record_without_accounting()
    cluster = DevCluster()
    try:
        record_all(Recorder(cluster))
    finally:
        cluster.down()
    return 0


if __name__ == "__main__":
    sys.exit(main())
