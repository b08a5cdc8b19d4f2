"""The door `sbatch`: templates, rendering, what a script does with codes and signals, and who may have written it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from hpcrl.errors import InputError
from hpcrl.launch.lustre import striping_hint
from hpcrl.launch.ranks import THREAD_VARIABLES
from hpcrl.launch.request import GUARD, Request
from hpcrl.launch.sbatch_options import directive, submission_options
from hpcrl.launch.scripts import Scripts, render, script_path, template_name
from hpcrl.launch.template import around, fill, template
from hpcrl.scheduler.site import Launch, Resources, Site
from hpcrl.scheduler.slurm import Slurm
from hpcrl.store.ledger import Unit
from tests.launch.requests import SITES, TOKEN, kinds, make_request, surroundings

ROOT = Path(__file__).parents[2]
TEMPLATES = sorted(path.stem for path in (ROOT / "hpcrl" / "launch" / "templates").glob("*.sbatch"))
RANKED = ("loop", "rollout", "segment", "update-gpu")
REGIONS = ["resources", "run", "site", "launch"]


def regions_of(text: str) -> list[str]:
    return re.findall(r"^# >>> hpcrl (\w+)", text, re.MULTILINE)


def directives(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")]


class FakeSlurm(Slurm):
    """Remembers what was submitted."""

    def __init__(self) -> None:
        super().__init__({"PATH": ""})
        self.calls: list[tuple[Any, ...]] = []

    def submit(self, script, arguments=(), options=(), *, token=None, folder=None):  # type: ignore[no-untyped-def]
        self.calls.append((script, tuple(arguments), tuple(options), token, folder))
        return "12"


class TestTemplates:
    def test_all_are_there(self) -> None:
        assert TEMPLATES == ["chain", "guard", "loop", "rollout", "segment", "update-gpu"]

    @pytest.mark.parametrize("name", TEMPLATES)
    def test_is_a_valid_script_of_its_own(self, name: str) -> None:
        subprocess.run(["bash", "-n"], input=template(name), text=True, check=True)
        assert "--time=60" in template(name) or name in ("chain", "guard")

    @pytest.mark.parametrize("name", TEMPLATES)
    def test_the_examples_folder_has_it_too(self, name: str) -> None:
        link = ROOT / "slurm" / f"{name}.sbatch"
        assert link.is_symlink()
        assert not os.readlink(link).startswith("/")
        assert link.read_text() == template(name)

    @pytest.mark.parametrize("name", TEMPLATES)
    def test_markers_come_in_pairs(self, name: str) -> None:
        text = template(name)
        assert regions_of(text) == (REGIONS if name != "chain" else REGIONS[:2])
        assert re.findall(r"^# <<< hpcrl (\w+)$", text, re.MULTILINE) == regions_of(text)

    @pytest.mark.parametrize("name", TEMPLATES)
    def test_holds_no_python_but_the_launch_line(self, name: str) -> None:
        lines = [line for line in template(name).splitlines() if '"$PYTHON"' in line]
        assert len(lines) == (0 if name == "chain" else 1)

    def test_they_differ_only_between_markers(self) -> None:
        bodies = set()
        for name in RANKED:
            text = fill(template(name), dict.fromkeys(REGIONS, ()))
            bodies.add(text[text.index("# >>> hpcrl resources") :])
        assert len(bodies) == 1

    @pytest.mark.parametrize("name", [*RANKED, "guard"])
    def test_sets_every_thread_variable(self, name: str) -> None:
        for variable in THREAD_VARIABLES:
            assert f"{variable}=$THREADS" in template(name)

    @pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed (a Debian package)")
    @pytest.mark.parametrize("name", TEMPLATES)
    def test_shellcheck(self, name: str) -> None:
        check_shell(template(name))

    def test_fill_wants_every_region(self) -> None:
        with pytest.raises(ValueError, match=r"want the regions launch, resources, run, site, found resources, run$"):
            fill(template("chain"), dict.fromkeys(REGIONS, ()))

    def test_around_a_region(self) -> None:
        before, after = around(template("segment"), "launch")
        assert before.startswith("# >>> hpcrl run")
        assert "#SBATCH" not in before
        assert after.startswith("ranks=$!")
        assert after.endswith('exit "$code"')


def check_shell(text: str) -> None:
    done = subprocess.run(["shellcheck", "--shell=bash", "-"], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


class TestRender:
    @pytest.mark.parametrize("kind", ["segment", "rollout", "loop", "guard"])
    @pytest.mark.parametrize("site", SITES)
    def test_is_a_script_for_every_site(self, site: str, kind: str, tmp_path: Path) -> None:
        text = render(kinds(tmp_path, SITES[site])[kind], surroundings(SITES[site], tmp_path, ("/my modules",)))
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)
        assert regions_of(text) == REGIONS

    @pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed (a Debian package)")
    @pytest.mark.parametrize("kind", ["segment", "rollout", "loop", "guard"])
    def test_shellcheck(self, kind: str, tmp_path: Path) -> None:
        check_shell(render(kinds(tmp_path, Site())[kind], surroundings(Site(), tmp_path, ("/my modules",))))

    def test_what_a_job_asks_for(self, tmp_path: Path) -> None:
        site = SITES["named"]
        assert directives(render(make_request(tmp_path, site), surroundings(site, tmp_path))) == [
            "--job-name=ppo-pong.learn",
            f"--output={tmp_path}/logs/learn_%j.out",
            "--open-mode=append",
            "--requeue",
            "--signal=B:USR1@300",
            "--account=abc",
            "--partition=cpu,long",
            "--qos=normal",
            "--constraint='skylake|cascadelake'",
            "--time=240",
            "--nodes=2",
            "--ntasks=4",
            "--ntasks-per-node=2",
            "--cpus-per-task=2",
            "--mem-per-cpu=1792M",
            "--exclusive",
            "--mail-user=a@b.c",
            "-xn[3-4]",
        ]

    def test_gpus_are_asked_for_by_node(self, tmp_path: Path) -> None:
        site = SITES["gpus"]
        text = render(make_request(tmp_path, site), surroundings(site, tmp_path))
        assert {"--nodes=2", "--ntasks-per-node=2", "--gres=gpu:a100:2"} <= set(directives(text))
        assert "One iteration of a segment on nodes with GPUs" in text

    def test_gpus_without_nodes_mean_one_node(self, tmp_path: Path) -> None:
        site = Site(default=Resources(gpus_per_rank=2))
        text = render(make_request(tmp_path, site), surroundings(site, tmp_path))
        assert {"--nodes=1", "--ntasks-per-node=4", "--gres=gpu:8"} <= set(directives(text))

    def test_never_more_nodes_than_ranks(self, tmp_path: Path) -> None:
        site = Site(default=Resources(nodes=8))
        text = render(make_request(tmp_path, site, ranks=3), surroundings(site, tmp_path))
        assert {"--nodes=3", "--ntasks=3", "--ntasks-per-node=1"} <= set(directives(text))

    def test_elements_have_logs_of_their_own(self, tmp_path: Path) -> None:
        request = kinds(tmp_path, Site())["rollout"]
        text = render(request, surroundings(Site(), tmp_path))
        assert f"--output={tmp_path}/logs/play_%A_%a.out" in directives(text)

    def test_the_launch_line(self, tmp_path: Path) -> None:
        site = SITES["image"]
        text = render(make_request(tmp_path, site), surroundings(site, tmp_path))
        launch = text[text.index("# >>> hpcrl launch") : text.index("# <<< hpcrl launch")].splitlines()[1:]
        assert launch == [
            "srun --mpi=pmix \\",
            '  apptainer exec --nv \'my image.sif\' "$PYTHON" -m mpi4py -m hpcrl.cli job "$RUN" '
            '--segment "$SEGMENT" "$@" &',
        ]
        assert "\nPYTHON=python3\n" in text

    def test_the_same_for_every_iteration_and_try(self, tmp_path: Path) -> None:
        around_it = surroundings(Site(), tmp_path)
        first = render(make_request(tmp_path), around_it)
        again = make_request(
            tmp_path, unit=Unit("learn", 9), number=7, token="f" * 16, resources=Resources(time_minutes=99)
        )
        assert render(again, around_it) == first

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"run": Path("/runs/a\nb")}, "run folder: want a name without line breaks"),
            ({"run": Path("/runs/a\\b")}, "run folder: want a path without backslashes"),
            ({"title": "a\n#SBATCH --uid=0"}, "Pipeline.name: want a name without line breaks"),
            ({"stages": ("a\rb",)}, "stage: want a name without line breaks"),
        ],
    )
    def test_names_that_cannot_stand_in_a_script(self, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
        request = make_request(tmp_path, **changes)
        with pytest.raises(InputError, match=message):
            render(request, surroundings(Site(), tmp_path))
        with pytest.raises(InputError, match=message):
            submission_options(request, Site())

    def test_a_folder_that_pythonpath_cannot_name(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="want a folder of modules without ':'"):
            render(make_request(tmp_path), surroundings(Site(), tmp_path, ("/a:b",)))

    def test_templates_by_kind(self, tmp_path: Path) -> None:
        for name, request in kinds(tmp_path, Site()).items():
            assert template_name(request, {}) == name
        assert template_name(make_request(tmp_path), {"gres": "gpu:1"}) == "update-gpu"


class TestSubmissionOptions:
    def test_name_comment_dependency_array(self, tmp_path: Path) -> None:
        site = SITES["named"]
        request = make_request(tmp_path, site, elements=(1000, 1001, 1004), first_element=1000, dependency=("12", "13"))
        assert submission_options(request, site) == [
            "--job-name=ppo-pong.learn-000003",
            f"--comment=hpcrl advantage+update of {tmp_path} try 1 {TOKEN}",
            "--dependency=afterany:12:13",
            "--array=0-1,4%2",
        ]

    def test_only_what_grew(self, tmp_path: Path) -> None:
        site = Site(default=Resources(partition="cpu", time_minutes=60, memory_gb_per_rank=2))
        grown = Resources(partition="cpu", time_minutes=90, memory_gb_per_rank=3)
        options = submission_options(make_request(tmp_path, site, resources=grown), site)
        assert options[2:] == ["--time=90", "--mem-per-cpu=1536M"]

    def test_less_than_the_script_asks_for_cannot_be_said(self, tmp_path: Path) -> None:
        site = Site(default=Resources(partition="cpu"))
        with pytest.raises(ValueError, match="asks for no partition"):
            submission_options(make_request(tmp_path, site, resources=Resources()), site)

    def test_a_directive_is_quoted_as_sbatch_reads_it(self) -> None:
        assert directive("--job-name=a\\b c") == "#SBATCH --job-name='a\\\\b c'"


class ScriptRun:
    """Runs a rendered script with srun, squeue and scontrol in place of SLURM's."""

    def __init__(self, folder: Path, site: Site | None = None) -> None:
        self.bin, self.folder = folder / "bin", folder
        self.site = site or Site(launch=Launch(python="python of jobs"))
        self.bin.mkdir()
        self.command("squeue", 'echo "$FAKE_STATE"')
        self.command("scontrol", 'printf "%s\\n" "$@" >>"$FAKE/scontrol"')
        self.command(
            "srun",
            'printf "%s\\n" "$@" >"$FAKE/srun"; pwd >"$FAKE/pwd"; env >"$FAKE/env"',
            '[ -z "$FAKE_AGREED" ] || echo "$FAKE_AGREED" >"$HPCRL_EXIT_CODE_FILE"',
            'exit "$FAKE_CODE"',
        )

    def command(self, name: str, *lines: str) -> None:
        path = self.bin / name
        path.write_text("\n".join(["#!/bin/bash", *lines]) + "\n")
        path.chmod(0o755)

    def start(self, request: Request, *, code: int = 0, agreed: str = "", **variables: str) -> subprocess.Popen[str]:
        script = self.folder / "script.sbatch"
        script.write_text(render(request, surroundings(self.site, self.folder, ("/my modules",))))
        environment = {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "TMPDIR": str(self.folder),
            "FAKE": str(self.folder),
            "FAKE_CODE": str(code),
            "FAKE_AGREED": agreed,
            "FAKE_STATE": "RUNNING",
            "SLURM_JOB_ID": "7",
            "SLURM_CPUS_PER_TASK": "2",
            **variables,
        }
        return subprocess.Popen(
            ["bash", str(script), *request.arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def __call__(self, request: Request, **options: Any) -> int:
        process = self.start(request, **options)
        output, _ = process.communicate(timeout=60)
        assert "command not found" not in output
        return process.returncode

    def told(self, name: str) -> list[str] | None:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else None

    def variables(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self.told("env") or [] if "=" in line)

    def wait_for(self, name: str) -> None:
        deadline = time.monotonic() + 20
        while not (self.folder / name).exists():
            assert time.monotonic() < deadline, name
            time.sleep(0.01)


@pytest.fixture
def script_run(tmp_path: Path) -> ScriptRun:
    return ScriptRun(tmp_path)


class TestWhatAScriptDoes:
    def test_starts_the_ranks(self, script_run: ScriptRun, tmp_path: Path) -> None:
        assert script_run(make_request(tmp_path / "run")) == 0
        assert script_run.told("srun") == [
            *["--mpi=pmi2", "--kill-on-bad-exit=1", "python of jobs", "-m", "mpi4py", "-m", "hpcrl.cli", "job"],
            *[str(tmp_path / "run"), "--segment", "learn", "--iteration", "3", "--try", "1"],
        ]
        assert script_run.told("pwd") == [str(tmp_path)]
        variables = script_run.variables()
        assert {name: variables[name] for name in THREAD_VARIABLES} == dict.fromkeys(THREAD_VARIABLES, "2")
        assert variables["PYTHONPATH"] == "/my modules"
        assert variables["SRUN_CPUS_PER_TASK"] == "2"
        assert script_run.told("scontrol") is None

    def test_python_path_does_not_grow_from_job_to_job(self, script_run: ScriptRun, tmp_path: Path) -> None:
        assert script_run(make_request(tmp_path), PYTHONPATH="/mine:/my modules:/other") == 0
        assert script_run.variables()["PYTHONPATH"] == "/mine:/my modules:/other"
        assert script_run(make_request(tmp_path), PYTHONPATH="/mine") == 0
        assert script_run.variables()["PYTHONPATH"] == "/my modules:/mine"

    def test_instruction_set(self, tmp_path: Path) -> None:
        run = ScriptRun(tmp_path, Site(launch=Launch(python="python", instruction_set="avx2")))
        assert run(make_request(tmp_path)) == 0
        assert run.variables()["ATEN_CPU_CAPABILITY"] == "avx2"

    def test_setup_lines_cannot_change_the_threads(self, tmp_path: Path) -> None:
        run = ScriptRun(tmp_path, Site(launch=Launch(python="python", setup=("export OMP_NUM_THREADS=64 A=1",))))
        assert run(make_request(tmp_path)) == 0
        assert (run.variables()["OMP_NUM_THREADS"], run.variables()["A"]) == ("2", "1")

    @pytest.mark.parametrize(
        ("launcher", "agreed", "wanted"),
        [
            (0, "0", 0),
            (1, "", 1),
            (2, "2", 2),
            (143, "2", 2),  # the rank that left first was not the last to be heard of
            (137, "1", 1),
            (1, "0", 1),  # all agreed that it was done, then one died
            (9, "", 9),
        ],
    )
    def test_its_code(self, script_run: ScriptRun, tmp_path: Path, launcher: int, agreed: str, wanted: int) -> None:
        assert script_run(make_request(tmp_path), code=launcher, agreed=agreed) == wanted
        assert script_run.told("scontrol") is None

    @pytest.mark.parametrize(
        ("launcher", "agreed"),
        [(85, "85"), (85, ""), (143, "85"), (138, ""), (140, "")],
        ids=["all", "unwritten", "killed by srun", "USR1 before they listened", "USR2 before they listened"],
    )
    def test_85_requeues(self, script_run: ScriptRun, tmp_path: Path, launcher: int, agreed: str) -> None:
        assert script_run(make_request(tmp_path), code=launcher, agreed=agreed) == 85
        assert script_run.told("scontrol") == ["requeue", "7"]

    def test_an_element_requeues_itself_alone(self, script_run: ScriptRun, tmp_path: Path) -> None:
        variables = {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "2"}
        assert script_run(make_request(tmp_path), code=85, **variables) == 85
        assert script_run.told("scontrol") == ["requeue", "5_2"]

    @pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", "PREEMPTED", "PENDING"])
    def test_what_others_decided_about_the_job_stands(self, script_run: ScriptRun, tmp_path: Path, state: str) -> None:
        assert script_run(make_request(tmp_path), code=85, FAKE_STATE=state) == 85
        assert script_run.told("scontrol") is None

    def test_a_silent_controller_is_asked_again(self, script_run: ScriptRun, tmp_path: Path) -> None:
        script_run.command("squeue", 'echo x >>"$FAKE/asked"; [ "$(wc -l <"$FAKE/asked")" = 2 ] && echo RUNNING')
        assert script_run(make_request(tmp_path), code=85) == 85
        assert script_run.told("asked") == ["x", "x"]
        assert script_run.told("scontrol") == ["requeue", "7"]

    @pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM])
    def test_requests_to_stop_reach_the_ranks_as_usr1(
        self, script_run: ScriptRun, tmp_path: Path, number: signal.Signals
    ) -> None:
        script_run.command(
            "srun",
            "trap 'echo asked >>\"$FAKE/asked\"' USR1",
            'touch "$FAKE/listens"',
            'for ((n = 0; n < 400; n++)); do [ ! -e "$FAKE/asked" ] || break; sleep 0.05; done',
            "sleep 0.3",
            "exit 85",
        )
        process = script_run.start(make_request(tmp_path))
        script_run.wait_for("listens")
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode == 85
        assert script_run.told("asked") == ["asked"]
        assert script_run.told("scontrol") == ["requeue", "7"]

    def test_a_signal_that_srun_lost_is_repeated(self, script_run: ScriptRun, tmp_path: Path) -> None:
        script_run.command(
            "srun",
            'trap \'[ -e "$FAKE/lost" ] && exit 85; touch "$FAKE/lost"\' USR1',
            'touch "$FAKE/listens"',
            "for ((n = 0; n < 400; n++)); do sleep 0.05; done",
        )
        process = script_run.start(make_request(tmp_path))
        script_run.wait_for("listens")
        process.send_signal(signal.SIGUSR1)
        process.communicate(timeout=60)
        assert process.returncode == 85

    def test_leaves_no_files_behind(self, script_run: ScriptRun, tmp_path: Path) -> None:
        assert script_run(make_request(tmp_path), code=85, agreed="85") == 85
        assert not list(tmp_path.glob("tmp.*"))

    def test_the_guard_is_started_alone(self, script_run: ScriptRun, tmp_path: Path) -> None:
        script_run.site = Site(launch=Launch(python="guarding"))
        script_run.command("guarding", 'printf "%s\\n" "$@" >"$FAKE/guard"; exit 2')
        request = make_request(tmp_path / "run", unit=GUARD, stages=(), ranks=1)
        assert script_run(request) == 2
        assert script_run.told("srun") is None
        assert script_run.told("guard") == ["-m", "hpcrl.cli", "job", str(tmp_path / "run"), "--guard", "--try", "1"]

    @pytest.mark.parametrize(
        "name", ["a b", "it's", '"q"', "$HOME", "`touch pwned`", "$(touch pwned)", "; touch pwned", "a#b", "*", "%j"]
    )
    def test_names_are_only_names(self, tmp_path: Path, name: str) -> None:
        run = ScriptRun(tmp_path, Site(launch=Launch(python=name, instruction_set="avx2")))
        request = make_request(tmp_path / name, title=name)
        assert run(request) == 0
        words = run.told("srun")
        assert words is not None
        assert (words[2], words[8]) == (name, str(tmp_path / name))
        assert not (tmp_path / "pwned").exists()

    def test_line_breaks_in_folders_are_only_names(self, tmp_path: Path) -> None:
        folder = tmp_path / "a\ntouch pwned\nb"
        folder.mkdir()
        run = ScriptRun(folder)
        assert run(make_request(tmp_path / "run")) == 0
        assert not list(tmp_path.rglob("pwned"))


