"""PPO: every knob against an independent reference, sums over blocks, edges, refusals."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from torch import distributions

from hpcrl.algorithms import PPO, Totals, ppo_gradient
from hpcrl.algorithms.ppo_loss import part_loss
from hpcrl.envs import Space
from hpcrl.errors import InputError
from hpcrl.models import Cnn, Mlp
from hpcrl.models.actor_critic import ActorCritic
from hpcrl.models.statistics import moments

VECTOR = Space("box", (4,), "float32")
DISCRETE, BOX = Space("discrete", n=3), Space("box", (2,), "float32")
MULTI = Space("multi_discrete", (2,), nvec=(3, 2))
ROWS = 60


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_model(action_space: Space = DISCRETE, **options: object) -> ActorCritic:
    model = Mlp(**{"hidden": (8, 8), **options}).build(VECTOR, action_space, seed=5)
    with torch.no_grad():
        model.network.policy_head.weight.mul_(100.0)
    return model


def make_batch(action_space: Space = DISCRETE, rows: int = ROWS) -> dict[str, torch.Tensor]:
    generator = np.random.default_rng(17)
    if action_space.kind == "discrete":
        actions = generator.integers(0, 3, size=rows)
    elif action_space.kind == "multi_discrete":
        actions = generator.integers(0, action_space.nvec, size=(rows, 2))
    else:
        actions = generator.normal(size=(rows, 2)).astype(np.float32)
    batch = {
        "observations": generator.normal(size=(rows, 4)),
        "log_probs": generator.normal(-1.2, 0.5, size=rows),
        "values": generator.normal(size=rows),
        "advantages": generator.normal(0.3, 2.0, size=rows),
        "returns": generator.normal(1.0, 2.0, size=rows),
    }
    tensors = {name: torch.from_numpy(array.astype(np.float32)) for name, array in batch.items()}
    return {**tensors, "actions": torch.from_numpy(actions)}


def totals_of(batch: dict[str, torch.Tensor]) -> Totals:
    return Totals.of(len(batch["advantages"]), moments(batch["advantages"].numpy()))


def gradient_of(model: ActorCritic, ppo: PPO, batch, totals: Totals) -> tuple[float, np.ndarray, np.ndarray]:
    model.zero_grad()
    loss, statistics = ppo.loss(model, batch, totals)
    loss.backward()
    return float(loss.detach()), model.flat.gradients_array().copy(), statistics


def reference_loss(model: ActorCritic, ppo: PPO, batch) -> torch.Tensor:
    """The whole loss of a minibatch, written from the papers with torch.distributions and torch's own losses."""
    encoded = batch["observations"]
    outputs, normalized_values = model.network(encoded)
    if model.random_kind == "uniform":
        policy = distributions.Categorical(logits=outputs)
    else:
        policy = distributions.Independent(distributions.Normal(outputs, model.distribution.log_std.exp()), 1)
    ratios = torch.exp(policy.log_prob(batch["actions"]) - batch["log_probs"])
    advantages = batch["advantages"]
    if ppo.normalize_advantages is not None:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    low, high = 1 - ppo.clip_range, 1 + ppo.clip_range
    gains = torch.min(ratios * advantages, torch.clip(ratios, low, high) * advantages)
    if ppo.dual_clip is not None:
        gains = torch.where(advantages < 0, torch.max(gains, ppo.dual_clip * advantages), gains)
    mean, std = model.value_statistics.mean.item(), model.value_statistics.variance.item() ** 0.5
    targets, old_values = (batch["returns"] - mean) / std, (batch["values"] - mean) / std

    def loss(values: torch.Tensor) -> torch.Tensor:
        if ppo.value_loss == "huber":
            return torch.nn.functional.huber_loss(values, targets, reduction="none", delta=ppo.huber_delta)
        return torch.nn.functional.mse_loss(values, targets, reduction="none") / 2

    value_losses = loss(normalized_values)
    if ppo.value_clip_range is not None:
        bound = ppo.value_clip_range
        near = torch.max(torch.min(normalized_values, old_values + bound), old_values - bound)
        value_losses = torch.max(value_losses, loss(near))
    return -gains.mean() + ppo.value_coef * value_losses.mean() - ppo.entropy_coef * policy.entropy().mean()


