"""GAE, V-trace, TD(lambda), Retrace(lambda), reward-to-go over packed trajectories: one recurrence, five equations.

x(t) = add(t) + mul(t) * x(t+1), from each trajectory's last step to its first (kernels/math.h, docs/equations.md).
`rewards[t]` follows `actions[t]`; `values[t]` = V(s_t), the critic's output before action t. Steps of many trajectories
lie behind one another; `offsets` says where each begins. What follows a trajectory's last step is its bootstrap value:
V of the state there, 0 where the episode terminated. So no mask and no done flag is needed.

All five take NumPy, PyTorch and CuPy arrays (and anything with DLPack, given `out`) without a copy, on one device, and
return arrays of the same library there. Arithmetic is float32; scalars are float64.
On the CPU sums and carries are float64, and a trajectory's numbers have the same bits wherever it lies, whatever lies
beside it, for any `num_threads`. On a CUDA device carries are float32: bits repeat from run to run, and a trajectory's
place in the batch changes them by rounding only.

Arguments of all five:
    rewards: f32 or bf16 [num_steps].
    bootstrap_values: f32 or bf16 [num_trajectories].
    offsets: i64 [num_trajectories + 1], rising from 0 to num_steps; empty trajectories are allowed. On a CUDA device
        they are trusted: looking would make the host wait.
    gamma: discount per step, in [0, 1].
    out, returns_out: f32 [num_steps], to write into instead of new arrays; they may overlap nothing else.
    moments_out: f64 [3], filled with (n, sum, sum of squares) of the first array returned, summed in a fixed order.
    num_threads: threads over trajectories, on the CPU.
Errors of all five:
    InputError: an array of another shape, dtype, device or layout; one that requires grad; a number out of range.
    RuntimeError: arrays on a CUDA device, where hpcrl was built without CUDA.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from hpcrl import _kernels
from hpcrl.errors import InputError

ArrayT = TypeVar("ArrayT")


def gae(
    rewards: ArrayT,
    values: ArrayT,
    bootstrap_values: ArrayT,
    offsets: object,
    *,
    gamma: float,
    gae_lambda: float,
    out: ArrayT | None = None,
    returns_out: ArrayT | None = None,
    moments_out: object = None,
    num_threads: int = 1,
) -> tuple[ArrayT, ArrayT]:
    """Generalised advantage estimation: advantages, and returns for the critic.

    A(t) = delta(t) + gamma lambda A(t+1),  delta(t) = r(t) + gamma V(t+1) - V(t);  returns(t) = A(t) + V(t).
    Schulman et al. 2016, arXiv:1506.02438, eqs. 11 and 16.

    Args (others: see the module):
        values: f32 or bf16 [num_steps].
        gae_lambda: in [0, 1]. 0: one-step TD error (low variance). 1: Monte Carlo return minus value (low bias).
    Returns:
        (advantages, returns), f32 [num_steps] each; advantages are not normalised.
    Example:
        >>> two = np.float32([1, 1]), np.float32([0.5, 0.5]), np.float32([0.5]), np.array([0, 2])
        >>> gae(*two, gamma=0.5, gae_lambda=0.5)[0]
        array([0.9375, 0.75  ], dtype=float32)
    """
    advantages = _allocate(rewards) if out is None else out
    returns = _allocate(rewards) if returns_out is None else returns_out
    _call(
        _kernels.gae, rewards, values, bootstrap_values, offsets, gamma, gae_lambda,
        advantages, returns, moments_out, num_threads, *_device_arguments(rewards, offsets),
    )  # fmt: skip
    return advantages, returns


def td_lambda(
    rewards: ArrayT,
    values: ArrayT,
    bootstrap_values: ArrayT,
    offsets: object,
    *,
    gamma: float,
    td_lambda: float,
    out: ArrayT | None = None,
    moments_out: object = None,
    num_threads: int = 1,
) -> ArrayT:
    """TD(lambda) returns.

    G(t) = r(t) + gamma ((1 - lambda) V(t+1) + lambda G(t+1)); after the last step G and V are the bootstrap value.
    Sutton & Barto 2018, eq. 12.2, in its recursive form (exercise 12.1).

    Args (others: see the module):
        values: f32 or bf16 [num_steps].
        td_lambda: in [0, 1]. 0: one-step target. 1: discounted reward-to-go.
    Returns:
        Returns, f32 [num_steps]. Minus the values they are the advantages of `gae` with the same lambda.
    Example:
        >>> two = np.float32([1, 1]), np.float32([0.5, 0.5]), np.float32([0.5]), np.array([0, 2])
        >>> td_lambda(*two, gamma=0.5, td_lambda=0.5)
        array([1.4375, 1.25  ], dtype=float32)
    """
    returns = _allocate(rewards) if out is None else out
    _call(
        _kernels.td_lambda, rewards, values, bootstrap_values, offsets, gamma, td_lambda,
        returns, moments_out, num_threads, *_device_arguments(rewards, offsets),
    )  # fmt: skip
    return returns


def reward_to_go(
    rewards: ArrayT,
    bootstrap_values: ArrayT,
    offsets: object,
    *,
    gamma: float,
    out: ArrayT | None = None,
    moments_out: object = None,
    num_threads: int = 1,
) -> ArrayT:
    """Discounted reward-to-go.

    G(t) = r(t) + gamma G(t+1), where G after the last step is the bootstrap value. Sutton & Barto 2018, eq. 3.9.

    Returns:
        Returns, f32 [num_steps].
    Example:
        >>> reward_to_go(np.float32([1, 1]), np.float32([0.5]), np.array([0, 2]), gamma=0.5)
        array([1.625, 1.25 ], dtype=float32)
    """
    returns = _allocate(rewards) if out is None else out
    _call(
        _kernels.reward_to_go, rewards, bootstrap_values, offsets, gamma,
        returns, moments_out, num_threads, *_device_arguments(rewards, offsets),
    )  # fmt: skip
    return returns


def vtrace(
    rewards: ArrayT,
    values: ArrayT,
    bootstrap_values: ArrayT,
    offsets: object,
    ratios: ArrayT,
    *,
    gamma: float,
    trace_lambda: float = 1.0,
    rho_clip: float = 1.0,
    c_clip: float = 1.0,
    out: ArrayT | None = None,
    returns_out: ArrayT | None = None,
    moments_out: object = None,
    num_threads: int = 1,
) -> tuple[ArrayT, ArrayT]:
    """V-trace: advantages for the policy gradient and targets v for the critic, when the policy has moved on since.

    v(t) = V(t) + rho(t) delta(t) + gamma c(t) (v(t+1) - V(t+1)),  advantage(t) = rho(t) (r(t) + gamma v(t+1) - V(t)),
    delta(t) = r(t) + gamma V(t+1) - V(t), rho = min(rho_clip, ratio), c = lambda min(c_clip, ratio).
    Espeholt et al. 2018, arXiv:1802.01561, eq. 1, remarks 1 and 2, and section 4.2.

    Args (others: see the module):
        values: f32 or bf16 [num_steps].
        ratios: f32 or bf16 [num_steps], pi(a | s) / mu(a | s), new policy over the one that acted. A NaN stays NaN.
        trace_lambda: in [0, 1].
        rho_clip: the paper's rho-bar, > 0, may be inf; decides which policy's value v estimates.
        c_clip: the paper's c-bar, > 0, may be inf; decides how far corrections reach.
    Returns:
        (advantages, v), f32 [num_steps] each. On policy (ratios 1), v are the returns of `gae` with the same lambda;
        the advantages, which look one step ahead with v whatever lambda is, are those of `gae` only for lambda = 1.
    Example:
        >>> two = np.float32([1, 1]), np.float32([0.5, 0.5]), np.float32([0.5]), np.array([0, 2])
        >>> vtrace(*two, np.float32([2, 0.5]), gamma=0.5)
        (array([0.9375, 0.375 ], dtype=float32), array([1.4375, 0.875 ], dtype=float32))
    """
    advantages = _allocate(rewards) if out is None else out
    returns = _allocate(rewards) if returns_out is None else returns_out
    _call(
        _kernels.vtrace, rewards, values, bootstrap_values, offsets, ratios, gamma, trace_lambda, rho_clip, c_clip,
        advantages, returns, moments_out, num_threads, *_device_arguments(rewards, offsets),
    )  # fmt: skip
    return advantages, returns


def retrace(
    rewards: ArrayT,
    values: ArrayT,
    bootstrap_values: ArrayT,
    offsets: object,
    action_values: ArrayT,
    ratios: ArrayT,
    *,
    gamma: float,
    trace_lambda: float = 1.0,
    out: ArrayT | None = None,
    returns_out: ArrayT | None = None,
    moments_out: object = None,
    num_threads: int = 1,
) -> tuple[ArrayT, ArrayT]:
    """Retrace(lambda): targets for an action-value critic from another policy's trajectories, and their advantages.

    Q_ret(t) = Q(t) + delta(t) + gamma c(t+1) (Q_ret(t+1) - Q(t+1)),  c = lambda min(1, ratio),
    delta(t) = r(t) + gamma V(t+1) - Q(t);  advantage(t) = Q_ret(t) - V(t). The correction after the last step is 0.
    Munos et al. 2016, arXiv:1606.02647, eqs. 3 and 4.

    Args (others: see the module):
        values: f32 or bf16 [num_steps], V(t) = expectation of Q(s_t, a) over the target policy; bootstrap_values alike.
        action_values: f32 or bf16 [num_steps], Q(s_t, a_t).
        ratios: f32 or bf16 [num_steps], pi(a | s) / mu(a | s), target policy over the one that acted. A NaN stays NaN.
        trace_lambda: in [0, 1].
    Returns:
        (advantages, Q_ret), f32 [num_steps] each.
    Example:
        >>> two = np.float32([1, 1]), np.float32([0.5, 0.5]), np.float32([0.5]), np.array([0, 2])
        >>> retrace(*two, np.float32([0.25, 0.75]), np.float32([2, 0.5]), gamma=0.5)[1]
        array([1.375, 1.25 ], dtype=float32)
    """
    advantages = _allocate(rewards) if out is None else out
    returns = _allocate(rewards) if returns_out is None else returns_out
    _call(
        _kernels.retrace, rewards, values, bootstrap_values, offsets, action_values, ratios, gamma, trace_lambda,
        advantages, returns, moments_out, num_threads, *_device_arguments(rewards, offsets),
    )  # fmt: skip
    return advantages, returns


def _call(kernel: Callable[..., None], *arguments: object) -> None:
    try:
        kernel(*arguments)
    except ValueError as error:
        raise InputError(str(error)) from None


def _library(array: object) -> str:
    return type(array).__module__.partition(".")[0]


def _allocate(like: Any) -> Any:
    """An f32 array of the same shape, library and device; None for an unknown library (the kernel asks for `out`)."""
    if isinstance(like, np.ndarray):
        return np.empty(like.shape, np.float32)
    library = _library(like)
    if library == "torch":
        torch = sys.modules["torch"]
        return torch.empty(like.shape, dtype=torch.float32, device=like.device)
    if library == "cupy":
        return sys.modules["cupy"].empty(like.shape, np.float32)
    return None


def _device_arguments(rewards: Any, offsets: Any) -> tuple[Any, int]:
    """Workspace and stream of a launch on a CUDA device, in the array's own library; (None, 0) on the CPU."""
    if not _kernels.WITH_CUDA or isinstance(rewards, np.ndarray):
        return None, 0
    library = _library(rewards)
    if library == "torch":
        if not rewards.is_cuda:
            return None, 0
        torch = sys.modules["torch"]
        num_bytes = _kernels.recurrence_workspace_bytes(offsets.shape[0] - 1, rewards.shape[0])
        workspace = torch.empty(num_bytes, dtype=torch.uint8, device=rewards.device)
        return workspace, torch.cuda.current_stream(rewards.device).cuda_stream
    if library == "cupy":
        cupy = sys.modules["cupy"]
        num_bytes = _kernels.recurrence_workspace_bytes(offsets.shape[0] - 1, rewards.shape[0])
        return cupy.empty(num_bytes, np.uint8), cupy.cuda.get_current_stream().ptr
    return None, 0
