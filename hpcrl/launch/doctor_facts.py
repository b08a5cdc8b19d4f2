"""What hpcrl doctor concludes from a probe's end and from the facts it printed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from hpcrl.launch.doctor_job import RANKS, Ending, last_words, read_facts
from hpcrl.launch.findings import Finding, judged
from hpcrl.launch.shared_folder import meet
from hpcrl.scheduler.site import Site

Facts = Mapping[str, Any]

_LOG_SECONDS: Final = 60.0
"""How long a shared file system may take to show what a job printed."""
_LOG_SECONDS_AFTER_FAILURE: Final = 10.0


def findings_of_job(ending: Ending, site: Site, own_versions: Mapping[str, str]) -> Iterator[Finding]:
    """One finding per check, in the order in which a job meets them.

    Args: own_versions: library -> version in this process, to compare with the job's.
    """
    label = f" ({', '.join(ending.probe.names)})"
    job = ending.job
    if job is None or not job.is_over:
        yield _not_over(ending, label)
        return
    is_well = job.state == "COMPLETED"
    found = read_facts(
        ending.probe.log,
        wanted=1 + RANKS if is_well else 1,
        seconds=_LOG_SECONDS if is_well else _LOG_SECONDS_AFTER_FAILURE,
    )
    yield _end(ending, label, has_facts=bool(found))
    node = next((facts for facts in found if facts["what"] == "node"), None)
    if node is not None:
        yield _shared(ending, node, label)
        yield _versions(node, own_versions, site, label)
        yield _scratch(node, label)
        yield _submitting(node, site, label)
    ranks = [facts for facts in found if facts["what"] == "rank"]
    if node is not None or ranks:
        yield _world(ending, ranks, site, label)
    if node is not None:
        yield _gpus(node, ending.probe.gpus, site, label)
    if ranks and ending.probe.gpus:
        yield _cuda_aware(ranks, label)


def _not_over(ending: Ending, label: str) -> Finding:
    probe, job = ending.probe, ending.job
    name = f"job{label}"
    waited = ending.seen - probe.submitted
    if job is None:
        return Finding("failed", name, f"SLURM has lost job {probe.job}; ask an administrator, or try again")
    why = f" ({job.reason})" if job.reason else ""
    return Finding(
        "unknown",
        name,
        f"job {job.id} is {job.state}{why} after {waited:.0f} s, and is cancelled; try again when the queue is "
        f"shorter, or ask for less",
    )


def _end(ending: Ending, label: str, *, has_facts: bool) -> Finding:
    probe, job = ending.probe, ending.job
    assert job is not None
    name = f"job{label}"
    if job.state == "COMPLETED" and has_facts:
        started, ended = job.started or probe.submitted, job.ended or ending.seen
        return Finding(
            "ok",
            name,
            f"job {job.id} waited {max(started - probe.submitted, 0):.0f} s, ran {ended - started:.0f} s on "
            f"{job.nodes}, its end was seen {max(ending.seen - ended, 0):.0f} s later",
        )
    how = f"exit code {job.exit_code}" if job.exit_code is not None else f"signal {job.signal}"
    words = last_words(probe.log)
    if job.state == "COMPLETED":
        return Finding(
            "failed", name, f"job {job.id} ended well, but its log {probe.log} is not seen here; choose a shared folder"
        )
    said = f"; its log ends with: {words}" if words else f"; its log {probe.log} is empty or not seen here"
    return Finding("failed", name, f"job {job.id} ended as {job.state} ({how}){said}; see {probe.log}")


def _shared(ending: Ending, node: Facts, label: str) -> Finding:
    folder = ending.probe.folder
    troubles = [f"on {node['node']}: {trouble}" for trouble in node["shared"]]
    troubles += [f"here: {trouble}" for trouble in meet(folder, "job", ending.probe.token)]
    return judged(
        troubles,
        f"shared folder{label}",
        f"{node['node']} and this host see each other's files there; link(2) and O_EXCL refuse names that are taken",
        f"put runs on a file system that all nodes share and that has hard links (given: {folder.parent})",
    )


def _versions(node: Facts, own: Mapping[str, str], site: Site, label: str) -> Finding:
    theirs: Mapping[str, str] = node["versions"]
    names = sorted({*own, *theirs})
    differing = [f"{name} {own.get(name, 'missing')} here, {theirs.get(name, 'missing')} there" for name in names
                 if own.get(name) != theirs.get(name)]  # fmt: skip
    name, sets = f"interpreter{label}", " ".join(node["instruction_set"]) or "no instruction set that matters"
    if own.get("hpcrl") != theirs.get("hpcrl"):
        return Finding("failed", name, f"{'; '.join(differing)}; correct launch.python, launch.setup or launch.prefix")
    if differing:
        where = "in the image" if site.launch.prefix else "in the jobs"
        return Finding(
            "unknown",
            name,
            f"{site.launch.python}: {'; '.join(differing)}; if that is meant, what counts is {where}: bits follow it",
        )
    return Finding("ok", name, f"{site.launch.python}, the same libraries as here; {node['cpus']} CPUs with {sets}")


def _scratch(node: Facts, label: str) -> Finding:
    scratch = node["scratch"]
    troubles = [f"{scratch['path']}: {scratch['trouble']}"] if scratch["trouble"] else []
    fine = f"{scratch['path']} has {scratch['free'] / 2**30:.1f} GiB free"
    return judged(troubles, f"scratch{label}", fine, "correct launch.scratch")


def _submitting(node: Facts, site: Site, label: str) -> Finding:
    name, trouble = f"submitting from jobs{label}", node["submit"]
    if not trouble:
        hint = "" if site.launch.submit_from_jobs else "; launch.submit_from_jobs = true is possible here"
        return Finding("ok", name, f"{node['node']} may submit jobs{hint}")
    if not site.launch.submit_from_jobs:
        return Finding("ok", name, f"{node['node']} may not submit jobs, as the site file says")
    return Finding(
        "failed",
        name,
        f"{node['node']}: {trouble}; set launch.submit_from_jobs = false: runs then are one job that requeues itself",
    )


def _world(ending: Ending, ranks: Sequence[Facts], site: Site, label: str) -> Finding:
    name = f"MPI{label}"
    refused = next((facts["refused"] for facts in ranks if "refused" in facts), None)
    if refused is not None:
        return Finding("failed", name, f"{refused}; correct launch.mpi (given: {site.launch.mpi})")
    came = {facts["rank"] for facts in ranks if facts["size"] == RANKS and facts["met"]}
    if came != set(range(RANKS)):
        words = last_words(ending.probe.log)
        return Finding(
            "failed",
            name,
            f"want {RANKS} ranks of one world, given {len(ranks)} that came up; its log ends with: {words or 'nothing'}"
            f"; correct launch.mpi (given: {site.launch.mpi}), see {ending.probe.log}",
        )
    nodes = ", ".join(sorted({facts["node"] for facts in ranks}))
    return Finding("ok", name, f"{RANKS} ranks met on {nodes}; {ranks[0]['library'] or 'library unknown'}")


def _gpus(node: Facts, asked: int, site: Site, label: str) -> Finding:
    gpus, name = node["gpus"], f"GPUs{label}"
    built = _built(gpus)
    if not asked:
        return Finding("ok", name, f"none asked for; {built}")
    troubles = []
    if gpus["given"] < asked:
        troubles.append(f"asked for {asked} per rank ({site.launch.gpus(asked)}), SLURM gave {gpus['given']}")
    seen = gpus["pytorch"]["names"] if isinstance(gpus["pytorch"], Mapping) else []
    if len(seen) < gpus["given"]:
        driver = f"the driver lists {gpus['driver']}" if isinstance(gpus["driver"], int) else "there is no driver"
        troubles.append(f"SLURM gave {gpus['given']}, PyTorch sees {len(seen)} ({driver}; {built})")
    remedy = "correct launch.gres, or load CUDA and a PyTorch built with it in launch.setup"
    return judged(troubles, name, f"{', '.join(seen)}; {built}", remedy)


def _built(gpus: Facts) -> str:
    kernels = {True: "our kernels with CUDA", False: "our kernels without CUDA"}.get(
        gpus["kernels"], f"our kernels cannot be loaded ({gpus['kernels']})"
    )
    pytorch = gpus["pytorch"]
    if not isinstance(pytorch, Mapping):
        return f"{kernels}, PyTorch cannot be loaded ({pytorch})"
    return f"{kernels}, PyTorch {'with CUDA ' + pytorch['cuda'] if pytorch['cuda'] else 'without CUDA'}"


def _cuda_aware(ranks: Sequence[Facts], label: str) -> Finding:
    name, answers = f"CUDA-aware MPI{label}", {facts.get("cuda_aware") for facts in ranks}
    if answers == {True}:
        return Finding("ok", name, "found: MPI takes GPU memory as it is")
    if answers == {False}:
        return Finding("ok", name, "not found: what ranks exchange goes through the host's memory")
    return Finding("unknown", name, "the MPI library does not say; what ranks exchange goes through the host's memory")
