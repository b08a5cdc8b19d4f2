"""What a cluster has: partitions and their nodes, and whether a job would ever fit there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from hpcrl.errors import InputError
from hpcrl.scheduler.jobs import FIELD_END, duration
from hpcrl.scheduler.site import Launch, Resources

PARTITION_FORMAT: Final = FIELD_END.join(("%P", "%a", "%l", "%D", "%T", "%c", "%m", "%G", "%f"))
"""What is asked of sinfo: partition, up or down, time limit; of nodes that are alike: number, state, CPUs, MiB, ..."""

_GONE = ("down", "drained", "draining", "fail", "failing", "error", "unknown", "n/a", "inval", "future", "maint")
_RANKS_WITHOUT_END = 1 << 30


@dataclass(frozen=True)
class NodeGroup:
    """Nodes of one partition that are alike."""

    nodes: int
    state: str
    """sinfo's word without its marks: idle, mixed, allocated, down, drained, ..."""
    cpus: int
    """Of each node, as the next ones."""
    memory_mib: int
    gres: str
    features: str

    @property
    def is_usable(self) -> bool:
        """Whether jobs may start there now or when others have ended."""
        return not self.state.startswith(_GONE)

    def gpus(self, spelling: str = "gpu:{count}") -> int:
        """GPUs of each node, of the type that the spelling names, if it names one.

        Example:
            >>> NodeGroup(1, "idle", 64, 1000, "gpu:a100:3(S:0-1),gpu:h100:1", "").gpus("gpu:a100:{count}")
            3
        """
        wanted = spelling.replace("{count}", "").strip(":").split(":")
        found = 0
        for item in re.sub(r"\([^)]*\)", "", self.gres).split(","):
            name, *rest = item.split(":")
            count = int(rest.pop()) if rest and rest[-1].isdecimal() else 1
            if name == wanted[0] and wanted[1:] in ([], rest):
                found += count
        return found


@dataclass(frozen=True)
class Partition:
    """A partition of the cluster."""

    name: str
    is_default: bool
    is_up: bool
    time_limit: float | None
    """Seconds; None: none."""
    groups: tuple[NodeGroup, ...]

    @property
    def nodes(self) -> int:
        """All its nodes, whatever their state."""
        return sum(group.nodes for group in self.groups)

    @property
    def usable_nodes(self) -> int:
        """Nodes that jobs may start on, now or later."""
        return sum(group.nodes for group in self.groups if group.is_usable)


def parse_partitions(text: str) -> list[Partition]:
    """The partitions that sinfo tells in PARTITION_FORMAT. Raises: ValueError for any other format."""
    found: dict[str, Partition] = {}
    for line in filter(str.strip, text.split("\n")):
        fields = line.split(FIELD_END)
        if len(fields) != 9:
            raise ValueError(f"sinfo told {len(fields)} fields for a partition, not 9: {line!r}")
        name, availability, limit, nodes, state, cpus, memory, gres, features = fields
        group = NodeGroup(int(nodes), state.rstrip("*~#!%$@^-+"), _count(cpus), _count(memory), gres, features)
        before = found[name].groups if name in found else ()
        groups = (*before, group) if group.nodes else before
        found[name] = Partition(name.rstrip("*"), name.endswith("*"), availability == "up", duration(limit), groups)
    return list(found.values())


def refuse_impossible(
    resources: Resources, launch: Launch, partitions: Sequence[Partition], *, ranks: int, cpus_per_rank: int, where: str
) -> None:
    """Refuses a request that no partition it names could ever serve, before it waits in the queue for ever.

    Nodes that are down count as well: they may come back.

    Args:
        ranks: of one job (of one array element).
        cpus_per_rank: where resources leave it to the run.
        where: table of the site file, for the message.
    Raises: InputError that names the key, what it asks for and what there is.
    """
    asked = _asked_partitions(resources, partitions, where)
    problems = [_problem(resources, launch, one, ranks, resources.cpus_per_rank or cpus_per_rank) for one in asked]
    if all(problem is not None for problem in problems):
        key, wanted, given, action = next(problem for problem in problems if problem is not None)
        raise InputError(f"{where}.{key}: want {wanted} (partition {asked[0].name}), given {given}; {action}")


