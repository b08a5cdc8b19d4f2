"""Pong's learning curve out of a run folder: docs/curves/pong.json and docs/curves/pong.svg.

    hpcrl run pipelines/ppo_pong.py --bf16 --on mpi --ranks 2 --run runs/ppo-pong
    python benchmarks/curve_pong.py runs/ppo-pong

Beside it the mean return of a player that draws its actions uniformly, -20.7 (Mnih et al. 2015, table 2).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))
from hpcrl_runs import episode_curve, evaluations
from machine import hardware_name

from hpcrl.store.run_folder import RunFolder

CURVES = Path(__file__).resolve().parent.parent / "docs" / "curves"
RANDOM_RETURN = -20.7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--window", type=int, default=20_000, help="agent steps that one point covers")
    parser.add_argument("--note", default="", help="kept in the file: what else the machine did")
    arguments = parser.parse_args()
    curve = episode_curve(arguments.run, window=arguments.window)
    run = RunFolder.open(arguments.run)
    steps_per_iteration = curve.points[-1]["steps"] / (max(run.iterations()) + 1)
    record = {
        **curve.plain(),
        "hardware": hardware_name(),
        "note": arguments.note,
        "evaluations": [
            {"steps": round((iteration + 1) * steps_per_iteration), "mean_return": mean}
            for iteration, mean in evaluations(run)
        ],
    }
    (CURVES / "pong.json").write_text(json.dumps(record, indent=1) + "\n")
    draw(record, CURVES / "pong.svg")
    last = curve.points[-1]
    print(f"{len(curve.points)} points; the last: {last['mean_return']} at {last['steps']} steps, {last['seconds']} s")


def draw(record: dict, path: Path) -> None:
    """Return against agent steps and against wall time."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "hpcrl"  # element ids that do not change from drawing to drawing
    from matplotlib import pyplot

    points = record["points"]
    figure, (by_steps, by_time) = pyplot.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    returns = [point["mean_return"] for point in points]
    by_steps.plot([point["steps"] for point in points], returns, label="training episodes")
    evaluated = record["evaluations"]
    by_steps.plot(
        [point["steps"] for point in evaluated], [point["mean_return"] for point in evaluated], "o", label="evaluations"
    )
    by_time.plot([point["seconds"] / 60 for point in points], returns)
    for axes in (by_steps, by_time):
        axes.axhline(RANDOM_RETURN, color="grey", linestyle=":", label="random player")
        axes.grid(alpha=0.3)
    by_steps.set(xlabel="agent steps (4 frames each)", ylabel="mean episode return", title="ALE/Pong-v5")
    by_time.set(xlabel="wall minutes", title=record["hardware"])
    by_steps.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    main()
