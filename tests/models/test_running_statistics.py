"""Running statistics against NumPy over all rows, moving averages, and the flat buffer."""

import numpy as np
import pytest
import torch
from torch import nn

from hpcrl.errors import InputError
from hpcrl.models.parameters import FlatParameters
from hpcrl.models.statistics import ObservationStatistics, RunningStatistics, ValueStatistics, moments


def batches() -> list[np.ndarray]:
    generator = np.random.default_rng(2)
    return [generator.normal([5.0, -100.0, 0.0], [0.1, 30.0, 1.0], size=(rows, 3)) for rows in (1, 40, 7, 300)]


def test_cumulative_statistics_are_those_of_all_rows() -> None:
    statistics = RunningStatistics(3)
    for batch in batches():
        statistics.advance(moments(batch))
    everything = np.concatenate(batches())
    np.testing.assert_allclose(statistics.mean.numpy(), everything.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(statistics.variance.numpy(), everything.var(axis=0), rtol=1e-8)
    assert float(statistics.weight) == len(everything)


def test_moments_of_blocks_add() -> None:
    split = sum(moments(batch) for batch in batches())
    np.testing.assert_allclose(split, moments(np.concatenate(batches())), rtol=1e-12)
    assert moments(np.zeros((0, 3))).tolist() == [0.0] * 7


def test_moving_average_against_weighted_moments() -> None:
    step, statistics = 0.3, RunningStatistics(3)
    shares = [step * (1 - step) ** (3 - k) for k in range(4)]
    shares = np.array(shares) / sum(shares)
    for batch in batches():
        statistics.advance(moments(batch), step=step)
    mean = sum(share * batch.mean(axis=0) for share, batch in zip(shares, batches(), strict=True))
    square = sum(share * np.square(batch).mean(axis=0) for share, batch in zip(shares, batches(), strict=True))
    np.testing.assert_allclose(statistics.mean.numpy(), mean, rtol=1e-12)
    np.testing.assert_allclose(statistics.variance.numpy(), square - mean**2, rtol=1e-8)


def test_no_rows_change_nothing_and_bad_moments_are_refused() -> None:
    statistics = ObservationStatistics(2)
    statistics.advance(np.zeros(5))
    observations = torch.tensor([[0.5, -3.0]])
    assert torch.equal(statistics(observations), observations)
    with pytest.raises(InputError, match=r"moments: want f64\[5\]"):
        statistics.advance(np.zeros(3))
    with pytest.raises(FloatingPointError, match="moments: want finite numbers"):
        statistics.advance(np.array([1.0, np.nan, 0.0, 1.0, 1.0]))


def test_observations_are_normalised_and_clipped() -> None:
    statistics, rows = ObservationStatistics(3), batches()[3]
    statistics.advance(moments(rows))
    expected = np.clip((rows - rows.mean(axis=0)) / np.sqrt(rows.var(axis=0) + 1e-8), -10.0, 10.0)
    given = torch.from_numpy(rows.astype(np.float32))
    before = given.clone()
    np.testing.assert_allclose(statistics(given).numpy(), expected, atol=2e-5)
    assert torch.equal(given, before), "raw observations must stay raw"
    assert statistics(torch.full((1, 3), 1e9)).tolist() == [[10.0] * 3]


def test_constant_feature_maps_to_zero() -> None:
    statistics = ObservationStatistics(1)
    statistics.advance(moments(np.full((10, 1), 0.5)))
    assert statistics(torch.full((2, 1), 0.5)).tolist() == [[0.0], [0.0]]


def test_value_statistics_invert_and_bound_their_scale() -> None:
    statistics, values = ValueStatistics(), torch.linspace(-3.0, 9.0, 20)
    assert statistics.normalize(values) is values
    statistics.advance(moments([10.0, 14.0]))
    assert (statistics.shift, statistics.scale) == (12.0, 2.0)
    torch.testing.assert_close(statistics.denormalize(statistics.normalize(values)), values)
    statistics.advance(moments([5.0, 5.0]), step=1.0)
    assert statistics.scale == 1e-4
    restored = ValueStatistics()
    restored.load_state_dict(statistics.state_dict())
    assert (restored.shift, restored.scale) == (5.0, 1e-4)


def test_flat_parameters_share_memory_with_the_module() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(3, 4))
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    order = ["1.weight", "0.weight", "0.bias", "1.bias"]
    flat = FlatParameters(module, order)
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, before[name])
        assert torch.equal(flat.view(flat.values, name), parameter)
    assert torch.equal(flat.stack(flat.values, ["1.weight", "0.weight"])[1], module[0].weight)
    (module[0](torch.ones(2, 3)).sum() + module[1](torch.ones(2, 3)).sum()).backward()
    gradients = flat.gradients_array()
    assert gradients.dtype == np.float32
    assert gradients.sum() == pytest.approx(2 * 12 * 2 + 2 * 4 * 2)
    gradients[:] = 5.0
    assert (module[1].bias.grad == 5.0).all()
    flat.zero_gradients()
    assert not module[0].weight.grad.any()
    flat.values.zero_()
    assert not module[1].weight.any()
    assert {name: array.shape for name, array in flat.arrays(flat.values).items()} == flat.shapes
    with pytest.raises(InputError, match="order: want each of"):
        FlatParameters(module, order[1:])
