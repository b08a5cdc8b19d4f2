"""`hpcrl logs`: which file, which lines, and following one until its job has ended."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from hpcrl.cli import main
from hpcrl.errors import InputError
from hpcrl.launch.logs import find_log, follow_log, list_text, log_text, print_logs, read_end
from tests.report.job_run import JobRun


@pytest.fixture
def played(tmp_path: Path) -> JobRun:
    """Two rollouts (arrays 1 and 3), one update (job 2) and a guard (job 4), written in that order."""
    run = JobRun(tmp_path / "run", iterations=2)
    run.submit("rollout", 0, "1", -300.0, elements=(0, 1))
    run.submit("generate", 0, "2", -300.0)
    run.submit("rollout", 1, "3", -200.0, elements=(0, 1))
    run.submit("guard", None, "4", -100.0)
    for age, name in (
        (250, "rollout_1_0"),
        (240, "rollout_1_1"),
        (150, "generate_2"),
        (90, "rollout_3_1"),
        (10, "guard_4"),
    ):
        write_log(run, name, f"{name} begins\n{name} ends\n", age)
    return run


def write_log(run: JobRun, name: str, text: str, age: float = 0.0) -> Path:
    path = run.path / "logs" / f"{name}.out"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    os.utime(path, (run.now - age, run.now - age))
    return path


@pytest.mark.parametrize(
    ("what", "name"),
    [
        (None, "rollout_3_1"),  # not the guard, which only repairs
        ("guard", "guard_4"),
        ("rollout", "rollout_3_1"),
        ("generate", "generate_2"),
        ("update", "generate_2"),  # a stage of that segment
        ("1", "rollout_1_1"),
        ("1_0", "rollout_1_0"),
        ("rollout-000000", "rollout_1_1"),
        ("guard-loop", "guard_4"),
    ],
)
def test_the_newest_log_of_what_was_asked_for(played: JobRun, what: str | None, name: str) -> None:
    assert find_log(played.path, what).path.name == f"{name}.out"
    assert log_text(played.path, what, lines=1) == f"{name} ends\n"


def test_the_command_prints_the_end_and_names_the_file(played: JobRun, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", str(played.path), "generate", "--lines", "1"]) == 0
    assert capsys.readouterr().out == f"==> {played.path}/logs/generate_2.out <==\ngenerate_2 ends\n"


def test_the_list_has_the_newest_first(played: JobRun, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", str(played.path), "rollout", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [Path(line.split()[0]).name for line in lines] == ["rollout_3_1.out", "rollout_1_1.out", "rollout_1_0.out"]
    assert re.fullmatch(r"36 bytes  1 min 3\d s ago *", lines[0].split(maxsplit=1)[1])
    assert "guard_4.out" not in list_text(played.path)


def test_files_of_other_names_are_no_logs(played: JobRun) -> None:
    write_log(played, "notes", "mine")
    assert find_log(played.path, None).path.name == "rollout_3_1.out"


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("rolout", "given 'rolout'; there are logs of generate, guard, rollout, and stages rollout, generate, score, "),
        ("99", "given '99'"),
        ("rollout-000007", "given 'rollout-000007'"),
    ],
)
def test_what_has_no_log_is_refused(played: JobRun, what: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", str(played.path), what]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert words in printed.err


def test_a_stage_whose_job_has_not_started(played: JobRun) -> None:
    (played.path / "logs/generate_2.out").unlink()
    with pytest.raises(InputError, match=r"want a log of stage 'update' \(segment 'generate'\), given none yet"):
        find_log(played.path, "update")


def test_a_run_that_was_never_submitted(tmp_path: Path) -> None:
    """No job will start, so none is promised."""
    run = JobRun(tmp_path / "my run", iterations=1, loop=True)
    run.ledger.path.rmdir()
    with pytest.raises(InputError, match=r"want a run that was submitted, given one that was not; .* status '.*'$"):
        find_log(run.path, None)


def test_a_run_without_logs_and_a_folder_without_a_run(tmp_path: Path) -> None:
    run = JobRun(tmp_path / "run", iterations=1)
    with pytest.raises(InputError, match=r"want a log, given none; one appears when a job starts: hpcrl status "):
        find_log(run.path, None)
    with pytest.raises(InputError, match="want a run folder"):
        find_log(tmp_path, None)


def test_a_number_of_lines_below_one_is_refused(played: JobRun) -> None:
    with pytest.raises(InputError, match=r"--lines: want a whole number >= 1, given 0"):
        print_logs(played.path, lines=0)


def test_stages_of_a_loop_lie_in_its_one_log(tmp_path: Path) -> None:
    run = JobRun(tmp_path / "run", loop=True)
    write_log(run, "main_5", "playing\n")
    assert find_log(run.path, "advantage").path.name == "main_5.out"


@pytest.mark.parametrize("length", [0, 1, 3, 65_535, 65_536, 65_537, 200_000])
@pytest.mark.parametrize("lines", [1, 2, 50, 10**6])
def test_the_end_of_a_file_of_any_length(tmp_path: Path, length: int, lines: int) -> None:
    path = tmp_path / "x.out"
    whole = [f"line {number}, größer\n" for number in range(length // 10)] + (["cut short"] if length % 2 else [])
    path.write_text("".join(whole))
    text, position = read_end(path, lines)
    wanted = "".join(whole[-lines:])
    assert text == (wanted if wanted.endswith("\n") or not wanted else wanted + "\n")
    assert position == path.stat().st_size


def test_following_prints_what_is_appended_until_the_job_has_ended(
    played: JobRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = played.path / "logs/generate_2.out"
    polls = 0

    def sleep(_: float) -> None:
        nonlocal polls
        polls += 1
        assert polls < 100, "it goes on though the job has ended"
        if polls == 2:
            with path.open("ab") as file:
                file.write("still gr\xc3".encode("latin-1"))
        if polls == 4:
            with path.open("ab") as file:
                file.write("\xb6wing\n".encode("latin-1"))
        if polls == 10:
            with path.open("a") as file:
                file.write("last words\n")
            played.end(next(iter(played.ledger.all_tries("-generate-"))), 0.0)

    monkeypatch.setattr("hpcrl.launch.logs.time.sleep", sleep)
    assert print_logs(played.path, "2", lines=1, follow=True) == 0
    assert capsys.readouterr().out == f"==> {path} <==\ngenerate_2 ends\nstill gröwing\nlast words\n"
    assert polls >= 10


def test_following_ends_at_ctrl_c(
    played: JobRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hpcrl.launch.logs.time.sleep", interrupt)
    assert print_logs(played.path, "rollout", lines=1, follow=True) == 0
    assert capsys.readouterr().out.endswith("rollout_3_1 ends\n\n")


def test_of_an_array_only_the_elements_own_end_counts(played: JobRun) -> None:
    """Log rollout_3_1 is element 1: following it goes on when element 0 has ended."""
    log = find_log(played.path, "3_1")
    unit = next(unit for unit in played.ledger.all_tries("-rollout-") if unit.iteration == 1)
    played.end(unit, 0.0, element=0)
    polls = 0

    def sleep(_: float) -> None:
        nonlocal polls
        polls += 1
        if polls == 9:
            played.end(unit, 0.0, element=1)

    from hpcrl.launch.logs import _end_of

    assert list(follow_log(log.path, log.bytes, _end_of(played.path, log), sleep)) == []
    assert polls >= 9
