"""FlatAdam against torch.optim, gradient clipping against torch, and state by parameter name."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from hpcrl.algorithms.adam import FlatAdam
from hpcrl.errors import InputError
from hpcrl.models.parameters import FlatParameters


def make_module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2))


def draw_gradients(module: nn.Module, step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        name: torch.randn(parameter.shape, generator=generator) * 10.0 ** (step % 4 - 2)
        for name, parameter in module.named_parameters()
    }


def set_gradients(module: nn.Module, gradients: dict[str, torch.Tensor]) -> None:
    for name, parameter in module.named_parameters():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        parameter.grad.copy_(gradients[name])


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("max_grad_norm", [None, 0.5])
@pytest.mark.parametrize(("betas", "epsilon"), [((0.9, 0.999), 1e-5), ((0.5, 0.9), 1e-8)])
def test_same_numbers_as_torch(weight_decay, max_grad_norm, betas, epsilon) -> None:
    theirs, ours = make_module(), make_module()
    kind = torch.optim.AdamW if weight_decay else torch.optim.Adam
    reference = kind(theirs.parameters(), lr=1e-2, betas=betas, eps=epsilon, weight_decay=weight_decay)
    optimizer = FlatAdam(FlatParameters(ours), betas=betas, epsilon=epsilon, weight_decay=weight_decay)
    for step in range(20):
        learning_rate = 1e-2 * (1.0 - step / 20)
        reference.param_groups[0]["lr"] = learning_rate
        for module in (theirs, ours):
            set_gradients(module, draw_gradients(module, step))
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), max_grad_norm or float("inf"))
        assert optimizer.step(learning_rate, max_grad_norm) == pytest.approx(float(norm), rel=1e-6)
        reference.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_state_travels_by_name_into_another_layout() -> None:
    module = make_module()
    optimizer = FlatAdam(FlatParameters(module))
    for step in range(3):
        set_gradients(module, draw_gradients(module, step))
        optimizer.step(1e-2)
    twin = copy.deepcopy(make_module())
    twin.load_state_dict(module.state_dict())
    flat = FlatParameters(twin, list(reversed([name for name, _ in twin.named_parameters()])))
    other = FlatAdam(flat)
    arrays = optimizer.arrays()
    assert arrays["num_steps"].tolist() == [3]
    assert arrays["0.weight.exp_avg"].shape == (7, 5)
    other.load_arrays(arrays)
    for one in (module, twin):
        set_gradients(one, draw_gradients(one, 3))
    optimizer.step(1e-2)
    other.step(1e-2)
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, twin.get_parameter(name))
    arrays["num_steps"][:] = 99
    assert optimizer.num_steps == 4, "arrays are copies"


def test_refusals_name_the_array() -> None:
    optimizer = FlatAdam(FlatParameters(make_module()))
    arrays = optimizer.arrays()
    missing = {name: array for name, array in arrays.items() if name != "2.bias.exp_avg"}
    with pytest.raises(InputError, match=r"2\.bias\.exp_avg: want \[2\], given none"):
        optimizer.load_arrays(missing)
    with pytest.raises(InputError, match=r"stranger: want no such array, given \[1\]"):
        optimizer.load_arrays({**arrays, "stranger": np.zeros(1)})
    with pytest.raises(InputError, match=r"0\.bias\.exp_avg_sq: want \[7\], given \[3\]"):
        optimizer.load_arrays({**arrays, "0.bias.exp_avg_sq": np.zeros(3)})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_finite_gradients_move_nothing(bad: float) -> None:
    module = make_module()
    flat = FlatParameters(module)
    optimizer = FlatAdam(flat)
    before = flat.values.clone()
    flat.gradients[3] = bad
    with pytest.raises(FloatingPointError, match="gradients: want a finite norm"):
        optimizer.step(1e-2, 0.5)
    assert torch.equal(flat.values, before)
    assert optimizer.num_steps == 0
