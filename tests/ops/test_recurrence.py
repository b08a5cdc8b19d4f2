"""The five recurrences: golden numbers, identities, and ragged batches against the float64 oracle."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import reference
from batches import OPS, Batch, Op, ragged
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcrl.ops.recurrence import gae, retrace, reward_to_go, td_lambda, vtrace

TOLERANCE = 1e-6
LENGTHS = [3, 0, 1, 17, 64, 200, 16, 8, 0, 31, 33]

every_op = pytest.mark.parametrize("op", OPS, ids=[op.name for op in OPS])


def assert_near(arrays, wanted, tolerance=TOLERANCE):
    assert len(arrays) == len(wanted)
    for array, reference_array in zip(arrays, wanted, strict=True):
        assert array.dtype == np.float32
        assert reference.relative_difference(array, reference_array) < tolerance


# ---- Golden: two steps, by hand -----------------------------------------------------------------------------------

TWO = {
    "rewards": np.float32([1, 2]),
    "values": np.float32([0.5, 1]),
    "bootstrap_values": np.float32([4]),
    "offsets": np.array([0, 2]),
}


def test_gae_golden(isa):
    # delta = [1 + 0.5*1 - 0.5, 2 + 0.5*4 - 1] = [1, 3]; A = [1 + 0.25*3, 3]
    advantages, returns = gae(**TWO, gamma=0.5, gae_lambda=0.5)
    assert advantages.tolist() == [1.75, 3.0]
    assert returns.tolist() == [2.25, 4.0]


def test_td_lambda_golden(isa):
    # G(1) = 2 + 0.5*4; G(0) = 1 + 0.5*(0.5*1 + 0.5*4)
    assert td_lambda(**TWO, gamma=0.5, td_lambda=0.5).tolist() == [2.25, 4.0]


def test_reward_to_go_golden(isa):
    # G(1) = 2 + 0.5*4; G(0) = 1 + 0.5*4
    no_values = {name: TWO[name] for name in ("rewards", "bootstrap_values", "offsets")}
    assert reward_to_go(**no_values, gamma=0.5).tolist() == [3.0, 4.0]


def test_vtrace_golden(isa):
    # rho = [1, 0.5], c = [1, 0.5]; x(1) = 0.5*3, x(0) = 1 + 0.5*1*1.5; v = V + x
    # advantages: [1*(1 + 0.5*2.5 - 0.5), 0.5*(2 + 0.5*4 - 1)]
    advantages, targets = vtrace(**TWO, ratios=np.float32([2, 0.5]), gamma=0.5)
    assert targets.tolist() == [2.25, 2.5]
    assert advantages.tolist() == [1.75, 1.5]


def test_retrace_golden(isa):
    # delta = r + 0.5*V' - Q = [1 + 0.5 - 2, 2 + 2 - 1] = [-0.5, 3]; c(1) = 0.5; Q_ret = [2 - 0.5 + 0.5*0.5*3, 1 + 3]
    advantages, targets = retrace(**TWO, action_values=np.float32([2, 1]), ratios=np.float32([9, 0.5]), gamma=0.5)
    assert targets.tolist() == [2.25, 4.0]
    assert advantages.tolist() == [1.75, 3.0]


# ---- Identities ---------------------------------------------------------------------------------------------------


@pytest.fixture
def batch() -> Batch:
    return ragged(LENGTHS, seed=1)


def packed(batch: Batch):
    return batch.rewards, batch.values, batch.bootstrap_values, batch.offsets


def next_values(batch: Batch) -> np.ndarray:
    following = np.empty(len(batch.values))
    for i, part in reference.trajectories(batch.offsets):
        following[part] = np.append(batch.values[part][1:], batch.bootstrap_values[i])
    return following


def test_gae_with_lambda_0_is_the_one_step_error(isa, batch):
    advantages, _ = gae(*packed(batch), gamma=0.9, gae_lambda=0.0)
    assert_near([advantages], [batch.rewards + 0.9 * next_values(batch) - batch.values])


def test_gae_with_lambda_1_is_reward_to_go_minus_value(isa, batch):
    advantages, returns = gae(*packed(batch), gamma=0.9, gae_lambda=1.0)
    go = reward_to_go(batch.rewards, batch.bootstrap_values, batch.offsets, gamma=0.9)
    assert_near([advantages, returns], [go.astype(np.float64) - batch.values, go])


def test_td_lambda_is_the_returns_of_gae(isa, batch):
    _, returns = gae(*packed(batch), gamma=0.9, gae_lambda=0.7)
    assert_near([td_lambda(*packed(batch), gamma=0.9, td_lambda=0.7)], [returns])


def test_vtrace_on_policy_gives_the_returns_of_gae(isa, batch):
    on_policy = np.ones_like(batch.ratios)
    for trace_lambda in (0.0, 0.8, 1.0):
        _, targets = vtrace(*packed(batch), on_policy, gamma=0.9, trace_lambda=trace_lambda)
        _, returns = gae(*packed(batch), gamma=0.9, gae_lambda=trace_lambda)
        assert_near([targets], [returns])


def test_vtrace_on_policy_with_lambda_1_gives_the_advantages_of_gae(isa, batch):
    advantages, _ = vtrace(*packed(batch), np.ones_like(batch.ratios), gamma=0.9)
    assert_near([advantages], [gae(*packed(batch), gamma=0.9, gae_lambda=1.0)[0]])


def test_vtrace_without_clips_weighs_every_step_by_its_ratio(isa, batch):
    _, targets = vtrace(*packed(batch), batch.ratios, gamma=0.9, trace_lambda=0.0, rho_clip=np.inf, c_clip=np.inf)
    delta = batch.rewards + 0.9 * next_values(batch) - batch.values
    assert_near([targets], [batch.values + batch.ratios.astype(np.float64) * delta])


def test_retrace_with_lambda_0_is_the_expected_sarsa_target(isa, batch):
    _, targets = retrace(*packed(batch), batch.action_values, batch.ratios, gamma=0.9, trace_lambda=0.0)
    assert_near([targets], [batch.rewards + 0.9 * next_values(batch)])


def test_retrace_on_policy_with_q_equal_v_gives_the_returns_of_gae(isa, batch):
    _, targets = retrace(*packed(batch), batch.values, np.ones_like(batch.ratios), gamma=0.9, trace_lambda=0.8)
    assert_near([targets], [gae(*packed(batch), gamma=0.9, gae_lambda=0.8)[1]])


@every_op
@pytest.mark.parametrize("cut", [1, 16, 23, 49])
def test_splitting_at_t_with_v_of_t_as_bootstrap_changes_nothing(isa, op: Op, cut: int):
    """Where the critic already says what the target is, nothing more is learnt from behind it."""
    exact = ragged([50], seed=3)
    exact.ratios[cut] = 1.0  # so that the target there does not depend on the critic there
    exact.values[cut] = exact.action_values[cut] = op.oracle(exact)[-1][cut]
    split = dataclasses.replace(
        exact,
        bootstrap_values=np.float32([exact.values[cut], exact.bootstrap_values[0]]),
        offsets=np.array([0, cut, 50]),
    )
    for joined, parted in zip(op.run(exact), op.run(split), strict=True):
        np.testing.assert_allclose(parted[:cut], joined[:cut], rtol=1e-6, atol=2e-6)
        assert np.array_equal(parted[cut:], joined[cut:])


@every_op
def test_permuting_trajectories_permutes_results_bit_for_bit(isa, stores, op: Op):
    """Position, alignment and neighbours do not enter: a block's bits are the same wherever it is packed."""
    lengths = [*range(71), 300, 1000]
    batch = ragged(lengths, seed=4)
    results = op.run(batch)
    order = np.random.default_rng(5).permutation(len(lengths))
    steps = np.concatenate([np.arange(batch.offsets[i], batch.offsets[i + 1]) for i in order])
    permuted = batch.map(lambda field: field[steps] if len(field) == len(steps) else field)
    permuted = dataclasses.replace(
        permuted,
        bootstrap_values=batch.bootstrap_values[order],
        offsets=np.concatenate([[0], np.cumsum(np.array(lengths)[order])]),
    )
    for moved, wanted in zip(op.run(permuted), results, strict=True):
        assert np.array_equal(moved, wanted[steps])


