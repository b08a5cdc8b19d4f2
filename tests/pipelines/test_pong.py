"""Pong from pixels: killed, resumed, played on other numbers of ranks and replayed, always the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipelines.runs import ROOT, hpcrl, published_bits

PONG = ("run", ROOT / "pipelines" / "ppo_pong.py", "--num-envs", 8, "--num-steps", 48, "--num-iterations", 8, "--bf16")


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_pong_resumes_and_replays_with_the_same_bits(tmp_path: Path) -> None:
    pytest.importorskip("ale_py", reason="needs the extra 'atari'; tests/stages packs frames without it")
    whole = hpcrl(*PONG, "--ranks", 2, "--run", tmp_path / "whole", timeout=600)
    assert whole.code == 0, whole.output
    for point in ("shard.after_write:7", "optimizer.after_step:60", "manifest.before_link:9"):
        killed = hpcrl(*PONG, "--ranks", 2, "--run", tmp_path / "run", timeout=600, HPCRL_KILL_AT=point)
        assert killed.code == 1, killed.output
    resumed = hpcrl(*PONG, "--ranks", 4, "--run", tmp_path / "run", timeout=600)
    assert resumed.code == 0, resumed.output
    assert published_bits(tmp_path / "run") == published_bits(tmp_path / "whole")
    replayed = hpcrl("replay", tmp_path / "run", timeout=600)
    assert replayed.code == 0, replayed.output
