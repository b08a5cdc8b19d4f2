"""Actor-critics: initialisation, acting against evaluating, bits, names, PopArt, refusals."""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from hpcrl.envs import Space
from hpcrl.errors import InputError
from hpcrl.models import Cnn, Mlp
from hpcrl.models.actor_critic import ROWS_PER_FORWARD, ActorCritic
from hpcrl.models.statistics import moments

VECTOR = Space("box", (5,), "float32")
IMAGE = Space("box", (4, 84, 84), "uint8")
DISCRETE, MULTI, BOX = Space("discrete", n=3), Space("multi_discrete", (2,), nvec=(3, 2)), Space("box", (2,), "float32")
CONFIGS = {
    "separate": (Mlp(hidden=(16, 24)), VECTOR, DISCRETE),
    "shared": (Mlp(hidden=(16,), shared=True, activation="relu"), VECTOR, MULTI),
    "normalized": (Mlp(hidden=(16, 16, 16), normalize_observations=True, activation="silu"), VECTOR, BOX),
    "one-hot": (Mlp(hidden=(8,), activation="elu"), Space("discrete", n=7), DISCRETE),
    "image": (Cnn(hidden=32), IMAGE, DISCRETE),
    "separate images": (Cnn(hidden=32, shared=False), Space("box", (1, 40, 44), "uint8"), BOX),
}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build(name: str, seed: int = 3) -> ActorCritic:
    config, observation_space, action_space = CONFIGS[name]
    return config.build(observation_space, action_space, seed=seed)


