"""Log-probabilities, entropies and their derivatives by hand: the acting side's mathematics, turned round."""

from __future__ import annotations

import torch
from torch import Tensor

from hpcrl.models.distributions import ActionDistribution, Categorical, Gaussian


class CategoricalSlopes:
    """log pi(a) = z_a - log sum exp z:  d/dz_j = [j = a] - p_j;  dH/dz_j = -p_j (log p_j + H)."""

    def __init__(self, outputs: Tensor, actions: Tensor) -> None:
        self._actions = actions.unsqueeze(1)
        self._all_log_probs = torch.log_softmax(outputs, dim=1)
        self._probabilities = self._all_log_probs.exp()
        self.log_probs = self._all_log_probs.gather(1, self._actions).squeeze(1)
        self.entropies = torch.linalg.vecdot(self._probabilities, self._all_log_probs).neg_()

    def pull_back(self, d_log_probs: Tensor, d_entropy: float) -> Tensor:
        """Gradient by the outputs, from those by the log-probabilities f32[n] and by every entropy."""
        weights = d_log_probs.unsqueeze(1)
        if d_entropy != 0.0:
            scaled = (self._all_log_probs + self.entropies.unsqueeze(1)).mul_(d_entropy).add_(weights)
            slopes = scaled.mul_(self._probabilities).neg_()
        else:
            slopes = (self._probabilities * weights).neg_()
        result: Tensor = slopes.scatter_add_(1, self._actions, weights)
        return result


class GaussianSlopes:
    """log pi(a) = -sum(z^2 / 2 + s + log(2 pi) / 2), z = (a - m) / e^s:  d/dm = z / e^s;  d/ds = z^2 - 1;  dH/ds = 1.

    The gradient by s = log_std is written into the parameter's own gradient.
    """

    def __init__(self, distribution: Gaussian, outputs: Tensor, actions: Tensor) -> None:
        self._log_std = distribution.log_std
        self._inverse_std = torch.exp(-distribution.log_std)
        self._deviations = (actions.reshape(outputs.shape) - outputs).mul_(self._inverse_std)
        self.log_probs, self.entropies = distribution.of_deviations(self._deviations)

    def pull_back(self, d_log_probs: Tensor, d_entropy: float) -> Tensor:
        """Gradient by the outputs, from those by the log-probabilities f32[n] and by every entropy."""
        weights = d_log_probs.unsqueeze(1)
        assert self._log_std.grad is not None
        torch.sum((self._deviations.square() - 1.0).mul_(weights), 0, out=self._log_std.grad)
        if d_entropy != 0.0:
            self._log_std.grad.add_(d_entropy * len(weights))
        return (self._deviations * self._inverse_std).mul_(weights)


def has_slopes(distribution: ActionDistribution) -> bool:
    """Whether `slopes_of` knows the distribution; else only autograd does."""
    return isinstance(distribution, Categorical | Gaussian)


def slopes_of(distribution: ActionDistribution, outputs: Tensor, actions: Tensor) -> CategoricalSlopes | GaussianSlopes:
    """The derivatives of a distribution at f32[n, num_outputs] for given actions."""
    if isinstance(distribution, Gaussian):
        return GaussianSlopes(distribution, outputs, actions)
    return CategoricalSlopes(outputs, actions)
