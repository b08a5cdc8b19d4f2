"""The advantage stage's estimator: the kernel's numbers for stored values, V-trace for current ones."""

from __future__ import annotations

import numpy as np
import pytest

from hpcrl import Advantage, Trajectories
from hpcrl.errors import InputError
from tests.reference import gae, vtrace


def batch(num_steps: int = 40) -> Trajectories:
    rng = np.random.default_rng(3)
    offsets = np.array([0, 1, 17, 17, num_steps], np.int64)
    fields = {name: rng.normal(size=num_steps).astype(np.float32) for name in ("rewards", "values", "log_probs")}
    return Trajectories(offsets, fields, {"bootstrap_values": rng.normal(size=4).astype(np.float32)})


def test_gae_from_stored_values() -> None:
    given = batch()
    advantages, returns = Advantage(gamma=0.9, gae_lambda=0.8).estimate(given)
    expected = gae(
        given["rewards"], given["values"], given["bootstrap_values"], given.offsets, gamma=0.9, gae_lambda=0.8
    )
    np.testing.assert_allclose(advantages, expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(returns, expected[0] + given["values"], rtol=1e-5, atol=1e-6)


def test_vtrace_weighs_current_against_stored_log_probabilities() -> None:
    given = batch()
    rng = np.random.default_rng(4)
    new_log_probs, new_values = rng.normal(size=(2, given.num_steps)).astype(np.float32)
    stage = Advantage(gamma=0.9, gae_lambda=0.8, estimator="vtrace", recompute="epoch", rho_clip=1.5, c_clip=1.1)
    advantages, returns = stage.estimate(given, values=new_values, new_log_probs=new_log_probs)
    ratios = np.exp(new_log_probs.astype(np.float64) - given["log_probs"])
    bootstrap = given["bootstrap_values"]
    clips = {"gamma": 0.9, "trace_lambda": 0.8, "rho_clip": 1.5, "c_clip": 1.1}
    expected = vtrace(given["rewards"], new_values, bootstrap, given.offsets, ratios, **clips)
    np.testing.assert_allclose(advantages, expected[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(returns, expected[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"gamma": 1.1}, r"Advantage.gamma: want a number in \[0, 1\], given 1.1"),
        ({"gae_lambda": -0.1}, "Advantage.gae_lambda: want a number"),
        ({"estimator": "gea"}, "want 'gae' or 'vtrace', given 'gea'"),
        ({"estimator": "vtrace"}, "wants recompute='epoch' inside an update"),
        ({"rho_clip": 0.0}, "Advantage.rho_clip: want a number > 0"),
    ],
)
def test_bad_knobs_are_refused(knobs: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Advantage(**knobs)