KNOBS = {
    "defaults": PPO(),
    "clip_range": PPO(clip_range=0.05),
    "dual_clip": PPO(dual_clip=1.2),
    "value_clip": PPO(value_clip_range=0.1),
    "huber": PPO(value_loss="huber", huber_delta=0.5),
    "huber and value clip": PPO(value_loss="huber", value_clip_range=0.1, value_coef=2.0),
    "coefficients": PPO(entropy_coef=0.1, value_coef=0.0),
    "raw advantages": PPO(normalize_advantages=None),
    "running values": PPO(normalize_values="running", value_clip_range=0.2),
    "popart": PPO(normalize_values="popart"),
}


@pytest.mark.parametrize("knob", KNOBS)
@pytest.mark.parametrize("action_space", [DISCRETE, BOX], ids=["discrete", "box"])
def test_loss_and_gradient_of_every_knob(knob: str, action_space: Space) -> None:
    ppo, model, batch = KNOBS[knob], make_model(action_space), make_batch(action_space)
    ppo.advance_value_statistics(model, moments(batch["returns"].numpy()))
    assert (model.value_statistics.shift != 0.0) == (ppo.normalize_values is not None)
    loss, gradient, statistics = gradient_of(model, ppo, batch, totals_of(batch))
    expected = reference_loss(model, ppo, batch)
    model.zero_grad()
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert ppo.finish_statistics(statistics)["loss"] == pytest.approx(expected.item(), rel=1e-5)
    np.testing.assert_allclose(gradient, model.flat.gradients_array(), rtol=1e-4, atol=1e-6)
    plain, _, _ = gradient_of(make_model(action_space), PPO(), batch, totals_of(batch))
    assert (loss == plain) == (knob == "defaults"), "the knob must matter here"


@pytest.mark.parametrize("knob", KNOBS)
@pytest.mark.parametrize("action_space", [DISCRETE, BOX, MULTI], ids=["discrete", "box", "multi"])
@pytest.mark.parametrize(
    "options",
    [{}, {"shared": True, "activation": "relu"}, {"activation": "gelu"}, {"hidden": (8,)}, {"hidden": (8, 6, 4)}],
    ids=lambda options: " ".join(options) or "defaults",
)
def test_part_gradient_is_that_of_the_loss(knob: str, action_space: Space, options: dict[str, object]) -> None:
    ppo, batch = dataclasses.replace(KNOBS[knob], entropy_coef=0.05), make_batch(action_space)
    model = make_model(action_space, normalize_observations=True, **options)
    assert (model.stacked_mlp.has_backward) == ("gelu" not in options.values())
    model.observation_statistics.advance(moments(batch["observations"].numpy()))
    ppo.advance_value_statistics(model, moments(batch["returns"].numpy()))
    totals = totals_of(batch)
    # A scheduled clip range and a count other than the part's own must reach both.
    totals = dataclasses.replace(totals, num_steps=2 * ROWS)
    _, expected, expected_statistics = gradient_of(model, ppo, batch, totals)
    model.flat.gradients.fill_(123.0)
    statistics = ppo.part_gradient(model, batch, totals)
    np.testing.assert_allclose(model.flat.gradients_array(), expected, rtol=1e-4, atol=2e-7)
    np.testing.assert_allclose(statistics, expected_statistics, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("action_space", "options", "by_hand"),
    [
        (DISCRETE, {}, True),
        (BOX, {"activation": "relu"}, True),
        (MULTI, {}, False),
        (DISCRETE, {"activation": "gelu"}, False),
    ],
)
def test_which_way_a_gradient_goes(monkeypatch, action_space: Space, options: dict[str, object], by_hand: bool) -> None:
    taken = []
    monkeypatch.setattr(ppo_gradient, "part_loss", lambda *args: taken.append("autograd") or part_loss(*args))
    model, batch = make_model(action_space, **options), make_batch(action_space)
    PPO().part_gradient(model, batch, totals_of(batch))
    assert taken == ([] if by_hand else ["autograd"])
    PPO(autocast="bf16").part_gradient(model, batch, totals_of(batch))
    assert taken[-1:] == ["autograd"]


def test_part_gradient_of_nothing_is_zero() -> None:
    model, batch = make_model(), make_batch()
    model.flat.gradients.fill_(123.0)
    statistics = PPO().part_gradient(model, {name: rows[:0] for name, rows in batch.items()}, totals_of(batch))
    assert not model.flat.gradients_array().any()
    assert not statistics.any()


