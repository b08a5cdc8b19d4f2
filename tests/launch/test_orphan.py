"""A rank whose parent has died ends by itself, after some grace."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

CHILD = """
import time
from hpcrl.launch.orphan import end_when_orphaned
end_when_orphaned({grace}, poll_seconds=0.02)
print("watched", flush=True)
time.sleep({seconds})
open({path!r}, "w").close()
"""
PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"


def start(grace: float, seconds: float, path: Path) -> subprocess.Popen[str]:
    """A process with a child that watches it, works for some seconds, then leaves a file."""
    child = CHILD.format(grace=grace, seconds=seconds, path=str(path))
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, child], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "watched\n"
    return process


def session_is_empty(process: subprocess.Popen[str]) -> bool:
    """Whether nobody is left whom a process has started."""
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return True
    return False


def wait_until_empty(process: subprocess.Popen[str], seconds: float) -> float:
    """How long it took."""
    began = time.monotonic()
    while not session_is_empty(process):
        assert time.monotonic() - began < seconds
        time.sleep(0.02)
    return time.monotonic() - began


def test_an_orphan_ends_after_the_grace(tmp_path: Path) -> None:
    process = start(0.5, 60.0, tmp_path / "done")
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    assert wait_until_empty(process, 20) > 0.4
    assert not (tmp_path / "done").exists()


def test_an_orphan_may_finish_within_the_grace(tmp_path: Path) -> None:
    process = start(60.0, 0.5, tmp_path / "done")
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    wait_until_empty(process, 20)
    assert (tmp_path / "done").exists()


def test_who_has_a_parent_is_left_alone(tmp_path: Path) -> None:
    process = start(0.0, 1.0, tmp_path / "done")
    assert process.wait(20) == 0
    assert (tmp_path / "done").exists()
