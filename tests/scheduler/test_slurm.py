"""SLURM's commands: what is asked, how answers are read, refusals, and a controller that does not answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcrl.errors import InputError
from hpcrl.scheduler import (
    Launch,
    Resources,
    SchedulerUnavailableError,
    Slurm,
    SubmissionRefusedError,
    refuse_impossible,
)
from hpcrl.scheduler.environment import submission_environment
from hpcrl.scheduler.jobs import (
    Job,
    array_text,
    duration,
    expand_ids,
    parse_accounting,
    parse_queue,
    seconds_since_1970,
)
from hpcrl.scheduler.nodes import NodeGroup, Partition, parse_partitions
from hpcrl.scheduler.refusals import refusal
from tests.scheduler.fakes import FakeCommands, recorded, recorded_jobs

ID = recorded_jobs()
"""What a recorded job shows -> its id."""
WAITING = ("held_by_user", "held_by_admin", "begin", "never", "dependency")


@pytest.fixture
def fakes(tmp_path: Path) -> FakeCommands:
    return FakeCommands(tmp_path / "fakes")


@pytest.fixture
def slurm(fakes: FakeCommands) -> Slurm:
    """Asks once, so that no test waits."""
    return Slurm(fakes.environment, patience_seconds=0)


def queue(file: str) -> dict[str, Job]:
    return {job.id: job for job in parse_queue(recorded(file)[0])}


def accounting(file: str = "sacct") -> dict[str, Job]:
    return {job.id: job for job in parse_accounting(recorded(file)[0])}


# Reading what commands print.


def test_every_recorded_state_of_the_queue_is_read() -> None:
    early, late = queue("squeue_early"), queue("squeue_late")
    assert {early[id_].reason for id_ in (ID[n] for n in WAITING)} == {
        *("JobHeldUser", "JobHeldAdmin", "BeginTime", "DependencyNeverSatisfied", "Dependency")
    }
    assert {job.state for job in [*early.values(), *late.values()]} == {
        *("CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "PENDING", "PREEMPTED", "RUNNING", "SUSPENDED"),
        "TIMEOUT",
    }


def test_a_pending_job_has_not_started_and_a_running_one_has_not_ended() -> None:
    jobs = queue("squeue_early")
    waiting, running, over = jobs[ID["begin"]], jobs[ID["timeout"]], jobs[ID["failed"]]
    assert (waiting.started, waiting.ended, waiting.is_over) == (None, None, False)
    assert waiting.expected_start == waiting.submitted + 3600  # type: ignore[operator]  # --begin=now+1hour
    assert running.started is not None
    assert (running.ended, running.expected_start, running.time_limit) == (None, None, 60.0)
    assert (over.is_over, over.exit_code, over.signal) == (True, 7, None)
    assert over.ended is not None


def test_arrays_requeues_signals_and_dependencies_are_told() -> None:
    early, late = queue("squeue_early"), queue("squeue_late")
    assert [
        (one.array_id, one.element)
        for one in (early[f"{ID['array']}_0"], early[f"{ID['array']}_8"], early[ID["timeout"]])
    ] == [
        (ID["array"], 0),
        (ID["array"], 8),
        (None, None),
    ]
    assert early[ID["requeued"]].restarts == 1
    assert (late[ID["timeout"]].exit_code, late[ID["timeout"]].signal) == (None, 15)  # the time limit ended it
    assert early[ID["dependency"]].dependency == f"afterany:{ID['timeout']}(unfulfilled)"
    assert early[ID["held_by_user"]].comment == "hpcrl recorded"


def test_the_accounting_tells_the_newest_record_and_who_cancelled() -> None:
    jobs = accounting()
    assert (jobs[ID["cancelled"]].state, jobs[ID["cancelled"]].cancelled_by) == ("CANCELLED", 0)
    assert (jobs[ID["timeout"]].state, jobs[ID["timeout"]].restarts) == ("TIMEOUT", 1)
    assert (jobs[ID["requeued"]].state, jobs[ID["requeued"]].restarts) == ("RUNNING", 1)
    assert (jobs[ID["deadline"]].state, jobs[ID["deadline"]].started) == ("DEADLINE", None)
    assert (jobs[ID["refused"]].exit_code, jobs[ID["node_fail"]].state, jobs[ID["preempted"]].state) == (
        2,
        "NODE_FAIL",
        "PREEMPTED",
    )
    assert {jobs[f"{ID['array']}_{element}"].state for element in (0, 2, 4, 6, 8)} == {"COMPLETED"}


def test_queue_and_accounting_agree_on_the_same_jobs() -> None:
    late, told = queue("squeue_late"), accounting()
    both = set(late) & set(told)
    assert len(both) >= 15
    assert {id_: late[id_].state for id_ in both} == {id_: told[id_].state for id_ in both}
    started = {id_ for id_ in both if late[id_].started and late[id_].nodes}
    assert {id_: late[id_].started for id_ in started} == {id_: told[id_].started for id_ in started}


def test_names_with_line_breaks_tear_no_record() -> None:
    whole = recorded("squeue_early")[0].replace("job.sbatch", "two\nlines|here")
    assert {job.name for job in parse_queue(whole)} == {"two\nlines|here"}
    torn = recorded("sacct")[0].replace(f"{ID['cancelled']}\x1fjob.sbatch", f"{ID['cancelled']}\x1ftwo\nlines")
    jobs = {job.id for job in parse_accounting(torn)}
    assert ID["cancelled"] not in jobs
    assert ID["suspended"] in jobs


def test_another_format_is_not_guessed_at() -> None:
    with pytest.raises(ValueError, match=r"squeue told 2 fields for a job, not 15"):
        list(parse_queue("12\x1fRUNNING\x1f\x1e\n"))
    with pytest.raises(ValueError, match="sinfo told 1 fields"):
        parse_partitions("cpu up\n")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("12", ["12"]),
        ("12_3", ["12_3"]),
        ("12_[0-3%2]", ["12_0", "12_1", "12_2", "12_3"]),
        ("12_[1,4-8:2%1]", ["12_1", "12_4", "12_6", "12_8"]),
        ("12+1", ["12"]),
    ],
)
def test_ids_stand_for_jobs(text: str, wanted: list[str]) -> None:
    assert [id_ for id_, _, _ in expand_ids(text)] == wanted


@pytest.mark.parametrize("text", ["", "abc", "--all", "12_", "12;rm", "12_[0-3", "1 2"])
def test_what_is_no_id_never_reaches_a_command(text: str, slurm: Slurm, fakes: FakeCommands) -> None:
    for name in ("scancel", "squeue", "sacct", "scontrol"):
        fakes.answer(name)
    for ask in (lambda: slurm.cancel([text]), lambda: slurm.look([text]), lambda: slurm.requeue(text)):
        with pytest.raises(ValueError, match="which is none"):
            ask()
    assert [fakes.calls(name) for name in ("scancel", "squeue", "scontrol")] == [[], [], []]


def test_array_text_is_the_inverse_of_expanding() -> None:
    for elements in ([0], [3, 1, 2], [0, 2, 4], [*range(50), 70, 72, 73]):
        assert [element for _, _, element in expand_ids(f"9_[{array_text(elements)}]")] == sorted(elements)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5", 300), ("0:56", 56), ("1:00:00", 3600), ("1-00", 86400), ("2-01:30", 178200), ("1-00:00:01", 86401)],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["UNLIMITED", "NOT_SET", "INVALID", "Partition_Limit", "", "n/a"])
def test_no_duration_is_none_and_not_zero(text: str) -> None:
    assert duration(text) is None


def test_times_are_told_in_seconds_or_as_local_time() -> None:
    moment = 1795576146.0
    local = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(moment))
    assert [seconds_since_1970(text) for text in ("1795576146", local, "N/A", "Unknown", "0")] == [
        *(moment, moment, None, None, None)
    ]


# Looking.


def test_what_squeue_has_forgotten_is_asked_of_sacct(slurm: Slurm, fakes: FakeCommands) -> None:
    fakes.answer_as_recorded("squeue", "squeue_unknown")
    fakes.answer_as_recorded("sacct", "sacct")
    found = slurm.look([ID["failed"]])
    assert found[ID["failed"]].state == "FAILED"
    (call,) = fakes.calls("sacct")
    assert call[-1] == f"--jobs={ID['failed']}"
    assert not slurm.accounting_is_off


def test_an_array_asked_for_as_a_whole_is_completed_from_sacct(slurm: Slurm, fakes: FakeCommands) -> None:
    array = ID["array"]
    some = [record for record in recorded("squeue_early")[0].split("\n") if record.startswith(f"{array}_[")]
    assert len(some) == 1  # the elements that wait, in one record
    fakes.answer("squeue", f"{some[0]}\n")
    fakes.answer_as_recorded("sacct", "sacct")
    found = slurm.look([array])
    assert {id_: job.state for id_, job in found.items() if job.array_id == array} == {
        f"{array}_0": "COMPLETED",
        # The controller's word, not the accounting's.
        **{f"{array}_{element}": "PENDING" for element in (2, 4, 6, 8)},
    }


def test_an_arrays_record_beside_its_elements_is_no_job(slurm: Slurm, fakes: FakeCommands) -> None:
    array = ID["array"]
    fakes.answer_as_recorded("squeue", "squeue_late")
    line = next(line for line in recorded("sacct")[0].split("\n") if line.startswith(f"{ID['failed']}\x1f"))
    fakes.answer("sacct", line.replace(ID["failed"], array, 1) + "\n")
    assert set(slurm.look([array])) == {f"{array}_{element}" for element in (0, 2, 4, 6, 8)}


def test_a_long_array_that_waits_is_told_in_one_record_and_whole() -> None:
    text = next(line for line in recorded("squeue_early")[0].split("\n") if line.startswith(f"{ID['steps']}_["))
    assert text.startswith(f"{ID['steps']}_[0-999:3")
    found = [job.element for job in parse_queue(text) if job.array_id == ID["steps"]]
    assert found == list(range(0, 1000, 3))


def test_only_what_was_asked_for_is_told(slurm: Slurm, fakes: FakeCommands) -> None:
    fakes.answer_as_recorded("squeue", "squeue_early")
    asked = [f"{ID['array']}_4", ID["begin"]]
    assert {job.id for job in slurm.queue(asked)} == set(asked)


def test_who_cancelled_is_asked_of_sacct_and_nothing_else_is(slurm: Slurm, fakes: FakeCommands) -> None:
    fakes.answer_as_recorded("squeue", "squeue_early")
    fakes.answer_as_recorded("sacct", "sacct")
    found = slurm.look([ID["cancelled"], ID["timeout"], ID["failed"]])
    assert fakes.calls("sacct")[0][-1] == f"--jobs={ID['cancelled']}"
    assert (found[ID["cancelled"]].cancelled_by, found[ID["timeout"]].state, found[ID["failed"]].state) == (
        0,
        "RUNNING",
        "FAILED",
    )


def test_a_job_that_only_the_accounting_believes_to_run_is_lost(slurm: Slurm, fakes: FakeCommands) -> None:
    fakes.answer_as_recorded("squeue", "squeue_unknown")
    fakes.answer_as_recorded("sacct", "sacct")
    assert slurm.look([ID["requeued"]]) == {}


@pytest.mark.parametrize("file", ["sacct_off", "sacct_down"])
def test_accounting_that_is_off_is_said_and_stops_nothing(file: str, slurm: Slurm, fakes: FakeCommands) -> None:
    fakes.answer_as_recorded("squeue", "squeue_unknown")
    fakes.answer_as_recorded("sacct", file)
    assert slurm.look([ID["failed"]]) == {}
    assert slurm.accounting_is_off
    assert slurm.accounting_trouble
    fakes.answer_as_recorded("sacct", "sacct")
    assert slurm.look([ID["failed"]])[ID["failed"]].state == "FAILED"
    assert not slurm.accounting_is_off


def test_accounting_without_the_command_is_off(slurm: Slurm, fakes: FakeCommands) -> None:
    fakes.answer_as_recorded("squeue", "squeue_unknown")
    assert slurm.accounting(["7"]) == []
    assert slurm.accounting_trouble == "sacct is not on PATH"


def test_many_ids_are_asked_in_several_calls_and_one_unknown_hides_no_other(slurm: Slurm, fakes: FakeCommands) -> None:
    fakes.answer_as_recorded("squeue", "squeue_early")
    slurm.queue([str(number) for number in range(1, 1202)])
    assert [len(call[-1].split(",")) for call in fakes.calls("squeue")] == [500, 500, 201]

    fakes.answer_as_recorded("squeue", "squeue_unknown", call=4)
    fakes.answer_as_recorded("squeue", "squeue_unknown", call=5)
    assert [job.id for job in slurm.queue(["999999", ID["timeout"]])] == [ID["timeout"]]
    assert [call[-1] for call in fakes.calls("squeue")[3:]] == [
        f"--jobs={ids}" for ids in (f"999999,{ID['timeout']}", "999999", ID["timeout"])
    ]


def test_answers_do_not_depend_on_what_the_shell_has_set(fakes: FakeCommands) -> None:
    fakes.environment |= {
        "SQUEUE_FORMAT": "%i",
        "SLURM_TIME_FORMAT": "relative",
        "SLURM_CONF": "c",
        "SLURM_JOB_ID": "7",
    }
    fakes.answer_as_recorded("squeue", "squeue_early")
    Slurm(fakes.environment, patience_seconds=0).queue(["5"])
    seen = fakes.seen_environment("squeue")
    assert {
        name: seen.get(name) for name in ("SQUEUE_FORMAT", "SLURM_TIME_FORMAT", "SLURM_BITSTR_LEN", "SLURM_CONF")
    } == {
        "SQUEUE_FORMAT": None,
        "SLURM_TIME_FORMAT": "%s",
        "SLURM_BITSTR_LEN": "0",
        "SLURM_CONF": "c",
    }
    assert "SLURM_JOB_ID" not in seen


def test_a_job_is_found_by_its_comment(slurm: Slurm, fakes: FakeCommands) -> None:
    fakes.answer_as_recorded("squeue", "squeue_early")
    fakes.answer_as_recorded("sacct", "sacct_by_user")
    assert slurm.find_by_comment("recorded")[0].id == ID["requeued"]  # requeued, so submitted last
    assert fakes.calls("sacct") == []
    fakes.answer("squeue", "")
    found = [job.id for job in slurm.find_by_comment("recorded")]
    assert ID["failed"] in found
    assert ID["suspended"] not in found  # it runs still, and the accounting stores comments at the end
    assert slurm.find_by_comment("somebody else's") == []


def test_time_left(slurm: Slurm, fakes: FakeCommands) -> None:
    fakes.answer_as_recorded("squeue", "time_left")
    left = slurm.time_left(ID["timeout"])
    assert left is not None
    assert 40 < left < 60
    fakes.answer("squeue", "UNLIMITED\x1f\n")
    assert slurm.time_left("5") is None
    fakes.answer_as_recorded("squeue", "squeue_unknown")
    assert slurm.time_left("999999") is None


def test_limits_are_read_from_the_configuration(slurm: Slurm, fakes: FakeCommands) -> None:
    fakes.answer_as_recorded("scontrol", "config")
    limits = slurm.limits()
    assert (limits.cluster, limits.version, limits.max_array_size, limits.min_job_age_seconds) == (
        *("hpcrl", "22.05.8", 1001, 300.0),
    )
    assert (limits.requeues, limits.has_accounting, limits.max_submit_jobs) == (True, True, None)
    fakes.answer("sacctmgr", "\n40\n7\n")
    assert slurm.limits().max_submit_jobs == 7


def test_no_commands_at_all(slurm: Slurm, fakes: FakeCommands) -> None:
    assert not slurm.is_available()
    with pytest.raises(InputError, match="squeue: want SLURM's commands on PATH, given none"):
        slurm.queue()
    for name in ("sbatch", "squeue", "scancel", "scontrol", "sinfo"):
        fakes.answer(name)
    assert slurm.is_available()


# Submitting.


def test_submitting_says_what_was_asked_and_reads_the_id(slurm: Slurm, fakes: FakeCommands, tmp_path: Path) -> None:
    fakes.answer("sbatch", "a word from the site\n4711;cluster\n")
    job = slurm.submit(Path("job.sbatch"), ["one", "two words"], ["--array=0-3%2", "--comment=to ken"], folder=tmp_path)
    assert job == "4711"
    assert fakes.calls("sbatch") == [
        ["--parsable", "--array=0-3%2", "--comment=to ken", "job.sbatch", "one", "two words"]
    ]


def test_slurm_can_be_asked_without_submitting(slurm: Slurm, fakes: FakeCommands) -> None:
    fakes.answer("sbatch", complaint="sbatch: Job 7 to start at 2026-11-25T03:00:00 using 2 processors on nodes n1\n")
    slurm.check(Path("job.sbatch"), ["--time=5"])
    assert fakes.calls("sbatch") == [["--test-only", "--time=5", "job.sbatch"]]
    fakes.answer_as_recorded("sbatch", "refused_qos")
    with pytest.raises(SubmissionRefusedError, match="Invalid qos specification"):
        slurm.check(Path("job.sbatch"))


def test_an_answer_without_an_id_is_not_guessed_at(slurm: Slurm, fakes: FakeCommands) -> None:
    fakes.answer("sbatch", "thank you\n")
    with pytest.raises(InputError, match=r"want a job id, given 'thank you'; look at squeue --me"):
        slurm.submit(Path("job.sbatch"))


def test_a_new_job_inherits_nothing_that_belongs_to_the_old_one() -> None:
    in_a_job = {
        "SLURM_JOB_ID": "7",
        "SLURM_ARRAY_TASK_ID": "3",
        "SLURM_RESTART_COUNT": "2",
        "SBATCH_PARTITION": "x",
        "PMI_RANK": "1",
        "OMPI_COMM_WORLD_RANK": "1",
        "CUDA_VISIBLE_DEVICES": "3",
        "TMPDIR": "/tmp/7",
        "SLURM_CONF": "/etc/slurm.conf",
        "HOME": "/home/a",
        "HF_TOKEN": "hf_secret",
    }
    assert submission_environment(in_a_job) == {
        "SLURM_CONF": "/etc/slurm.conf",
        "HOME": "/home/a",
        "HF_TOKEN": "hf_secret",
    }
    at_a_login = {"CUDA_VISIBLE_DEVICES": "0", "TMPDIR": "/scratch/a", "SBATCH_ACCOUNT": "x"}
    assert submission_environment(at_a_login) == {"CUDA_VISIBLE_DEVICES": "0", "TMPDIR": "/scratch/a"}


@pytest.mark.parametrize(
    ("file", "kind", "advice"),
    [
        ("partition", "partition", "resources.partition"),
        ("account", "account", "resources.account"),
        ("qos", "qos", "resources.qos"),
        ("array", "array", "limits.max_array_size"),
        ("time", "time", "resources.time_minutes"),
        ("nodes", "size", "fewer ranks"),
        ("cpus", "size", "fewer ranks"),
        ("gpus", "size", "another partition"),
        ("memory", "memory", "resources.memory_gb_per_rank"),
        ("gres", "gpus", "launch.gres"),
        ("feature", "constraint", "resources.constraint"),
        ("limit", "limit", "limits.max_jobs"),
        ("option", "option", "resources.extra"),
    ],
)
def test_refusals_keep_slurms_words_and_say_what_to_do(
    file: str, kind: str, advice: str, slurm: Slurm, fakes: FakeCommands
) -> None:
    fakes.answer_as_recorded("sbatch", f"refused_{file}")
    with pytest.raises(SubmissionRefusedError) as refused:
        slurm.submit(Path("job.sbatch"))
    assert refused.value.kind == kind
    assert advice in str(refused.value)
    words = recorded(f"refused_{file}")[0].splitlines()[-1].rpartition(": ")[2].rstrip(".")
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    assert refused.value.is_temporary == (kind == "limit")
    assert len(fakes.calls("sbatch")) == 1


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("Job dependency problem", "dependency"),
        ("Access/permission denied", "permission"),
        (
            "AssocMaxWallDurationPerJobLimit\nsbatch: error: Job violates accounting/QOS policy (job submit limit)",
            "time",
        ),
        ("QOSMaxCpuPerJobLimit\nsbatch: error: Job violates accounting/QOS policy (job submit limit)", "size"),
        ("AssocMaxSubmitJobLimit", "limit"),
        ("Batch script contains DOS line breaks (\\r\\n)", "script"),
        ("Unable to open file job.sbatch", "script"),
        ("No partition specified or system default partition", "partition"),
        ("Required partition not available (inactive or drain)", "partition"),
        ("Requested partition configuration not available now", "size"),
        ("The moon is in the wrong house", "other"),
    ],
)
def test_other_wordings(words: str, kind: str) -> None:
    assert refusal(f"sbatch: error: {words}\n", "job.sbatch").kind == kind


# A controller that does not answer.


def patient(fakes: FakeCommands, pauses: list[float], **settings: float) -> Slurm:
    return Slurm(fakes.environment, patience_seconds=100, sleep=pauses.append, **settings)


def test_a_silent_controller_is_asked_again(fakes: FakeCommands) -> None:
    for call in (1, 2, 3):
        fakes.answer_as_recorded("squeue", "squeue_down", call=call)
    fakes.answer_as_recorded("squeue", "squeue_early")
    pauses: list[float] = []
    said: list[str] = []
    slurm = Slurm(fakes.environment, patience_seconds=100, sleep=pauses.append, say=said.append)
    assert [job.id for job in slurm.queue([ID["timeout"]])] == [ID["timeout"]]
    assert pauses == [1, 2, 4]
    assert len(said) == 1
    assert "Unable to contact slurm controller" in said[0]


def test_patience_ends(fakes: FakeCommands) -> None:
    fakes.answer_as_recorded("squeue", "squeue_down")
    with pytest.raises(SchedulerUnavailableError, match="no answer from SLURM's controller"):
        Slurm(fakes.environment, patience_seconds=0).queue()
    assert len(fakes.calls("squeue")) == 1
    began = time.monotonic()
    with pytest.raises(SchedulerUnavailableError):
        Slurm(fakes.environment, patience_seconds=1.5).queue()
    assert 0.9 < time.monotonic() - began < 10
    assert len(fakes.calls("squeue")) == 3


def test_a_command_that_hangs_is_ended(fakes: FakeCommands) -> None:
    fakes.answer("squeue", sleep=30)
    began = time.monotonic()
    with pytest.raises(SchedulerUnavailableError, match=r"no answer in 0\.3 s"):
        Slurm(fakes.environment, patience_seconds=0, call_seconds=0.3).queue()
    assert time.monotonic() - began < 10


def test_a_submission_that_was_never_sent_is_sent_again(fakes: FakeCommands) -> None:
    fakes.answer_as_recorded("sbatch", "sbatch_down", call=1)
    fakes.answer("sbatch", "12\n")
    assert patient(fakes, []).submit(Path("job.sbatch")) == "12"
    assert len(fakes.calls("sbatch")) == 2


LOST = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation\n"


def test_a_submission_whose_answer_was_lost_is_looked_for_first(fakes: FakeCommands) -> None:
    fakes.answer("sbatch", complaint=LOST, code=1)
    fakes.answer_as_recorded("squeue", "squeue_early")
    assert patient(fakes, []).submit(Path("job.sbatch"), token="hpcrl recorded") == ID["requeued"]
    assert len(fakes.calls("sbatch")) == 1


def test_a_lost_submission_that_is_nowhere_is_repeated(fakes: FakeCommands) -> None:
    fakes.answer("sbatch", complaint=LOST, code=1, call=1)
    fakes.answer("sbatch", "31\n")
    fakes.answer_as_recorded("squeue", "squeue_early")
    fakes.answer_as_recorded("sacct", "sacct_by_user")
    assert patient(fakes, []).submit(Path("job.sbatch"), token="never seen") == "31"
    assert len(fakes.calls("sbatch")) == 2


def test_a_submission_that_was_killed_on_the_way_is_no_refusal(fakes: FakeCommands) -> None:
    """SLURM ends a job with signals to all of its processes: also to the sbatch that the job has just called."""
    fakes.answer("sbatch", code=-15, call=1)
    fakes.answer("sbatch", "31\n")
    fakes.answer_as_recorded("squeue", "squeue_early")
    fakes.answer_as_recorded("sacct", "sacct_by_user")
    assert patient(fakes, []).submit(Path("job.sbatch"), token="never seen") == "31"
    assert patient(fakes, []).submit(Path("job.sbatch"), token="hpcrl recorded") == "31"
    fakes.answer("sbatch", code=-9)
    assert patient(fakes, []).submit(Path("job.sbatch"), token="hpcrl recorded") == ID["requeued"]


def test_a_question_to_the_accounting_that_was_killed_does_not_mean_that_it_is_off(
    slurm: Slurm, fakes: FakeCommands
) -> None:
    fakes.answer("sacct", code=-15)
    with pytest.raises(SchedulerUnavailableError, match="sacct ended with code -15 and said nothing"):
        slurm.accounting(["7"])
    assert not slurm.accounting_is_off


def test_without_a_token_a_lost_submission_is_not_repeated(fakes: FakeCommands) -> None:
    fakes.answer("sbatch", complaint=LOST, code=1)
    with pytest.raises(SchedulerUnavailableError, match="may be in the queue or not"):
        patient(fakes, []).submit(Path("job.sbatch"))
    assert len(fakes.calls("sbatch")) == 1


# Cancelling, requeueing.


def test_cancelling_passes_over_what_has_ended(slurm: Slurm, fakes: FakeCommands) -> None:
    fakes.answer_as_recorded("scancel", "cancel_finished", call=1)
    unknown = "scancel: error: Kill job error on job id 99: Invalid job id specified\n"
    fakes.answer("scancel", complaint=unknown, code=1, call=2)
    slurm.cancel(["6", "12_3"])
    slurm.cancel(["99"])
    slurm.cancel([])
    assert fakes.calls("scancel") == [["--quiet", "6", "12_3"], ["--quiet", "99"]]


def test_cancelling_what_is_not_ours_is_refused(slurm: Slurm, fakes: FakeCommands) -> None:
    mixed = "scancel: error: Kill job error on job id 99: Invalid job id specified\n"
    mixed += "scancel: error: Kill job error on job id 7: Access/permission denied\n"
    fakes.answer("scancel", complaint=mixed, code=1)
    with pytest.raises(
        InputError, match=r"scancel: SLURM refused: Kill job error on job id 7: Access/permission denied"
    ):
        slurm.cancel(["7", "99"])


def test_requeue_and_release(slurm: Slurm, fakes: FakeCommands) -> None:
    fakes.answer("scontrol", "")
    slurm.requeue("12_3")
    slurm.release("9")
    assert fakes.calls("scontrol") == [["requeue", "12_3"], ["release", "9"]]
    fakes.answer_as_recorded("scontrol", "requeue_pending")
    with pytest.raises(InputError, match="SLURM refused: Job is pending execution for job"):
        slurm.requeue("11")


# What a cluster has.


def test_partitions_are_read(slurm: Slurm, fakes: FakeCommands) -> None:
    fakes.answer_as_recorded("sinfo", "sinfo")
    partitions = {partition.name: partition for partition in slurm.partitions()}
    assert [name for name, one in partitions.items() if one.is_default] == ["debug"]
    assert (partitions["cpu"].nodes, partitions["cpu"].usable_nodes, partitions["cpu"].time_limit) == (2, 2, 86400.0)
    assert partitions["gpu"].groups[0].gpus() == 2


def test_a_partitions_groups_are_gathered_and_its_marks_dropped() -> None:
    lines = [
        ("gpu*", "up", "infinite", "3", "idle~", "64", "512000", "gpu:a100:4(S:0-1)", "a"),
        ("gpu*", "up", "infinite", "1", "down*", "64", "512000", "gpu:a100:4(S:0-1)", "a"),
        ("old", "inact", "1:00:00", "0", "n/a", "0", "0", "(null)", "(null)"),
    ]
    gpu, old = parse_partitions("\n".join("\x1f".join(line) for line in lines) + "\n")
    assert (gpu.name, gpu.is_default, gpu.nodes, gpu.usable_nodes, gpu.time_limit) == ("gpu", True, 4, 3, None)
    assert (gpu.groups[0].gpus("gpu:a100:{count}"), gpu.groups[0].gpus("gpu:h100:{count}")) == (4, 0)
    assert (old.is_up, old.nodes, old.groups) == (False, 0, ())


PARTITIONS = [
    Partition("cpu", True, True, 3600.0, (NodeGroup(2, "idle", 16, 64 * 1024, "(null)", ""),)),
    Partition("gpu", False, True, None, (NodeGroup(1, "mixed", 8, 32 * 1024, "gpu:a100:4", ""),)),
    Partition("empty", False, True, None, ()),
]


def refuse(resources: Resources, ranks: int = 4, partitions: list[Partition] = PARTITIONS) -> None:
    launch = Launch(gres="gpu:a100:{count}")
    refuse_impossible(resources, launch, partitions, ranks=ranks, cpus_per_rank=1, where="resources")


@pytest.mark.parametrize(
    ("resources", "ranks", "words"),
    [
        (Resources(partition="nowhere"), 4, r"resources.partition: want a partition of this cluster, given 'nowhere'"),
        (Resources(partition="empty"), 4, r"resources.partition: want a partition with nodes"),
        (Resources(time_minutes=61), 4, r"resources.time_minutes: want at most 60 minutes \(partition cpu\), given 61"),
        (Resources(nodes=3), 4, r"resources.nodes: want at most 2 \(partition cpu\), given 3"),
        (Resources(cpus_per_rank=17), 1, r"resources.cpus_per_rank: want at most 16 CPUs, what one node has"),
        (Resources(memory_gb_per_rank=65), 1, r"resources.memory_gb_per_rank: want at most 64 GiB"),
        (Resources(gpus_per_rank=1), 1, r"resources.gpus_per_rank: want at most 0 GPUs"),
        (Resources(cpus_per_rank=8), 5, r"resources.nodes: want 2 nodes with room for 4 ranks .*given 5 ranks"),
        (Resources(cpus_per_rank=8, nodes=1), 3, r"want 1 node with room for 2 ranks"),
        (Resources(partition="gpu", gpus_per_rank=2), 3, r"want 1 node with room for 2 ranks"),
        (Resources(memory_gb_per_rank=40), 3, r"want 2 nodes with room for 2 ranks"),
    ],
)
def test_what_could_never_run_is_refused_before_it_waits(resources: Resources, ranks: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        refuse(resources, ranks)


def test_gpus_without_a_number_of_nodes_are_those_of_one_node() -> None:
    """As the scripts ask for them: --gres counts one node's, beside --nodes=1."""
    two = [Partition("gpu", True, True, None, (NodeGroup(2, "idle", 8, 32 * 1024, "gpu:a100:4", ""),))]
    refuse(Resources(gpus_per_rank=1, nodes=2), ranks=8, partitions=two)
    refuse(Resources(gpus_per_rank=1), ranks=4, partitions=two)
    with pytest.raises(InputError, match=r"want 1 node with room for 4 ranks .*given 5 ranks.*or more nodes"):
        refuse(Resources(gpus_per_rank=1), ranks=5, partitions=two)