@pytest.mark.parametrize("action_space", [DISCRETE, BOX], ids=["discrete", "box"])
def test_gradient_against_finite_differences(action_space: Space) -> None:
    ppo = PPO(entropy_coef=0.01, dual_clip=2.0, value_clip_range=0.3, value_loss="huber")
    model, batch = make_model(action_space), make_batch(action_space)
    totals = totals_of(batch)
    _, gradient, _ = gradient_of(model, ppo, batch, totals)
    direction = torch.from_numpy(np.random.default_rng(4).normal(size=model.flat.size)).float()
    start = model.flat.values.clone()
    # Differences in float64: the network's own modules, in double, on the moved parameters.
    double = make_model(action_space)
    wide = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in batch.items()}
    values = []
    for sign in (1.0, -1.0):
        moved = start.double() + sign * 1e-6 * direction.double()
        views = {name: double.flat.view(moved, name) for name in double.flat.names}
        values.append(float(torch.func.functional_call(_Loss(double, ppo), _prefixed(views), (wide,))))
    numeric = (values[0] - values[1]) / 2e-6
    assert float(np.dot(gradient, direction.numpy())) == pytest.approx(numeric, rel=2e-4)


class _Loss(torch.nn.Module):
    def __init__(self, model: ActorCritic, ppo: PPO) -> None:
        super().__init__()
        self.model, self.ppo = model, ppo

    def forward(self, batch) -> torch.Tensor:
        return reference_loss(self.model, self.ppo, batch)


def _prefixed(views: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"model.{name}": view for name, view in views.items()}


@pytest.mark.parametrize("num_blocks", [1, 2, 4, 7])
def test_parts_of_blocks_add_up_to_the_minibatch(num_blocks: int) -> None:
    ppo = PPO(entropy_coef=0.01, value_clip_range=0.2, dual_clip=3.0)
    model, batch = make_model(), make_batch()
    totals = totals_of(batch)
    _, whole, statistics = gradient_of(model, ppo, batch, totals)
    bounds = np.sort(np.random.default_rng(3).integers(0, ROWS, size=num_blocks - 1))
    bounds = [0, *bounds.tolist(), ROWS]
    parts = [
        gradient_of(model, ppo, {name: rows[start:stop] for name, rows in batch.items()}, totals)
        for start, stop in itertools.pairwise(bounds)
    ]
    np.testing.assert_allclose(sum(part[1] for part in parts), whole, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(sum(part[2] for part in parts), statistics, rtol=1e-5)
    sums = sum(moments(part) for part in np.split(batch["advantages"].numpy(), bounds[1:-1]))
    assert Totals.of(ROWS, sums) == pytest.approx(totals) or dataclasses.astuple(
        Totals.of(ROWS, sums)
    ) == pytest.approx(dataclasses.astuple(totals))


def test_batch_and_minibatch_normalisation_differ_by_whose_moments_come_in() -> None:
    batch = make_batch()
    half = {name: rows[:30] for name, rows in batch.items()}
    model = make_model()
    advantages = batch["advantages"].numpy()
    losses = {}
    for kind, source in (("minibatch", advantages[:30]), ("batch", advantages)):
        ppo = PPO(normalize_advantages=kind)
        totals = Totals.of(30, moments(source))
        assert totals.advantage_std == pytest.approx(np.std(source, ddof=1), rel=1e-6)
        losses[kind], _, _ = gradient_of(model, ppo, half, totals)
        moved = {
            **half,
            "advantages": torch.from_numpy((advantages[:30] - source.mean()) / (source.std(ddof=1) + 1e-8)),
        }
        expected, _, _ = gradient_of(model, PPO(normalize_advantages=None), moved, totals)
        assert losses[kind] == pytest.approx(expected, rel=1e-5)
    assert losses["minibatch"] != losses["batch"]


def test_empty_part_contributes_nothing() -> None:
    model, batch = make_model(), make_batch()
    loss, gradient, statistics = gradient_of(
        model, PPO(), {name: rows[:0] for name, rows in batch.items()}, totals_of(batch)
    )
    assert loss == 0.0
    assert not gradient.any()
    assert not statistics.any()


def test_one_row_is_left_as_it_is() -> None:
    model = make_model()
    row = {name: rows[:1] for name, rows in make_batch().items()}
    totals = totals_of(row)
    assert totals == Totals(1, 0.0, 1.0)
    loss, gradient, _ = gradient_of(model, PPO(), row, totals)
    expected, _, _ = gradient_of(model, PPO(normalize_advantages=None), row, totals)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert gradient.any()


def test_equal_advantages_do_not_divide_by_zero() -> None:
    model, batch = make_model(), make_batch()
    batch["advantages"] = torch.full((ROWS,), 0.1)
    loss, _, statistics = gradient_of(model, PPO(value_coef=0.0), batch, totals_of(batch))
    assert math.isfinite(loss)
    assert np.isfinite(statistics).all()


@pytest.mark.parametrize("field", ["advantages", "returns", "observations", "log_probs"])
def test_nan_is_named_where_it_came_in(field: str) -> None:
    batch = make_batch()
    batch[field][7] = math.nan
    for method in (PPO().loss, PPO().part_gradient):
        with pytest.raises(
            FloatingPointError, match=f"PPO loss: want finite numbers.*not finite in the input: {field}"
        ):
            method(make_model(), batch, Totals(ROWS, 0.0, 1.0))


def test_nan_of_the_network_is_told_apart() -> None:
    model = make_model()
    model.flat.values.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="the input is finite, the network is not"):
        PPO().loss(model, make_batch(), Totals(ROWS, 0.0, 1.0))


