"""What every benchmark script shares: interleaved repeats, and one way to print and keep a result.

A script measures, builds a `Result` and hands it to `Bench.publish`, which prints a table and, with `--json`,
merges the result under its name into `benchmarks/results/<hardware>.json`. A result carries the command, the date,
the machine and how busy the machine was.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from machine import CpuUse, hardware_facts, hardware_name

T = TypeVar("T")
Row = Mapping[str, object]

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True, kw_only=True)
class Result:
    """One named measurement, ready to be printed and kept.

    `wanted` is the limit in words ("at most 0.5"), `ratio` the figure it is held against, `met` whether it holds
    (None: this result has no limit of its own).
    """

    name: str
    rows: Sequence[Row]
    peer: str
    ratio: float | None = None
    wanted: str | None = None
    met: bool | None = None
    notes: Sequence[str] = field(default_factory=tuple)


def add_arguments(parser: argparse.ArgumentParser, *, repeats: int | None = 5) -> None:
    """Adds the options that all benchmark scripts have: `--json`, and `--repeats` unless `repeats` is None."""
    if repeats is not None:
        parser.add_argument("--repeats", type=int, default=repeats, help="repeats of each candidate, interleaved")
    parser.add_argument(
        "--json",
        type=Path,
        nargs="?",
        const=default_results_path(),
        default=None,
        metavar="PATH",
        help="merge the result into this file (without PATH: benchmarks/results/<hardware>.json)",
    )


def default_results_path() -> Path:
    """The committed results of this machine, e.g. `benchmarks/results/xeon-sapphire-rapids-2core.json`."""
    return RESULTS / f"{hardware_name()}.json"


def interleave(candidates: Mapping[str, Callable[[], T]], *, repeats: int, warmups: int = 0) -> dict[str, list[T]]:
    """Calls the candidates in turn, `repeats` rounds, so that a disturbance of the machine falls on all of them.

    Every second round runs in the opposite order: nobody is always the first after a pause.
    """
    outcomes: dict[str, list[T]] = {name: [] for name in candidates}
    for _ in range(warmups):
        for candidate in candidates.values():
            candidate()
    for round_number in range(repeats):
        names = list(candidates)
        for name in names if round_number % 2 == 0 else reversed(names):
            outcomes[name].append(candidates[name]())
    return outcomes


def seconds_per_call(call: Callable[[], object], *, at_least_seconds: float = 0.05) -> float:
    """Wall seconds of one call, averaged over as many calls as fill `at_least_seconds`."""
    calls, began = 0, time.perf_counter()
    while True:
        call()
        calls += 1
        elapsed = time.perf_counter() - began
        if elapsed >= at_least_seconds:
            return elapsed / calls


def spread(samples: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest of some samples."""
    return {"median": statistics.median(samples), "min": min(samples), "max": max(samples)}


class Bench:
    """A script's run: keeps its start, so that a result can say when it ran and how busy the machine was meanwhile.

    Example:
        >>> bench = Bench()                                                           # doctest: +SKIP
        >>> bench.publish(Result(name="shards", rows=rows, peer="np.save"), arguments.json)   # doctest: +SKIP
    """

    def __init__(self) -> None:
        self._began = datetime.now(UTC)
        self._cpu_use = CpuUse()

    def publish(self, result: Result, json_path: Path | None) -> None:
        """Prints the table of a result and merges it into `json_path` if one is given."""
        record = self._record(result)
        print_table(result, record)
        if json_path is not None:
            merge(record, json_path)
            print(f"written to {json_path}")

    def _record(self, result: Result) -> dict[str, object]:
        return {
            "name": result.name,
            "command": " ".join(["python", *map(shlex.quote, [_shown(sys.argv[0]), *sys.argv[1:]])]),
            "date": self._began.isoformat(timespec="seconds"),
            "hardware": hardware_facts(),
            "cpu_share_of_others": round(self._cpu_use.share_of_others(), 3),
            "environment": {name: os.environ[name] for name in _THREAD_VARIABLES if name in os.environ},
            "rows": [{key: _finite(value) for key, value in row.items()} for row in result.rows],
            "peer": result.peer,
            "ratio": _finite(result.ratio),
            "wanted": result.wanted,
            "met": result.met,
            "notes": list(result.notes),
        }


_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "HPCRL_ISA", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")


def _finite(value: object) -> object:
    """JSON has no infinity: what never ended is null in a file."""
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def merge(record: Mapping[str, object], path: Path) -> None:
    """Puts one record under its name into a results file; the others stay as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = json.loads(path.read_text()) if path.exists() else {}
    kept[str(record["name"])] = dict(record)
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")
    os.replace(beside, path)


def print_table(result: Result, record: Mapping[str, object]) -> None:
    """Prints a result: rich on a terminal, aligned plain text in a log."""
    columns = list(dict.fromkeys(key for row in result.rows for key in row if not isinstance(row[key], (list, dict))))
    cells = [[_shown_value(row.get(column)) for column in columns] for row in result.rows]
    if sys.stdout.isatty():
        _print_rich(result.name, columns, cells)
    else:
        widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
        for line in [columns, *cells]:
            print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    for note in result.notes:
        print(f"note: {note}")
    if result.ratio is not None:
        verdict = {True: "met", False: "NOT met", None: "no limit"}[result.met]
        print(f"{result.name}: {result.ratio:.3g} against {result.peer}; wanted {result.wanted or '-'}: {verdict}")
    print(f"CPU time of other processes meanwhile: {float(str(record['cpu_share_of_others'])):.0%} of the machine")


def _print_rich(title: str, columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="right")
    for line in cells:
        table.add_row(*line)
    Console().print(table)


def _shown_value(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _shown(path: str) -> str:
    """A path as one would type it in the repository's root: no absolute path of this machine enters a result."""
    root = RESULTS.parent.parent
    resolved = Path(path).resolve()
    return str(resolved.relative_to(root)) if resolved.is_relative_to(root) else Path(path).name
