"""Rows reach the file at once and are found again, in published, removed and living attempts."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from hpcrl.store.machine import difference, machine_facts
from hpcrl.store.manifest import check_file
from hpcrl.store.metrics import MetricsWriter, read_metrics, read_rows
from hpcrl.store.run_folder import RunFolder


def test_rows_come_back(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(path)
    writer.write({"loss": np.float32(0.5), "step": np.int64(3), "list": np.arange(2), "text": "a", "none": None})
    assert read_rows(path) == [{"loss": 0.5, "step": 3, "list": [0, 1], "text": "a", "none": None}]
    writer.write({"loss": math.nan})
    record = writer.close()
    assert math.isnan(read_rows(path)[1]["loss"])
    check_file(path, record)
    with (
        pytest.raises(TypeError, match="metrics: want text, numbers or lists, given object"),
        MetricsWriter(path) as other,
    ):
        other.write({"x": object()})


def test_a_line_cut_short_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2}\n{"a"')
    assert read_rows(path) == [{"a": 1}, {"a": 2}]
    assert read_rows(path, limit=1) == [{"a": 1}]
    assert read_rows(tmp_path / "missing") == []


def test_an_attempt_that_goes_on_carries_the_earlier_rows(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path / "old.jsonl") as old:
        for step in range(5):
            old.write({"step": step})
    with MetricsWriter(tmp_path / "new.jsonl", carry=read_rows(tmp_path / "old.jsonl", limit=3)) as new:
        new.write({"step": 3})
        assert new.rows == 4
    assert [row["step"] for row in read_rows(tmp_path / "new.jsonl")] == [0, 1, 2, 3]


def test_a_runs_metrics_are_those_of_what_counts(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", {})
    dead = run.stage(0, "update").begin_attempt()
    with MetricsWriter(dead.metrics) as metrics:
        metrics.write({"loss": 99})
    attempt = run.stage(0, "update").begin_attempt()
    with MetricsWriter(attempt.metrics) as metrics:
        metrics.write({"loss": 1})
    attempt.publish([])
    for loss in (98, 2):  # the second attempt is the living one
        live = run.stage(1, "update").begin_attempt()
        MetricsWriter(live.metrics).write({"loss": loss})
    with MetricsWriter(run.stage(1, "rollout").begin_attempt().metrics) as metrics:
        metrics.write({"return": 7})
    assert read_metrics(run) == [
        {"iteration": 0, "stage": "update", "loss": 1},
        {"iteration": 1, "stage": "rollout", "return": 7},
        {"iteration": 1, "stage": "update", "loss": 2},
    ]
    assert [row["loss"] for row in read_metrics(run, "update")] == [1, 2]


def test_machine_facts_tell_what_bits_depend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = machine_facts(2)
    assert facts["compute_threads"] == 2
    assert facts["cpu"]
    assert facts["versions"]["numpy"] == np.__version__
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert machine_facts()["compute_threads"] == 3
    assert difference(facts, {**facts, "host": "elsewhere", "system": "other"}) == {}
    assert difference(facts, machine_facts(1)) == {"compute_threads": (2, 1)}
