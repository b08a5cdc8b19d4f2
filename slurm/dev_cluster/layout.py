"""A cluster's folder: what lies where, the daemons' command lines, and the files that they read."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pwd
import random
import socket
import stat
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Final

HOST: Final = socket.gethostname().split(".")[0]
USER: Final = pwd.getpwuid(os.getuid()).pw_name
IS_ROOT: Final = os.getuid() == 0
GPUS_PER_NODE: Final = 2
LONGEST_FOLDER: Final = 70
"""Characters: the path of a socket in it must fit into 107."""
PROGRAM_PATH: Final = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
"""Where programs are looked for: the daemons lie in sbin, which an ordinary user's PATH lacks."""

_LOOPBACK_ONLY = "NoCtldInAddrAny,NoInAddrAny"
_ACCOUNTING_OFF = "AccountingStorageType=accounting_storage/none\nJobAcctGatherType=jobacct_gather/none"
_ACCOUNTING_ON = """AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStoragePass={socket}
AccountingStorageTRES=gres/gpu
AccountingStorageEnforce=associations,limits,qos
AccountingStoreFlags=job_comment
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=10"""
_SLURMDBD = """AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.socket
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser={user}
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser={user}
StorageLoc=slurm_acct
LogFile={folder}/log/slurmdbd.log
PidFile={folder}/run/slurmdbd.pid
"""


class RefusedError(Exception):
    """What was asked for cannot be done; one line says why. The command ends with exit code 2."""


