"""SLURM by its commands: submit, look, cancel. Fields are asked for by name: the JSON changes with every release."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hpcrl.errors import InputError
from hpcrl.scheduler.commands import Answer, Commands
from hpcrl.scheduler.environment import question_environment, submission_environment
from hpcrl.scheduler.jobs import (
    ACCOUNTING_FIELDS,
    FIELD_END,
    Job,
    duration,
    expand_ids,
    parse_accounting,
    parse_queue,
    queue_format,
)
from hpcrl.scheduler.nodes import PARTITION_FORMAT, Partition, parse_partitions
from hpcrl.scheduler.refusals import SchedulerUnavailableError, accounting_is_off, is_unknown_job, refusal

COMMANDS: Final = ("sbatch", "squeue", "scancel", "scontrol", "sinfo")
"""What must be on PATH. sacct is a help, not a need."""

_IDS_PER_CALL = 500
"""Ids on one command line: a long one passes the kernel's limit."""
_ACCOUNTING_DAYS = 2
"""How far back a job without a known id is looked for."""


@dataclass(frozen=True)
class ClusterLimits:
    """What a cluster's configuration says; None: it does not."""

    cluster: str
    version: str
    max_array_size: int | None
    """One more than the largest array index."""
    max_submit_jobs: int | None
    """How many jobs this user may have queued and running, from the accounting."""
    min_job_age_seconds: float | None
    """How long squeue remembers a job that has ended."""
    requeues: bool
    """Whether jobs are requeued when their node fails, or they ask for it."""
    has_accounting: bool


