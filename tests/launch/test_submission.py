"""Submitting: what cannot be is refused before anything is written, and a dry run shows what a submission would do."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from hpcrl.cli import main
from hpcrl.data import Mesh
from hpcrl.errors import InputError
from hpcrl.launch.active import refuse_active, refuse_beside_jobs
from hpcrl.launch.papers import Case, Papers
from hpcrl.launch.submission import check_segments, dry_run, first_requests, submit
from hpcrl.scheduler.jobs import Job
from hpcrl.scheduler.site import Resources, Site, read_site
from hpcrl.store.ledger import Ledger, now
from hpcrl.store.run_folder import RunFolder
from tests.launch.test_repair import apart, loop
from tests.report.job_run import JobRun, slurm_job
from tests.report.tiny_run import copy_of, digests, finished_run, pipeline_file
from tests.scheduler.fakes import FakeCommands

SEGMENTS = {"rollout": Resources(partition="cpu"), "guard": Resources(), "advantage": Resources(time_minutes=9)}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCommands:
    """Commands that take every job, on PATH; the working folder is an empty one."""
    fakes = FakeCommands(tmp_path / "commands")
    fakes.answer_as_recorded("sinfo", "sinfo")
    fakes.answer_as_recorded("scontrol", "config")
    for name in ("squeue", "scancel", "srun"):
        fakes.answer(name)
    fakes.answer("sbatch", "41\n")
    monkeypatch.setenv("PATH", str(fakes.bin))
    return in_an_empty_folder(fakes, tmp_path, monkeypatch)


@pytest.fixture
def no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCommands:
    """A machine without SLURM."""
    fakes = FakeCommands(tmp_path / "commands")
    monkeypatch.setenv("PATH", str(fakes.bin))
    return in_an_empty_folder(fakes, tmp_path, monkeypatch)


def in_an_empty_folder(fakes: FakeCommands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCommands:
    monkeypatch.delenv("HPCRL_SITE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return fakes


class TestRefusedBeforeAnythingIsWritten:
    @pytest.mark.parametrize(
        ("door", "name", "message"),
        [
            ("slurm", "a%a", "want a folder without %a in its path"),
            ("slurm", "a\nb", "run folder: want a name without line breaks"),
            ("sbatch", "a\nb", "run folder: want a name without line breaks"),
            ("sbatch", "b\\s", "run folder: want a path without backslashes"),
        ],
    )
    def test_names_that_a_door_cannot_write(self, door: str, name: str, message: str, cluster: FakeCommands) -> None:
        with pytest.raises(InputError, match=re.escape(message)):
            submit(apart(2, array=2), Site(), run=Path("runs") / name, door=door)  # type: ignore[arg-type]
        assert not Path("runs").exists()
        assert cluster.calls("sbatch") == []

    def test_modules_that_pythonpath_cannot_name(self, cluster: FakeCommands) -> None:
        with pytest.raises(InputError, match="want a folder of modules without ':'"):
            submit(loop(), Site(), door="sbatch", python_path=[Path("/a:b")])
        assert not Path("runs").exists()

    @pytest.mark.parametrize("file", ["pipeline.json", "jobs/main.sbatch", "jobs/guard.sbatch"])
    def test_a_halted_run_that_others_could_have_written_stays_halted(self, file: str, cluster: FakeCommands) -> None:
        path = Path("runs/p")
        submit(loop(), Site(), run=path, door="sbatch")
        Ledger(path).halt("a reason")
        (path / file).chmod(0o666)
        before, calls = digests(path), len(cluster.calls("sbatch"))
        with pytest.raises(InputError, match="one that everybody may write to"):
            submit(loop(9), Site(), run=path, door="sbatch")
        assert digests(path) == before
        assert len(cluster.calls("sbatch")) == calls

    def test_without_srun_submitit_is_not_begun_with(self, cluster: FakeCommands) -> None:
        (cluster.bin / "srun").unlink()
        with pytest.raises(InputError, match="srun: want SLURM's commands on PATH"):
            submit(loop(), Site(), door="slurm")
        assert not Path("runs").exists()

    def test_another_users_run_folder_may_be_set_aside(self, cluster: FakeCommands) -> None:
        path = Path("runs/p")
        submit(loop(), Site(), run=path, door="sbatch")
        (path / "pipeline.json").chmod(0o666)
        submit(loop(), Site(), run=path, door="sbatch", fresh=True)
        assert Path("runs/p.old-1/pipeline.json").exists()


class TestSegmentNames:
    def test_those_of_the_pipeline_and_the_guard_are_taken(self) -> None:
        check_segments(apart(), Site(segments=SEGMENTS))
        check_segments(loop(), Site(segments={"main": Resources(), "guard": Resources()}))

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("update", "given a stage; stage 'update' is played by segment 'advantage': write [segments.advantage]"),
            ("play", "given a mesh; mesh 'play' is played by segment 'rollout': write [segments.rollout]"),
            ("main", "given a mesh; mesh 'main' is played by segment 'advantage': write [segments.advantage]"),
            ("rolout", "did you mean 'rollout'?"),
        ],
    )
    def test_others_are_refused_with_the_one_that_is_meant(self, name: str, message: str) -> None:
        with pytest.raises(InputError, match=re.escape(message)):
            check_segments(apart(), Site(segments={name: Resources()}))

    def test_one_job_plays_all_stages(self) -> None:
        wanted = "stage 'update' is played by segment 'main': write [segments.main]"
        with pytest.raises(InputError, match=re.escape(wanted)):
            check_segments(loop(), Site(segments={"update": Resources()}))

    def test_all_segments_of_a_mesh_are_named(self) -> None:
        pipeline = dataclasses.replace(
            apart(), meshes={"play": Mesh(world="play"), "learn": Mesh(world="learn")}, stages=on_two_meshes()
        )
        wanted = "mesh 'play' is played by segment 'rollout' and 'evaluate': write [segments.rollout] or"
        with pytest.raises(InputError, match=re.escape(wanted)):
            check_segments(pipeline, Site(segments={"play": Resources()}))

    def test_the_file_is_named(self, tmp_path: Path) -> None:
        file = tmp_path / "my site.toml"
        file.write_text("[segments.update]\n")
        with pytest.raises(InputError, match=re.escape(f"{file}: [segments.update]: want a segment")):
            check_segments(apart(), read_site(file))


def on_two_meshes() -> list[object]:
    """Playing and evaluating on one mesh, learning between them on another."""
    rollout, advantage, update, evaluate = apart().stages
    learn = [dataclasses.replace(stage, mesh="learn") for stage in (advantage, update)]
    return [rollout, *learn, dataclasses.replace(evaluate, mesh="play")]


class TestDryRun:
    def test_writes_nothing_and_tries_differ(self, cluster: FakeCommands) -> None:
        text = dry_run(loop(), Site())
        lines = [line for line in text.splitlines() if line.startswith("sbatch ")]
        tokens = re.findall(r"try \d+ (\w+)'", "\n".join(lines))
        # The loop, its second, a guard behind both, and one whose time comes.
        assert len(tokens) == len(set(tokens)) == len(lines) == 4
        assert [line.rpartition(" ")[2] for line in lines] == ["1", "2", "1", "2"]
        assert not Path("runs").exists()

    def test_first_requests_have_tokens_of_their_own(self, tmp_path: Path) -> None:
        for pipeline in (loop(), apart(array=2)):
            case = Case(RunFolder(tmp_path / "run"), pipeline, Papers("sbatch", (), "/", "", now()), Site())
            tokens = [request.token for request in first_requests(case)]
            assert len(set(tokens)) == len(tokens)

    @pytest.mark.parametrize("command", ["run", "show"])
    def test_a_segment_that_is_not_there_is_refused_anywhere(
        self, command: str, no_cluster: FakeCommands, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Path("site.toml").write_text("[segments.update]\n")
        more = ["--dry-run"] if command == "run" else []
        assert main([command, str(pipeline_file()), "--on", "sbatch", *more]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert "stage 'update' is played by segment 'main'" in printed.err

    @pytest.mark.parametrize("command", ["run", "show"])
    def test_a_partition_that_is_not_there_is_refused_where_slurm_answers(
        self, command: str, cluster: FakeCommands, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Path("site.toml").write_text('[resources]\npartition = "nope"\n')
        more = ["--dry-run"] if command == "run" else []
        assert main([command, str(pipeline_file()), "--on", "sbatch", *more]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert "resources.partition: want a partition of this cluster, given 'nope'" in printed.err

    def test_slurm_is_asked_whether_it_would_take_the_jobs(self, cluster: FakeCommands) -> None:
        dry_run(apart(array=2), Site(default=Resources(partition="cpu")))
        calls = cluster.calls("sbatch")
        assert [Path(words[-1]).name for words in calls] == ["rollout.sbatch", "advantage.sbatch", "guard.sbatch"]
        assert all(words[0] == "--test-only" for words in calls)
        assert not any(word.startswith(("--dependency", "--begin")) for words in calls for word in words)
        assert not any(Path(words[-1]).parent.exists() for words in calls)

    def test_what_slurm_refuses_is_refused(self, cluster: FakeCommands) -> None:
        cluster.answer_as_recorded("sbatch", "refused_qos")
        with pytest.raises(InputError, match=r"^main: SLURM refused .*; set resources\.qos in the site file to one"):
            dry_run(loop(), Site(default=Resources(qos="nope")))

    def test_a_full_queue_is_told(self, cluster: FakeCommands) -> None:
        cluster.answer_as_recorded("sbatch", "refused_limit")
        said: list[str] = []
        assert "sbatch --job-name=p.main-loop" in dry_run(loop(), Site(), say=said.append)
        assert len(said) == 2
        assert said[0].startswith("main: SLURM refused the job: ")
        assert "you have as many jobs queued as you may" in said[0]

    def test_without_a_cluster_it_says_that_it_did_not_ask(
        self, no_cluster: FakeCommands, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["run", str(pipeline_file()), "--on", "sbatch", "--dry-run"]) == 0
        printed = capsys.readouterr()
        assert printed.out.startswith("sbatch --job-name=tiny-cartpole.main-loop")
        assert printed.err == (
            "not compared with a cluster: found no sbatch, squeue, scancel, scontrol, sinfo on PATH\n"
        )

    def test_a_silent_controller_is_told(self, cluster: FakeCommands) -> None:
        cluster.answer("sinfo", complaint="slurm_load_partitions: Unable to contact slurm controller", code=1)
        said: list[str] = []
        assert "sbatch --job-name=p.main-loop" in dry_run(loop(), Site(), say=said.append)
        assert len(said) == 1
        assert said[0].startswith("not compared with the cluster: ")


def test_a_run_that_is_over_is_not_said_to_be_submitted(
    cluster: FakeCommands, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy_of(finished_run(), tmp_path)
    command = ["run", str(pipeline_file()), "--run", str(path), "--on", "sbatch"]
    assert main([*command, "--dry-run"]) == 0
    assert capsys.readouterr().out == f"{path}: nothing to submit: the run is over\n\n"
    assert main(command) == 0
    printed = capsys.readouterr()
    assert printed.err == f"{path}: nothing to submit: the run is over\n"
    assert printed.out == f"{path}: look at it with: hpcrl report {path}\n"
    assert cluster.calls("sbatch") == []


class Queue:
    """What squeue would tell of this user."""

    def __init__(self, *jobs: Job) -> None:
        self.jobs = list(jobs)

    def queue(self) -> list[Job]:
        return self.jobs


class TestActiveJobs:
    @pytest.fixture
    def played(self, tmp_path: Path) -> JobRun:
        """A run whose array came in four pieces."""
        run = JobRun(tmp_path / "run", iterations=2)
        for element in range(4):
            run.submit("rollout", 1, str(10 + element), -200.0, number=1 + element, elements=(element,))
        return run

    def test_every_piece_of_an_array_counts(self, played: JobRun) -> None:
        over = [slurm_job(f"{job}_0", "COMPLETED") for job in (11, 12, 13)]
        refuse_active(played.path, Queue(*over, slurm_job("10_0", "COMPLETED"), slurm_job("77", "RUNNING")))
        with pytest.raises(InputError, match=r"given one with jobs 10_0 \(RUNNING\); it goes on by itself"):
            refuse_active(played.path, Queue(slurm_job("10_0", "RUNNING"), *over))

    def test_a_job_whose_id_was_never_written_down_counts(self, played: JobRun) -> None:
        unit = played.submit("generate", 1, None, -100.0)
        token = played.ledger.tries(unit)[0].claim.token
        job = dataclasses.replace(slurm_job("20", "PENDING"), comment=f"hpcrl generate of {played.path} try 1 {token}")
        with pytest.raises(InputError, match=r"jobs 20 \(PENDING\)"):
            refuse_active(played.path, Queue(job))

    def test_a_halted_run_does_not_go_on_by_itself(self, played: JobRun) -> None:
        played.ledger.halt("a reason")
        with pytest.raises(InputError, match="it was halted, and they end by themselves"):
            refuse_active(played.path, Queue(slurm_job("12_0", "RUNNING")))

    def test_names_are_quoted_for_a_shell(self, tmp_path: Path) -> None:
        run = JobRun(tmp_path / "it's", iterations=2)
        run.submit("rollout", 1, "10", -200.0)
        with pytest.raises(InputError) as refused:
            refuse_active(run.path, Queue(slurm_job("10", "RUNNING")))
        assert str(refused.value).endswith(f"hpcrl cancel '{tmp_path}/it'\"'\"'s'")

    @pytest.mark.parametrize("where", ["here", "mpi"])
    def test_a_run_is_not_played_beside_its_jobs(
        self, where: str, cluster: FakeCommands, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Each would do the whole work, and nothing would say so."""
        command = ["run", str(pipeline_file()), "--run", "runs/p", "--ranks", "1"]
        assert main([*command, "--on", "sbatch"]) == 0
        capsys.readouterr()
        before = digests(Path("runs/p"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("hpcrl.scheduler.slurm.Slurm.queue", lambda *_: [slurm_job("41", "PENDING")])
            assert main([*command, "--on", where]) == 2
        assert "want a run nobody works on, given one with jobs 41 (PENDING)" in capsys.readouterr().err
        assert digests(Path("runs/p")) == before

    def test_without_commands_it_says_that_it_could_not_ask(
        self, no_cluster: FakeCommands, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:

        said: list[str] = []
        path = copy_of(finished_run(), tmp_path)
        refuse_beside_jobs(path, said.append)
        assert said == []
        Papers("sbatch", (), "/", "", now()).write(path, Site())
        refuse_beside_jobs(path, said.append)
        assert len(said) == 1
        assert "whether jobs of it are queued" in said[0]
