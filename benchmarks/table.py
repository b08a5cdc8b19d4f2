"""Writes README's table of speeds from benchmarks/results/*.json; `--check` only says whether it is up to date.

A row per result that has a limit: what, the figure, the limit, whether it is met, and others' CPU share.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- speed -->\n", "<!-- /speed -->"


def rows(path: Path) -> Iterator[str]:
    """Markdown rows of one machine's results."""
    results: dict[str, dict[str, Any]] = json.loads(path.read_text())
    for name, result in sorted(results.items()):
        if result["wanted"] is None:
            continue
        met = {True: "yes", False: "**no**", None: "-"}[result["met"]]
        ratio = "-" if result["ratio"] is None else f"{result['ratio']:.3g}"
        command = f"`{result['command']}`"
        busy = f"{result['cpu_share_of_others']:.0%}"
        yield f"| {name} | {ratio} | {result['peer']} | {result['wanted']} | {met} | {busy} | {command} |"


def table() -> str:
    """All machines' tables."""
    parts = []
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        lines = list(rows(path))
        if not lines:
            continue
        head = "| what | ratio | beside | wanted | met | others' CPU share | command |\n|---|---|---|---|---|---|---|"
        parts.append(f"On {path.stem} (benchmarks/results/{path.name}):\n\n{head}\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when the table is out of date")
    arguments = parser.parse_args()
    readme = ROOT / "README.md"
    text = readme.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    written = f"{before}{BEGIN}{table()}{END}{after}"
    if arguments.check:
        if written != text:
            print("README.md: the table of speeds is out of date; run python benchmarks/table.py", file=sys.stderr)
        return int(written != text)
    readme.write_text(written)
    return 0


if __name__ == "__main__":
    sys.exit(main())
