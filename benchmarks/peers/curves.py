"""Learning curves as files: one JSON per tool and task, one curve per seed."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Curve:
    """Mean return of the episodes that ended within each window of environment steps.

    Example:
        >>> curve = Curve(tool="mine", env="Hopper-v5", seed=0, window=100)
        >>> curve.add(40, 10.0, 0.1); curve.add(90, 20.0, 0.2); curve.add(150, 30.0, 0.3); curve.close(200, 0.4)
        >>> [(point["steps"], point["mean_return"]) for point in curve.points]
        [(100, 15.0), (200, 30.0)]
    """

    tool: str
    env: str
    seed: int
    window: int
    seconds: float = 0.0
    points: list[dict[str, float]] = field(default_factory=list)
    _open: list[float] = field(default_factory=list)
    _open_end: int = 0

    def add(self, steps: int, episode_return: float, seconds: float) -> None:
        """An episode ended after `steps` environment steps and `seconds` of training."""
        self._open_end = self._open_end or self.window
        while steps > self._open_end:
            self._finish_window(seconds)
        self._open.append(episode_return)

    def close(self, steps: int, seconds: float) -> None:
        """The training ended; the last window is finished even if it is short."""
        if self._open:
            self._open_end = min(self._open_end, max(steps, 1))
            self._finish_window(seconds)
        self.seconds = seconds

    def _finish_window(self, seconds: float) -> None:
        if self._open:
            mean = sum(self._open) / len(self._open)
            self.points.append(
                {
                    "steps": self._open_end,
                    "mean_return": round(mean, 2),
                    "episodes": len(self._open),
                    "seconds": round(seconds, 1),
                }
            )
        self._open.clear()
        self._open_end += self.window

    def plain(self) -> dict[str, Any]:
        """The curve as JSON values."""
        return {name: value for name, value in asdict(self).items() if not name.startswith("_")}


def add_curve(curve: Curve, path: Path) -> None:
    """Adds a curve to a file; one of the same tool, task and seed is replaced."""
    kept = [other for other in read_curves(path) if _key(other) != _key(curve.plain())]
    curves = sorted([*kept, curve.plain()], key=_key)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".tmp")
    beside.write_text("[\n" + ",\n".join(json.dumps(each) for each in curves) + "\n]\n")
    os.replace(beside, path)


def read_curves(path: Path) -> list[dict[str, Any]]:
    """All curves of a file; none if there is no file yet."""
    return json.loads(path.read_text()) if path.exists() else []


def _key(curve: dict[str, Any]) -> tuple[str, str, int]:
    return curve["tool"], curve["env"], curve["seed"]
