"""Rules of text: parts add up to the whole, weights by aggregation, losses against a float64 oracle, hazards."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpcrl.algorithms.language_ppo import LanguagePPO, ValueRegression
from hpcrl.algorithms.sft import SFT
from hpcrl.algorithms.text_rule import TextRule, TextTotals
from hpcrl.data import Ragged, Trajectories
from hpcrl.errors import InputError
from hpcrl.models.language import Architecture
from hpcrl.models.language.decoder import Decoder
from hpcrl.models.language.packing import pack_text
from hpcrl.ops.losses import kl_estimate
from hpcrl.stages.text_batch import TextBatch

VOCAB = 11
RULES = [
    SFT(),
    SFT(aggregation="sequence"),
    SFT(aggregation="constant", constant=9.0),
    LanguagePPO(),
    LanguagePPO(aggregation="sequence", kl_coef=0.1, clip_range_high=0.3, normalize_advantages=False),
    LanguagePPO(value_coef=0.5, value_clip_range=0.2, entropy_coef=0.01, dual_clip=3.0),
    ValueRegression(value_clip_range=0.3),
]


def decoder(seed: int = 0, dtype: torch.dtype = torch.float64) -> Decoder:
    architecture = Architecture.llama(VOCAB, hidden_size=8, num_layers=1, num_heads=2, max_positions=64)
    made = Decoder(architecture, heads=("language", "value"), dtype=dtype)
    made.initialize(torch.Generator().manual_seed(seed), std=0.5)
    with torch.no_grad():
        assert made.score is not None
        made.score.weight.normal_(0.0, 1.0, generator=torch.Generator().manual_seed(seed + 1))
    made.excluded_ids = (0, 2)
    return made


def responses(lengths: list[int], seed: int = 0) -> Trajectories:
    numbers = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    total = int(offsets[-1])
    prompt_lengths = numbers.integers(1, 5, len(lengths))
    prompts = Ragged(
        numbers.integers(3, VOCAB, prompt_lengths.sum()),
        np.concatenate([[0], np.cumsum(prompt_lengths)]).astype(np.int64),
    )
    steps = {name: numbers.normal(size=total) for name in ("advantages", "returns", "values")}
    steps |= {name: -numbers.exponential(2.0, total) for name in ("log_probs", "reference_log_probs")}
    return Trajectories(
        offsets, {"actions": numbers.integers(3, VOCAB, total), **steps}, {}, {"prompt_tokens": prompts}
    )


def totals_of(trajectories: Trajectories) -> TextTotals:
    advantages = trajectories["advantages"] if trajectories.num_steps else np.zeros(1)
    std = float(advantages.std(ddof=1)) if len(advantages) > 1 else 1.0
    return TextTotals(trajectories.num_steps, trajectories.num_trajectories, float(advantages.mean()), std)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{type(rule).__name__}-{rule.aggregation}")
def test_parts_add_up_to_the_whole(rule: TextRule) -> None:
    model, whole = decoder(), responses([3, 1, 0, 5, 2])
    totals = totals_of(whole)
    statistics = rule.part_gradient(model, pack_text(whole, rule.fields), totals)
    gradient = model.flat.gradients.clone()
    assert gradient.abs().sum() > 0
    sums, added = np.zeros(rule.num_statistics), torch.zeros_like(gradient)
    for rows in ([3, 0], [1], [2, 4], []):
        sums += rule.part_gradient(model, pack_text(whole.select(rows), rule.fields), totals)
        if rows:
            added += model.flat.gradients
        else:
            assert not model.flat.gradients.any(), "an empty part has no gradient"
    np.testing.assert_allclose(added, gradient, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(sums, statistics, rtol=1e-10)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=6), st.sampled_from(["token", "sequence", "constant"]))
def test_weights_mean_what_their_names_say(lengths: list[int], aggregation: str) -> None:
    whole = responses(lengths)
    rule = SFT(aggregation=aggregation, constant=4.0)  # type: ignore[arg-type]
    weights = rule.token_weights(pack_text(whole), totals_of(whole)).numpy().astype(np.float64)
    losses = np.random.default_rng(1).normal(size=whole.num_steps)
    parts = [losses[whole.offsets[i] : whole.offsets[i + 1]] for i in range(len(lengths))]
    if aggregation == "token":
        wanted = losses.mean() if len(losses) else 0.0
    elif aggregation == "sequence":
        wanted = float(np.mean([part.mean() if len(part) else 0.0 for part in parts]))
    else:
        wanted = float(np.mean([part.sum() / 4.0 for part in parts]))
    assert float((weights * losses).sum()) == pytest.approx(wanted, rel=1e-6, abs=1e-9)


def softmax_log_probs(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    logits = logits.copy()
    logits[:, [0, 2]] = -np.inf
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted[np.arange(len(targets)), targets] - np.log(np.exp(shifted).sum(axis=1))


def test_ppo_against_numpy() -> None:
    """Clipping on both sides, dual clip, value clip, KL and normalisation, from the equations alone."""
    rule = LanguagePPO(
        clip_range=0.1, clip_range_high=0.4, dual_clip=2.0, value_coef=0.7, value_clip_range=0.25, kl_coef=0.3,
        temperature=1.3, aggregation="sequence",
    )  # fmt: skip
    model, whole = decoder(), responses([4, 2, 7], seed=5)
    part, totals = pack_text(whole, rule.fields), totals_of(whole)
    with torch.no_grad():
        hidden = model(part.tokens, part.offsets)[part.rows]
        log_probs = softmax_log_probs((model.logits(hidden) / 1.3).numpy(), part.targets.numpy())
        values = model.values(hidden).numpy()
    # Old log-probabilities near the new ones, so that ratios fall on all sides of the borders.
    whole = whole.with_fields(steps={"log_probs": log_probs + np.random.default_rng(2).normal(0, 0.8, len(log_probs))})
    part = pack_text(whole, rule.fields)
    ratio = np.exp(log_probs - whole["log_probs"])
    advantage = (whole["advantages"] - totals.advantage_mean) / (totals.advantage_std + 1e-8)
    surrogate = np.minimum(ratio * advantage, np.clip(ratio, 0.9, 1.4) * advantage)
    policy = -np.where(advantage < 0, np.maximum(surrogate, 2.0 * advantage), surrogate)
    clipped_values = whole["values"] + np.clip(values - whole["values"], -0.25, 0.25)
    squares = np.maximum((values - whole["returns"]) ** 2, (clipped_values - whole["returns"]) ** 2) / 2
    difference = log_probs - whole["reference_log_probs"]
    k3 = np.exp(-difference) - 1 + difference
    losses = policy + 0.7 * squares + 0.3 * k3
    bounds = whole.offsets
    wanted = np.mean([losses[bounds[i] : bounds[i + 1]].mean() for i in range(3)])
    loss, statistics = rule._loss(model, part, totals)
    assert float(loss.detach()) == pytest.approx(wanted, rel=1e-6)  # weights are f32
    named = dict(zip(rule.statistics, statistics, strict=True))
    assert named["policy_loss"] == pytest.approx(policy.sum(), rel=1e-9)
    assert named["value_loss"] == pytest.approx(squares.sum(), rel=1e-9)
    assert named["reference_kl"] == pytest.approx(k3.sum(), rel=1e-9)
    assert named["clipped"] == ((ratio < 0.9) | (ratio > 1.4)).sum()


def test_on_policy_the_gradient_is_that_of_the_log_probability() -> None:
    """At ratio 1 the surrogate's gradient is -A grad log pi: the policy gradient theorem's."""
    model, whole = decoder(), responses([3, 2])
    part = pack_text(whole, ("advantages",))
    hidden = model(part.tokens, part.offsets)[part.rows]
    from hpcrl.models.language.log_probs import token_log_probs

    log_probs, _ = token_log_probs(model, hidden, part.targets)
    whole = whole.with_fields(steps={"log_probs": log_probs.detach().numpy()})
    model.flat.zero_gradients()
    hidden = model(part.tokens, part.offsets)[part.rows]
    log_probs, _ = token_log_probs(model, hidden, part.targets)
    (-(log_probs * part.fields["advantages"]).sum() / 5).backward()
    wanted = model.flat.gradients.clone()
    rule = LanguagePPO(normalize_advantages=False)
    rule.part_gradient(model, pack_text(whole, rule.fields), totals_of(whole))
    np.testing.assert_allclose(model.flat.gradients, wanted, rtol=1e-6, atol=1e-9)


def test_estimates_of_the_divergence() -> None:
    """Over all tokens, weighted by pi: k1 and k3 are the divergence, k2's gradient is its gradient."""
    logits = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(3), requires_grad=True)
    reference = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).log_softmax(0)
    pi = logits.log_softmax(0)
    exact = (pi.exp() * (pi - reference)).sum()
    weights = pi.exp().detach()
    for kind in ("k1", "k3"):
        assert float((weights * kl_estimate(pi, reference, kind)).sum()) == pytest.approx(float(exact), rel=1e-12)
    (exact_gradient,) = torch.autograd.grad(exact, logits, retain_graph=True)
    (k2_gradient,) = torch.autograd.grad((weights * kl_estimate(pi, reference, "k2")).sum(), logits, retain_graph=True)
    np.testing.assert_allclose(k2_gradient, exact_gradient, rtol=1e-10)
    (k1_gradient,) = torch.autograd.grad((weights * kl_estimate(pi, reference, "k1")).sum(), logits, retain_graph=True)
    np.testing.assert_allclose(k1_gradient, 0.0, atol=1e-15)
    assert bool((kl_estimate(pi, reference, "absolute") >= 0).all())


