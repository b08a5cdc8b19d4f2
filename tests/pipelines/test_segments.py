"""Segments and needs: which stage waits for what, worked out by hand."""

from __future__ import annotations

import dataclasses

import pytest

from hpcrl import PPO, Advantage, Evaluate, Mesh, Mlp, Pipeline, Reached, Rollout, Update
from hpcrl.errors import InputError
from hpcrl.segments import Need, is_one_world, needs, segments
from hpcrl.stages import Stage


def pipeline(lag: int = 0, stop: bool = True, **meshes: Mesh) -> Pipeline:
    return Pipeline(
        name="p",
        num_iterations=9,
        models={"actor": Mlp()},
        stages=[
            Rollout(env="CartPole-v1", mesh="play"),
            Advantage(),
            Update(PPO()),
            Evaluate(every=2, stop_when=Reached("return", 1) if stop else None),
        ],
        meshes={"play": Mesh(world="play", array=4), **meshes},
        policy_lag=lag,
    )


def wanted(of: Pipeline, stage: str, iteration: int) -> set[tuple[int, str]]:
    found: Stage = next(one for one in of.stages if one.name == stage)
    return {(need.iteration, need.stage) for need in needs(of, found, iteration)}


def test_segments_are_runs_on_one_mesh() -> None:
    found = segments(pipeline())
    assert [(one.name, one.stages) for one in found] == [
        ("rollout", ("rollout",)),
        ("advantage", ("advantage", "update", "evaluate")),
    ]
    assert not is_one_world(pipeline())
    together = dataclasses.replace(pipeline(), meshes={"play": Mesh()})
    assert is_one_world(together)
    alone = dataclasses.replace(together, stages=[dataclasses.replace(s, mesh="main") for s in together.stages])  # type: ignore[call-arg]
    assert [(one.name, len(one.stages)) for one in segments(alone)] == [("main", 4)]


def test_needs_without_lag() -> None:
    of = pipeline()
    assert wanted(of, "rollout", 0) == set()
    # Evaluations are due after iterations 1, 3, 5, ...; the rollout waits for the newest word.
    assert wanted(of, "rollout", 4) == {(3, "rollout"), (3, "update"), (3, "evaluate")}
    assert wanted(of, "rollout", 5) == {(4, "rollout"), (4, "update"), (3, "evaluate")}
    assert wanted(of, "advantage", 4) == {(4, "rollout"), (3, "evaluate")}
    assert wanted(of, "update", 4) == {(4, "rollout"), (4, "advantage"), (3, "update"), (3, "evaluate")}
    assert wanted(of, "evaluate", 5) == {(5, "update"), (3, "evaluate")}


def test_a_lag_loosens_what_stands_before_the_trainer_only() -> None:
    of = pipeline(lag=2)
    assert wanted(of, "rollout", 2) == {(1, "rollout")}
    assert wanted(of, "rollout", 6) == {(5, "rollout"), (3, "update"), (3, "evaluate")}
    assert wanted(of, "update", 6) == {(6, "rollout"), (6, "advantage"), (5, "update"), (5, "evaluate")}


def test_no_stopping_rule_no_waiting_for_it() -> None:
    assert wanted(pipeline(stop=False), "rollout", 4) == {(3, "rollout"), (3, "update")}
    assert Need(3, "evaluate") not in needs(pipeline(stop=False), pipeline(stop=False).stages[2], 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"meshes": {}}, r"stage 'rollout': want a mesh of this pipeline, given 'play' .*; add it to meshes="),
        ({"meshes": {"play": Mesh(array=4)}}, r"world 'main': want array=1 where meshes share a world"),
        ({"meshes": {"play": Mesh(world="p", array=8)}}, r"mesh 'play': want dp x array <= 4 .* given dp=1, array=8"),
        ({"mesh": Mesh(array=2)}, r"mesh 'main': want array=1, because stage 'update' needs all blocks at once"),
        ({"meshes": {"play": Mesh(ranks=(0,))}}, r"world 'main': want ranks for all of its meshes or for none"),
        (
            {"mesh": Mesh(ranks=(0,)), "meshes": {"play": Mesh(ranks=(0,))}},
            r"want meshes that share no rank, given rank 0 in 'main' and 'play'",
        ),
        ({"mesh": Mesh(ranks=(0,)), "meshes": {"play": Mesh(ranks=(2,))}}, r"want its meshes to fill ranks 0 to 1"),
        ({"meshes": {"main": Mesh(), "play": Mesh(world="p")}}, r"want names other than 'main'"),
        ({"checkpoint_every": 2}, r"Pipeline.checkpoint_every: want 1 with several meshes"),
        ({"policy_lag": -1}, r"Pipeline.policy_lag: want a whole number >= 0, given -1"),
    ],
)
def test_impossible_meshes_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(pipeline(), **changes)  # type: ignore[arg-type]
