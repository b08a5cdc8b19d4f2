"""hpcrl as the benchmarks run it: the command line in a process of its own, the figures out of the run folder."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from programs import BENCHMARKS, as_flags

from hpcrl.store.manifest import Manifest
from hpcrl.store.metrics import read_metrics
from hpcrl.store.run_folder import RunFolder

sys.path.insert(0, str(BENCHMARKS / "peers"))
from curves import Curve
from target import EVALUATE_EVERY_STEPS, TARGET_RETURN, TIMES_IN_A_ROW

Record = dict[str, Any]


@contextmanager
def finished_run(pipeline: Path, *, ranks: int, **options: object) -> Iterator[RunFolder]:
    """The folder of a run made for this call, removed afterwards.

    Raises: RuntimeError with hpcrl's own words if it fails.
    """
    with tempfile.TemporaryDirectory(prefix="hpcrl-bench-", dir=_scratch()) as folder:
        run = Path(folder) / "run"
        on = "mpi" if ranks > 1 else "here"
        command = [sys.executable, "-m", "hpcrl.cli", "run", str(pipeline), "--on", on, "--ranks", str(ranks)]
        command += ["--run", str(run), "--quiet", *_flags(options)]
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        finished = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **threads})
        if finished.returncode != 0:
            raise RuntimeError(f"{' '.join(command[1:])}: exit code {finished.returncode}\n{finished.stderr[-3000:]}")
        yield RunFolder.open(run)


def _scratch() -> str | None:
    """A real disk for the shards, not a memory file system: HPCRL_BENCH_SCRATCH, else the system's choice."""
    return os.environ.get("HPCRL_BENCH_SCRATCH")


def _flags(options: Mapping[str, object]) -> list[str]:
    """As `as_flags`; True and False become `--name` and `--no-name`."""
    switches = {name: value for name, value in options.items() if isinstance(value, bool)}
    others = {name: value for name, value in options.items() if not isinstance(value, bool)}
    return [f"--{'' if on else 'no-'}{name.replace('_', '-')}" for name, on in switches.items()] + as_flags(others)


def cartpole(*, seed: int, ranks: int) -> Record:
    """One seed of pipelines/ppo_cartpole.py, in the form of the peers' records, with `stages`: seconds by stage.

    Two runs.  The first evaluates every 2,560 steps and finds the iteration at which the target is reached.  The second
    trains to that iteration without a pause and is timed: in the first, shards and checkpoints could be written
    behind while evaluations run, whose time does not count.  The same bits, so the same returns; that is checked.
    """
    pipeline = BENCHMARKS / "timed" / "cartpole.py"
    began = time.perf_counter()
    every = _iterations_between_evaluations(seed)
    with finished_run(pipeline, ranks=ranks, seed=seed, evaluate_every=every, times=TIMES_IN_A_ROW) as run:
        first = evaluations(run)
        with_evaluations = seconds_from_first_step(run)
    reached = len(first) >= TIMES_IN_A_ROW and all(mean >= TARGET_RETURN for _, mean in first[-TIMES_IN_A_ROW:])
    last_iteration, last_mean = first[-1]
    with finished_run(pipeline, ranks=ranks, seed=seed, evaluate_every=last_iteration + 1, times=1) as run:
        again = evaluations(run)
        if reached and again != [(last_iteration, last_mean)]:
            raise RuntimeError(f"seed {seed}: the timed run gave {again}, the first {(last_iteration, last_mean)}")
        stages = stage_seconds(run)
        train_seconds = seconds_from_first_step(run) - stages.pop("evaluate", 0.0)
        steps = sum(_manifest(run, iteration, "rollout").rows for iteration in run.iterations())
    stages["between stages, writing"] = train_seconds - sum(stages.values())
    return {
        "tool": "hpcrl",
        "seed": seed,
        "reached": reached,
        "steps": steps,
        "train_seconds": train_seconds,
        "evaluate_seconds": with_evaluations - train_seconds,
        "seconds_with_evaluations": with_evaluations,
        "command_seconds": time.perf_counter() - began,
        "stages": stages,
        "evaluations": [{"iteration": iteration, "mean_return": mean} for iteration, mean in first],
    }


def _iterations_between_evaluations(seed: int) -> int:
    """Iterations of the measured pipeline that come nearest to 2,560 steps."""
    pipeline = runpy.run_path(str(BENCHMARKS / "timed" / "cartpole.py"))["cartpole"]
    rollout = pipeline(seed=seed, evaluate_every=1, times=1).rollout
    return max(1, round(EVALUATE_EVERY_STEPS / (rollout.num_envs * rollout.num_steps)))


