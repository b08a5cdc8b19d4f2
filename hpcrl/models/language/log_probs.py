"""Log-probabilities and entropies of given tokens, chunk by chunk: the logits of a long batch never exist whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from hpcrl.errors import InputError
from hpcrl.models.language.decoder import Decoder


def token_log_probs(
    decoder: Decoder, hidden: Tensor, targets: Tensor, *, temperature: float = 1.0, chunk_rows: int = 512
) -> tuple[Tensor, Tensor]:
    """log p(target) and the entropy of p = softmax(logits / temperature), row by row, with gradients.

    At most `chunk_rows` rows of logits exist at a time; where that is not all of them, backward computes them again,
    one chunk and its gradient at a time.
    Args:
        decoder: with a language head; its soft cap is applied before the temperature. Its `excluded_ids` have
            probability 0.
        hidden: [N, hidden], after the final norm.
        targets: i64[N], token ids.
        temperature: > 0.
        chunk_rows: >= 1; bounds memory at about 3 x chunk_rows x vocabulary numbers.
    Returns:
        log_probs and entropies in nats, f32[N] each (f64 for an f64 decoder).
    Raises:
        InputError: lengths, temperature or chunk_rows out of range.
    Example: a decoder of zeros is uniform.
        >>> import numpy as np
        >>> from hpcrl.models.language import Architecture
        >>> decoder = Decoder(Architecture.llama(10, hidden_size=8, num_layers=1, num_heads=2))
        >>> decoder.load_arrays({name: np.zeros_like(array) for name, array in decoder.arrays().items()})
        >>> token_log_probs(decoder, torch.ones(2, 8), torch.tensor([3, 4]))[0]
        tensor([-2.3026, -2.3026], grad_fn=...)
    """
    if hidden.shape[:1] != targets.shape:
        raise InputError(f"targets: want one per row of hidden (= {len(hidden)}), given {list(targets.shape)}")
    if not 0 < temperature < float("inf"):
        raise InputError(f"temperature: want a number > 0, given {temperature}; for greedy decoding score at 1")
    if chunk_rows < 1:
        raise InputError(f"chunk_rows: want >= 1, given {chunk_rows}")

    excluded = torch.tensor(decoder.excluded_ids, dtype=torch.int64, device=hidden.device)

    def score(rows: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        logits = decoder.logits(rows)
        if temperature != 1.0:
            logits = logits / temperature
        if len(excluded):
            logits = logits.index_fill(1, excluded, -torch.inf)
        return score_logits(logits, tokens)

    num_chunks = -(-len(hidden) // chunk_rows)
    if num_chunks <= 1:
        return score(hidden, targets)
    # Of about one size: a last chunk of a few rows would get another matrix kernel, and so other bits.
    chunks = list(zip(hidden.tensor_split(num_chunks), targets.tensor_split(num_chunks), strict=True))
    # Nothing is drawn, so no generator's state need be kept.
    scored = [checkpoint(score, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
    return torch.cat([log_probs for log_probs, _ in scored]), torch.cat([entropies for _, entropies in scored])


def score_logits(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """log softmax(logits)[target] and entropies, [N] each, of logits [N, vocabulary] and targets i64[N]."""
    scored: tuple[Tensor, Tensor] = _ScoreLogits.apply(logits, targets)  # type: ignore[no-untyped-call]
    return scored


class _ScoreLogits(torch.autograd.Function):
    """With l = log softmax(z), p = exp(l), H = -sum p l:  d l_t / d z_j = [j = t] - p_j,  d H / d z_j = -p_j (l_j + H).

    By hand, because autograd would keep the logits four times over and take each exponential twice.  With u = z - max z
    and s = sum exp(u):  l = u - log s,  H = log s - sum exp(u) u / s, two terms of one sign.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        maxima = logits.amax(-1, keepdim=True)
        log_probs = logits.gather(1, targets.unsqueeze(1)) - maxima
        # A token that a mask excluded has probability 0, and so must be 0 times its logit, which -inf would spoil.
        shifted = (logits - maxima).clamp_(min=-1e4)
        exponentials = shifted.exp()
        sums = exponentials.sum(-1, keepdim=True)
        log_sums = sums.log()
        entropies = log_sums - (exponentials * shifted).sum(-1, keepdim=True) / sums
        ctx.save_for_backward(targets, shifted, exponentials, sums, entropies - log_sums)
        return (log_probs - log_sums).squeeze(1), entropies.squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, log_probs_gradient: Tensor | None, entropies_gradient: Tensor | None
    ) -> tuple[Tensor | None, None]:
        targets, shifted, exponentials, sums, entropies_less_log_sums = ctx.saved_tensors
        gradient: Tensor | None = None
        if entropies_gradient is not None:
            slope = -entropies_gradient.unsqueeze(1) / sums
            gradient = (shifted + entropies_less_log_sums).mul_(exponentials).mul_(slope)
        if log_probs_gradient is not None:
            column = log_probs_gradient.unsqueeze(1)
            if gradient is None:
                gradient = exponentials * (-column / sums)
            else:
                gradient.addcmul_(exponentials, -column / sums)
            gradient.scatter_add_(1, targets.unsqueeze(1), column)
        return gradient, None
