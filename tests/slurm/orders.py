"""An interpreter for jobs that obeys orders: what one job of a run does before it plays, or in place of it."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

INTERPRETER = """#!/bin/bash
# launch.python of a site file: does what a test ordered for this job, then becomes Python.
orders={orders}
python={python}
module=(hpcrl.cli) # what `-m` starts
segment=none iteration=loop number=00 pickled= before=
for word; do
  case $before in
    --segment) segment=$word ;;
    --iteration) printf -v iteration %06d "$word" ;;
    --try) printf -v number %02d "$word" ;;
  esac
  case $word in
    --guard) segment=guard ;;
    *.pkl) pickled=${{word%-*}} ;; # of the door slurm: UNIT-TRY-ELEMENT.pkl
  esac
  before=$word
done
job=${{pickled:-$segment-$iteration-$number}}${{SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}}
start=${{SLURM_RESTART_COUNT:-0}}

# meet FILE: waits until it is there
meet() {{
  for ((tick = 0; tick < 1800; tick++)); do
    [ ! -e "$1" ] || return 0
    sleep 0.1
  done
  echo "orders: $1 did not come" >&2
  exit 1
}}

# play: Python, as a child; what follows it in an order comes after it
play() {{
  "$python" "${{words[@]}}"
}}

# hang: never ends, and hears no request to stop
hang() {{
  trap '' USR1 USR2 TERM
  sleep 300
  exit 1
}}

words=()
arrange() {{
  for word; do
    if [ "$word" = hpcrl.cli ]; then words+=("${{module[@]}}"); else words+=("$word"); fi
  done
}}

touch "$orders/$job.began-$start"
[ ! -e "$orders/$job.before-$start" ] || . "$orders/$job.before-$start"
arrange "$@"
[ ! -e "$orders/$job.order-$start" ] || . "$orders/$job.order-$start"
exec "$python" "${{words[@]}}"
"""


class Orders:
    """Orders for the jobs of one run, in a folder that is made here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.python = folder / "python"
        """For `launch.python`."""
        text = INTERPRETER.format(orders=shlex.quote(str(folder)), python=shlex.quote(sys.executable))
        self.python.write_text(text)
        self.python.chmod(0o755)

    def give(self, unit: str, lines: str, *, number: int = 1, element: int | None = None, start: int = 0) -> None:
        """Has one start of one job execute shell lines; Python plays when they have ended, if they do not end the job.

        Args:
            unit: name of the unit, as in the ledger.
            number: which try.
            element: index in the job's array; None: no array.
            start: how often the job had been requeued.
        """
        (self.folder / f"{_name(unit, number, element)}.order-{start}").write_text(f"{lines}\n")

    def pause(self, unit: str, point: str, *, number: int = 1, element: int | None = None, start: int = 0) -> Pause:
        """Has one start of one job wait at a kill point ("part.before_link:2"); see paused.py."""
        file = self.folder / f"{_name(unit, number, element)}.go-{start}"
        words = shlex.join(["tests.slurm.paused", point, str(file)])
        (self.folder / f"{_name(unit, number, element)}.before-{start}").write_text(f"module=({words})\n")
        return Pause(file)

    def has_begun(self, unit: str, *, number: int = 1, element: int | None = None, start: int = 0) -> bool:
        """Whether a start of a job has got as far as its interpreter."""
        return (self.folder / f"{_name(unit, number, element)}.began-{start}").exists()


class Pause:
    """A job's waiting."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def is_reached(self) -> bool:
        """Whether the job waits, or has waited."""
        return self._file.with_name(f"{self._file.name}.reached").exists()

    def end(self) -> None:
        """Lets the job go on."""
        self._file.touch()


def _name(unit: str, number: int, element: int | None) -> str:
    return f"{unit}-{number:02d}{'' if element is None else f'_{element}'}"