def test_statistics_against_numpy() -> None:
    ppo, model, batch = PPO(normalize_advantages=None), make_model(), make_batch()
    finished = ppo.finish_statistics(gradient_of(model, ppo, batch, totals_of(batch))[2])
    log_probs, entropies, _ = model.evaluate(batch["observations"], batch["actions"])
    ratios = np.exp(log_probs.detach().numpy().astype(np.float64) - batch["log_probs"].numpy())
    assert finished["entropy"] == pytest.approx(entropies.mean().item(), rel=1e-5)
    assert finished["clip_fraction"] == pytest.approx((np.abs(ratios - 1) > 0.2).mean())
    assert finished["approximate_kl"] == pytest.approx((ratios - 1 - np.log(ratios)).mean(), rel=1e-4)
    assert finished["ratio_deviation"] == pytest.approx(np.sqrt(np.square(ratios - 1).mean()), rel=1e-4)
    returns, values = batch["returns"].numpy(), batch["values"].numpy()
    assert finished["explained_variance"] == pytest.approx(1 - (returns - values).var() / returns.var(), rel=1e-3)
    assert math.isnan(ppo.finish_statistics(np.zeros(ppo.num_statistics))["explained_variance"])


def test_first_pass_has_ratio_one() -> None:
    model, batch = make_model(normalize_observations=True), make_batch()
    numbers = np.random.default_rng(0).random((ROWS, 1))
    actions, log_probs, _ = model.act(batch["observations"].numpy(), numbers)
    batch |= {"actions": torch.from_numpy(actions), "log_probs": torch.from_numpy(log_probs)}
    finished = PPO().finish_statistics(PPO().loss(model, batch, totals_of(batch))[1])
    assert finished["ratio_deviation"] < 1e-6
    assert finished["clip_fraction"] == 0.0


def test_bf16_autocast_is_close_and_keeps_fp32_gradients() -> None:
    model = Cnn(hidden=32).build(Space("box", (4, 84, 84), "uint8"), DISCRETE, seed=1)
    batch = make_batch(rows=16)
    batch["observations"] = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (16, 4, 84, 84), dtype=np.uint8))
    exact_loss, exact, _ = gradient_of(model, PPO(), batch, totals_of(batch))
    loss, gradient, _ = gradient_of(model, PPO(autocast="bf16"), batch, totals_of(batch))
    assert gradient.dtype == np.float32
    assert loss == pytest.approx(exact_loss, rel=2e-2)
    assert 0.0 < np.linalg.norm(gradient - exact) / np.linalg.norm(exact) < 0.15


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [("constant", (1.0, 1.0, 1.0)), ("linear", (1.0, 0.75, 0.0)), ("cosine", (1.0, (1 + 0.5**0.5) / 2, 0.0))],
)
def test_schedules(schedule: str, shares: tuple[float, ...]) -> None:
    ppo = PPO(learning_rate=0.5, learning_rate_schedule=schedule, clip_range=0.3, clip_range_schedule=schedule)
    for progress, share in zip((0.0, 0.25, 1.0), shares, strict=True):
        assert ppo.learning_rate_at(progress) == pytest.approx(0.5 * share)
        assert ppo.clip_range_at(progress) == pytest.approx(0.3 * share)
    for outside in (-0.1, 1.1, math.nan):
        with pytest.raises(InputError, match=r"progress: want a number in \[0, 1\]"):
            ppo.learning_rate_at(outside)


