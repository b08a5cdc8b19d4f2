"""The HTML report: complete, self-contained, right on finished, cut off and odd runs."""

from __future__ import annotations

import re
import shutil
from datetime import datetime, timedelta
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from hpcrl.cli import main
from hpcrl.data import Ragged, Trajectories
from hpcrl.errors import CorruptFileError, InputError
from hpcrl.report import film, timeline
from hpcrl.report.history import History
from hpcrl.report.page import page_of, write_report
from hpcrl.report.record import RunRecord
from hpcrl.report.sections import TITLES, content_of, headline
from hpcrl.report.wording import bytes_text, number_text
from tests.report.tiny_run import (
    add_launch,
    digests,
    drop_iterations,
    read_manifest,
    rewrite_manifest,
    stage_path,
    unpublish,
)


def tree_of(path: Path, *names: str) -> ElementTree.Element:
    """The named parts of the page of a run; fails where they are not well-formed."""
    record = RunRecord.read(path)
    return ElementTree.fromstring(f"<main>{''.join(content_of(record, name) for name in names)}</main>")


def text_of(root: ElementTree.Element) -> str:
    """What a reader sees."""
    return "\n".join(text for element in root.iter() if element.tag != "style" for text in element.itertext())


def cards(path: Path) -> dict[str, tuple[str, str]]:
    return {name: (value, remark) for name, value, remark in headline(RunRecord.read(path))}