def pong(
    *,
    ranks: int,
    autocast: str | None,
    num_envs: int,
    num_steps: int,
    num_epochs: int,
    num_minibatches: int,
    iterations: int,
) -> Record:
    """Rate of whole iterations after one that warms up, and the shares of the stages."""
    options = {"num_envs": num_envs, "num_steps": num_steps, "num_iterations": iterations + 1}
    options |= {"num_epochs": num_epochs, "num_minibatches": num_minibatches, "bf16": autocast == "bf16"}
    with finished_run(BENCHMARKS / "timed" / "pong.py", ranks=ranks, **options) as run:
        return _rate(run, last_stage="update", steps=num_envs * num_steps)


def pong_collection(*, policy: str, ranks: int, num_envs: int, num_steps: int, iterations: int) -> Record:
    """Rate of the rollout stage alone, shards written, after one iteration that warms up."""
    options = {"num_envs": num_envs, "num_steps": num_steps, "num_iterations": iterations + 1, "collect_with": policy}
    with finished_run(BENCHMARKS / "timed" / "pong.py", ranks=ranks, **options) as run:
        return _rate(run, last_stage="rollout", steps=num_envs * num_steps)


def _rate(run: RunFolder, *, last_stage: str, steps: int) -> Record:
    """From the publication of the first iteration's last stage to that of the last iteration's."""
    iterations = run.iterations()
    elapsed = _created(_manifest(run, iterations[-1], last_stage)) - _created(_manifest(run, 0, last_stage))
    shares = {f"{stage}_share": seconds / elapsed for stage, seconds in stage_seconds(run, from_iteration=1).items()}
    return {"steps_per_second": steps * (len(iterations) - 1) / elapsed, "seconds": elapsed, **shares}


def episode_curve(path: Path, *, window: int) -> Curve:
    """Returns of the training episodes of a finished run, by the steps at which their iteration ended."""
    run = RunFolder.open(path)
    pipeline = run.pipeline()["pipeline"]
    rollouts = [(i, _manifest(run, i, "rollout")) for i in run.iterations()]
    seconds = [_created(manifest) - _created(rollouts[0][1]) for _, manifest in rollouts]
    curve = Curve(tool="hpcrl", env=_environment(pipeline), seed=int(pipeline["seed"]), window=window)
    steps = 0
    for (_, manifest), elapsed in zip(rollouts, seconds, strict=True):
        steps += manifest.rows
        for episode_return in manifest.extra["episode_returns"]:
            curve.add(steps, float(episode_return), elapsed)
    curve.close(steps, seconds[-1])
    return curve


def _environment(pipeline: Mapping[str, Any]) -> str:
    return next(str(stage["env"]) for stage in pipeline["stages"] if stage.get("env"))


def evaluations(run: RunFolder) -> list[tuple[int, float]]:
    """(iteration, mean return) of every evaluation."""
    return [(row["iteration"], row["return_mean"]) for row in read_metrics(run, "evaluate")]


def stage_seconds(run: RunFolder, *, from_iteration: int = 0) -> dict[str, float]:
    """Seconds that rank 0 spent in each stage."""
    seconds: dict[str, float] = defaultdict(float)
    for row in read_metrics(run):
        if row["iteration"] >= from_iteration:
            seconds[row["stage"]] += row["seconds"]
    return dict(seconds)


def seconds_from_first_step(run: RunFolder) -> float:
    """Wall seconds from the first rollout's beginning to the last publication, evaluations included.

    The rollout begins by making its environments: a little before the first step, to hpcrl's disadvantage.
    """
    began = [row["began"] for row in read_metrics(run, "rollout") if row["iteration"] == 0]
    if not began:
        raise RuntimeError(f"{run.path}: want a row of metrics for the first rollout, found none")
    return max(_created(manifest) for manifest in _manifests(run)) - began[0]


def _manifests(run: RunFolder) -> Iterator[Manifest]:
    for iteration in run.iterations():
        for folder in run.stages(iteration):
            manifest = folder.manifest() or folder.removed()
            if manifest is not None:
                yield manifest


def _manifest(run: RunFolder, iteration: int, stage: str) -> Manifest:
    folder = run.stage(iteration, stage)
    manifest = folder.manifest() or folder.removed()
    if manifest is None:
        raise RuntimeError(f"{folder.path}: want a published stage, found none; the run did not finish")
    return manifest


def _created(manifest: Manifest) -> float:
    return datetime.fromisoformat(manifest.created).timestamp()
