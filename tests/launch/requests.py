"""Requests and surroundings for the tests of the doors."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from hpcrl.launch.request import GUARD, Request, Surroundings
from hpcrl.scheduler.site import Launch, Limits, Resources, Site
from hpcrl.store.ledger import Unit

TOKEN = "0123456789abcdef"


def make_request(run: Path, site: Site | None = None, /, **changes: Any) -> Request:
    """A try at the segment 'learn' of iteration 3, with what the site says."""
    unit = changes.get("unit", Unit("learn", 3))
    request = Request(
        run=run,
        title="ppo-pong",
        unit=unit,
        number=1,
        token=TOKEN,
        stages=("advantage", "update"),
        ranks=4,
        compute_threads=2,
        resources=(site or Site()).resources(unit.segment),
    )
    return dataclasses.replace(request, **changes)


def kinds(run: Path, site: Site) -> dict[str, Request]:
    """One request of each kind, by the template its script is made from."""
    return {
        "segment": make_request(run, site),
        "rollout": make_request(run, site, unit=Unit("play", 3), elements=(0, 1, 2), stages=("rollout",), ranks=1),
        "loop": make_request(run, site, unit=Unit("main", None)),
        "guard": make_request(run, site, unit=GUARD, stages=(), ranks=1),
    }


SITES = {
    "plain": Site(),
    "named": Site(
        launch=Launch(
            setup=("module() { :; }", "module load gcc/13 'open mpi'", "source ~/venv/bin/activate"),
            instruction_set="avx2",
        ),
        limits=Limits(signal_lead_seconds=300, array_throttle=2),
        default=Resources(
            account="abc",
            partition="cpu,long",
            qos="normal",
            constraint="skylake|cascadelake",
            time_minutes=240,
            memory_gb_per_rank=3.5,
            nodes=2,
            extra=("--exclusive", "--mail-user=a@b.c", "-xn[3-4]"),
        ),
    ),
    "gpus": Site(launch=Launch(gres="gpu:a100:{count}"), default=Resources(gpus_per_rank=1, nodes=2)),
    "mpirun": Site(launch=Launch(mpi="mpirun --bind-to none", python="/opt/a python/bin/python3")),
    "image": Site(launch=Launch(prefix="apptainer exec --nv 'my image.sif'", mpi="srun --mpi=pmix")),
}


def surroundings(site: Site, folder: Path, python_path: tuple[str, ...] = ()) -> Surroundings:
    return Surroundings(site, python_path, folder)
