"""SLURM's commands as scripts that print what a test lays out for them, and write down how they were called."""

from __future__ import annotations

import os
from pathlib import Path

RECORDED = Path(__file__).parent / "recorded"

_SCRIPT = """#!/bin/sh
cd {folder}
n=$(($(cat {name}.count 2>/dev/null || echo 0) + 1))
echo $n > {name}.count
for word in "$@"; do printf '%s\\n' "$word"; done > {name}.call.$n
env > {name}.env
answer={name}.answer.$n
[ -e $answer.code ] || answer={name}.answer
cat $answer.out
cat $answer.err >&2
[ -e $answer.sleep ] && sleep $(cat $answer.sleep)
code=$(cat $answer.code)
case $code in -*) kill $code $$ ;; esac
exit $code
"""


class FakeCommands:
    """A folder of commands. What is not laid out is not on PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir(parents=True)
        self.environment = {"PATH": f"{self.bin}{os.pathsep}/usr/bin{os.pathsep}/bin", "HOME": str(folder)}
        for program in ("cat", "sleep", "env"):
            (self.bin / program).symlink_to(
                f"/bin/{program}" if Path(f"/bin/{program}").exists() else f"/usr/bin/{program}"
            )
        self.environment["PATH"] = str(self.bin)

    def answer(
        self,
        name: str,
        output: str = "",
        *,
        complaint: str = "",
        code: int = 0,
        call: int | None = None,
        sleep: float = 0,
    ) -> None:
        """Lays out what a command answers: at its call number `call`, or (None) at every other call.

        Args: code: exit code; negative: the signal that ends it.
        """
        script = self.bin / name
        if not script.exists():
            script.write_text(_SCRIPT.format(folder=self.folder, name=name))
            script.chmod(0o755)
            self.answer(name)
        prefix = f"{name}.answer" if call is None else f"{name}.answer.{call}"
        for suffix, text in (("out", output), ("err", complaint), ("code", str(code))):
            (self.folder / f"{prefix}.{suffix}").write_text(text, newline="")
        if sleep:
            (self.folder / f"{prefix}.sleep").write_text(str(sleep))

    def answer_as_recorded(self, name: str, file: str, *, call: int | None = None) -> None:
        """Lays out what a real command once printed."""
        text, code = recorded(file)
        if code == 0:
            self.answer(name, text, call=call)
        else:
            self.answer(name, complaint=text, code=code, call=call)

    def calls(self, name: str) -> list[list[str]]:
        """The words of every call of a command, in order."""
        count = self.folder / f"{name}.count"
        number = int(count.read_text()) if count.exists() else 0
        return [(self.folder / f"{name}.call.{n + 1}").read_text().split("\n")[:-1] for n in range(number)]

    def seen_environment(self, name: str) -> dict[str, str]:
        """The variables of its last call."""
        lines = (self.folder / f"{name}.env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)


def recorded_jobs() -> dict[str, str]:
    """What a recorded job shows ("timeout", "held_by_user", ...) -> its id."""
    lines = (RECORDED / "jobs.txt").read_text().splitlines()
    return dict(line.split() for line in lines)


def recorded(file: str) -> tuple[str, int]:
    """What a command printed, and its exit code."""
    head, _, text = (RECORDED / f"{file}.txt").read_text().partition("\n")
    return text, int(head.rpartition("exit code ")[2])
