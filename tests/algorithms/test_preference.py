"""Rules over pairs: against NumPy, invariances of each loss, groups that stay together, hazards."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hpcrl.algorithms.preference import DPO, OutcomeReward, PairwiseReward, last_values, pair_rows
from hpcrl.algorithms.text_rule import TextTotals
from hpcrl.data import Trajectories
from hpcrl.errors import InputError
from hpcrl.models.language.packing import pack_text
from hpcrl.stages.text_batch import TextBatch
from tests.algorithms.test_text_rules import decoder, responses, softmax_log_probs

PROMPTS = np.array([4, 4, 4, 9, 9, 11, 12, 12])
PREFERENCE = np.array([-1, 0, 1, 1, -1, 0, -1, 1], np.int8)


def pairs(seed: int = 0) -> Trajectories:
    whole = responses([3, 1, 2, 5, 2, 1, 4, 3], seed)
    scores = np.random.default_rng(seed).uniform(size=8) > 0.5
    return whole.with_fields(
        per_trajectory={"prompt_index": PROMPTS, "preference": PREFERENCE, "scores": scores.astype(np.float32)}
    )


def log_prob_sums(model: object, whole: Trajectories) -> np.ndarray:
    part = pack_text(whole)
    with torch.no_grad():
        hidden = model(part.tokens, part.offsets)[part.rows]  # type: ignore[operator]
        log_probs = softmax_log_probs(model.logits(hidden).numpy(), part.targets.numpy())  # type: ignore[attr-defined]
    gains = log_probs - whole["reference_log_probs"]
    return np.array([gains[whole.offsets[i] : whole.offsets[i + 1]].sum() for i in range(whole.num_trajectories)])


@pytest.mark.parametrize(("loss", "smoothing"), [("sigmoid", 0.0), ("sigmoid", 0.2), ("ipo", 0.0)])
def test_dpo_against_numpy(loss: str, smoothing: float) -> None:
    rule = DPO(beta=0.3, loss=loss, label_smoothing=smoothing)  # type: ignore[arg-type]
    model, whole = decoder(), pairs()
    gains = log_prob_sums(model, whole)
    margins = np.array([gains[2] - gains[0], gains[3] - gains[4], gains[7] - gains[6]])
    if loss == "ipo":
        wanted = (margins - 1 / (2 * 0.3)) ** 2
    else:
        sigmoid = 1 / (1 + np.exp(-0.3 * margins))
        wanted = -(1 - smoothing) * np.log(sigmoid) - smoothing * np.log(1 - sigmoid)
    statistics = rule.part_gradient(model, pack_text(whole, rule.fields), TextTotals(0, 8, num_pairs=3))
    assert statistics == pytest.approx([wanted.sum(), (margins > 0).sum(), 0.3 * margins.sum(), 3], rel=1e-9)


def test_the_gradient_of_dpo_is_its_own() -> None:
    """Against finite differences of the loss along a random direction, in float64."""
    rule, whole = DPO(beta=0.5), pairs()
    model, totals = decoder(), TextTotals(0, 8, num_pairs=3)
    part = pack_text(whole, rule.fields)
    rule.part_gradient(model, part, totals)
    direction = torch.randn(model.flat.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    slope = float(model.flat.gradients @ direction)
    losses = []
    for sign in (1, -1):
        model.flat.values.add_(direction, alpha=sign * 1e-6)
        losses.append(rule.part_gradient(model, part, totals)[0] / 3)
        model.flat.values.add_(direction, alpha=-sign * 1e-6)
    assert (losses[0] - losses[1]) / 2e-6 == pytest.approx(slope, rel=1e-5)


def test_at_the_reference_dpo_knows_nothing() -> None:
    model, whole = decoder(), pairs()
    part = pack_text(whole)
    with torch.no_grad():
        hidden = model(part.tokens, part.offsets)[part.rows]
        own = softmax_log_probs(model.logits(hidden).numpy(), part.targets.numpy())
    whole = whole.with_fields(steps={"reference_log_probs": own})
    statistics = DPO().part_gradient(model, pack_text(whole, DPO().fields), TextTotals(0, 8, num_pairs=3))
    assert statistics[0] == pytest.approx(3 * np.log(2), rel=1e-9)
    assert DPO().finish_statistics(statistics)["margin"] == pytest.approx(0.0, abs=1e-9)


def test_pairwise_rewards_against_numpy_and_shift_invariant() -> None:
    rule, model, whole = PairwiseReward(), decoder(), pairs()
    part = pack_text(whole, rule.fields)
    with torch.no_grad():
        rewards = last_values(model, part).numpy()
    margins = np.array([rewards[2] - rewards[0], rewards[3] - rewards[4], rewards[7] - rewards[6]])
    statistics = rule.part_gradient(model, part, TextTotals(0, 8, num_pairs=3))
    assert statistics[0] == pytest.approx(np.log1p(np.exp(-margins)).sum(), rel=1e-9)
    assert rule.finish_statistics(statistics)["accuracy"] == pytest.approx((margins > 0).mean())


def test_outcome_rewards_against_numpy() -> None:
    rule, model, whole = OutcomeReward(), decoder(), pairs()
    part = pack_text(whole, rule.fields)
    with torch.no_grad():
        logits = last_values(model, part).numpy()
    labels = whole["scores"]
    wanted = np.log1p(np.exp(-logits)) * labels + np.log1p(np.exp(logits)) * (1 - labels)
    statistics = rule.part_gradient(model, part, TextTotals(0, 8))
    assert statistics == pytest.approx([wanted.sum(), ((logits > 0) == (labels > 0.5)).sum(), 8], rel=1e-6)


@pytest.mark.parametrize("rule", [DPO(), PairwiseReward(), OutcomeReward()], ids=lambda rule: type(rule).__name__)
def test_parts_add_up_to_the_whole(rule: DPO | PairwiseReward | OutcomeReward) -> None:
    model, whole, totals = decoder(), pairs(), TextTotals(0, 8, num_pairs=3)
    statistics = rule.part_gradient(model, pack_text(whole, rule.fields), totals)
    gradient = model.flat.gradients.clone()
    sums, added = np.zeros(rule.num_statistics), torch.zeros_like(gradient)
    for rows in ([3, 4], [0, 1, 2, 5], [6, 7], []):
        sums += rule.part_gradient(model, pack_text(whole.select(rows), rule.fields), totals)
        added += model.flat.gradients
    np.testing.assert_allclose(added, gradient, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(sums, statistics, rtol=1e-9)


def test_groups_stay_in_one_minibatch() -> None:
    rule = DPO(num_minibatches=2)
    batch = TextBatch({0: pairs()}, rule, seed=1, iteration=0)
    for epoch in range(6):
        batch.begin_epoch(epoch)
        found = [batch.part(0, minibatch) for minibatch in range(2)]
        prompts = [set(part.fields["prompt_index"].tolist()) for part in found]
        assert not prompts[0] & prompts[1]
        assert prompts[0] | prompts[1] == {4, 9, 12}, "a prompt without a pair costs nothing"
        assert batch.part_sums(0).reshape(2, 5)[:, 4].sum() == 3


def test_pairs_of_ragged_groups() -> None:
    chosen, rejected = pair_rows(np.array([1, 1, -1, 0, 1, -1, -1]), np.array([1, 1, 1, 2, 3, 3, 3]))
    assert (chosen.tolist(), rejected.tolist()) == ([0, 4], [2, 5])
    assert pair_rows(np.zeros(0, np.int8), np.zeros(0, np.int64))[0].tolist() == []


@pytest.mark.parametrize(("knob", "value"), [("beta", 0.0), ("label_smoothing", 0.5), ("loss", "hinge")])
def test_knobs_out_of_range_are_refused(knob: str, value: object) -> None:
    with pytest.raises(InputError, match=f"DPO.{knob}"):
        DPO(**{knob: value})  # type: ignore[arg-type]
