"""What comes in and what is refused: NumPy, PyTorch, bfloat16, DLPack, CUDA arrays; one message for every mistake."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from batches import OPS, Op, ragged

from hpcrl import _kernels
from hpcrl.errors import InputError
from hpcrl.ops.recurrence import gae, reward_to_go, vtrace

every_op = pytest.mark.parametrize("op", OPS, ids=[op.name for op in OPS])


def good(**changes: Any) -> dict[str, Any]:
    """Arguments of gae for 5 steps in 2 trajectories."""
    arguments = {
        "rewards": np.ones(5, np.float32),
        "values": np.ones(5, np.float32),
        "bootstrap_values": np.ones(2, np.float32),
        "offsets": np.array([0, 2, 5]),
        "gamma": 0.9,
        "gae_lambda": 0.9,
    }
    return {**arguments, **changes}


# ---- Libraries ----------------------------------------------------------------------------------------------------


@every_op
def test_torch_gives_the_same_bits_as_numpy(isa, op: Op):
    batch = ragged([5, 40, 100])
    moments, torch_moments = np.empty(3), torch.empty(3, dtype=torch.float64)
    wanted = op.run(batch, moments_out=moments)
    given = op.run(batch.map(torch.from_numpy), moments_out=torch_moments)
    for tensor, array in zip(given, wanted, strict=True):
        assert isinstance(tensor, torch.Tensor)
        assert tensor.dtype == torch.float32
        assert np.array_equal(tensor.numpy(), array)
    assert np.array_equal(torch_moments.numpy(), moments)


def test_torch_outputs_are_written_in_place():
    out, returns_out = torch.empty(5), torch.empty(5)
    tensors = {name: torch.from_numpy(value) for name, value in good().items() if isinstance(value, np.ndarray)}
    advantages, returns = gae(**{**good(), **tensors}, out=out, returns_out=returns_out)
    assert advantages is out
    assert returns is returns_out
    assert np.array_equal(out.numpy(), gae(**good())[0])


@every_op
def test_bfloat16_inputs_are_exactly_their_float32_numbers(isa, stores, op: Op):
    batch = ragged([*range(40), 700]).with_dtype(lambda field: torch.from_numpy(field).to(torch.bfloat16))
    batch = dataclasses.replace(batch, offsets=torch.from_numpy(batch.offsets))
    widened = batch.with_dtype(lambda field: field.to(torch.float32))
    for given, wanted in zip(op.run(batch), op.run(widened), strict=True):
        assert given.dtype == torch.float32
        assert torch.equal(given, wanted)


def test_float32_and_bfloat16_may_be_mixed(isa):
    tensors = {name: torch.from_numpy(value) for name, value in good().items() if isinstance(value, np.ndarray)}
    tensors["values"] = tensors["values"].to(torch.bfloat16)
    assert np.array_equal(gae(**{**good(), **tensors})[0].numpy(), gae(**good())[0])


class OnlyDlpack:
    """What a library looks like that speaks DLPack and nothing else."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()


@pytest.mark.filterwarnings("error")
def test_dlpack_arrays_come_in_without_a_copy():
    plain = good()
    out, returns_out = np.empty(5, np.float32), np.empty(5, np.float32)
    wrapped = {name: OnlyDlpack(value) for name, value in plain.items() if isinstance(value, np.ndarray)}
    for _ in range(3):  # the exporter frees what it exported, once each
        gae(**{**plain, **wrapped}, out=OnlyDlpack(out), returns_out=OnlyDlpack(returns_out))
    assert np.array_equal(out, gae(**plain)[0])


def test_an_unknown_library_needs_an_output():
    with pytest.raises(InputError, match=r"^out: want an array to write into, .*; pass out=$"):
        gae(**good(rewards=OnlyDlpack(np.ones(5, np.float32))))


class FakeCudaArray:
    """What CuPy shows of an array on device 0, without a device."""

    shape = (5,)
    dtype = "float32"

    def __init__(self) -> None:
        self.__cuda_array_interface__ = {"shape": (5,), "typestr": "<f4", "data": (4096, False), "version": 3}


@pytest.mark.skipif(_kernels.WITH_CUDA, reason="built with CUDA")
def test_cuda_arrays_are_refused_by_a_cpu_build():
    message = r"^gae: rewards is on cuda:0, but hpcrl was built without CUDA; rebuild .*HPCRL_CUDA=ON"
    with pytest.raises(RuntimeError, match=message):
        gae(**good(rewards=FakeCudaArray()))


# ---- Refusals -----------------------------------------------------------------------------------------------------


def read_only() -> np.ndarray:
    array = np.empty(5, np.float32)
    array.flags.writeable = False
    return array