def test_clip_range_schedule_reaches_the_loss() -> None:
    model, batch = make_model(), make_batch()
    ppo, totals = PPO(clip_range_schedule="linear"), totals_of(batch)
    late = ppo.loss(model, batch, totals, progress=0.5)[0].item()
    narrow = PPO(clip_range=0.1)
    assert late == pytest.approx(narrow.loss(model, batch, totals)[0].item())
    assert late != pytest.approx(ppo.loss(model, batch, totals)[0].item())


def test_target_kl_stops_half_as_much_above() -> None:
    assert not PPO().stops_at(1e9)
    assert not PPO(target_kl=0.02).stops_at(0.03)
    assert PPO(target_kl=0.02).stops_at(0.0301)


def test_optimizer_carries_the_knobs() -> None:
    model = make_model()
    optimizer = PPO(adam_betas=(0.8, 0.99), adam_epsilon=1e-3, weight_decay=0.1).build_optimizer(model)
    assert (optimizer.betas, optimizer.epsilon, optimizer.weight_decay) == ((0.8, 0.99), 1e-3, 0.1)
    assert optimizer.flat is model.flat


def test_value_statistics_step_is_a_moving_average() -> None:
    model = make_model()
    ppo = PPO(normalize_values="running", value_statistics_step=0.5)
    ppo.advance_value_statistics(model, moments([0.0, 2.0]))
    ppo.advance_value_statistics(model, moments([9.0, 11.0]))
    assert model.value_statistics.shift == pytest.approx((0.25 * 1.0 + 0.5 * 10.0) / 0.75)


def test_learning_lowers_the_loss() -> None:
    model, batch = make_model(), make_batch()
    ppo = PPO(learning_rate=1e-2)
    optimizer, totals = ppo.build_optimizer(model), totals_of(batch)
    losses = []
    for _ in range(40):
        losses.append(gradient_of(model, ppo, batch, totals)[0])
        optimizer.step(ppo.learning_rate, ppo.max_grad_norm)
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_epochs": 0}, "PPO.num_epochs: want an integer >= 1, given 0"),
        ({"num_minibatches": 1.5}, "PPO.num_minibatches: want an integer >= 1, given 1.5"),
        ({"learning_rate": 0.0}, "PPO.learning_rate: want a number > 0.0, given 0.0"),
        ({"learning_rate": math.nan}, "PPO.learning_rate: want a number > 0.0, given nan"),
        ({"clip_range": "0.2"}, "PPO.clip_range: want a number > 0.0, given '0.2'"),
        ({"dual_clip": 1.0}, "PPO.dual_clip: want a number > 1.0 or None, given 1.0"),
        ({"entropy_coef": -0.1}, "PPO.entropy_coef: want a number >= 0.0, given -0.1"),
        ({"value_clip_range": -1.0}, "PPO.value_clip_range: want a number > 0.0 or None, given -1.0"),
        ({"value_statistics_step": 1.5}, "PPO.value_statistics_step: want a number > 0.0 and <= 1.0 or None"),
        ({"adam_betas": (0.9,)}, "PPO.adam_betas: want two numbers"),
        ({"adam_betas": (0.9, 1.0)}, "PPO.adam_betas: want a number >= 0.0 and < 1.0, given 1.0"),
        ({"learning_rate_schedule": "exp"}, "PPO.learning_rate_schedule: want one of 'constant', 'linear', 'cosine'"),
        ({"value_loss": "l1"}, "PPO.value_loss: want one of 'squared', 'huber', given 'l1'"),
        ({"normalize_advantages": True}, "PPO.normalize_advantages: want one of 'minibatch', 'batch', None"),
        ({"normalize_values": "art"}, "PPO.normalize_values: want one of 'running', 'popart', None, given 'art'"),
        ({"autocast": "fp16"}, "PPO.autocast: want one of 'bf16', None, given 'fp16'"),
    ],
)
def test_refusals_say_what_wanted_given(options: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        PPO(**options)
