"""What hpcrl doctor found: one line each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "failed", "unknown"]


@dataclass(frozen=True)
class Finding:
    """One check.

    Example:
        >>> print(Finding("failed", "GPUs", "SLURM gave 1, PyTorch sees none"))
        failed   GPUs: SLURM gave 1, PyTorch sees none
    """

    verdict: Verdict
    name: str
    words: str
    """What was seen; where something is wrong, also what to do."""

    def __str__(self) -> str:
        return f"{self.verdict:<8} {self.name}: {' '.join(self.words.split())}"


def judged(troubles: list[str], name: str, fine: str, remedy: str) -> Finding:
    """ok when there is no trouble; else the troubles and what to do."""
    return Finding("failed", name, f"{'; '.join(troubles)}; {remedy}") if troubles else Finding("ok", name, fine)
