"""Distributions against torch.distributions, frequencies, and the edges of the inverse cumulative distribution."""

import numpy as np
import pytest
import torch
from torch import distributions as reference

from hpcrl.models.distributions import Categorical, Gaussian, MultiDiscrete

ROWS = 50


def outputs_of(columns: int, scale: float = 3.0) -> np.ndarray:
    return np.random.default_rng(5).normal(0.0, scale, size=(ROWS, columns)).astype(np.float32)


def uniforms_of(columns: int) -> np.ndarray:
    return np.random.default_rng(6).random((ROWS, columns))


def test_categorical_against_torch() -> None:
    ours, outputs = Categorical(4), outputs_of(4)
    actions, log_probs = ours.sample(outputs, uniforms_of(1), greedy=False)
    theirs = reference.Categorical(logits=torch.from_numpy(outputs))
    new_log_probs, entropies = ours.log_probs_and_entropies(torch.from_numpy(outputs), torch.from_numpy(actions))
    torch.testing.assert_close(new_log_probs, theirs.log_prob(torch.from_numpy(actions)))
    torch.testing.assert_close(entropies, theirs.entropy())
    np.testing.assert_allclose(log_probs, new_log_probs.numpy(), rtol=0, atol=1e-6)
    assert actions.dtype == np.int64
    assert log_probs.dtype == np.float32


def test_multi_discrete_against_torch() -> None:
    ours, outputs = MultiDiscrete((3, 2, 4)), outputs_of(9)
    actions, log_probs = ours.sample(outputs, uniforms_of(3), greedy=False)
    theirs = [reference.Categorical(logits=part) for part in torch.from_numpy(outputs).split([3, 2, 4], dim=1)]
    new_log_probs, entropies = ours.log_probs_and_entropies(torch.from_numpy(outputs), torch.from_numpy(actions))
    expected = sum(part.log_prob(torch.from_numpy(actions[:, i])) for i, part in enumerate(theirs))
    torch.testing.assert_close(new_log_probs, expected)
    torch.testing.assert_close(entropies, sum(part.entropy() for part in theirs))
    np.testing.assert_allclose(log_probs, expected.numpy(), rtol=0, atol=2e-6)
    assert actions.shape == (ROWS, 3)
    assert (actions.max(axis=0) == [2, 1, 3]).all()


def test_gaussian_against_torch() -> None:
    ours, outputs = Gaussian((2, 3), initial_log_std=-0.5), outputs_of(6)
    with torch.no_grad():
        ours.log_std.add_(torch.linspace(-1.0, 1.0, 6))
    normals = np.random.default_rng(7).normal(size=(ROWS, 6)).astype(np.float32)
    actions, log_probs = ours.sample(outputs, normals, greedy=False)
    assert actions.shape == (ROWS, 2, 3)
    theirs = reference.Independent(reference.Normal(torch.from_numpy(outputs), ours.log_std.exp()), 1)
    expected = theirs.log_prob(torch.from_numpy(actions.reshape(ROWS, 6)))
    new_log_probs, entropies = ours.log_probs_and_entropies(torch.from_numpy(outputs), torch.from_numpy(actions))
    torch.testing.assert_close(new_log_probs, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropies, theirs.entropy())
    np.testing.assert_allclose(log_probs, expected.detach().numpy(), rtol=1e-5, atol=1e-5)
    std = ours.log_std.exp().detach().numpy()
    np.testing.assert_allclose(actions.reshape(ROWS, 6), outputs + std * normals, rtol=1e-6)
    greedy, _ = ours.sample(outputs, normals, greedy=True)
    np.testing.assert_array_equal(greedy.reshape(ROWS, 6), outputs)


def test_inverse_cumulative_distribution_in_index_order() -> None:
    probabilities = np.array([0.25, 0.5, 0.25])
    uniforms = np.array([0.0, 0.2499, 0.2501, 0.7499, 0.7501, 1.0 - 2.0**-53])
    logits = np.tile(np.log(probabilities), (6, 1)).astype(np.float32)
    actions, _ = Categorical(3).sample(logits, uniforms[:, None], greedy=False)
    assert actions.tolist() == [0, 0, 1, 1, 2, 2]


def test_frequencies_follow_the_probabilities() -> None:
    count = 4096
    logits = np.tile(np.array([0.0, 1.0, -2.0], np.float32), (count, 1))
    stratified = (np.arange(count)[:, None] + 0.5) / count
    actions, _ = Categorical(3).sample(logits, stratified, greedy=False)
    expected = np.exp(logits[0]) / np.exp(logits[0]).sum()
    np.testing.assert_allclose(np.bincount(actions, minlength=3) / count, expected, atol=1.0 / count)


def test_greedy_takes_the_first_largest_and_needs_no_luck() -> None:
    logits = np.array([[1.0, 5.0, 5.0], [2.0, 0.0, 1.0]], np.float32)
    for uniform in (0.0, 0.99):
        actions, _ = Categorical(3).sample(logits, np.full((2, 1), uniform), greedy=True)
        assert actions.tolist() == [1, 0]


def test_extreme_logits_neither_overflow_nor_pick_the_impossible() -> None:
    logits = np.array([[-3e4, 0.0, -3e4], [3e38, 0.0, 0.0], [-3e4, -3e4, 0.0]], np.float32)
    for uniform in (0.0, 0.5, 0.999999):
        actions, log_probs = Categorical(3).sample(logits, np.full((3, 1), uniform), greedy=False)
        assert actions.tolist() == [1, 0, 2]
        np.testing.assert_array_equal(log_probs, np.zeros(3, np.float32))


def test_one_action_is_always_taken() -> None:
    actions, log_probs = Categorical(1).sample(np.zeros((3, 1), np.float32), np.full((3, 1), 0.7), greedy=False)
    assert actions.tolist() == [0, 0, 0]
    assert log_probs.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite_outputs_are_refused(bad: float) -> None:
    outputs = np.array([[0.0, bad], [0.0, 0.0]], np.float32)
    with pytest.raises(FloatingPointError, match="policy outputs: want finite numbers, given NaN or infinity"):
        Categorical(2).sample(outputs, np.full((2, 1), 0.5), greedy=False)
    with pytest.raises(FloatingPointError, match="policy outputs"):
        Gaussian((2,)).sample(outputs, np.zeros((2, 2), np.float32), greedy=False)
