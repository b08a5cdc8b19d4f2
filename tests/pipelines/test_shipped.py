"""Every pipeline that ships plays a tiny iteration of each of its phases."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcrl.store.run_folder import RunFolder
from tests.pipelines.runs import ROOT, hpcrl

TEXT = {
    "rlhf_arithmetic": ("--sft-iterations", 1, "--ppo-iterations", 1, "--num-prompts", 8, "--hidden-size", 16),
    "grpo_arithmetic": ("--sft-iterations", 1, "--rl-iterations", 1, "--num-prompts", 4, "--hidden-size", 16),
    "dpo_arithmetic": ("--sft-iterations", 1, "--dpo-iterations", 1, "--num-prompts", 4, "--hidden-size", 16),
}


@pytest.mark.parametrize("name", TEXT)
def test_a_pipeline_of_text(name: str, tmp_path: Path) -> None:
    done = hpcrl("run", ROOT / "pipelines" / f"{name}.py", "--on", "here", "--run", tmp_path / "run", *TEXT[name])
    assert done.code == 0, done.output
    run = RunFolder.open(tmp_path / "run")
    played = {stage.stage for iteration in run.iterations() for stage in run.stages(iteration)}
    assert {"imitate", "generate", "score", "update"} <= played