REFUSED = {
    "values: want length 5 (= len(rewards)), got length 3": good(values=np.ones(3, np.float32)),
    "values: want length 5 (= len(rewards)), got shape (5, 1)": good(values=np.ones((5, 1), np.float32)),
    "bootstrap_values: want length 2 (= len(offsets) - 1), got length 5": good(bootstrap_values=np.ones(5, np.float32)),
    "rewards: want dtype float32 or bfloat16, got float64": good(rewards=np.ones(5)),
    "offsets: want dtype int64, got uint32": good(offsets=np.array([0, 2, 5], np.uint32)),
    "rewards: want at most 2 dimensions, got 3": good(rewards=np.ones((5, 1, 1), np.float32)),
    "rewards: want length 5 (= one number a step), got shape (5, 1)": good(rewards=np.ones((5, 1), np.float32)),
    "offsets: want them to rise from 0 to 5 (= len(rewards)), got from 1 to 5": good(offsets=np.array([1, 2, 5])),
    "offsets: want them to rise from 0 to 5 (= len(rewards)), got from 0 to 6": good(offsets=np.array([0, 2, 6])),
    "offsets: want them to rise from 0 to 5 (= len(rewards)), got offsets[1] = 7 above offsets[2] = 5": good(
        offsets=np.array([0, 7, 5])
    ),
    "offsets: want shape (num_trajectories + 1,), at least [0], got 1 dimensions and 0 elements": good(
        offsets=np.empty(0, np.int64)
    ),
    "values: want a C-contiguous array, got a strided one": good(values=np.ones(10, np.float32)[::2]),
    "rewards: want a native float32, bfloat16, float64, int64, uint32 or uint8 array, got dtype >f4": good(
        rewards=np.ones(5, ">f4")
    ),
    "rewards: want a native float32, bfloat16, float64, int64, uint32 or uint8 array, got dtype float16": good(
        rewards=np.ones(5, np.float16)
    ),
    "values: requires grad, and no gradient flows through this op; pass values.detach()": good(
        values=torch.ones(5, requires_grad=True)
    ),
    "values: want a tensor on cpu or cuda, got one on meta": good(values=torch.ones(5, device="meta")),
    "rewards: want a NumPy, PyTorch, CuPy or DLPack array, got list": good(rewards=[1.0] * 5),
    "gamma: want a number in [0, 1], got 1.5": good(gamma=1.5),
    "gamma: want a number in [0, 1], got nan": good(gamma=float("nan")),
    "gae_lambda: want a number in [0, 1], got -0.1": good(gae_lambda=-0.1),
    "num_threads: want at least 1, got 0": good(num_threads=0),
    "out: want length 5 (= len(rewards)), got length 4": good(out=np.empty(4, np.float32)),
    "out: want dtype float32, got bfloat16": good(out=torch.empty(5, dtype=torch.bfloat16)),
    "returns_out: want a writable array, got a read-only one": good(returns_out=read_only()),
    "moments_out: want length 3 (= n, sum, sum of squares), got length 2": good(moments_out=np.empty(2)),
    "moments_out: want dtype float64, got float32": good(moments_out=np.empty(3, np.float32)),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refused(message: str):
    with pytest.raises(InputError) as refusal:
        gae(**REFUSED[message])
    assert str(refusal.value).startswith(message)


def test_overlapping_outputs_are_refused():
    room = np.empty(8, np.float32)
    with pytest.raises(InputError, match=r"^out: overlaps returns_out"):
        gae(**good(out=room[:5], returns_out=room[3:]))
    rewards = np.ones(5, np.float32)
    with pytest.raises(InputError, match=r"^out: overlaps rewards"):
        reward_to_go(rewards, np.ones(2, np.float32), np.array([0, 2, 5]), gamma=0.9, out=rewards)


@pytest.mark.parametrize("name", ["rho_clip", "c_clip"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_clips_must_be_positive(name: str, value: float):
    arguments = good(ratios=np.ones(5, np.float32), **{name: value})
    del arguments["gae_lambda"]
    with pytest.raises(InputError, match=f"^{name}: want a number > 0, got {value}$"):
        vtrace(**arguments)


@pytest.mark.parametrize("name", _kernels.supported_isas())
def test_the_environment_chooses_the_instruction_set(name: str):
    assert in_process({"HPCRL_ISA": name}, "print(_kernels.isa())") == name


def test_the_environment_sets_where_nontemporal_stores_begin():
    assert in_process({"HPCRL_NONTEMPORAL_BYTES": "123"}, "print(_kernels.nontemporal_bytes())") == "123"


@pytest.mark.parametrize("name", ["HPCRL_ISA", "HPCRL_NONTEMPORAL_BYTES"])
def test_a_bad_environment_is_refused(name: str):
    said = in_process({name: "many"}, ASK_REFUSED)
    assert said.startswith(f"{name}: want ")
    assert said.endswith("got 'many'")


ASK_REFUSED = """
try:
    _kernels.isa(), _kernels.nontemporal_bytes()
except ValueError as error:
    print(error)
"""


def in_process(environment: dict[str, str], code: str) -> str:
    command = [sys.executable, "-c", f"from hpcrl import _kernels\n{code}"]
    finished = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    return finished.stdout.strip()


def test_an_unknown_instruction_set_is_refused():
    with pytest.raises(ValueError, match=r"^isa: want generic, avx2 or avx512, got 'sse9'$"):
        _kernels.set_isa("sse9")
