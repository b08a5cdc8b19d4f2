"""The lease: who works on a run now. It avoids double work; nothing depends on it for correctness."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from hpcrl.errors import InputError
from hpcrl.store.disk_errors import explain_write_errors
from hpcrl.store.documents import read_document, seal
from hpcrl.store.processes import Process, end_processes
from hpcrl.store.publish import make_folder, publish, temporary_beside

_NAME = "lease"
_SET_ASIDE = "lease.stale-"
_TRIES = 20


class LeaseHeldError(InputError):
    """Somebody works on it."""


@dataclass(frozen=True)
class Holder:
    """What the lease file says."""

    token: str
    """Names one launch; the launcher hands it to its ranks."""
    process: Process
    since: str
    """UTC, ISO 8601."""
    job: str
    """SLURM job (and array task), or empty."""
    restart_count: int
    """How often SLURM has requeued that job."""
    launcher: Process | None = None
    """The process without which the launch counts as dead (hpcrl run, mpiexec), if there is one."""

    @classmethod
    def new(cls, environment: Mapping[str, str], launcher: Process | None) -> Holder:
        """This process, as a holder."""
        job, task = environment.get("SLURM_JOB_ID", ""), environment.get("SLURM_ARRAY_TASK_ID", "")
        return cls(
            token=secrets.token_hex(8),
            process=Process.this(),
            since=datetime.now(UTC).isoformat(timespec="seconds"),
            job=f"{job}_{task}" if task else job,
            restart_count=int(environment.get("SLURM_RESTART_COUNT", "0")),
            launcher=launcher,
        )

    @classmethod
    def read(cls, path: Path) -> Holder:
        """Raises: FileNotFoundError; CorruptFileError."""
        body = read_document(path, "lease")
        launcher = body.pop("launcher")
        process = Process(**body.pop("process"))
        return cls(**body, process=process, launcher=Process(**launcher) if launcher is not None else None)

    @property
    def is_alive(self) -> bool:
        """Whether the holder works on: it lives, and so does its launcher. Only meaningful on the holder's host."""
        return self.process.is_alive() and (self.launcher is None or self.launcher.is_alive())


class Lease:
    """The right to work on a run, held by the launching process until release; a context manager.

    A heartbeat thread touches the file. `is_lost` turns true when another launch has taken the run over, which happens
    when this process seemed dead (stopped for long, cut off from the file server): going on is harmless, double work.
    """

    def __init__(self, run_path: Path, holder: Holder, heartbeat_seconds: float) -> None:
        self.run_path, self.holder, self.token = run_path, holder, holder.token
        self.is_lost = False
        self._path = run_path / _NAME
        self._descriptor = os.open(self._path, os.O_RDONLY)
        self._released = threading.Event()
        self._heartbeat = threading.Thread(
            target=self._beat, args=(heartbeat_seconds,), name="hpcrl-heartbeat", daemon=True
        )
        self._heartbeat.start()

    @classmethod
    def acquire(
        cls,
        run_path: Path,
        *,
        heartbeat_seconds: float = 10.0,
        stale_seconds: float = 60.0,
        grace_seconds: float = 5.0,
        launcher: Process | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Lease:
        """Takes the run, from a dead holder too: then the processes that its launch left on this host are ended first.

        Args:
            stale_seconds: a holder on another host counts as dead when its heartbeat is older than this.
            grace_seconds: orphans get SIGTERM, and SIGKILL after this time.
            launcher: a process of this host whose death makes the launch an orphan, where the holder is itself a rank.
            environment: where SLURM's variables are read; None: this process's.
        Raises: InputError naming the holder when it is alive, or when the disk is full or read-only; CorruptFileError
            when the lease is damaged.
        """
        run_path = Path(run_path)
        make_folder(run_path)
        holder = Holder.new(os.environ if environment is None else environment, launcher)
        document = seal("lease", dataclasses.asdict(holder))
        for _ in range(_TRIES):
            with explain_write_errors(run_path / _NAME):
                _end_launches_set_aside(run_path, grace_seconds)
                if publish(run_path / _NAME, document):
                    return cls(run_path, holder, heartbeat_seconds)
                _set_aside_if_dead(run_path, holder, stale_seconds)
        raise InputError(f"{run_path / _NAME}: others keep taking this run; look with `hpcrl status`, then run again")

    def record(self, processes: Sequence[Process]) -> None:
        """Notes processes of this launch, so that a later launch can end them as orphans; see record_processes."""
        record_processes(self.run_path, self.token, processes)

    def release(self) -> None:
        """Gives the run back; call it when the launch's other processes are gone."""
        if self._released.is_set():
            return
        self._released.set()
        self._heartbeat.join()
        if self._is_ours():
            _remove_records(self.run_path, self.token)
            self._path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def _beat(self, seconds: float) -> None:
        while not self._released.wait(seconds):
            try:
                os.utime(self._descriptor)  # our own file, even when another now has its name
                self.is_lost = not self._is_ours()
            except OSError:
                self.is_lost = True

    def _is_ours(self) -> bool:
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._descriptor))
        except OSError:
            return False


