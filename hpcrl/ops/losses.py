"""Losses of policy-gradient learning, one number per step; the caller sums and divides.

All functions take f32[n] tensors over the steps of a batch and give f32[n], differentiable in the `new_` arguments.
A loss is to be minimised.  The usual reduction is the mean: sum over the steps, divided by the number of steps of the
whole minibatch (not of the part at hand), so that gradients of parts add up to the gradient of the whole.
"""

from __future__ import annotations

import torch
from torch import Tensor


def clipped_policy_loss(
    ratios: Tensor,
    advantages: Tensor,
    *,
    clip_range: float,
    dual_clip: float | None,
    clip_range_high: float | None = None,
) -> Tensor:
    """PPO's clipped surrogate, with an optional second bound for negative advantages.

        L(t) = -min(r A, clip(r, 1 - clip_range, 1 + clip_range_high) A)
        with dual_clip c, where A < 0:  L(t) = -max(min(...), c A)

    Schulman et al. 2017 (arXiv:1707.06347), eq. 7; dual clip: Ye et al. 2020 (arXiv:1912.09729), eq. 5.

    Args:
        ratios: r = pi(a|s) / pi_old(a|s), with gradient.
        advantages: A.
        clip_range: > 0.
        clip_range_high: > 0; None: as clip_range. A larger one lets unlikely tokens grow (DAPO's clip-higher,
            arXiv:2503.14476, eq. 10).
        dual_clip: c > 1: a very unlikely action with a negative advantage pushes no harder than c; None: no bound.

    Example:
        >>> r, a = torch.tensor([1.5, 0.5, 9.0]), torch.tensor([1.0, 1.0, -1.0])
        >>> clipped_policy_loss(r, a, clip_range=0.2, dual_clip=3.0)
        tensor([-1.2000, -0.5000,  3.0000])
    """
    high = 1.0 + (clip_range if clip_range_high is None else clip_range_high)
    surrogate = torch.minimum(ratios * advantages, ratios.clamp(1.0 - clip_range, high) * advantages)
    if dual_clip is not None:
        surrogate = torch.where(advantages < 0.0, torch.maximum(surrogate, dual_clip * advantages), surrogate)
    return -surrogate


def squared_loss(errors: Tensor) -> Tensor:
    """e^2 / 2."""
    return 0.5 * errors.square()


def huber_loss(errors: Tensor, delta: float) -> Tensor:
    """e^2 / 2 where |e| <= delta, delta (|e| - delta / 2) beyond. Huber 1964, doi:10.1214/aoms/1177703732.

    >>> huber_loss(torch.tensor([0.5, 3.0]), delta=1.0)
    tensor([0.1250, 2.5000])
    """
    sizes = errors.abs()
    inner = sizes.clamp(max=delta)
    return inner * (sizes - 0.5 * inner)


def value_loss(
    new_values: Tensor,
    values: Tensor,
    returns: Tensor,
    *,
    value_clip_range: float | None,
    huber_delta: float | None,
) -> Tensor:
    """Loss of value predictions against returns, with an optional bound on how far a prediction gains by moving.

        l(e) = e^2 / 2, or Huber's with `huber_delta`
        L(t) = max(l(V - R), l(V_old + clip(V - V_old, -c, c) - R)),   without c = value_clip_range: l(V - R)

    Clipping: OpenAI Baselines' ppo2; Engstrom et al. 2020 (arXiv:2005.12729), section 3.

    Args:
        new_values: V, with gradient; values: V_old, the predictions at collection; returns: R.
    """

    def loss(errors: Tensor) -> Tensor:
        return squared_loss(errors) if huber_delta is None else huber_loss(errors, huber_delta)

    unclipped = loss(new_values - returns)
    if value_clip_range is None:
        return unclipped
    clipped_values = values + (new_values - values).clamp(-value_clip_range, value_clip_range)
    return torch.maximum(unclipped, loss(clipped_values - returns))


def approximate_kl(log_ratios: Tensor) -> Tensor:
    """(r - 1) - log r with r = exp(log_ratios): unbiased for KL(pi_old || pi) over actions of pi_old, never negative.

    The estimator k3 of Schulman 2020, http://joschu.net/blog/kl-approx.html.
    """
    return torch.expm1(log_ratios) - log_ratios


def kl_estimate(log_probs: Tensor, reference_log_probs: Tensor, kind: str) -> Tensor:
    """Estimates of KL(pi || reference), one per token of pi, differentiable in `log_probs`.

        d = log pi(a) - log reference(a)
        k1: d          k2: d^2 / 2          k3: exp(-d) - 1 + d          absolute: |d|

    Schulman 2020, http://joschu.net/blog/kl-approx.html. As a loss over tokens of pi, k2 has the gradient of the KL
    divergence, k1's is zero on average, and k3's is another.

    Args: kind: "k1", "k2", "k3" or "absolute".
    Example:
        >>> kl_estimate(torch.tensor([0.0]), torch.tensor([-0.5]), "k2")
        tensor([0.1250])
    """
    difference = log_probs - reference_log_probs
    if kind == "k1":
        return difference
    if kind == "k2":
        return 0.5 * difference.square()
    if kind == "k3":
        return torch.expm1(-difference) + difference
    return difference.abs()


def clipped(ratios: Tensor, clip_range: float) -> Tensor:
    """1 where |r - 1| > clip_range, else 0: its mean is the clip fraction."""
    return ((ratios - 1.0).abs() > clip_range).float()
