"""A site: all that hpcrl knows of one cluster, read from site.toml."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from hpcrl.errors import InputError
from hpcrl.scheduler.site_keys import (
    Flag,
    Lines,
    Number,
    Text,
    Whole,
    check_fields,
    key,
    read_mapping,
    read_table,
    read_value,
    refuse_unknown,
    table_text,
    text_value,
)
from hpcrl.scheduler.trust import read_own
from hpcrl.scheduler.variables import expand

SITE_FILE: Final = "site.toml"
SITE_VARIABLE: Final = "HPCRL_SITE"
"""Environment variable: the site file to use."""

_WORD = Text("one word (no blanks)", is_word=True, may_be_missing=True)
_OPTION = Text("an option of sbatch as one word, for example --exclusive", is_word=True)
_SEGMENT_NAME = re.compile(r"[A-Za-z0-9_.]+")
_TABLES = ("name", "launch", "limits", "resources", "segments")

# What hpcrl itself says to sbatch, and where the site says it instead.
_OURS = (
    "array",
    "comment",
    "dependency",
    "error",
    "job-name",
    "ntasks",
    "open-mode",
    "output",
    "signal",
    "wait",
    "wrap",
)
_KEYS = {
    "account": "account",
    "partition": "partition",
    "qos": "qos",
    "constraint": "constraint",
    "time": "time_minutes",
    "nodes": "nodes",
    "cpus-per-task": "cpus_per_rank",
}
_SHORT = {"a": "array", "d": "dependency", "e": "error", "J": "job-name", "n": "ntasks", "o": "output", "W": "wait"}
_SHORT |= {"A": "account", "p": "partition", "q": "qos", "C": "constraint", "t": "time", "N": "nodes"}
_SHORT |= {"c": "cpus-per-task"}


@dataclass(frozen=True)
class Launch:
    """How ranks are started on a compute node: [launch]."""

    mpi: str = key(Text("the command that starts MPI ranks"), "srun --mpi=pmi2 --kill-on-bad-exit=1")
    """The MPI launch line; what it starts is written behind it."""
    setup: tuple[str, ...] = key(Lines(Text("one shell line")), ())
    """Shell lines before anything else: module load, source venv/bin/activate."""
    prefix: str | None = key(Text("one line of text", may_be_missing=True), None)
    """Stands before the interpreter: apptainer exec image.sif."""
    python: str | None = key(Text("the interpreter's path or name", may_be_missing=True), None)
    """The interpreter of the jobs. A site that was read always names one: this one, or python3 behind a prefix."""
    scratch: str = key(Text("a folder, in which $VARIABLES may stand"), "${SLURM_TMPDIR:-${TMPDIR:-/tmp}}")
    """A folder on the compute node's own disk."""
    submit_from_jobs: bool = key(Flag(), True)
    """Whether compute nodes may submit jobs."""
    gres: str = key(Text("a text with {count}, for example gpu:{count} or gpu:a100:{count}"), "gpu:{count}")
    """How GPUs are asked for; {count} stands for their number on a node."""
    instruction_set: str | None = key(Text(may_be_missing=True, choices=("generic", "avx2", "avx512")), None)
    """The instruction set every job uses, for equal bits on unequal nodes; None: each node's widest."""

    def __post_init__(self) -> None:
        check_fields(self, "launch")
        if re.sub(r"[^{}]", "", self.gres.replace("{count}", "")) or "{count}" not in self.gres:
            raise InputError(
                f"launch.gres: want a text with {{count}}, as gpu:{{count}}, given {self.gres!r}; correct it"
            )

    def scratch_folder(self, environment: Mapping[str, str] = os.environ) -> Path:
        """The scratch folder on this node. Raises: InputError when it names a variable that is not set."""
        return Path(expand(self.scratch, environment, "launch.scratch"))

    def gpus(self, count: int) -> str:
        """How `count` GPUs of one node are asked for.

        Example:
            >>> Launch(gres="gpu:a100:{count}").gpus(2)
            'gpu:a100:2'
        """
        return self.gres.replace("{count}", str(count))

    def instruction_variables(self) -> dict[str, str]:
        """The environment variables that hold our kernels, PyTorch, MKL and oneDNN to the instruction set."""
        if self.instruction_set is None:
            return {}
        pytorch, mkl, onednn = {
            "generic": ("default", "SSE4_2", "SSE41"),
            "avx2": ("avx2", "AVX2", "AVX2"),
            "avx512": ("avx512", "AVX512", "AVX512_CORE"),
        }[self.instruction_set]
        return {
            "HPCRL_ISA": self.instruction_set,
            "ATEN_CPU_CAPABILITY": pytorch,
            "MKL_ENABLE_INSTRUCTIONS": mkl,
            "ONEDNN_MAX_CPU_ISA": onednn,
        }