def test_a_folder_is_no_file_to_write(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--out: want a file to write, given the folder .*; for example --out "):
        write_report(run, out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_page_stands_alone_and_is_well_formed(run: Path, tmp_path: Path) -> None:
    out = write_report(run, out=tmp_path / "deep" / "report.html")
    page = out.read_text()
    assert page.startswith("<!DOCTYPE html>")
    root = ElementTree.fromstring(page.partition("\n")[2])
    assert "all 3 iterations are done" in text_of(root)
    assert {section.get("id") for section in root.iter("section")} == set(TITLES)
    for address in re.findall(r'(?:src|href)="([^"]*)"', page):
        assert address.startswith(("#", "data:image/png;base64,"))
    assert not re.search(r"url\((?!#)", page)
    assert "<script" not in page
    assert "@import" not in page
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    anchors = re.findall(r'href="#([^"]*)"', page) + re.findall(r"url\(#([^)]*)\)", page)
    assert set(anchors) <= set(ids)
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]


def test_the_page_holds_the_numbers(run: Path) -> None:
    page = text_of(tree_of(run, "learning", "updates", "configuration", "machine"))
    returns = [value for i in range(3) for value in read_manifest(run, i, "rollout").extra["episode_returns"]]
    evaluation = read_manifest(run, 1, "evaluate").extra
    found = cards(run)
    assert found["iterations"] == ("3", "of 3")
    assert found["environment steps"] == (f"{3 * 4 * 48}", f"{len(returns)} episodes ended")
    assert found["best evaluation"] == (number_text(evaluation["return_mean"]), "iteration 2, 4 episodes")
    assert found["newest return"][0] == number_text(float(np.mean(returns[-100:])))
    for value in (found["best evaluation"][0], "iteration-000001", "CartPole-v1", "0.97", "approximate kl"):
        assert value in page
    assert read_manifest(run, 0, "update").machine["cpu"] in page


def test_the_run_is_not_changed_but_for_the_report(copy: Path) -> None:
    before = digests(copy)
    assert write_report(copy) == copy / "report.html"
    after = digests(copy)
    assert after.pop("report.html")
    assert after == before


def test_removed_rollouts_still_count(run: Path) -> None:
    assert (stage_path(run, 0, "rollout") / "removed.json").exists()
    record = RunRecord.read(run)
    history = History.of(record)
    assert [row.steps_so_far for row in history.iterations] == [192, 384, 576]
    assert [stage.is_removed for stage in record.of_stage("rollout")] == [True, True, False]
    removed = sum(read_manifest(run, i, "rollout").bytes for i in (0, 1))
    rows = [
        [cell.text for cell in row] for row in ElementTree.fromstring(page_of(record).partition("\n")[2]).iter("tr")
    ]
    kept = read_manifest(run, 2, "rollout").bytes
    assert ["rollout", bytes_text(kept), bytes_text(removed), "4", None] in rows


def test_an_unfinished_run(copy: Path) -> None:
    unpublish(copy, 2, "update")
    page = page_of(RunRecord.read(copy))
    command = RunRecord.read(copy).resume_command
    assert " run " in command
    assert f"stopped after iteration 2 of 3; go on with: {command}" in text_of(
        ElementTree.fromstring(page.partition("\n")[2])
    )
    assert cards(copy)["iterations"] == ("2", "of 3")
    assert cards(copy)["environment steps"][0] == "576"


def test_a_single_iteration(copy: Path) -> None:
    drop_iterations(copy, 1)
    page = text_of(tree_of(copy, *TITLES))
    assert cards(copy)["best evaluation"] == ("–", "none published")
    assert cards(copy)["environment steps"][0] == "192"
    assert "policy loss" in page


def test_no_episode_has_ended(copy: Path) -> None:
    drop_iterations(copy, 1)
    rewrite_manifest(copy, 0, "rollout", lambda manifest: {"extra": {"episode_returns": [], "episode_lengths": []}})
    page = text_of(tree_of(copy, "learning"))
    assert "No episode has ended yet" in page
    assert "newest return" not in cards(copy)


def test_nothing_is_published_yet(copy: Path) -> None:
    drop_iterations(copy, 0)
    shutil.rmtree(copy / "launches")
    page = text_of(tree_of(copy, *TITLES))
    assert "Nothing is published yet." in page
    assert cards(copy)["steps per second"][0] == "–"


def test_a_kill_and_a_resume_are_visible_and_the_pause_is_not_working_time(copy: Path) -> None:
    """Iterations 1 and 2 an hour later, after a second launch."""
    published = {}
    for iteration in (1, 2):
        for stage in RunRecord.read(copy).of_iteration(iteration).values():
            published[iteration, stage.stage] = stage.manifest.created
            later = _an_hour_later(stage.manifest.created)
            rewrite_manifest(copy, iteration, stage.stage, lambda _, later=later: {"created": later})
            metrics = stage_path(copy, iteration, stage.stage) / f"attempt-{stage.manifest.attempt:04d}/metrics.jsonl"
            metrics.unlink()
    before = History.of(RunRecord.read(copy)).working_seconds
    first = min(published.values())
    add_launch(copy, 2, _an_hour_later(first, seconds=-0.5))
    record = RunRecord.read(copy)
    history = History.of(record)
    assert before > 3500
    assert history.working_seconds < 1000
    assert len(record.launches) == 2
    page = text_of(tree_of(copy, "timeline"))
    assert "launch 2 resumes" in page
    assert re.search(r"^2 launches, 5\d min( \d+ s)? paused|2 launches, 1 h.* paused", cards(copy)["working time"][1])


def _an_hour_later(moment: str, seconds: float = 0.0) -> str:
    return (datetime.fromisoformat(moment) + timedelta(hours=1, seconds=seconds)).isoformat(timespec="milliseconds")


def test_long_runs_are_drawn_as_shares_of_each_moment(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = RunRecord.read(run)
    bars = timeline.whole_run(record)
    monkeypatch.setattr(timeline, "_MOST_BARS", 2)
    busy = timeline.whole_run(record)
    ElementTree.fromstring(busy)
    assert busy != bars
    edges = np.linspace(0.0, 10.0, 11)
    spans = [(0.5, 1.5), (4.0, 7.0)]
    np.testing.assert_allclose(timeline.busy_shares(spans, edges), [0.5, 0.5, 0, 0, 1, 1, 1, 0, 0, 0])
    assert timeline.busy_shares([], edges).sum() == 0


def test_another_machine_is_warned_of(copy: Path) -> None:
    def other(manifest: object) -> dict[str, object]:
        facts = dict(read_manifest(copy, 2, "update").machine)
        return {"machine": {**facts, "cpu": "Another <CPU>", "host": "node-7"}}

    assert "Bit identity does not span" not in text_of(tree_of(copy, "machine"))
    rewrite_manifest(copy, 2, "update", other)
    page = text_of(tree_of(copy, "machine"))
    assert "From iteration 3 on, node-7 contributed with cpu" in page
    assert "Another <CPU>" in page


def test_what_differs_from_the_defaults_is_marked(run: Path) -> None:
    root = tree_of(run, "configuration")
    rows = {row[0].text: (row.get("class"), row[1].text, row[2].text) for row in root.iter("tr") if len(row) == 3}
    assert rows["stages.advantage.gamma"] == ("chosen", "0.97", "0.99")
    assert rows["stages.advantage.gae_lambda"] == ("default", "0.95", None)
    assert rows["stages.rollout.env"] == ("required", "'CartPole-v1'", None)
    assert rows["keep.rollouts"] == ("chosen", "1", "2")


def test_no_run_and_damaged_runs_are_refused(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r"pipeline\.json"):
        write_report(tmp_path)
    assert main(["report", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    path = stage_path(copy, 1, "update")
    path = next(path.glob("[mr]*.json"))
    path.write_bytes(path.read_bytes().replace(b"entropy", b"entropi", 1))
    with pytest.raises(CorruptFileError, match=re.escape(str(path))):
        write_report(copy)
    assert not (copy / "report.html").exists()


class _Drawn:
    """An environment that draws; everything else is the real one's."""

    def __init__(self, environment: object) -> None:
        self._environment = environment
        self.drawn = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._environment, name)

    def render(self) -> np.ndarray:
        self.drawn += 1
        return np.full((40, 600, 3), 7 * self.drawn % 256, np.uint8)


def test_the_film_shows_the_newest_checkpoint_from_first_step_to_last(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def make(*arguments: object, **options: object) -> _Drawn:
        assert options["options"] == {"render_mode": "rgb_array"}
        options["options"] = {}
        made.append(_Drawn(real(*arguments, **options)))
        return made[-1]

    real = film.make_env
    monkeypatch.setattr(film, "make_env", make)
    shown = film.film_of(RunRecord.read(run))
    steps = [step for step, _ in shown.pictures]
    assert steps[0] == 0
    assert len(steps) == min(film.PICTURES, steps[-1] + 1)
    assert made[0].drawn == len(steps) + 1  # only what is shown, and one to see whether it draws
    assert (
        f"iteration-000002, greedy actions: {steps[-1] + 1} steps, to its end, return {steps[-1] + 1}." in shown.caption
    )
    page = content_of(RunRecord.read(run), "film")
    assert page.count('src="data:image/png;base64,') == len(steps)


def test_where_nothing_draws_the_reason_and_a_stored_trajectory_are_shown(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise InputError("CartPole-v1: want a machine that can draw it")

    monkeypatch.setattr(film, "make_env", refuse)
    page = text_of(tree_of(run, "film"))
    assert "No film: CartPole-v1: want a machine that can draw it" in page
    assert "longest trajectory of iteration-000002's stored rollout" in page
    assert "value, as the critic saw it" in page


def test_stored_frames_are_the_pictures_of_image_runs() -> None:
    frames = np.arange(8, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    trajectory = Trajectories(
        np.array([0, 4]), {"rewards": np.zeros(4, np.float32)}, {}, {"frames": Ragged(frames, np.array([0, 8]))}
    )
    # A stack of 4: three lead-in frames, the four it acted on, the final one.
    assert film.pictures_of(trajectory)[:, 0, 0].tolist() == [3, 4, 5, 6, 7]
    assert film.data_address(frames[0]).startswith("data:image/png;base64,")