class Slurm:
    """One SLURM cluster, as this environment reaches it.

    Every call has a time limit. When the controller does not answer, it is asked again with growing pauses for
    `patience_seconds`, then SchedulerUnavailableError is raised; 0 asks once, for a person who waits for a screen.

    Args:
        environment: variables of the commands; PATH is looked up there.
        call_seconds: longest that one command may take.
        patience_seconds: how long a silent controller is asked again.
        say: told in one line when it has to wait.
    """

    def __init__(
        self,
        environment: Mapping[str, str] = os.environ,
        *,
        call_seconds: float = 30.0,
        patience_seconds: float = 300.0,
        say: Callable[[str], None] = lambda _: None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._commands = Commands(
            environment, call_seconds=call_seconds, patience_seconds=patience_seconds, say=say, sleep=sleep
        )
        self._environment = question_environment(environment)
        self._submission = submission_environment(environment)
        self.accounting_trouble = ""
        """Why sacct gave no answer when it was last asked; "" when it did, or was not asked."""

    @property
    def accounting_is_off(self) -> bool:
        """Whether sacct had no answer when it was last asked."""
        return self.accounting_trouble != ""

    def is_available(self) -> bool:
        """Whether SLURM's commands are on PATH; nothing is started."""
        return not self.missing_commands()

    def missing_commands(self) -> list[str]:
        """SLURM's commands that are not on PATH."""
        return [name for name in COMMANDS if self._commands.find(name) is None]

    def submit(
        self,
        script: Path,
        arguments: Sequence[str] = (),
        options: Sequence[str] = (),
        *,
        token: str | None = None,
        folder: Path | None = None,
    ) -> str:
        """Submits a batch script; returns its job id.

        Args:
            arguments: what the script is called with.
            options: words for sbatch; they overrule the script's own.
            token: stands in the job's comment (in the script or in `options`) and in no other job's. With it, a
                submission whose answer was lost is looked for in the queue before it is repeated; without, it is never
                repeated.
            folder: working folder of the job; None: this process's.
        Raises: SubmissionRefusedError; SchedulerUnavailableError; InputError when there is no sbatch.
        """
        words = ["sbatch", "--parsable", *options, str(script), *arguments]
        answer = self._commands.ask(
            words,
            self._submission,
            folder=None if folder is None else str(folder),
            before_repeating=lambda lost: self._find_lost(lost, token),
        )
        if answer.code != 0:
            raise refusal(answer.complaint, str(script))
        # A site's wrapper may print lines of its own before it.
        ids = re.findall(r"^(\d+)(?:;\S*)?$", answer.output, re.MULTILINE)
        if not ids:
            raise InputError(f"sbatch {script}: want a job id, given {answer.output.strip()!r}; look at squeue --me")
        return str(ids[-1])

    def check(self, script: Path, options: Sequence[str] = ()) -> None:
        """Has SLURM say whether it would take a job; submits nothing.

        Raises: SubmissionRefusedError; SchedulerUnavailableError; InputError when there is no sbatch.
        """
        answer = self._commands.ask(["sbatch", "--test-only", *options, str(script)], self._submission)
        if answer.code != 0:
            raise refusal(answer.complaint, str(script))

    def _find_lost(self, lost: Answer, token: str | None) -> Answer | None:
        """The job of a submission that may have arrived although its answer did not."""
        if not lost.did_arrive:
            return None
        if token is None:
            raise SchedulerUnavailableError(
                f"sbatch: SLURM's controller did not answer: {lost.words}; the job may be in the queue or not: look at "
                f"squeue --me before submitting it again"
            )
        found = self.find_by_comment(token)
        return Answer("sbatch", 0, f"{found[0].array_id or found[0].id}\n", "") if found else None

    def queue(self, ids: Sequence[str] | None = None, user: str | None = None) -> list[Job]:
        """The jobs that squeue knows, ended ones too for as long as it remembers them (minutes).

        Args:
            ids: only these jobs, arrays ("12") and elements ("12_3"); None: all of a user.
            user: name or id; None: this user.
        Raises: SchedulerUnavailableError; InputError.
        """
        if ids is None:
            return self._read_queue(self._ask_queue(f"--user={user if user is not None else os.geteuid()}"))
        return _only([job for chunk in _chunks(ids) for job in self._queue_of(chunk)], ids)

    def _queue_of(self, ids: Sequence[str]) -> list[Job]:
        answer = self._ask_queue(f"--jobs={','.join(ids)}")
        if answer.code == 0 or not is_unknown_job(answer.complaint):
            return self._read_queue(answer)
        if len(ids) == 1:
            return []
        # One unknown id may hide the others, in some releases.
        half = len(ids) // 2
        return self._queue_of(ids[:half]) + self._queue_of(ids[half:])

    def _ask_queue(self, choice: str) -> Answer:
        words = ["squeue", "--noheader", "--states=all", f"--Format={queue_format()}", choice]
        return self._commands.ask(words, self._environment)

    def _read_queue(self, answer: Answer) -> list[Job]:
        _refuse(answer)
        return list(parse_queue(answer.output))

    def accounting(self, ids: Sequence[str]) -> list[Job]:
        """The jobs that sacct knows; [] when accounting is off, which `accounting_is_off` then says.

        A job appears there a few seconds after its submission.

        Raises: InputError; SchedulerUnavailableError when sacct was killed: that says nothing about the accounting.
        """
        chunks = [f"--jobs={','.join(chunk)}" for chunk in _chunks(ids)]
        return _only([job for chunk in chunks for job in self._ask_accounting([chunk])], ids)

    def _ask_accounting(self, choice: Sequence[str]) -> list[Job]:
        form = f"--format={','.join(ACCOUNTING_FIELDS)}"
        # Duplicates: the records before each requeue, which are its restarts.
        words = [
            "sacct",
            "--noheader",
            "--allocations",
            "--duplicates",
            "--parsable2",
            f"--delimiter={FIELD_END}",
            form,
        ]
        if self._commands.find("sacct") is None:
            self.accounting_trouble = "sacct is not on PATH"
            return []
        answer = self._commands.run([*words, *choice], self._environment)
        if answer.was_killed:
            raise SchedulerUnavailableError(f"sacct: {answer.words}; ask again")
        if answer.is_missing or (answer.code != 0 and accounting_is_off(answer.complaint)):
            self.accounting_trouble = answer.words
            return []
        _refuse(answer)
        self.accounting_trouble = ""
        return list(parse_accounting(answer.output))

    def look(self, ids: Sequence[str]) -> dict[str, Job]:
        """Where jobs stand: from squeue, and from sacct what squeue has forgotten or does not tell.

        Args: ids: jobs, arrays ("12": all its elements) and elements ("12_3").
        Returns: id of a job or an element -> job; who is not in it is unknown to both.
        Raises: SchedulerUnavailableError; InputError.
        """
        found = {job.id: job for job in self.queue(ids)}
        # Unknown to squeue; or an array asked for as a whole, of which squeue may have forgotten elements.
        doubtful = [id_ for id_ in ids if id_ not in found]
        # squeue does not tell who cancelled.
        doubtful += [job.id for job in found.values() if job.state == "CANCELLED" and job.array_id not in doubtful]
        if not doubtful:
            return found
        for job in self.accounting(doubtful):
            known = found.get(job.id)
            # Of what is still there the controller knows; what only the accounting believes to be there is lost.
            if (known is None and job.is_over) or (known is not None and known.state == job.state == "CANCELLED"):
                found[job.id] = job
        # For a moment the accounting has a record of an array beside those of its elements.
        arrays = {job.array_id for job in found.values()}
        return {id_: job for id_, job in found.items() if id_ not in arrays}

    def find_by_comment(self, token: str) -> list[Job]:
        """This user's jobs whose comment holds `token`, newest first: from squeue, else from the last days' accounting.

        Raises: SchedulerUnavailableError; InputError.
        """
        jobs = [job for job in self.queue() if token in job.comment]
        if not jobs:
            since = f"--starttime=now-{_ACCOUNTING_DAYS}days"
            jobs = [job for job in self._ask_accounting([f"--user={os.geteuid()}", since]) if token in job.comment]
        return sorted(jobs, key=lambda job: (job.submitted or 0.0, job.id), reverse=True)

    def cancel(self, ids: Sequence[str]) -> None:
        """Cancels jobs, arrays and elements; those that have ended are passed over.

        Raises: InputError with SLURM's words when it refuses; SchedulerUnavailableError.
        """
        for chunk in _chunks(ids):
            answer = self._commands.ask(["scancel", "--quiet", *chunk], self._environment)
            complaints = [line for line in answer.complaint.splitlines() if line.strip() and not is_unknown_job(line)]
            if answer.code != 0 and (complaints or not answer.complaint.strip()):
                _refuse(Answer("scancel", answer.code, "", "\n".join(complaints)))

    def requeue(self, id_: str) -> None:
        """Stops a running job and puts it back into the queue. Raises: InputError with SLURM's words; (see cancel)."""
        _refuse(self._commands.ask(["scontrol", "requeue", *_checked([id_])], self._environment))

    def release(self, id_: str) -> None:
        """Lets a held job go on. Raises: InputError with SLURM's words; SchedulerUnavailableError."""
        _refuse(self._commands.ask(["scontrol", "release", *_checked([id_])], self._environment))

    def partitions(self) -> list[Partition]:
        """The partitions that this user sees. Raises: SchedulerUnavailableError; InputError."""
        answer = self._commands.ask(
            ["sinfo", "--noheader", "--exact", f"--format={PARTITION_FORMAT}"], self._environment
        )
        _refuse(answer)
        return parse_partitions(answer.output)

    def limits(self) -> ClusterLimits:
        """What the configuration says. Raises: SchedulerUnavailableError; InputError."""
        answer = self._commands.ask(["scontrol", "show", "config"], self._environment)
        _refuse(answer)
        said = dict(re.findall(r"^(\w+)\s*=\s*(.*?)\s*$", answer.output, re.MULTILINE))
        array_size, age = _first_number(said.get("MaxArraySize", "")), _first_number(said.get("MinJobAge", ""))
        has_accounting = "slurmdbd" in said.get("AccountingStorageType", "")
        return ClusterLimits(
            cluster=said.get("ClusterName", ""),
            version=said.get("SLURM_VERSION", ""),
            max_array_size=array_size,
            max_submit_jobs=self._max_submit_jobs() if has_accounting else None,
            min_job_age_seconds=None if age is None else float(age),
            requeues=said.get("JobRequeue", "1") != "0",
            has_accounting=has_accounting,
        )

    def _max_submit_jobs(self) -> int | None:
        """The least MaxSubmitJobs of this user's associations; of a QOS's own limit sbatch tells when it is reached."""
        if self._commands.find("sacctmgr") is None:
            return None
        words = ["sacctmgr", "--noheader", "--parsable2", "show", "associations", f"users={_user_name()}"]
        answer = self._commands.run([*words, "format=MaxSubmitJobs"], self._environment)
        found = [int(line) for line in answer.output.split() if line.isdecimal()] if answer.code == 0 else []
        return min(found, default=None)

    def time_left(self, id_: str) -> float | None:
        """Seconds until a job's time limit (all of it while it waits); None: no limit, no job. Raises: see queue."""
        words = ["squeue", "--noheader", f"--Format=TimeLeft:0{FIELD_END}", f"--jobs={_checked([id_])[0]}"]
        answer = self._commands.ask(words, self._environment)
        if answer.code != 0 and is_unknown_job(answer.complaint):
            return None
        _refuse(answer)
        return duration(answer.output.partition(FIELD_END)[0])


def _only(jobs: Sequence[Job], ids: Sequence[str]) -> list[Job]:
    """Without the elements that share a record with one that was asked for."""
    asked = set(ids)
    return [job for job in jobs if job.id in asked or job.array_id in asked]


def _chunks(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    checked = _checked(ids)
    for start in range(0, len(checked), _IDS_PER_CALL):
        yield checked[start : start + _IDS_PER_CALL]


def _checked(ids: Sequence[str]) -> list[str]:
    """The ids, once each. Raises: ValueError for one that is none; it might be an option of a command."""
    for id_ in ids:
        list(expand_ids(id_))
    return list(dict.fromkeys(ids))


def _refuse(answer: Answer) -> None:
    if answer.code != 0:
        raise InputError(f"{answer.command}: SLURM refused: {answer.words}; see the manual page of {answer.command}")


def _first_number(text: str) -> int | None:
    match = re.match(r"\d+", text)
    return int(match[0]) if match else None


def _user_name() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