def _asked_partitions(resources: Resources, partitions: Sequence[Partition], where: str) -> list[Partition]:
    known = {partition.name: partition for partition in partitions}
    listed = ", ".join(known) or "none"
    if resources.partition is None:
        default = [partition for partition in partitions if partition.is_default]
        if not default:
            raise InputError(
                f"{where}.partition: want one, because this cluster has no default, given none; choose from {listed}"
            )
        return default
    names = resources.partition.split(",")
    for name in names:
        if name not in known:
            raise InputError(
                f"{where}.partition: want a partition of this cluster, given {name!r}; choose from {listed}"
            )
    return [known[name] for name in names]


def _problem(
    resources: Resources, launch: Launch, partition: Partition, ranks: int, cpus: int
) -> tuple[str, str, str, str] | None:
    """Key, wanted, given and next action of the first thing a partition can never serve."""
    if not partition.nodes:
        return "partition", "a partition with nodes", f"{partition.name}, which has none", "choose another"
    if partition.time_limit is not None and resources.time_minutes * 60 > partition.time_limit:
        most = f"at most {partition.time_limit / 60:.0f} minutes"
        return "time_minutes", most, str(resources.time_minutes), "lower it or choose another partition"
    if resources.nodes is not None and resources.nodes > partition.nodes:
        return "nodes", f"at most {partition.nodes}", str(resources.nodes), "lower it or choose another partition"
    for key, asked, most_of_a_node, unit in _of_a_rank(resources, launch, partition, cpus):
        if asked > most_of_a_node:
            want = f"at most {most_of_a_node:g}{unit}, what one node has"
            return key, want, f"{asked:g}", "lower it or choose another partition"
    # A script counts the GPUs of one node, and asks for one where the site file says no other number.
    most_nodes = 1 if resources.nodes is None and resources.gpus_per_rank else resources.nodes
    room = sorted(_room(resources, launch, partition, cpus), reverse=True)[:most_nodes]
    if ranks > sum(room):
        nodes = f"{len(room)} node{'s' * (len(room) != 1)} with room for {sum(room)} ranks"
        return "nodes", nodes, f"{ranks} ranks", "ask for fewer ranks, less for each, or more nodes"
    return None


def _of_a_rank(
    resources: Resources, launch: Launch, partition: Partition, cpus: int
) -> Iterator[tuple[str, float, float, str]]:
    """Key, what one rank asks for, the most that a node has of it, and the unit."""
    groups = partition.groups
    yield "cpus_per_rank", cpus, max(group.cpus for group in groups), " CPUs"
    yield "gpus_per_rank", resources.gpus_per_rank, max(group.gpus(launch.gres) for group in groups), " GPUs"
    most = max(group.memory_mib for group in groups) / 1024
    yield "memory_gb_per_rank", resources.memory_gb_per_rank or 0, most, " GiB"


def _room(resources: Resources, launch: Launch, partition: Partition, cpus: int) -> Iterator[int]:
    """How many ranks fit on each node."""
    for group in partition.groups:
        by_gpus = by_memory = _RANKS_WITHOUT_END
        if resources.gpus_per_rank:
            by_gpus = group.gpus(launch.gres) // resources.gpus_per_rank
        if resources.memory_gb_per_rank:
            by_memory = int(group.memory_mib / 1024 // resources.memory_gb_per_rank)
        yield from [min(group.cpus // cpus, by_gpus, by_memory)] * group.nodes


def _count(text: str) -> int:
    """A number of sinfo, which marks the least of several with a plus."""
    match = re.match(r"\d+", text)
    return int(match[0]) if match else 0