@dataclass(frozen=True)
class Cluster:
    """A cluster: its folder, and what was asked for when it was made (kept in the folder, in cluster.json)."""

    folder: Path
    nodes: int
    cpus: int
    """Of each node; booked, not enforced."""
    port: int
    """The controller's; the accounting's and one for each node follow."""
    accounting: bool

    @classmethod
    def open(cls, folder: Path) -> Cluster:
        """The cluster whose files lie in a folder. Raises: RefusedError when there is none."""
        check_owner(folder)
        try:
            return cls(folder, **json.loads((folder / "cluster.json").read_text()))
        except FileNotFoundError:
            raise RefusedError(f"{folder}: want a cluster, found none; start one with `dev-cluster up`") from None

    @property
    def node_names(self) -> list[str]:
        return [f"n{number}" for number in range(1, self.nodes + 1)]

    @property
    def daemons(self) -> list[str]:
        """In the order in which they start."""
        accounting = ["mariadbd", "slurmdbd"] if self.accounting else []
        return ["munged", *accounting, "slurmctld", *(f"slurmd-{name}" for name in self.node_names)]

    @property
    def configuration(self) -> Path:
        return self.folder / "etc" / "slurm.conf"

    @property
    def munge_socket(self) -> Path:
        return self.folder / "run" / "munge.socket"

    @property
    def database_socket(self) -> Path:
        return self.folder / "db" / "socket"

    @property
    def environment(self) -> dict[str, str]:
        """All that daemons and clients inherit: nothing of a job that this may be running in."""
        return {
            "PATH": PROGRAM_PATH,
            "SLURM_CONF": str(self.configuration),
            "MYSQL_UNIX_PORT": str(self.database_socket),  # slurmdbd has no setting for it
        }

    def command(self, daemon: str) -> list[str]:
        """What runs a daemon in the foreground."""
        if daemon == "munged":
            return self._munged()
        if daemon == "mariadbd":
            return self._mariadbd()
        if daemon == "slurmdbd":
            return ["slurmdbd", "-D"]
        slurm = ["-D", "-f", str(self.configuration)]
        return ["slurmctld", *slurm] if daemon == "slurmctld" else ["slurmd", *slurm, "-N", daemon[len("slurmd-") :]]

    def _munged(self) -> list[str]:
        places = {
            "key-file": self.folder / "etc" / "munge.key",
            "seed-file": self.folder / "state" / "munge.seed",
            "socket": self.munge_socket,
            "pid-file": self.folder / "run" / "munged.pid",
            "log-file": self.folder / "log" / "munged.log",
        }
        # --force: the folder may be closed to others, and munged would rather that everybody reached its socket.
        return ["munged", "--foreground", "--force", *(f"--{name}={path}" for name, path in places.items())]

    def _mariadbd(self) -> list[str]:
        return [
            "mariadbd",
            "--no-defaults",
            f"--user={USER}",
            f"--datadir={self.folder}/db/data",
            f"--socket={self.database_socket}",  # tells who connects, so there is no password
            "--skip-networking",
            "--innodb-buffer-pool-size=64M",
            "--innodb-log-file-size=8M",
            "--innodb-flush-log-at-trx-commit=0",
            "--innodb-flush-method=nosync",  # what a crash of the machine would lose is worth nothing here
            "--innodb-lock-wait-timeout=900",  # slurmdbd complains about less
        ]

    def prepare(self) -> None:
        """Makes the folder and every file that the daemons read."""
        # Root's cluster may be used by anybody, who must reach munge's socket, slurm.conf and the nodes' spool folders.
        mode = 0o711 if IS_ROOT else 0o700
        for path in (self.folder, *(self.folder / name for name in ("etc", "run", "log", "spool", "tmp"))):
            path.mkdir(mode=mode, parents=True, exist_ok=True)
            path.chmod(mode)
        for name in ("state", "db"):
            (self.folder / name).mkdir(mode=0o700, exist_ok=True)
        for name in self.node_names:
            (self.folder / "spool" / name).mkdir(exist_ok=True)
            (self.folder / "tmp" / name).mkdir(exist_ok=True)
            (self.folder / "tmp" / name).chmod(0o1777 if IS_ROOT else 0o700)
        _write_secret(self.folder / "etc" / "munge.key", os.urandom(128))
        slurmdbd = _SLURMDBD.format(folder=self.folder, host=HOST, user=USER, port=self.port + 1)
        _write_secret(self.folder / "etc" / "slurmdbd.conf", slurmdbd.encode())
        self.configuration.write_text(self._slurm_conf())
        (self.folder / "etc" / "gres.conf").write_text(self._gres_conf())
        fields = {name: value for name, value in dataclasses.asdict(self).items() if name != "folder"}
        (self.folder / "cluster.json").write_text(json.dumps(fields) + "\n")

    def _slurm_conf(self) -> str:
        """slurm.conf, from the template beside this file."""
        names, half = self.node_names, max(1, self.nodes // 2)
        size = f"CPUs={self.cpus} Boards=1 SocketsPerBoard=1 CoresPerSocket={self.cpus} ThreadsPerCore=1"
        accounting = _ACCOUNTING_ON.format(port=self.port + 1, socket=self.munge_socket)
        nodes = (
            f"NodeName={name} NodeHostname={HOST} NodeAddr=127.0.0.1 Port={self.port + 2 + number} {size} "
            f"RealMemory={4000 * self.cpus} Gres=gpu:{GPUS_PER_NODE}"
            for number, name in enumerate(names)
        )
        template = string.Template((Path(__file__).parent / "slurm.conf").read_text())
        return template.substitute(
            folder=self.folder,
            host=HOST,
            user=USER,
            communication=f"CommunicationParameters={_LOOPBACK_ONLY}" if _host_is_loopback() else "",
            controller_port=self.port,
            accounting=accounting if self.accounting else _ACCOUNTING_OFF,
            nodes="\n".join(nodes),
            cpu_nodes=",".join(names[:half]),
            gpu_nodes=",".join(names[half:] or names),
        )

    def _gres_conf(self) -> str:
        """GPUs that are none: SLURM wants character devices, and any will do."""
        devices = self.folder / "dev"
        devices.mkdir(mode=0o755, exist_ok=True)
        for number in range(GPUS_PER_NODE):
            with contextlib.suppress(FileExistsError):
                (devices / f"gpu{number}").symlink_to(os.devnull)
        nodes = ",".join(self.node_names)
        return f"NodeName={nodes} Name=gpu File={devices}/gpu[0-{GPUS_PER_NODE - 1}]\n"


def default_folder() -> Path:
    """Where a user's cluster lies unless another place is named."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime) / "hpcrl-cluster" if runtime else Path("/tmp") / f"hpcrl-cluster-{os.getuid()}"


def check_owner(folder: Path) -> None:
    """Refuses a folder that another user made: what lies in it is run and trusted."""
    with contextlib.suppress(FileNotFoundError):
        found = folder.lstat()
        if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode):
            raise RefusedError(f"{folder}: want a folder of {USER}, given another's; name one with --folder DIR")


def check_empty(folder: Path) -> None:
    """Refuses a folder that holds anything but the logs of an earlier cluster, since `down` removes it."""
    found = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    if found not in ([], ["log"]):
        raise RefusedError(f"{folder}: want an empty folder, given one with {found[0]}; name another with --folder DIR")
    if len(str(folder)) > LONGEST_FOLDER:
        raise RefusedError(f"{folder}: want at most {LONGEST_FOLDER} characters, given {len(str(folder))}")


def choose_port(nodes: int, port: int) -> int:
    """The first of the ports to use; 0 chooses. Raises: RefusedError when one is taken."""
    count = 2 + nodes
    candidates = [port] if port else random.sample(range(10000, 32000, count), 50)
    for first in candidates:
        used = next((number for number in range(first, first + count) if _is_taken(number)), None)
        if used is None:
            return first
    wanted = f"{candidates[-1]} to {candidates[-1] + count - 1}"
    raise RefusedError(f"want the ports {wanted}, given {used} taken; give --port 0 for free ones")


def _host_is_loopback() -> bool:
    """Whether daemons can listen on 127.0.0.1 alone: srun then listens at the host name's address, and nodes call it at
    127.0.0.1."""
    try:
        return socket.gethostbyname(HOST) == "127.0.0.1"
    except OSError:
        return False


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as SLURM does: not stopped by closed connections
        try:
            probe.bind(("", port))
        except OSError:
            return True
    return False


def _write_secret(path: Path, content: bytes) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
