"""Lustre: a hint about striping, where a run folder lies on it."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path

_MOUNTS = Path("/proc/mounts")


def striping_hint(run: Path, environment: Mapping[str, str], mounts: str | None = None) -> str | None:
    """One line about striping, when a folder lies on Lustre and its tool `lfs` is on PATH; else None.

    A run's files are written by one rank each, and most are small: one stripe each spares the servers work.
    Args:
        run: the run folder, absolute.
        mounts: what is mounted, as /proc/mounts tells it; None: that file.
    Example:
        >>> striping_hint(Path("/home/me/runs/p"), {"PATH": ""}, "server:/home /home lustre rw 0 0") is None
        True
    """
    if shutil.which("lfs", path=environment.get("PATH", "")) is None:
        return None
    try:
        told = _MOUNTS.read_text(encoding="utf-8", errors="replace") if mounts is None else mounts
    except OSError:
        return None  # another system than Linux
    if _file_system(run, told) != "lustre":
        return None
    command = f"lfs setstripe --stripe-count 1 {shlex.quote(str(run))}"
    return f"{run} lies on Lustre: its files are small, or written by one rank each; one stripe each is best: {command}"


def _file_system(path: Path, mounts: str) -> str:
    """Type of the file system on which a path lies: that of the longest mount point above it."""
    found, longest = "", -1
    for line in mounts.splitlines():
        words = line.split()
        if len(words) < 3:
            continue
        # Blanks in a mount point are written in octal.
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), words[1])
        if path.is_relative_to(point) and len(point) > longest:
            found, longest = words[2], len(point)
    return found