def test_ranks_go_to_the_nodes_with_most_room() -> None:
    mixed = [
        Partition(
            "cpu", True, True, None, (NodeGroup(1, "idle", 2, 1024, "", ""), NodeGroup(1, "idle", 8, 1024, "", ""))
        )
    ]
    refuse(Resources(nodes=1), ranks=8, partitions=mixed)
    with pytest.raises(InputError, match="want 1 node with room for 8 ranks"):
        refuse(Resources(nodes=1), ranks=9, partitions=mixed)


@pytest.mark.parametrize(
    "resources",
    [
        Resources(),
        Resources(nodes=2, cpus_per_rank=8, memory_gb_per_rank=32),
        Resources(partition="gpu", gpus_per_rank=1),
        Resources(partition="gpu,cpu", cpus_per_rank=12, time_minutes=50),
    ],
)
def test_what_can_run_is_not_refused(resources: Resources) -> None:
    refuse(resources, ranks=2)


def test_nodes_that_are_down_may_come_back() -> None:
    down = [Partition("cpu", True, True, None, (NodeGroup(2, "down", 4, 1024, "", ""),))]
    refuse(Resources(), partitions=down)


def test_without_a_default_partition_one_must_be_named() -> None:
    with pytest.raises(InputError, match=r"want one, because this cluster has no default, given none; choose from gpu"):
        refuse(Resources(), partitions=PARTITIONS[1:2])


def _cancel(slurm: Slurm) -> None:
    slurm.cancel(["1"])


@pytest.mark.parametrize("ask", [Slurm.partitions, Slurm.limits, _cancel])
def test_every_question_knows_a_silent_controller(
    ask: Callable[[Slurm], object], slurm: Slurm, fakes: FakeCommands
) -> None:
    for name in ("sinfo", "scontrol", "scancel"):
        fakes.answer(name, complaint="error: Unable to contact slurm controller (connect failure)\n", code=1)
    with pytest.raises(SchedulerUnavailableError):
        ask(slurm)
