"""Learning curves of the arithmetic pipelines: docs/curves/arithmetic.json and docs/curves/arithmetic.svg.

for seed in 1 2 3; do
  hpcrl run pipelines/rlhf_arithmetic.py --on mpi --ranks 2 --seed $seed --run runs/rlhf-$seed
  hpcrl run pipelines/grpo_arithmetic.py --on mpi --ranks 2 --seed $seed --run runs/grpo-$seed
done
python benchmarks/curve_arithmetic.py runs/rlhf-* runs/grpo-*
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))
from machine import hardware_name

from hpcrl.runner import stored_pipeline
from hpcrl.store.run_folder import RunFolder

CURVES = Path(__file__).resolve().parent.parent / "docs" / "curves"


def curve_of(path: Path) -> dict:
    """Every evaluation of a run, and where imitation ended."""
    run = RunFolder.open(path)
    pipeline = stored_pipeline(run.pipeline())
    imitation = next(stage.phase.stop for stage in pipeline.stages if stage.name == "imitate")
    started = json.loads((path / "launches" / "launch-0001.json").read_text())["started"]
    began, points = datetime.fromisoformat(started).timestamp(), []
    for iteration in run.iterations():
        manifest = run.stage(iteration, "evaluate").manifest()
        if manifest is None:
            continue
        facts = manifest.extra
        metrics = next((run.stage(iteration, "evaluate").path).glob("attempt-*/metrics.jsonl"))
        ended = json.loads(metrics.read_text().splitlines()[-1])["ended"]
        points.append(
            {
                "iteration": iteration + 1,
                "seconds": round(ended - began, 1),
                "sampled": facts["return_mean"],
                "greedy": facts["greedy_mean"],
                "length": facts["length_mean"],
            }
        )
    return {"pipeline": pipeline.name, "seed": pipeline.seed, "imitation": imitation, "points": points}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--note", default="", help="kept in the file: what else the machine did")
    arguments = parser.parse_args()
    curves = [curve_of(path) for path in arguments.runs]
    record = {"hardware": hardware_name(), "note": arguments.note, "curves": curves}
    (CURVES / "arithmetic.json").write_text(json.dumps(record, indent=1) + "\n")
    draw(curves, CURVES / "arithmetic.svg")
    print("| pipeline | seed | after imitation: sampled, greedy | at the end: sampled, greedy | seconds |")
    print("|---|---|---|---|---|")
    for curve in curves:
        before = [point for point in curve["points"] if point["iteration"] <= curve["imitation"]][-1]
        last = curve["points"][-1]
        print(
            f"| {curve['pipeline']} | {curve['seed']} | {before['sampled']:.3f}, {before['greedy']:.3f} | "
            f"{last['sampled']:.3f}, {last['greedy']:.3f} | {last['seconds']:.0f} |"
        )


def draw(curves: list[dict], path: Path) -> None:
    """Share of right answers to held-out problems against iterations, a panel for each pipeline."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "hpcrl"  # element ids that do not change from drawing to drawing
    from matplotlib import pyplot

    names = list(dict.fromkeys(curve["pipeline"] for curve in curves))
    figure, axes = pyplot.subplots(1, len(names), figsize=(9, 3.6), sharey=True, layout="constrained", squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        for curve in [curve for curve in curves if curve["pipeline"] == name]:
            iterations = [point["iteration"] for point in curve["points"]]
            axis.plot(
                iterations, [point["sampled"] for point in curve["points"]], label=f"sampled, seed {curve['seed']}"
            )
            axis.axvline(curve["imitation"], color="0.8", linewidth=1)
        axis.set_title(name)
        axis.set_xlabel("iteration")
        axis.legend(fontsize=8)
    axes[0][0].set_ylabel("right answers, held-out problems")
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
