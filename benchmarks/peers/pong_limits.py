"""What collecting Pong costs at least: ale-py's bare engine under random actions, and the network's forward.

    python benchmarks/peers/pong_limits.py --processes 2 --blocks 2 --lanes 8 --steps 256

Every process steps `--blocks` engines of `--lanes` environments in turn, as a rank with as many blocks does.  The
forward is the same number of rows through the Nature network, in the memory format that is faster on this machine.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from typing import Any

import numpy as np
import torch
from ale_py.vector_env import AtariVectorEnv
from nature_cnn import Agent

WARMUP_STEPS = 16


def engine_seconds(blocks: int, lanes: int, steps: int, seed: int) -> float:
    """Seconds for all blocks to take `steps` random steps in turn, nothing else done."""
    envs = [AtariVectorEnv("pong", lanes, num_threads=1) for _ in range(blocks)]
    generator = np.random.default_rng(seed)
    num_actions = int(envs[0].single_action_space.n)
    actions = generator.integers(num_actions, size=(steps + WARMUP_STEPS, lanes))
    for block, env in enumerate(envs):
        env.reset(seed=seed * 1_000 + block * lanes)
    for row in actions[:WARMUP_STEPS]:
        for env in envs:
            env.step(row)
    began = time.perf_counter()
    for row in actions[WARMUP_STEPS:]:
        for env in envs:
            env.step(row)
    elapsed = time.perf_counter() - began
    for env in envs:
        env.close()
    return elapsed


def forward_seconds(blocks: int, lanes: int, steps: int) -> float:
    """Seconds of `steps` forwards for each block, in the faster of PyTorch's two memory formats."""
    frames = torch.randint(0, 256, (lanes, 4, 84, 84), dtype=torch.uint8)
    formats = (torch.contiguous_format, torch.channels_last)
    return min(_forward_seconds(frames, memory_format, blocks * steps) for memory_format in formats)


@torch.inference_mode()
def _forward_seconds(frames: torch.Tensor, memory_format: torch.memory_format, count: int) -> float:
    agent = Agent(num_actions=6, memory_format=memory_format)
    began = time.perf_counter()
    for call in range(count + WARMUP_STEPS):
        if call == WARMUP_STEPS:
            began = time.perf_counter()
        hidden = agent.hidden(frames)
        agent.actor(hidden), agent.critic(hidden)
    return time.perf_counter() - began


def work(index: int, arguments: argparse.Namespace, barrier: Any, answers: Any) -> None:
    """One process: waits for the others before each measurement, so that all cores are busy as in a real run."""
    torch.set_num_threads(1)
    size = (arguments.blocks, arguments.lanes, arguments.steps)
    barrier.wait()
    engine = engine_seconds(*size, seed=index + 1)
    barrier.wait()
    answers.put({"engine": engine, "forward": forward_seconds(*size)})


def main() -> None:
    """Measures in all processes at once and prints the record; the slowest process counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--blocks", type=int, default=2, help="blocks of each process")
    parser.add_argument("--lanes", type=int, default=8, help="environments of each block")
    parser.add_argument("--steps", type=int, default=256)
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(arguments.processes), context.Queue()
    processes = [
        context.Process(target=work, args=(index, arguments, barrier, answers)) for index in range(arguments.processes)
    ]
    for process in processes:
        process.start()
    measured = [answers.get(timeout=600) for _ in processes]
    for process in processes:
        process.join()
    engine, forward = (max(answer[part] for answer in measured) for part in ("engine", "forward"))
    agent_steps = arguments.processes * arguments.blocks * arguments.lanes * arguments.steps
    record = {
        "tool": "pong_limits",
        **vars(arguments),
        "engine_steps_per_second": agent_steps / engine,
        "forward_steps_per_second": agent_steps / forward,
        "engine_and_forward_steps_per_second": agent_steps / (engine + forward),
    }
    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
