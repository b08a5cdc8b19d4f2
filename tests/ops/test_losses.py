"""Losses against plain NumPy formulas, and their gradients against finite differences in float64."""

import numpy as np
import pytest
import torch

from hpcrl.ops.losses import approximate_kl, clipped, clipped_policy_loss, huber_loss, squared_loss, value_loss

GENERATOR = np.random.default_rng(11)
RATIOS = np.exp(GENERATOR.normal(0.0, 0.8, size=200))
ADVANTAGES = GENERATOR.normal(0.0, 2.0, size=200)
VALUES, NEW_VALUES, RETURNS = GENERATOR.normal(0.0, 1.5, size=(3, 200))


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.copy())


def policy_oracle(ratios: np.ndarray, advantages: np.ndarray, clip_range: float, dual_clip: float | None) -> np.ndarray:
    """Case by case rather than by min and max: which branch holds, and its value."""
    losses = []
    for r, a in zip(ratios, advantages, strict=True):
        if a >= 0:
            gain = a * (1 + clip_range) if r > 1 + clip_range else a * r
        else:
            gain = a * (1 - clip_range) if r < 1 - clip_range else a * r
            if dual_clip is not None and r > dual_clip:
                gain = a * dual_clip
        losses.append(-gain)
    return np.array(losses)


def value_oracle(new: np.ndarray, old: np.ndarray, returns: np.ndarray, clip: float | None, delta: float | None):
    def loss(error: float) -> float:
        if delta is None or abs(error) <= delta:
            return error * error / 2
        return delta * (abs(error) - delta / 2)

    losses = []
    for v, o, r in zip(new, old, returns, strict=True):
        candidates = [loss(v - r)]
        if clip is not None:
            candidates.append(loss(min(max(v, o - clip), o + clip) - r))
        losses.append(max(candidates))
    return np.array(losses)


@pytest.mark.parametrize("clip_range", [0.05, 0.2])
@pytest.mark.parametrize("dual_clip", [None, 1.5, 3.0])
def test_clipped_policy_loss(clip_range: float, dual_clip: float | None) -> None:
    losses = clipped_policy_loss(tensor(RATIOS), tensor(ADVANTAGES), clip_range=clip_range, dual_clip=dual_clip)
    np.testing.assert_allclose(losses.numpy(), policy_oracle(RATIOS, ADVANTAGES, clip_range, dual_clip), rtol=1e-12)


def test_dual_clip_binds_only_where_the_advantage_is_negative() -> None:
    def losses(bound: float | None) -> np.ndarray:
        ratios, advantages = tensor(RATIOS), tensor(ADVANTAGES)
        return clipped_policy_loss(ratios, advantages, clip_range=0.2, dual_clip=bound).numpy()

    differs = losses(1.5) != losses(None)
    np.testing.assert_array_equal(differs, (ADVANTAGES < 0) & (RATIOS > 1.5))


@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize("delta", [None, 0.7])
def test_value_loss(clip: float | None, delta: float | None) -> None:
    given = [tensor(array) for array in (NEW_VALUES, VALUES, RETURNS)]
    losses = value_loss(*given, value_clip_range=clip, huber_delta=delta)
    np.testing.assert_allclose(losses.numpy(), value_oracle(NEW_VALUES, VALUES, RETURNS, clip, delta), rtol=1e-12)


def test_huber_is_squared_inside_and_torchs_everywhere() -> None:
    errors = tensor(NEW_VALUES)
    torch.testing.assert_close(huber_loss(errors, 100.0), squared_loss(errors))
    theirs = torch.nn.functional.huber_loss(errors, torch.zeros_like(errors), reduction="none", delta=0.4)
    torch.testing.assert_close(huber_loss(errors, 0.4), theirs)


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: clipped_policy_loss(x.exp(), tensor(ADVANTAGES), clip_range=0.2, dual_clip=2.0),
        lambda x: value_loss(x, tensor(VALUES), tensor(RETURNS), value_clip_range=0.3, huber_delta=0.7),
        lambda x: value_loss(x, tensor(VALUES), tensor(RETURNS), value_clip_range=None, huber_delta=None),
        approximate_kl,
    ],
)
def test_gradients_against_finite_differences(loss) -> None:
    point = tensor(NEW_VALUES).requires_grad_()
    loss(point).sum().backward()
    step = 1e-6
    with torch.no_grad():
        numeric = (loss(point + step) - loss(point - step)) / (2 * step)
    torch.testing.assert_close(point.grad, numeric, rtol=1e-6, atol=1e-7)


def test_approximate_kl_is_unbiased_and_never_negative() -> None:
    old, new = np.array([0.2, 0.5, 0.3]), np.array([0.3, 0.3, 0.4])
    estimates = approximate_kl(tensor(np.log(new / old))).numpy()
    assert (estimates > 0).all()
    assert (old * estimates).sum() == pytest.approx((old * np.log(old / new)).sum())
    assert approximate_kl(torch.zeros(1)).item() == 0.0


def test_clipped_marks_ratios_outside() -> None:
    assert clipped(torch.tensor([0.7, 0.85, 1.0, 1.15, 1.3]), 0.2).tolist() == [1.0, 0.0, 0.0, 0.0, 1.0]