@dataclass(frozen=True)
class Limits:
    """How far hpcrl goes on this cluster: [limits]."""

    signal_lead_seconds: int = key(Whole(1), 120)
    """How long before its time limit a job is told to publish and stop."""
    array_throttle: int = key(Whole(), 0)
    """How many elements of an array may run at once; 0: all."""
    max_array_size: int = key(Whole(), 0)
    """Larger arrays are split; 0: what the cluster says."""
    max_jobs: int = key(Whole(), 0)
    """How many jobs (array elements counted) this user may have queued and running; 0: what the cluster says."""
    window: int = key(Whole(2), 2)
    """How many iterations are kept queued."""
    retries: int = key(Whole(), 2)
    """How often a unit that failed is tried again before the run halts."""
    memory_growth: float = key(Number(1.0), 1.0)
    """Factor on a rank's memory after OUT_OF_MEMORY; 1: never. Takes effect where memory_gb_per_rank is said."""
    time_growth: float = key(Number(1.0), 1.0)
    """Factor on the time limit after a job that got nothing done before it; 1: never."""
    max_memory_gb: float | None = key(Number(0.001, may_be_missing=True), None)
    """The most that a rank's memory grows to; None: no end but the retries."""
    max_time_minutes: int | None = key(Whole(1, may_be_missing=True), None)
    """The most that the time limit grows to; None: no end but the retries."""

    def __post_init__(self) -> None:
        check_fields(self, "limits")


@dataclass(frozen=True)
class Resources:
    """What one job asks for: [resources], and for one segment [segments.NAME]. None: not said."""

    account: str | None = key(_WORD, None)
    partition: str | None = key(_WORD, None)
    qos: str | None = key(_WORD, None)
    constraint: str | None = key(_WORD, None)
    time_minutes: int = key(Whole(1), 60)
    memory_gb_per_rank: float | None = key(Number(0.001, may_be_missing=True), None)
    """GiB. None: the cluster's default."""
    cpus_per_rank: int | None = key(Whole(1, may_be_missing=True), None)
    """None: the run's compute threads."""
    gpus_per_rank: int = key(Whole(), 0)
    nodes: int | None = key(Whole(1, may_be_missing=True), None)
    extra: tuple[str, ...] = key(Lines(_OPTION), ())
    """Further options of sbatch, as they are."""

    def __post_init__(self) -> None:
        check_fields(self, "resources")
        for option in self.extra:
            _refuse_own_option(option)


@dataclass(frozen=True)
class Site:
    """One cluster. The defaults are a plain SLURM that needs no account and has a default partition.

    Example:
        >>> site = Site(default=Resources(partition="cpu"), segments={"learn": Resources(partition="gpu")})
        >>> site.resources("play").partition, site.resources("learn").partition
        ('cpu', 'gpu')
    """

    name: str = key(Text(), "cluster")
    launch: Launch = Launch()
    limits: Limits = Limits()
    default: Resources = Resources()
    """What a segment asks for that has no table of its own."""
    segments: Mapping[str, Resources] = field(default_factory=dict)
    """Name of a segment -> all that it asks for."""
    source: Path | None = field(default=None, compare=False)
    """The file it was read from."""

    def __post_init__(self) -> None:
        check_fields(self, "site")
        for where, resources in [
            ("resources", self.default),
            *((f"segments.{k}", v) for k, v in self.segments.items()),
        ]:
            self._check(resources, where)

    def resources(self, segment: str) -> Resources:
        """What a job of one segment asks for."""
        return self.segments.get(segment, self.default)

    def refuse_unknown_segments(self, names: Iterable[str]) -> None:
        """Refuses a [segments.NAME] that is no segment of the pipeline; a slip there would cost a night in the queue.

        Raises: InputError with the nearest name.
        """
        where = f"{self.source or SITE_FILE}: [segments]"
        refuse_unknown(self.segments, sorted(names), where)

    def more_memory(self, resources: Resources) -> Resources | None:
        """The same with more memory for each rank; None when the site allows no more, or leaves memory to the cluster.

        Example:
            >>> Site(limits=Limits(memory_growth=2, max_memory_gb=6)).more_memory(Resources(memory_gb_per_rank=4))
            Resources(..., memory_gb_per_rank=6.0, ...)
        """
        now, most = resources.memory_gb_per_rank, self.limits.max_memory_gb or math.inf
        if now is None or min(now * self.limits.memory_growth, most) <= now:
            return None
        return dataclasses.replace(resources, memory_gb_per_rank=min(now * self.limits.memory_growth, most))

    def more_time(self, resources: Resources) -> Resources | None:
        """The same with a longer time limit; None when the site allows no longer one."""
        now, most = resources.time_minutes, self.limits.max_time_minutes or math.inf
        longer = min(math.ceil(now * self.limits.time_growth), most)
        return dataclasses.replace(resources, time_minutes=int(longer)) if longer > now else None

    def _check(self, resources: Resources, where: str) -> None:
        lead, limits = self.limits.signal_lead_seconds, self.limits
        if lead >= resources.time_minutes * 60:
            raise InputError(
                f"limits.signal_lead_seconds: want less than the time limit, {where}.time_minutes = "
                f"{resources.time_minutes} ({resources.time_minutes * 60} s), given {lead}; a job would be told to "
                f"stop before it begins: shorten the lead or lengthen the limit"
            )
        if limits.max_time_minutes is not None and resources.time_minutes > limits.max_time_minutes:
            raise InputError(
                f"{where}.time_minutes: want at most limits.max_time_minutes = {limits.max_time_minutes}, given "
                f"{resources.time_minutes}; change one of them"
            )
        memory = resources.memory_gb_per_rank
        if memory is not None and limits.max_memory_gb is not None and memory > limits.max_memory_gb:
            raise InputError(
                f"{where}.memory_gb_per_rank: want at most limits.max_memory_gb = {limits.max_memory_gb:g}, given "
                f"{memory:g}; change one of them"
            )


