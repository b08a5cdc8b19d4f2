"""The process that generated code runs in: takes calls, gives back results, knows no test.

A script of the standard library alone, started by execution_tester.py as
`python -I -S execution_candidate.py CALLS RESULTS`, two descriptors of pipes. Messages are a length in eight bytes and
a pickle. It is not part of what the tests trust: whatever it sends is read as plain data.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import resource
import sys
import types
from typing import Any, BinaryIO

# linux/landlock.h: rights over files by version of the interface, and what belongs to a file that is no folder.
_NUM_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
_EXECUTE, _WRITE, _READ, _READ_FOLDER, _TRUNCATE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14
_TCP = 0b11
_SCOPES = 0b11  # abstract sockets, signals
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_SET_NO_NEW_PRIVILEGES = 38


class _Ruleset(ctypes.Structure):
    _fields_ = [("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64)]


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32)]


def restrict(folder: str, readable: list[str]) -> list[str]:
    """Takes from this process, with Landlock, all files but some, TCP, and signals to others.

    Gives what the kernel could take, some of "files", "tcp" and "signals".
    """
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_CREATE_RULESET, None, 0, 1)
    if version < 1:
        return []
    every = (1 << _NUM_FILE_RIGHTS.get(version, 16)) - 1
    rules = _Ruleset(every, _TCP if version >= 4 else 0, _SCOPES if version >= 6 else 0)
    ruleset = libc.syscall(_CREATE_RULESET, ctypes.byref(rules), ctypes.sizeof(rules), 0)
    if ruleset < 0:
        return []
    read = _EXECUTE | _READ | _READ_FOLDER
    file_rights = _EXECUTE | _WRITE | _READ | (_TRUNCATE & every)
    allowed = [(path, read) for path in readable] + [("/dev/null", _READ | _WRITE), ("/dev/urandom", _READ)]
    for path, rights in [*allowed, (folder, every)]:
        try:
            parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        beneath = _PathBeneath(rights if os.path.isdir(path) else rights & file_rights, parent)
        libc.syscall(_ADD_RULE, ruleset, 1, ctypes.byref(beneath), 0)
        os.close(parent)
    libc.prctl(_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    done = libc.syscall(_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)
    if done != 0:
        return []
    return ["files"] + ["tcp"] * (version >= 4) + ["signals"] * (version >= 6)


def _num_tasks() -> int:
    """Threads of this user on the whole machine, which RLIMIT_NPROC counts outside of a user namespace."""
    count = 0
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == os.getuid():
                count += len(os.listdir(f"/proc/{name}/task"))
        except OSError:
            continue  # ended meanwhile
    return count


def _protect(folder: str, num_processes: int, namespaces: bool, own_proc: bool, landlock: bool) -> list[str]:
    limit = num_processes + (0 if namespaces or not os.path.isdir("/proc/self") else _num_tasks())
    _, ceiling = resource.getrlimit(resource.RLIMIT_NPROC)
    limit = limit if ceiling == resource.RLIM_INFINITY else min(limit, ceiling)
    resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))
    readable = [sys.base_prefix, sys.base_exec_prefix, "/usr", "/lib", "/lib64", *(["/proc"] if own_proc else [])]
    readable += [path for path in os.environ.get("LD_LIBRARY_PATH", "").split(":") if path]
    protections = restrict(folder, readable) if landlock else []
    if not namespaces and "signals" not in protections:
        # A hint rather than a wall: a killed neighbour is this user's own work.
        os.kill = os.killpg = None  # type: ignore[assignment]
    return protections


def send(pipe: BinaryIO, message: object) -> None:
    """One message. Raises what pickle raises, before a byte is written."""
    content = pickle.dumps(message, protocol=4)
    pipe.write(len(content).to_bytes(8, "little") + content)
    pipe.flush()


def _receive(pipe: BinaryIO) -> Any:
    header = pipe.read(8)
    if len(header) < 8:
        os._exit(0)  # the tests are over
    return pickle.loads(pipe.read(int.from_bytes(header, "little")))


def _raised(error: BaseException) -> tuple[str, str, str]:
    try:
        text = str(error)[:500]
    except Exception:
        text = ""
    return "raised", type(error).__name__, text


def main() -> None:
    """Runs a program, then answers calls of one of its functions until the pipe is closed."""
    calls, results = os.fdopen(int(sys.argv[1]), "rb"), os.fdopen(int(sys.argv[2]), "wb")
    protection, program, entry_point = _receive(calls)
    send(results, ("protected", _protect(*protection)))
    module = types.ModuleType("candidate")
    sys.modules["candidate"] = module
    try:
        exec(compile(program, "<candidate>", "exec"), module.__dict__)
        function = module.__dict__[entry_point]
    except BaseException as error:  # SystemExit is one
        send(results, _raised(error))
        return
    send(results, ("ready",))
    while True:
        arguments, named = _receive(calls)
        try:
            answer: tuple[object, ...] = ("returned", function(*arguments, **named))
        except BaseException as error:
            answer = _raised(error)
        try:
            send(results, answer)
        except Exception as error:
            send(results, _raised(TypeError(f"a result that is no plain data: {error}")))


if __name__ == "__main__":
    main()