# ---- Against the oracle -------------------------------------------------------------------------------------------


@every_op
def test_every_length_around_the_tiles(isa, stores, op: Op):
    for length in [*range(1, 71), 127, 128, 129, 4097]:
        batch = ragged([length, length], seed=length)
        assert_near(op.run(batch), op.oracle(batch))


@settings(max_examples=60, deadline=None)
@given(
    op=st.sampled_from(OPS),
    lengths=st.lists(st.one_of(st.integers(0, 40), st.integers(0, 1500)), min_size=1, max_size=12),
    gamma=st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]),
    trace=st.sampled_from([0.0, 0.3, 0.95, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_ragged_batches(op: Op, lengths, gamma, trace, seed):
    batch = ragged(lengths, seed)
    scalars = {name: trace if name.endswith("lambda") else value for name, value in op.scalars.items()}
    op = dataclasses.replace(op, scalars={**scalars, "gamma": gamma})
    if batch.offsets[-1] > 0:
        assert_near(op.run(batch), op.oracle(batch))


@every_op
def test_a_long_trajectory_does_not_drift(isa, op: Op):
    """10^5 steps with gamma = lambda = 1, where nothing is ever forgotten."""
    ones = {name: 1.0 if name in ("gamma",) or name.endswith("lambda") else value for name, value in op.scalars.items()}
    op = dataclasses.replace(op, scalars=ones)
    batch = ragged([100_003], seed=6)
    batch = dataclasses.replace(batch, rewards=batch.rewards + 1, ratios=np.ones_like(batch.ratios))
    assert_near(op.run(batch), op.oracle(batch))


@every_op
def test_moments_are_those_of_the_first_output(isa, stores, op: Op):
    batch = ragged([*LENGTHS, 70_000, 5, 66_000, 12], seed=7)
    moments = np.full(3, np.nan)
    first = op.run(batch, moments_out=moments)[0].astype(np.float64)
    assert moments[0] == len(first)
    np.testing.assert_allclose(moments[1:], [first.sum(), (first**2).sum()], rtol=1e-12, atol=1e-9)