def read_site(path: Path | None = None, environment: Mapping[str, str] = os.environ) -> Site:
    """The site that a file describes; what it leaves out has its default, and no key is required.

    Args:
        path: the file; None: $HPCRL_SITE, ./site.toml, ~/.config/hpcrl/site.toml, the first that there is, else none
            (a plain SLURM).
        environment: where HPCRL_SITE and HOME are looked up.
    Raises:
        InputError: the file is missing, is not TOML, holds an unknown key or a wrong value, or could have been written
            by another user (its setup lines are executed; see trust.py). The message names the file.
    """
    found = path if path is not None else _find(environment)
    if found is None:
        return _with_interpreter(Site())
    try:
        text = read_own(found).decode("utf-8")
        return dataclasses.replace(site_from_text(text), source=found)
    except FileNotFoundError:
        asked = "--site" if path is not None else f"${SITE_VARIABLE}"
        raise InputError(f"{asked}: want a site file, given {found}, which is not there; name one that is") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{found}: want UTF-8 text, given other bytes ({error}); save it as UTF-8") from error
    except InputError as error:
        raise error if str(error).startswith(str(found)) else InputError(f"{found}: {error}") from error


def site_from_text(text: str) -> Site:
    """The site that the text of a site file describes. Raises: InputError that names the key."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"want TOML, given something else: {error}; texts stand in quotes, lists in [ ]") from error
    refuse_unknown(tables, _TABLES, "a site file")
    default = read_table(Resources(), tables.get("resources", {}), "resources")
    segments = {}
    for name, table in read_mapping(tables.get("segments", {}), "segments").items():
        if not _SEGMENT_NAME.fullmatch(name):
            raise InputError(f"[segments.{name}]: want letters, digits, '_' and '.' in a segment's name; correct it")
        segments[name] = read_table(default, table, f"segments.{name}")
    site = Site(
        name=read_value(Text(), tables.get("name", Site.name), "name"),
        launch=read_table(Launch(), tables.get("launch", {}), "launch"),
        limits=read_table(Limits(), tables.get("limits", {}), "limits"),
        default=default,
        segments=segments,
    )
    return _with_interpreter(site)


def site_text(site: Site) -> str:
    """The site as TOML, every key written out, so that a run goes on with it whatever happens to the file.

    Example:
        >>> site = Site(name="hawk", launch=Launch(python="python3"), segments={"learn": Resources(gpus_per_rank=1)})
        >>> site_from_text(site_text(site)) == site
        True
    """
    tables = [table_text(site.launch, "launch"), table_text(site.limits, "limits")]
    tables.append(table_text(site.default, "resources"))
    tables += [table_text(resources, f"segments.{text_value(name)}") for name, resources in site.segments.items()]
    head = '# A cluster as hpcrl uses it; docs/site.md explains the keys. "" and 0 stand for "not said".'
    return "\n".join([f"{head}\nname = {text_value(site.name)}\n", *tables])


def _find(environment: Mapping[str, str]) -> Path | None:
    named = environment.get(SITE_VARIABLE)
    if named:
        return Path(named)
    home = environment.get("HOME")
    places = [Path(SITE_FILE), *([Path(home) / ".config" / "hpcrl" / SITE_FILE] if home else [])]
    return next((place for place in places if place.exists()), None)


def _with_interpreter(site: Site) -> Site:
    """With the interpreter named: this one, or behind a prefix, where paths are other ones, the image's own python3."""
    if site.launch.python is not None:
        return site
    python = "python3" if site.launch.prefix else sys.executable
    return dataclasses.replace(site, launch=dataclasses.replace(site.launch, python=python))


def _refuse_own_option(option: str) -> None:
    if not option.startswith("-"):
        raise InputError(
            f"resources.extra: want options of sbatch, each beginning with '-', given {option!r}; correct it"
        )
    name = option[2:].partition("=")[0] if option.startswith("--") else _SHORT.get(option[1:2], "")
    if name in _OURS:
        raise InputError(f"resources.extra: hpcrl itself says --{name} to sbatch, given {option!r}; leave it out")
    if name in _KEYS:
        raise InputError(f"resources.extra: given {option!r}; say it with the key {_KEYS[name]} instead")
