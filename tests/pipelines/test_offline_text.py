"""Learning from another run's responses and scores: every rule, any number of ranks, nothing generated."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcrl.store.run_folder import RunFolder
from tests.pipelines.runs import ROOT, hpcrl, published_bits

PIPELINE = ROOT / "pipelines" / "offline_rlhf.py"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with groups of responses, and its model as a folder beside it."""
    pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("source")
    done = hpcrl(
        "run", ROOT / "tests" / "pipelines" / "text_tiny.py", "--groups", "--on", "here", "--run", folder / "run"
    )
    assert done.code == 0, done.output
    assert hpcrl("export", folder / "run", "--out", folder / "model").code == 0
    return folder


@pytest.mark.parametrize("rule", ["dpo", *(pytest.param(rule, marks=pytest.mark.soak) for rule in ("best", "ppo"))])
def test_each_rule_learns_from_shards(rule: str, source: Path, tmp_path: Path) -> None:
    arguments = ["run", PIPELINE, "--inputs", source / "run", "--model", source / "model", "--rule", rule]
    arguments += ["--num-iterations", 3, "--no-evaluate-arithmetic"]
    done = hpcrl(*arguments, "--on", "here", "--run", tmp_path / "one")
    assert done.code == 0, done.output
    run = RunFolder.open(tmp_path / "one")
    assert not any(stage.stage in ("generate", "score") for at in run.iterations() for stage in run.stages(at))
    assert run.pipeline()["input_iterations"] == [2, 3], "what the source has kept"
    done = hpcrl(*arguments, "--on", "mpi", "--ranks", 2, "--run", tmp_path / "two")
    assert done.code == 0, done.output
    assert published_bits(tmp_path / "one") == published_bits(tmp_path / "two")


def test_a_run_of_another_kind_is_refused(source: Path, tmp_path: Path) -> None:
    done = hpcrl(
        "run",
        ROOT / "tests" / "pipelines" / "tiny.py",
        "--on",
        "here",
        "--num-iterations",
        1,
        "--run",
        tmp_path / "run",
    )
    assert done.code == 0, done.output
    refused = hpcrl(
        "run", PIPELINE, "--inputs", tmp_path / "run", "--model", source / "model", "--run", tmp_path / "out"
    )
    assert refused.code == 2, refused.output
    assert "Pipeline.inputs: want a run of text, given" in refused.output
    assert not (tmp_path / "out").exists()
