"""Environment engines bare and behind hpcrl's adapters: steps per second with random actions.

    python benchmarks/bench_engines.py [--only pong] [--repeats 3] [--json]

The bare engine is stepped in the shortest loop there is and throws everything away. Both play on from repeat to repeat,
so that resets, and on Atari the seedings, come in their true proportion. Limit: the adapter on Pong keeps at least 95 %
of the engine's rate, which leaves 5 % of the collection's 90 % to the rollout (bench_pong.py).
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import gymnasium
import numpy as np
from harness import Bench, Result, add_arguments, interleave, spread

from hpcrl.envs import VectorEnv, make_env

Play = Callable[[], float]


@dataclass(frozen=True)
class Case:
    """One environment: how hpcrl makes it, how its engine is made bare, and how long a repeat is."""

    name: str
    env: str
    lanes: int
    steps: int
    bare: Callable[[int, np.ndarray], Callable[[int], object]]
    wanted: float | None = None


def main() -> None:
    """Measures each case and publishes one result for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="cases whose name begins so")
    parser.add_argument("--threads", type=int, default=1, help="threads of the engines that have their own")
    add_arguments(parser, repeats=3)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*(MuJoCo|precision lowered).*")
    for case in cases(arguments.threads):
        if case.name.startswith(arguments.only):
            measure(case, arguments.threads, arguments)


def cases(threads: int) -> list[Case]:
    """The engines hpcrl has an adapter for."""
    return [
        Case("cartpole-16", "CartPole-v1", 16, 5000, bare_cartpole),
        Case("cartpole-64", "CartPole-v1", 64, 5000, bare_cartpole),
        Case("pong-8", "ALE/Pong-v5", 8, 3000, lambda lanes, actions: bare_pong(lanes, actions, threads), 0.95),
        Case("halfcheetah-4", "HalfCheetah-v5", 4, 2000, bare_halfcheetah),
        Case(
            "envpool-pong-8",
            "envpool:Pong-v5",
            8,
            1000,
            lambda lanes, actions: bare_envpool("Pong-v5", lanes, actions, threads),
        ),
    ]


def measure(case: Case, threads: int, arguments: argparse.Namespace) -> None:
    """Plays the bare engine and the adapter in turn, and publishes both rates."""
    bench = Bench()
    env = make_env(case.env, lanes=range(case.lanes), seed=1, num_threads=threads)
    env.reset()
    actions = random_actions(env, case.steps)
    step_bare = case.bare(case.lanes, actions)
    candidates: dict[str, Play] = {
        "engine": timed(step_bare, case),
        "adapter": timed(lambda t: env.step(actions[t]), case),
    }
    rates = interleave(candidates, repeats=arguments.repeats, warmups=0)
    env.close()
    rows = [
        {"case": case.name, "who": who, "steps_per_second": spread(found)["median"], **_range(found)}
        for who, found in rates.items()
    ]
    ratio = spread(rates["adapter"])["median"] / spread(rates["engine"])["median"]
    bench.publish(
        Result(
            name=f"engines-{case.name}",
            rows=rows,
            peer="the bare engine in the same run",
            ratio=ratio,
            wanted=None if case.wanted is None else f"at least {case.wanted}",
            met=None if case.wanted is None else ratio >= case.wanted,
            notes=[f"{case.lanes} lanes, {case.steps} vector steps a repeat, {threads} engine thread(s)"],
        ),
        arguments.json,
    )


def _range(found: list[float]) -> dict[str, float]:
    return {"min": min(found), "max": max(found)}


def timed(step: Callable[[int], object], case: Case) -> Play:
    """A repeat of the case: environment steps per second, over all lanes."""

    def play() -> float:
        began = time.perf_counter()
        for t in range(case.steps):
            step(t)
        return case.steps * case.lanes / (time.perf_counter() - began)

    return play


def random_actions(env: VectorEnv, steps: int) -> np.ndarray:
    """The same uniform actions for both, drawn before the clock starts."""
    rng, space = np.random.default_rng(0), env.action_space
    if space.kind == "discrete":
        return rng.integers(0, space.n, (steps, env.num_lanes))
    return rng.uniform(-1, 1, (steps, env.num_lanes, *space.shape)).astype(np.float32)


def bare_cartpole(lanes: int, actions: np.ndarray) -> Callable[[int], object]:
    """Gymnasium's CartPoleVectorEnv; a dummy step after each ending counts as a step in its favour."""
    engine = gymnasium.make_vec("CartPole-v1", lanes, vectorization_mode="vector_entry_point")
    engine.reset(seed=1)
    return lambda t: engine.step(actions[t])


def bare_pong(lanes: int, actions: np.ndarray, threads: int) -> Callable[[int], object]:
    """ale-py's vector environment, resetting by itself and never seeded again."""
    from ale_py.vector_env import AtariVectorEnv

    engine = AtariVectorEnv("pong", lanes, num_threads=threads, repeat_action_probability=0.25, reward_clipping=False)
    engine.reset(seed=np.arange(lanes))
    return lambda t: engine.step(actions[t])


def bare_halfcheetah(lanes: int, actions: np.ndarray) -> Callable[[int], object]:
    """A loop over `gymnasium.make`'s environments, without its checker."""
    engines = [gymnasium.make("HalfCheetah-v5", disable_env_checker=True) for _ in range(lanes)]
    for seed, engine in enumerate(engines):
        engine.reset(seed=seed)

    def step(t: int) -> None:
        for engine, action in zip(engines, actions[t], strict=True):
            _, _, terminated, truncated, _ = engine.step(action)
            if terminated or truncated:
                engine.reset()

    return step


def bare_envpool(task: str, lanes: int, actions: np.ndarray, threads: int) -> Callable[[int], object]:
    """EnvPool in its ordered form."""
    import envpool

    engine = envpool.make(task, env_type="gymnasium", num_envs=lanes, num_threads=threads, seed=1)
    engine.reset()
    return lambda t: engine.step(actions[t])


if __name__ == "__main__":
    main()