def draw_observations(space: Space, rows: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    if space.kind == "discrete":
        return generator.integers(0, space.n, size=rows)
    if space.dtype == "uint8":
        return generator.integers(0, 256, size=(rows, *space.shape), dtype=np.uint8)
    return generator.normal(2.0, 3.0, size=(rows, *space.shape)).astype(np.float32)


def draw_numbers(model: ActorCritic, rows: int, seed: int = 1) -> np.ndarray:
    generator = np.random.default_rng(seed)
    shape = (rows, model.random_numbers_per_action)
    return generator.random(shape) if model.random_kind == "uniform" else generator.normal(size=shape)


def sharpen(model: ActorCritic) -> ActorCritic:
    """Away from the nearly uniform first policy, so that differences would show."""
    with torch.no_grad():
        model.network.policy_head.weight.mul_(100.0)
    return model


def test_importing_a_configuration_imports_no_torch() -> None:
    code = "import sys, hpcrl.models, hpcrl.algorithms; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ["separate", "shared", "image"])
def test_weights_are_orthogonal_with_the_stated_gains(name: str) -> None:
    for parameter_name, parameter in build(name).network.named_parameters():
        if parameter_name.endswith("bias"):
            assert not parameter.any()
            continue
        matrix = parameter.detach().flatten(1).double()
        gain = {"policy_head": 0.01, "value_head": 1.0}.get(parameter_name.split(".")[0], 2.0**0.5)
        small = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
        torch.testing.assert_close(small, gain**2 * torch.eye(len(small), dtype=torch.float64), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_bits_depend_on_the_seed_alone(name: str) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = build(name).flat.values
    assert torch.equal(torch.get_rng_state(), state), "building must not move the global generator"
    torch.manual_seed(2)
    assert torch.equal(build(name).flat.values, first)
    assert not torch.equal(build(name, seed=4).flat.values, first)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("greedy", [False, True])
def test_acting_stores_what_evaluating_computes(name: str, greedy: bool) -> None:
    model = sharpen(build(name))
    if model.observation_statistics is not None:
        model.observation_statistics.advance(moments(draw_observations(VECTOR, 300, seed=9)))
    model.advance_value_statistics(np.array([4.0, 8.0, 60.0]), popart=False)
    for rows in (1, 7, 16, 64):
        observations = draw_observations(CONFIGS[name][1], rows)
        actions, log_probs, values = model.act(observations, draw_numbers(model, rows), greedy=greedy)
        new_log_probs, entropies, new_values = model.evaluate(torch.from_numpy(observations), torch.from_numpy(actions))
        np.testing.assert_allclose(log_probs, new_log_probs.detach().numpy(), rtol=0, atol=3e-6)
        np.testing.assert_allclose(values, new_values.detach().numpy(), rtol=1e-5, atol=1e-5)
        assert log_probs.dtype == values.dtype == np.float32
        assert log_probs.shape == values.shape == entropies.shape == (rows,)
        assert len(actions) == rows


@pytest.mark.parametrize("name", ["separate", "shared", "one-hot", "image"])
def test_a_row_does_not_feel_its_neighbours(name: str) -> None:
    model = sharpen(build(name))
    observations = draw_observations(CONFIGS[name][1], 75)
    actions = model.act(observations, draw_numbers(model, 75))[0]
    values = model.values(observations)
    log_probs, same_values = model.reevaluate(observations, actions)
    np.testing.assert_array_equal(same_values, values)
    for rows in (slice(0, 1), slice(3, 10), slice(40, 75), slice(74, 75), slice(0, 0)):
        np.testing.assert_array_equal(model.values(observations[rows]), values[rows])
        np.testing.assert_array_equal(model.reevaluate(observations[rows], actions[rows])[0], log_probs[rows])
    assert ROWS_PER_FORWARD >= 16


@pytest.mark.parametrize("name", ["separate", "image", "separate images"])
def test_memory_order_of_the_rows_leaves_the_bits(name: str) -> None:
    model = sharpen(build(name))
    for rows in (1, 3, 8, 32):
        observations = draw_observations(CONFIGS[name][1], rows)
        transposed = np.asfortranarray(observations)
        numbers = draw_numbers(model, rows)
        for one, other in zip(model.act(observations, numbers), model.act(transposed, numbers), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ["image", "separate images"])
@pytest.mark.parametrize("rows", [1, 8, ROWS_PER_FORWARD])
def test_acting_on_images_has_the_bits_of_the_network(name: str, rows: int) -> None:
    model = sharpen(build(name))
    observations = draw_observations(CONFIGS[name][1], rows)
    with torch.inference_mode():
        policy_outputs, values = model.network(model.encoder(torch.from_numpy(observations)))
    acting_outputs, acting_values = model._forward_rows(observations)
    np.testing.assert_array_equal(acting_outputs, policy_outputs.numpy())
    np.testing.assert_array_equal(acting_values, values.numpy())


def test_values_take_read_only_rows() -> None:
    observations = draw_observations(VECTOR, 3)
    observations.flags.writeable = False
    assert build("separate").values(observations).shape == (3,)


def test_reevaluate_agrees_with_evaluate() -> None:
    model = sharpen(build("normalized"))
    observations = draw_observations(VECTOR, 40)
    actions = model.act(observations, draw_numbers(model, 40))[0]
    log_probs, values = model.reevaluate(observations, actions)
    new_log_probs, _, new_values = model.evaluate(torch.from_numpy(observations), torch.from_numpy(actions))
    np.testing.assert_allclose(log_probs, new_log_probs.detach().numpy(), atol=3e-6)
    np.testing.assert_allclose(values, new_values.detach().numpy(), atol=3e-6)


def test_shared_trunk_has_one_tower_and_separate_has_two() -> None:
    separate, shared = Mlp().build(VECTOR, DISCRETE, seed=0), Mlp(shared=True).build(VECTOR, DISCRETE, seed=0)
    tower = 5 * 64 + 64 + 64 * 64 + 64
    assert separate.flat.size == 2 * tower + 4 * 65
    assert shared.flat.size == tower + 4 * 65
    for model, crosses in ((separate, False), (shared, True)):
        observations = torch.from_numpy(draw_observations(VECTOR, 8))
        model.zero_grad()
        model.evaluate(observations, torch.zeros(8, dtype=torch.int64))[2].sum().backward()
        trunk = "network.trunk" if crosses else "network.policy."
        moved = any(parameter.grad.any() for name, parameter in model.named_parameters() if name.startswith(trunk))
        assert moved == crosses, "a value loss reaches the policy's layers exactly where they are shared"


@pytest.mark.parametrize("popart", [False, True])
@pytest.mark.parametrize("name", ["separate", "image"])
def test_popart_preserves_predictions_and_running_statistics_do_not(name: str, popart: bool) -> None:
    model = build(name)
    observations = draw_observations(CONFIGS[name][1], 20)
    before = model.values(observations)
    policy_before = model.act(observations, draw_numbers(model, 20))[1]
    for sums in (moments([3.0, 9.0, 4.0]), moments([-40.0, 80.0])):
        model.advance_value_statistics(sums, popart=popart)
    statistics = model.value_statistics
    assert statistics.scale == pytest.approx(np.std([3, 9, 4, -40, 80]))
    assert statistics.shift == pytest.approx(np.mean([3, 9, 4, -40, 80]))
    after = model.values(observations)
    if popart:
        np.testing.assert_allclose(after, before, rtol=0, atol=1e-6 * statistics.scale)
    else:
        np.testing.assert_allclose(after, before * statistics.scale + statistics.shift, rtol=1e-5)
    normalized = model.evaluate(
        torch.from_numpy(observations), torch.zeros(20, dtype=torch.int64), normalized_values=True
    )
    np.testing.assert_allclose(normalized[2].detach().numpy() * statistics.scale + statistics.shift, after, atol=1e-4)
    np.testing.assert_array_equal(model.act(observations, draw_numbers(model, 20))[1], policy_before)


def test_popart_outputs_to_a_millionth_at_unit_scale() -> None:
    model = build("separate")
    observations = draw_observations(VECTOR, 64)
    before = model.values(observations)
    model.advance_value_statistics(moments(np.linspace(-1.0, 2.0, 50)), popart=True)
    np.testing.assert_allclose(model.values(observations), before, rtol=0, atol=1e-6)
    assert not np.array_equal(model.network.value_head.bias.detach().numpy(), np.zeros(1))


def test_arrays_round_trip_in_any_order_and_refuse_strangers() -> None:
    source, target = build("normalized"), build("normalized", seed=8)
    source.observation_statistics.advance(moments(draw_observations(VECTOR, 50)))
    source.advance_value_statistics(np.array([4.0, 8.0, 60.0]), popart=True)
    arrays = source.arrays()
    target.load_arrays(dict(reversed(arrays.items())))
    observations = draw_observations(VECTOR, 9)
    np.testing.assert_array_equal(target.values(observations), source.values(observations))
    assert {name for name in arrays if "statistics" in name} == {
        f"{owner}.{kind}"
        for owner in ("encoder.statistics", "value_statistics")
        for kind in ("mean", "variance", "weight")
    }
    assert "distribution.log_std" in arrays
    incomplete = {name: array for name, array in arrays.items() if name != "distribution.log_std"}
    with pytest.raises(InputError, match=r"want distribution\.log_std, which it lacks"):
        target.load_arrays(incomplete)
    with pytest.raises(InputError, match="holds stranger"):
        target.load_arrays({**arrays, "stranger": np.zeros(1)})
    with pytest.raises(InputError, match=r"distribution\.log_std: want \[2\], given \[3\]"):
        target.load_arrays({**arrays, "distribution.log_std": np.zeros(3, np.float32)})
    np.testing.assert_array_equal(target.values(observations), source.values(observations))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_has_buffers_of_its_own(duplicate) -> None:
    model = build("separate")
    twin = duplicate(model)
    observations, numbers = draw_observations(VECTOR, 4), draw_numbers(model, 4)
    before = model.act(observations, numbers)[2]
    np.testing.assert_array_equal(twin.act(observations, numbers)[2], before)
    twin.flat.values.add_(1.0)
    np.testing.assert_array_equal(model.act(observations, numbers)[2], before)
    assert (twin.act(observations, numbers)[2] != before).all()
    torch.testing.assert_close(
        twin.evaluate(torch.from_numpy(observations), torch.zeros(4, dtype=torch.int64))[2].detach().numpy(),
        twin.act(observations, numbers)[2],
    )


@pytest.mark.parametrize("name", ["separate", "image"])
def test_acting_follows_the_optimiser(name: str) -> None:
    model = build(name)
    observations, numbers = draw_observations(CONFIGS[name][1], 16), draw_numbers(model, 16)
    with torch.no_grad():
        model.network.policy_head.bias.copy_(torch.tensor([0.0, 0.0, 50.0]))
        model.network.value_head.bias.fill_(7.0)
        model.network.value_head.weight.zero_()
    actions, _, values = model.act(observations, numbers)
    assert (actions == 2).all()
    assert (values == 7.0).all()


def test_bf16_inference_is_close_to_fp32() -> None:
    exact = Cnn(hidden=32).build(IMAGE, DISCRETE, seed=1)
    rounded = Cnn(hidden=32, inference_autocast="bf16").build(IMAGE, DISCRETE, seed=1)
    observations = draw_observations(IMAGE, 16)
    values = rounded.values(observations)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, exact.values(observations), atol=0.03)
    assert not np.array_equal(values, exact.values(observations))


def test_not_finite_policies_are_refused() -> None:
    for name in ("separate", "shared", "normalized"):
        model = build(name)
        observations = draw_observations(VECTOR, 4)
        observations[2, 0] = np.nan
        with pytest.raises(FloatingPointError, match="policy outputs: want finite numbers"):
            model.act(observations, draw_numbers(model, 4))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Mlp(hidden=()), r"Mlp.hidden: want one or more layer sizes >= 1, given \(\)"),
        (lambda: Mlp(hidden=(64, 0)), r"Mlp.hidden: .* given \(64, 0\)"),
        (lambda: Mlp(activation="sine"), "Mlp.activation: want one of 'tanh', .* given 'sine'"),
        (lambda: Mlp(heads=("policy",)), r"Mlp.heads: want \('policy', 'value'\), given \('policy',\)"),
        (lambda: Cnn(inference_autocast="fp8"), "Cnn.inference_autocast: want one of None, 'bf16', given 'fp8'"),
        (lambda: Cnn().build(VECTOR, DISCRETE, seed=0), r"Cnn: want observations u8.* given box float32\[5\]; use Mlp"),
        (lambda: Cnn().build(Space("box", (4, 20, 84), "uint8"), DISCRETE, seed=0), "at least 36 x 36, given 20 x 84"),
        (lambda: Mlp().build(VECTOR, DISCRETE, seed=-1), r"seed: want an integer in \[0, 2\*\*64\), given -1"),
        (
            lambda: Mlp(normalize_observations=True).build(DISCRETE, DISCRETE, seed=0),
            "normalize_observations: want a box observation space, given discrete",
        ),
        (
            lambda: build("separate").act(np.zeros((4, 6), np.float32), np.zeros((4, 1))),
            r"observations: want rows of \[5\], given \[4, 6\]",
        ),
    ],
)
def test_refusals_say_what_wanted_given(make, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()