class TestScripts:
    @pytest.fixture(autouse=True)
    def _a_secret(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SECRET_TOKEN", "token-of-a-secret-service-8c1f")

    def door(self, folder: Path, site: Site | None = None) -> tuple[Scripts, FakeSlurm, list[str]]:
        slurm, said = FakeSlurm(), []
        return Scripts(surroundings(site or Site(), folder), slurm, say=said.append), slurm, said

    def test_prepare_writes_one_script_a_segment(self, tmp_path: Path) -> None:
        door, _, said = self.door(tmp_path)
        run = tmp_path / "run"
        run.mkdir()
        door.prepare(tuple(kinds(run, Site()).values()))
        assert sorted(path.name for path in (run / "jobs").iterdir()) == [
            *["guard.sbatch", "learn.sbatch", "main.sbatch", "play.sbatch"],
        ]
        assert (run / "logs").is_dir()
        assert said == []
        for path in (run / "jobs").iterdir():
            assert path.read_text().startswith("#!/bin/bash\n# hpcrl-checksum: ")

    @pytest.mark.parametrize("umask", [0o022, 0o002, 0o000, 0o077])
    def test_nobody_else_may_write_to_them(self, tmp_path: Path, umask: int) -> None:
        before = os.umask(umask)
        try:
            door, _, _ = self.door(tmp_path)
            (tmp_path / "jobs").mkdir()
            door.prepare((make_request(tmp_path),))
        finally:
            os.umask(before)
        script = tmp_path / "jobs" / "learn.sbatch"
        assert script.stat().st_mode & 0o777 == 0o755 & ~umask
        assert (tmp_path / "jobs").stat().st_mode & 0o022 == 0

    def test_submits_what_stands_there(self, tmp_path: Path) -> None:
        door, slurm, _ = self.door(tmp_path)
        request = make_request(tmp_path, first_element=1000, elements=(1000, 1001))
        door.prepare((request,))
        assert door.submit(request) == "12"
        assert slurm.calls == [
            (
                tmp_path / "jobs" / "learn.sbatch",
                ("--iteration", "3", "--try", "1", "--first-element", "1000"),
                tuple(submission_options(request, Site())),
                TOKEN,
                tmp_path,
            )
        ]

    def test_secrets_are_not_written(self, tmp_path: Path) -> None:
        door, slurm, _ = self.door(tmp_path)
        requests = tuple(kinds(tmp_path, Site()).values())
        door.prepare(requests)
        door.submit(requests[0])
        texts = [path.read_text() for path in tmp_path.rglob("*.sbatch")]
        assert len(texts) == 4
        assert "token-of-a-secret" not in "".join([*texts, door.dry_run(requests), str(slurm.calls)])

    def test_a_script_is_left_alone(self, tmp_path: Path) -> None:
        door, _, said = self.door(tmp_path)
        request = make_request(tmp_path)
        door.prepare((request,))
        before = script_path(request).stat()
        door.prepare((request,))
        assert script_path(request).stat() == before
        assert said == []

    def test_edits_stay(self, tmp_path: Path) -> None:
        door, _, said = self.door(tmp_path)
        request = make_request(tmp_path)
        door.prepare((request,))
        path = script_path(request)
        path.write_text(edited := path.read_text().replace("--time=60", "--time=61"))
        door.prepare((request,))
        assert path.read_text() == edited
        assert said == [f"{path}: used with your edits"]

    def test_edits_give_way_to_another_site_and_are_kept_beside(self, tmp_path: Path) -> None:
        request = make_request(tmp_path)
        path = script_path(request)
        for number, minutes in enumerate((30, 40, 50)):
            door, _, said = self.door(tmp_path, Site(default=Resources(time_minutes=minutes)))
            door.prepare((request,))
            assert f"--time={minutes}\n" in path.read_text()
            assert len(said) == (number > 0)
            path.write_text(path.read_text() + f"# mine {number}\n")
        assert sorted(path.name for path in (tmp_path / "jobs").iterdir()) == [
            *["learn.sbatch", "learn.sbatch.edited", "learn.sbatch.edited-2"],
        ]
        assert (tmp_path / "jobs" / "learn.sbatch.edited").read_text().endswith("# mine 0\n")
        assert "yours is kept beside it" in said[0]

    def test_without_edits_another_site_leaves_nothing_beside(self, tmp_path: Path) -> None:
        request = make_request(tmp_path)
        self.door(tmp_path)[0].prepare((request,))
        door, _, said = self.door(tmp_path, Site(default=Resources(time_minutes=30)))
        door.prepare((request,))
        assert [path.name for path in (tmp_path / "jobs").iterdir()] == ["learn.sbatch"]
        assert said == []

    def test_a_script_that_others_could_have_written(self, tmp_path: Path) -> None:
        door, slurm, _ = self.door(tmp_path)
        request = make_request(tmp_path)
        door.prepare((request,))
        script_path(request).chmod(0o777)
        with pytest.raises(InputError, match="everybody may write to"):
            door.submit(request)
        with pytest.raises(InputError, match="everybody may write to"):
            door.prepare((request,))
        assert slurm.calls == []

    def test_dry_run_writes_nothing(self, tmp_path: Path) -> None:
        door, slurm, _ = self.door(tmp_path)
        run = tmp_path / "a run"
        first, second = make_request(run), make_request(run, unit=Unit("learn", 4), dependency=("JOB:learn-000003",))
        text = door.dry_run((first, second))
        lines = text.splitlines()
        assert [shlex.split(line)[-5:] for line in lines[:2]] == [
            [str(script_path(first)), "--iteration", "3", "--try", "1"],
            [str(script_path(first)), "--iteration", "4", "--try", "1"],
        ]
        assert text.count("=====") == 1
        assert text.endswith(render(first, surroundings(Site(), tmp_path)))
        assert not run.exists()
        assert slurm.calls == []


class TestLustre:
    MOUNTS = (
        "srv@tcp:/scratch /lus lustre rw 0 0\nnfs:/home /home nfs4 rw 0 0\n/dev/x /lus/with\\040blank ext4 rw 0 0\n"
    )

    def environment(self, folder: Path) -> dict[str, str]:
        tool = folder / "lfs"
        tool.write_text("#!/bin/sh\n")
        tool.chmod(0o755)
        return {"PATH": str(folder)}

    def test_a_hint(self, tmp_path: Path) -> None:
        hint = striping_hint(Path("/lus/my run"), self.environment(tmp_path), self.MOUNTS)
        assert hint is not None
        assert hint.endswith("lfs setstripe --stripe-count 1 '/lus/my run'")

    @pytest.mark.parametrize("path", ["/home/me/run", "/lustre/run", "/lus/with blank/run", "/run"])
    def test_none_elsewhere(self, tmp_path: Path, path: str) -> None:
        assert striping_hint(Path(path), self.environment(tmp_path), self.MOUNTS) is None

    def test_none_without_the_tool(self, tmp_path: Path) -> None:
        assert striping_hint(Path("/lus/run"), {"PATH": str(tmp_path)}, self.MOUNTS) is None
