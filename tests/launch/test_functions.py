"""The door `slurm`: what is pickled, how a unit's end becomes a job's, and submitit set up by the site."""

from __future__ import annotations

import os
import pickle
import shlex
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("submitit", reason="submitit is not installed (pip install 'hpcrl[slurm]')")

import submitit
from submitit.core.utils import DelayedSubmission, JobPaths

from hpcrl.errors import InputError
from hpcrl.launch.function_job import lay_out
from hpcrl.launch.function_job import main as run_function
from hpcrl.launch.functions import Functions, Segment, SegmentFailedError, executor, pickle_folder
from hpcrl.launch.request import GUARD
from hpcrl.launch.scripts import render
from hpcrl.launch.template import around
from hpcrl.scheduler.refusals import SubmissionRefusedError
from hpcrl.scheduler.site import Launch, Resources, Site
from hpcrl.signals import STOP_SIGNALS
from hpcrl.store.ledger import Ledger, Unit
from tests.launch.requests import SITES, TOKEN, kinds, make_request, surroundings
from tests.launch.test_scripts import FakeSlurm, directives

RANKS = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", "PALS_RANKID", "SLURM_PROCID")


@pytest.fixture(autouse=True)
def _a_login_node(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """srun on PATH, which submitit looks for; no rank of anything; a secret in the environment."""
    folder = tmp_path_factory.mktemp("bin")
    (folder / "srun").write_text("#!/bin/sh\nexit 1\n")
    (folder / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("SECRET_TOKEN", "token-of-a-secret-service-8c1f")
    for name in RANKS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[Any]]:
    """Puts a function in place of run_job and run_guard that returns a code; gives the list of their calls."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}

    def replace(code: int) -> list[Any]:
        calls: list[Any] = []

        def run_job(path: Path, **given: Any) -> int:
            calls.append((path, given))
            return code

        job = types.ModuleType("hpcrl.launch.job")
        job.run_job = job.run_guard = run_job  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "hpcrl.launch.job", job)
        return calls

    yield replace
    for number, handler in before.items():
        signal.signal(number, handler)


class TestSegment:
    def test_nothing_else_is_pickled(self) -> None:
        payload = pickle.dumps(DelayedSubmission(Segment("/runs/p", "play", 17, 2, 1000)))
        assert b"token-of-a-secret" not in payload
        assert len(payload) < 400
        assert pickle.loads(payload).function == Segment("/runs/p", "play", 17, 2, 1000)

    def test_plays_the_unit(self, play: Callable[[int], list[Any]]) -> None:
        calls = play(0)
        assert Segment("/runs/p", "play", 17, 2, 1000)() == 0
        given = {"segment": "play", "iteration": 17, "number": 2, "first_element": 1000}
        assert calls == [(Path("/runs/p"), given)]

    def test_plays_the_guard(self, play: Callable[[int], list[Any]]) -> None:
        calls = play(0)
        assert Segment("/runs/p", GUARD.segment, None, 3)() == 0
        assert calls == [(Path("/runs/p"), {"number": 3})]

    @pytest.mark.parametrize("code", [1, 2])
    def test_a_bad_end_is_an_error(self, play: Callable[[int], list[Any]], code: int) -> None:
        play(code)
        with pytest.raises(SegmentFailedError, match=f"exit code {code}") as caught:
            Segment("/runs/p", "play", 0, 1)()
        assert caught.value.code == code

    def test_a_requeued_job_leaves_no_result(self, play: Callable[[int], list[Any]]) -> None:
        play(85)
        with pytest.raises(SystemExit) as caught:
            Segment("/runs/p", "play", 0, 1)()
        assert caught.value.code == 85

    @pytest.mark.parametrize("variable", RANKS)
    @pytest.mark.parametrize("code", [0, 1, 2, 85])
    def test_other_ranks_leave_no_result(
        self, play: Callable[[int], list[Any]], monkeypatch: pytest.MonkeyPatch, variable: str, code: int
    ) -> None:
        play(code)
        monkeypatch.setenv("SLURM_PROCID", "0")  # as mpirun's ranks see it
        monkeypatch.setenv(variable, "1")
        with pytest.raises(SystemExit) as caught:
            Segment("/runs/p", "play", 0, 1)()
        assert caught.value.code == code

    def test_a_late_signal_changes_nothing(self, play: Callable[[int], list[Any]]) -> None:
        play(0)
        Segment("/runs/p", "play", 0, 1)()
        assert {signal.getsignal(number) for number in STOP_SIGNALS} == {signal.SIG_IGN}

    def test_a_checkpoint_is_itself(self) -> None:
        unit = Segment("/runs/p", "play", 0, 1)
        again = unit.checkpoint()
        assert (again.function, again.args, again.kwargs) == (unit, (), {})

    def test_in_process_through_submitit(self, play: Callable[[int], list[Any]], tmp_path: Path) -> None:
        play(0)
        job = submitit.AutoExecutor(tmp_path, cluster="debug").submit(Segment("/runs/p", "play", 0, 1))
        assert job.result() == 0


class TestFunctions:
    def door(self, folder: Path, site: Site | None = None) -> tuple[Functions, FakeSlurm, list[str]]:
        slurm, said = FakeSlurm(), []
        return Functions(surroundings(site or Site(), folder, ("/my modules",)), slurm, say=said.append), slurm, said

    def submit(self, folder: Path, site: Site | None = None, **changes: Any) -> tuple[str, FakeSlurm]:
        door, slurm, said = self.door(folder, site)
        request = make_request(folder, site, **changes)
        door.prepare((request,))
        assert door.submit(request) == "12"
        assert said == []
        script, arguments, *_ = slurm.calls[0]
        assert arguments == (f"{request.unit.name}-01-{request.first_element}.pkl",)
        return script.read_text(), slurm

    @pytest.mark.parametrize("kind", ["segment", "rollout", "loop", "guard"])
    @pytest.mark.parametrize("site", SITES)
    def test_asks_for_the_same_as_a_script(self, site: str, kind: str, tmp_path: Path) -> None:
        door, slurm, _ = self.door(tmp_path, SITES[site])
        request = kinds(tmp_path, SITES[site])[kind]
        door.submit(request)
        script, _, options, token, folder = slurm.calls[0]
        text = script.read_text()
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)
        resources = SITES[site].resources(request.unit.segment)
        wanted = directives(render(request, surroundings(SITES[site], tmp_path)))
        # submitit asks for a signal in any case; this one goes to steps, and a guard has none.
        signals = {("--signal", "USR2@90")} if kind == "guard" else set()
        assert asked(directives(text)) == (asked(wanted) - asked(resources.extra)) | signals
        assert asked(resources.extra) <= asked(options)
        assert (token, folder) == (TOKEN, tmp_path)

    def test_does_the_same_around_the_launch_line(self, tmp_path: Path) -> None:
        text, _ = self.submit(tmp_path)
        before, after = around(
            render(make_request(tmp_path), surroundings(Site(), tmp_path, ("/my modules",))), "launch"
        )
        assert before in text
        assert text.rstrip().endswith(after)

    def test_the_launch_line(self, tmp_path: Path) -> None:
        run = tmp_path / "it's $HOME"
        run.mkdir()
        text, _ = self.submit(run, SITES["image"])
        lines = text.splitlines()
        at = lines.index("srun --mpi=pmix \\")
        folder = shlex.quote(str(pickle_folder(run)))
        assert lines[at - 1] == "export SUBMITIT_EXECUTOR=slurm"
        assert lines[at + 1] == (
            f'  apptainer exec --nv \'my image.sif\' "$PYTHON" -m mpi4py -m hpcrl.launch.function_job {folder} "$@" &'
        )

    def test_only_its_user_can_read_the_pickles(self, tmp_path: Path) -> None:
        before = os.umask(0)
        try:
            self.submit(tmp_path)
        finally:
            os.umask(before)
        folder = pickle_folder(tmp_path)
        assert folder.stat().st_mode & 0o777 == 0o700
        assert (folder / "learn-000003-01-0.pkl").stat().st_mode & 0o777 == 0o600
        assert sorted(path.name for path in folder.iterdir()) == ["learn-000003-01-0.pkl", "learn.sh"]

    def test_the_pickle_is_the_unit(self, tmp_path: Path) -> None:
        self.submit(tmp_path, elements=(1000, 1001), first_element=1000, unit=Unit("play", 4))
        delayed = pickle.loads((pickle_folder(tmp_path) / "play-000004-01-1000.pkl").read_bytes())
        assert delayed.function == Segment(str(tmp_path), "play", 4, 1, 1000)

    def test_secrets_are_not_written(self, tmp_path: Path) -> None:
        _, slurm = self.submit(tmp_path)
        for path in tmp_path.rglob("*"):
            assert path.is_dir() or b"token-of-a-secret" not in path.read_bytes()
        assert "token-of-a-secret" not in str(slurm.calls)

    def test_edits_stay(self, tmp_path: Path) -> None:
        self.submit(tmp_path)
        script = pickle_folder(tmp_path) / "learn.sh"
        script.write_text(script.read_text() + "# mine\n")
        door, _, said = self.door(tmp_path)
        door.submit(make_request(tmp_path))
        assert script.read_text().endswith("# mine\n")
        assert said == [f"{script}: used with your edits"]

    @pytest.mark.parametrize("pattern", ["%j", "%t", "%A", "%a"])
    def test_a_folder_that_submitit_would_take_for_a_pattern(self, tmp_path: Path, pattern: str) -> None:
        door, slurm, _ = self.door(tmp_path)
        with pytest.raises(InputError, match=f"want a folder without {pattern} in its path"):
            door.submit(make_request(tmp_path / f"a{pattern}"))
        assert slurm.calls == []
        assert list(tmp_path.iterdir()) == []

    def test_a_refusal_passes(self, tmp_path: Path) -> None:
        class Refusing(FakeSlurm):
            def submit(self, *given, **options):  # type: ignore[no-untyped-def]
                raise SubmissionRefusedError("no")

        with pytest.raises(SubmissionRefusedError, match="no"):
            Functions(surroundings(Site(), tmp_path), Refusing()).submit(make_request(tmp_path))

    def test_without_slurm(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        door, _, _ = self.door(tmp_path)
        with pytest.raises(InputError, match="srun: want SLURM's commands on PATH"):
            door.submit(make_request(tmp_path))

    def test_without_submitit(self) -> None:
        code = "import sys; sys.modules['submitit'] = None; import hpcrl.launch.functions"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "InputError: --on slurm: want submitit, which is not installed; install it with pip" in done.stderr


def asked(words: Any) -> set[tuple[str, ...]]:
    """sbatch's options as (name, value), however they are quoted."""
    return {tuple(shlex.split(word)[0].split("=", 1)) for word in words}


class TestJob:
    """What the job does before submitit unpickles."""

    @pytest.fixture
    def job(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """The folder of pickles of job 12, as it is when the job starts."""
        monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
        monkeypatch.setenv("SLURM_JOB_ID", "12")
        monkeypatch.setenv("SUBMITIT_FOLDER", "")
        monkeypatch.setenv("HPCRL_EXIT_CODE_FILE", str(tmp_path / "code"))
        folder = tmp_path / "submitit"
        folder.mkdir(mode=0o700)
        (folder / "unit.pkl").write_bytes(pickle.dumps(DelayedSubmission(Segment("/runs/p", "play", 0, 1))))
        (folder / "unit.pkl").chmod(0o600)
        return folder

    def test_a_result_and_no_leftovers(self, job: Path, play: Callable[[int], list[Any]]) -> None:
        play(0)
        assert run_function([str(job), "unit.pkl"]) == 0
        assert sorted(path.name for path in job.iterdir()) == ["12_0_result.pkl", "unit.pkl"]
        assert pickle.loads((job / "12_0_result.pkl").read_bytes()) == ("success", 0)

    @pytest.mark.parametrize("code", [1, 2])
    def test_a_bad_end_is_the_jobs_code(self, job: Path, play: Callable[[int], list[Any]], code: int) -> None:
        play(code)
        assert run_function([str(job), "unit.pkl"]) == code
        kind, text = pickle.loads((job / "12_0_result.pkl").read_bytes())
        assert kind == "error"
        assert f"ended with exit code {code}" in text

    def test_a_requeued_job_starts_from_the_same_pickle(self, job: Path, play: Callable[[int], list[Any]]) -> None:
        play(85)
        with pytest.raises(SystemExit):
            run_function([str(job), "unit.pkl"])
        # What submitit leaves when it is killed as it writes a checkpoint or a result.
        for name in ("12_submitted.pkl.save_tmp", "12_0_result.pkl.save_tmp"):
            (job / name).write_bytes(b"half")
        calls = play(0)
        assert run_function([str(job), "unit.pkl"]) == 0
        assert len(calls) == 1

    @pytest.mark.parametrize("where", ["pickle", "folder"])
    def test_refuses_what_others_could_have_written(
        self, job: Path, play: Callable[[int], list[Any]], where: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        calls = play(0)
        (job / "unit.pkl" if where == "pickle" else job).chmod(0o777)
        assert run_function([str(job), "unit.pkl"]) == 2
        assert calls == []
        assert "write to" in capsys.readouterr().err
        assert (job.parent / "code").read_text() == "2\n"  # so that srun's own code does not hide it
        assert not list(job.glob("12_*"))

    def test_a_refusal_is_told_in_the_ledger_and_halts_the_run(self, tmp_path: Path, job: Path) -> None:
        folder = tmp_path / "run" / "jobs" / "submitit"
        folder.mkdir(parents=True, mode=0o700)
        pickle_ = folder / "main-loop-01-0.pkl"
        pickle_.write_bytes(b"")
        pickle_.chmod(0o666)
        assert run_function([str(folder), pickle_.name]) == 2
        ledger = Ledger(tmp_path / "run")
        assert ledger.ended(Unit("main", None), 1) == {None}
        assert "want a file that only you or root can have written" in (ledger.halted() or "")

    def test_ranks_lay_out_at_once(self, job: Path) -> None:
        paths = JobPaths(job, job_id="12")
        code = (
            "import sys; from pathlib import Path; from submitit.core.utils import JobPaths\n"
            "from hpcrl.launch.function_job import lay_out\n"
            "for _ in range(200): lay_out(Path(sys.argv[1]), JobPaths(sys.argv[2], job_id='12'))\n"
        )
        source = job / "unit.pkl"
        others = [subprocess.Popen([sys.executable, "-c", code, str(source), str(job)]) for _ in range(2)]
        assert [process.wait(timeout=60) for process in others] == [0, 0]
        lay_out(source, paths)
        assert sorted(path.name for path in job.iterdir()) == ["12_submitted.pkl", "unit.pkl"]


class TestExecutor:
    """For functions of a user's own."""

    def text(self, site: Site, folder: Path, **options: Any) -> str:
        made = executor(surroundings(site, folder, ("/my modules",)), folder / "functions", **options)
        return made._executor._make_submission_file_text("COMMAND", "")

    def test_is_set_up_as_the_site_says(self, tmp_path: Path) -> None:
        site = Site(launch=SITES["named"].launch, default=Resources(**{**vars(SITES["named"].default), "extra": ()}))
        text = self.text(site, tmp_path, ranks=4, compute_threads=2, name="evaluate")
        assert {
            *[("--account", "abc"), ("--partition", "cpu,long"), ("--qos", "normal"), ("--time", "240")],
            *[("--constraint", "skylake|cascadelake"), ("--nodes", "2"), ("--ntasks-per-node", "2")],
            *[("--cpus-per-task", "2"), ("--mem-per-cpu", "1792M"), ("--requeue",), ("--job-name", "evaluate")],
            ("--signal", "USR2@120"),
        } <= asked(directives(text))
        for line in (*site.launch.setup, "export OMP_NUM_THREADS=2", "export ATEN_CPU_CAPABILITY=avx2"):
            assert line in text.splitlines()
        assert "--mpi=pmi2 --kill-on-bad-exit=1 COMMAND" in text

    def test_gpus_and_interpreter(self, tmp_path: Path) -> None:
        launch = Launch(gres="gpu:a100:{count}", prefix="apptainer exec my.sif", mpi="mpirun")
        made = executor(surroundings(Site(launch=launch, default=Resources(gpus_per_rank=2)), tmp_path), tmp_path / "f")
        assert made._executor._submitit_command_str.startswith("apptainer exec my.sif python3 -u -m submitit.core")
        text = made._executor._make_submission_file_text("COMMAND", "")
        assert ("--gres", "gpu:a100:2") in asked(directives(text))
        assert "mpirun" not in text

    def test_further_options(self, tmp_path: Path) -> None:
        site = Site(default=Resources(extra=("--exclusive", "--mail-user=a@b.c")))
        assert {("--exclusive",), ("--mail-user", "a@b.c")} <= asked(directives(self.text(site, tmp_path)))
        with pytest.raises(InputError, match="want long options"):
            self.text(Site(default=Resources(extra=("-xn3",))), tmp_path)

    def test_its_folder_is_private(self, tmp_path: Path) -> None:
        self.text(Site(), tmp_path)
        assert (tmp_path / "functions").stat().st_mode & 0o777 == 0o700

    def test_without_slurm(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(InputError, match="srun: want SLURM's commands on PATH"):
            executor(surroundings(Site(), tmp_path), tmp_path / "functions")