def test_numbers_that_are_none_are_named_before_anything_moves() -> None:
    rule, whole = LanguagePPO(), responses([2, 2])
    broken = whole.with_fields(steps={"advantages": np.array([1.0, np.nan, 0.0, 1.0])})
    with pytest.raises(FloatingPointError, match=r"LanguagePPO loss: .*policy_loss"):
        rule.part_gradient(decoder(), pack_text(broken, rule.fields), totals_of(whole))


def test_a_prompt_without_a_token_is_refused() -> None:
    whole = responses([1, 1])
    empty = Ragged(np.array([3]), np.array([0, 0, 1]))
    with pytest.raises(InputError, match="want at least one token in each prompt, given none in trajectory 0"):
        pack_text(Trajectories(whole.offsets, whole.steps, {}, {"prompt_tokens": empty}))


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("learning_rate", 0.0, "LanguagePPO.learning_rate"),
        ("aggregation", "mean", "LanguagePPO.aggregation: want one of 'token', 'sequence', 'constant'"),
        ("temperature", 0.0, "LanguagePPO.temperature"),
        ("kl_estimator", "k4", "LanguagePPO.kl_estimator"),
        ("dual_clip", 1.0, "LanguagePPO.dual_clip"),
        ("num_epochs", 0, "LanguagePPO.num_epochs"),
    ],
)
def test_knobs_out_of_range_are_refused(field: str, value: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        replace(LanguagePPO(), **{field: value})


def test_a_batch_keeps_every_response_once_an_epoch() -> None:
    rule = SFT(num_minibatches=3)
    whole = responses([1, 2, 3, 4, 5, 6, 7])
    batch = TextBatch({5: whole}, rule, seed=1, iteration=2)
    seen = []
    for epoch in range(2):
        batch.begin_epoch(epoch)
        sums = batch.part_sums(5).reshape(3, 5)
        lengths = [batch.part(5, minibatch).response_lengths.tolist() for minibatch in range(3)]
        assert sorted(length for part in lengths for length in part) == [1, 2, 3, 4, 5, 6, 7]
        assert sums[:, 0].tolist() == [sum(part) for part in lengths]
        assert sums[:, 1].tolist() == [2, 2, 3]
        assert sums[:, 2].sum() == pytest.approx(whole["advantages"].sum())
        seen.append(lengths)
    assert seen[0] != seen[1], "another epoch, another order"
    again = TextBatch({5: whole}, rule, seed=1, iteration=2)
    again.begin_epoch(0)
    assert [again.part(5, minibatch).response_lengths.tolist() for minibatch in range(3)] == seen[0]