def record_processes(run_path: Path, token: str, processes: Sequence[Process]) -> None:
    """Notes processes of the launch that holds the lease under `token`; ranks call it before they touch the run.

    The note is published first and the lease is looked at after it, so either a launch that takes over finds the note
    and ends these processes, or they find the lease gone and stop themselves.
    Raises: InputError when the lease is not this launch's any more.
    """
    note = Path(run_path) / f"{_NAME}.{token}.{os.getpid()}-{secrets.token_hex(4)}.json"
    publish(note, seal("processes", {"processes": [dataclasses.asdict(process) for process in processes]}))
    try:
        current = Holder.read(Path(run_path) / _NAME).token
    except FileNotFoundError:
        current = "none"
    if current != token:
        note.unlink(missing_ok=True)
        raise InputError(
            f"{run_path}: want the lease of this launch ({token}), given {current}; another took over: ending"
        )


def find_holder(run_path: Path) -> Holder | None:
    """Who holds the lease, alive or not; None when nobody does. Raises: CorruptFileError."""
    try:
        return Holder.read(Path(run_path) / _NAME)
    except FileNotFoundError:
        return None


def _set_aside_if_dead(run_path: Path, us: Holder, stale_seconds: float) -> None:
    """Moves a dead holder's lease out of the way. Raises: InputError when the holder is alive."""
    path = run_path / _NAME
    holder = find_holder(run_path)
    if holder is None:
        return
    age = _heartbeat_age(path)
    if not _is_dead(holder, us, age, stale_seconds):
        raise LeaseHeldError(_refusal(run_path, holder, age, stale_seconds))
    aside = run_path / f"{_SET_ASIDE}{holder.token}"
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return  # another launch was faster
    moved = Holder.read(aside)
    if moved.token != holder.token:  # between reading and renaming another launch took over: give it back its lease
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
        aside.unlink(missing_ok=True)


def _is_dead(holder: Holder, us: Holder, age: float, stale_seconds: float) -> bool:
    if holder.job and holder.job == us.job and us.restart_count > holder.restart_count:
        return True  # SLURM ended that job before it started it again
    if holder.process.is_local():
        return not holder.is_alive
    return age > stale_seconds


def _refusal(run_path: Path, holder: Holder, age: float, stale_seconds: float) -> str:
    job = f", job {holder.job}" if holder.job else ""
    action = "wait for it, or end it"
    if not holder.process.is_local():
        rest = max(0.0, stale_seconds - age)
        action += f"; if that host is gone, run again in {rest:.0f} s (last heartbeat {age:.0f} s ago)"
    who = f"{holder.process}{job} since {holder.since}"
    return f"{run_path}: want a run nobody works on, given one held by {who}; {action}"


def _heartbeat_age(path: Path) -> float:
    """Seconds since the last heartbeat, both times told by the file server's clock."""
    probe = temporary_beside(path)
    probe.touch()
    try:
        now = probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)
    try:
        return now - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _end_launches_set_aside(run_path: Path, grace_seconds: float) -> None:
    """Ends what dead launches left running on this host, then forgets them; repeats what a kill interrupted."""
    for aside in sorted(run_path.glob(f"{_SET_ASIDE}*")):
        token = aside.name.removeprefix(_SET_ASIDE)
        processes = [
            Process(**process)
            for note in sorted(run_path.glob(f"{_NAME}.{token}.*.json"))
            for process in _read_note(note)
        ]
        with contextlib.suppress(FileNotFoundError):  # another launch is at the same work
            processes.append(Holder.read(aside).process)
        end_processes(processes, grace_seconds=grace_seconds)
        _remove_records(run_path, token)
        aside.unlink(missing_ok=True)


def _read_note(note: Path) -> list[dict[str, Any]]:
    try:
        processes: list[dict[str, Any]] = read_document(note, "processes")["processes"]
    except FileNotFoundError:
        return []  # another launch is at the same work
    return processes


def _remove_records(run_path: Path, token: str) -> None:
    for note in run_path.glob(f"{_NAME}.{token}.*.json"):
        note.unlink(missing_ok=True)
