"""MuJoCo: the learning curves of hpcrl and of Stable-Baselines3 on the same environment steps.

    python benchmarks/peers/mujoco_sb3.py --seed 0 --out docs/curves/mujoco_sb3.json   # the peer's curve, a seed a call
    python benchmarks/bench_mujoco.py curve runs/ppo-mujoco                  # hpcrl's curve, out of a finished run
    python benchmarks/bench_mujoco.py plot --json                            # both files -> docs/curves/mujoco.svg

The two JSON files are committed, so that the picture and the table can be made again without training.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

from harness import Bench, Result, add_arguments

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))
from curves import add_curve, read_curves

CURVES = Path(__file__).resolve().parent.parent / "docs" / "curves"
COLOURS = {"hpcrl": "#1f77b4", "stable-baselines3": "#d95f02"}


def collect_curve(arguments: argparse.Namespace) -> None:
    """Reads a run folder's training episodes into docs/curves/mujoco_hpcrl.json."""
    from hpcrl_runs import episode_curve

    curve = episode_curve(arguments.run, window=arguments.window)
    add_curve(curve, CURVES / "mujoco_hpcrl.json")
    print(f"{curve.env} seed {curve.seed}: {len(curve.points)} points, last {curve.points[-1]['mean_return']}")


def plot(arguments: argparse.Namespace) -> None:
    """Draws both tools' curves of one task and prints the table."""
    bench = Bench()
    curves = [
        curve
        for name in ("mujoco_sb3.json", "mujoco_hpcrl.json")
        for curve in read_curves(CURVES / name)
        if curve["env"] == arguments.env
    ]
    if not curves:
        raise SystemExit(f"{CURVES}: want curves of {arguments.env}, found none; train first (see --help)")
    draw(curves, arguments.env, CURVES / "mujoco.svg")
    rows = [table_row(tool, curves) for tool in sorted({curve["tool"] for curve in curves})]
    notes = [f"{arguments.env}; mean return of training episodes in the last tenth of the steps, per seed"]
    bench.publish(Result(name="mujoco_curves", rows=rows, peer="stable-baselines3", notes=notes), arguments.json)


def table_row(tool: str, curves: list[dict[str, Any]]) -> dict[str, object]:
    """Final returns of one tool, over its seeds."""
    mine = [curve for curve in curves if curve["tool"] == tool]
    finals = [final_return(curve) for curve in mine]
    return {
        "tool": tool,
        "seeds": len(mine),
        "steps": max(curve["points"][-1]["steps"] for curve in mine),
        "median_final_return": statistics.median(finals),
        "min": min(finals),
        "max": max(finals),
        "median_seconds": statistics.median(curve["seconds"] for curve in mine),
    }


def final_return(curve: dict[str, Any]) -> float:
    """Mean return over the last tenth of a curve's steps, each episode with equal weight."""
    end = curve["points"][-1]["steps"]
    last = [point for point in curve["points"] if point["steps"] > 0.9 * end]
    return sum(p["mean_return"] * p["episodes"] for p in last) / sum(p["episodes"] for p in last)


def draw(curves: list[dict[str, Any]], env: str, path: Path) -> None:
    """One line per tool (mean over its seeds), each seed as a thin line behind it."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "hpcrl"  # element ids that do not change from drawing to drawing
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for tool in sorted({curve["tool"] for curve in curves}):
        mine = [curve for curve in curves if curve["tool"] == tool]
        for curve in mine:
            axes.plot(*_line(curve), color=COLOURS.get(tool), alpha=0.3, linewidth=0.8)
        axes.plot(*_mean_line(mine), color=COLOURS.get(tool), linewidth=2, label=f"{tool} ({len(mine)} seeds)")
    axes.set(xlabel="environment steps", ylabel="mean episode return (training)", title=env)
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _line(curve: dict[str, Any]) -> tuple[list[float], list[float]]:
    return [point["steps"] for point in curve["points"]], [point["mean_return"] for point in curve["points"]]


def _mean_line(curves: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Mean over the seeds at the steps that all of them have a point for."""
    returns = [dict(zip(*_line(curve), strict=True)) for curve in curves]
    shared = sorted(set.intersection(*(set(each) for each in returns)))
    return list(shared), [statistics.mean(each[steps] for each in returns) for steps in shared]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    curve_command = commands.add_parser("curve", help="hpcrl's curve out of a run folder")
    curve_command.add_argument("run", type=Path)
    curve_command.add_argument("--window", type=int, default=20_000, help="steps that one point covers")
    curve_command.set_defaults(handler=collect_curve)
    plot_command = commands.add_parser("plot", help="the picture and the table")
    plot_command.add_argument("--env", default="HalfCheetah-v5")
    add_arguments(plot_command, repeats=None)
    plot_command.set_defaults(handler=plot)
    arguments = parser.parse_args()
    arguments.handler(arguments)


if __name__ == "__main__":
    main()
