"""Which machines made the run, and whether its bits can be the same everywhere."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from hpcrl.report.record import RunRecord
from hpcrl.store.machine import difference


@dataclasses.dataclass
class MachineKind:
    """Processes whose results agree bit for bit: same processor, instruction set, threads and versions."""

    facts: Mapping[str, Any]
    hosts: set[str]
    stages: int
    """Published stages it contributed to."""
    first_iteration: int
    last_iteration: int


def machine_kinds(record: RunRecord) -> list[MachineKind]:
    """In the order in which they first contributed."""
    kinds: dict[str, MachineKind] = {}
    for stage in record.stages:
        for facts in (stage.manifest.machine, *stage.manifest.other_machines):
            key = json.dumps({name: value for name, value in facts.items() if name not in ("host", "system")})
            number = stage.iteration
            kind = kinds.setdefault(key, MachineKind(facts, set(), 0, number, number))
            kind.hosts.add(str(facts.get("host", "unknown")))
            kind.stages += 1
            kind.first_iteration = min(kind.first_iteration, number)
            kind.last_iteration = max(kind.last_iteration, number)
    return list(kinds.values())


def warnings_of(kinds: list[MachineKind]) -> list[str]:
    """One sentence for each kind that differs from the first: bits are not promised across it."""
    found = []
    for kind in kinds[1:]:
        parts = [
            f"{name} {_short(before)} → {_short(after)}"
            for name, (before, after) in difference(kinds[0].facts, kind.facts).items()
        ]
        found.append(
            f"From iteration {kind.first_iteration + 1} on, {', '.join(sorted(kind.hosts))} contributed with "
            f"{'; '.join(parts)}. Bit identity does not span such a change."
        )
    return found


def _short(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
