"""The compiled kernels; documented by their faces in hpcrl/ops."""

import numpy as np
import numpy.typing as npt

WITH_CUDA: bool

def supported_isas() -> list[str]: ...
def isa() -> str: ...
def set_isa(name: str) -> None: ...
def nontemporal_bytes() -> int: ...
def set_nontemporal_bytes(bytes: int) -> None: ...
def recurrence_workspace_bytes(num_trajectories: int, num_steps: int) -> int: ...
def stream(
    first: object,
    second: object,
    sums: object,
    differences: object,
    nontemporal: bool,
    descending: bool,
    num_threads: int,
) -> None: ...
def philox(seed: int, counters: object) -> npt.NDArray[np.uint32]: ...
def uniforms(seed: int, counters: object, count: int) -> npt.NDArray[np.float64]: ...
def normals(seed: int, counters: object, count: int) -> npt.NDArray[np.float32]: ...
def permutation(seed: int, counter: object, n: int) -> npt.NDArray[np.int64]: ...
def gae(
    rewards: object,
    values: object,
    bootstrap_values: object,
    offsets: object,
    gamma: float,
    gae_lambda: float,
    out: object,
    returns_out: object,
    moments_out: object,
    num_threads: int,
    workspace: object,
    stream: int,
) -> None: ...
def td_lambda(
    rewards: object,
    values: object,
    bootstrap_values: object,
    offsets: object,
    gamma: float,
    trace_lambda: float,
    out: object,
    moments_out: object,
    num_threads: int,
    workspace: object,
    stream: int,
) -> None: ...
def reward_to_go(
    rewards: object,
    bootstrap_values: object,
    offsets: object,
    gamma: float,
    out: object,
    moments_out: object,
    num_threads: int,
    workspace: object,
    stream: int,
) -> None: ...
def vtrace(
    rewards: object,
    values: object,
    bootstrap_values: object,
    offsets: object,
    ratios: object,
    gamma: float,
    trace_lambda: float,
    rho_clip: float,
    c_clip: float,
    out: object,
    returns_out: object,
    moments_out: object,
    num_threads: int,
    workspace: object,
    stream: int,
) -> None: ...
def retrace(
    rewards: object,
    values: object,
    bootstrap_values: object,
    offsets: object,
    action_values: object,
    ratios: object,
    gamma: float,
    trace_lambda: float,
    out: object,
    returns_out: object,
    moments_out: object,
    num_threads: int,
    workspace: object,
    stream: int,
) -> None: ...
