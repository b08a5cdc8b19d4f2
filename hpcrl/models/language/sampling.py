"""The distribution that tokens are sampled from, and the draw: one uniform a token, no sort of the vocabulary."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hpcrl.errors import InputError
from hpcrl.models.language.settings import Sampling

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

_BLOCK = 128
"""Weights are summed in blocks of this many neighbours, then block by block. Rows are padded to whole blocks: what is
left over behind the last whole vector, PyTorch computes with another exponential."""
_NEIGHBOURS = 32
"""Top-k first looks at the largest of each this many neighbours."""
_BINS_PER_NAT, _BINS = 32, 2048
"""Top-p sums the mass of tokens of about equal probability; the last bin holds all below exp(-64) of the largest."""


class Drawn(NamedTuple):
    """Tokens of n rows."""

    tokens: Int64
    """i64[n]."""
    log_probs: Float64
    """f64[n], of the distribution sampled from; greedy: of softmax(logits) over the ids that are not excluded."""
    kept_tokens: Int64 | None
    """i64[total], the ids left by top_k and top_p, ascending in each row; None without top_k."""
    kept_counts: Int64 | None
    """i64[n], how many of them are each row's."""


class TokenSampler:
    """Draws one token per row of logits.

    The token is the smallest id whose cumulative probability, in vocabulary order, exceeds the row's uniform number.
    Sums are f64, in blocks of fixed size, so a row's bits depend neither on the other rows nor on the threads.

    Args:
        sampling: the distribution.
        vocab_size: columns of the logits.
        excluded_ids: never sampled (PAD, reserved ids, columns behind the tokenizer's last id).
        eos_ids: excluded in the rows of `draw` that say so.
    Raises:
        InputError: ids outside the vocabulary, or none left to sample.
    """

    def __init__(
        self, sampling: Sampling, vocab_size: int, *, excluded_ids: Int64 | None = None, eos_ids: Int64 | None = None
    ) -> None:
        self.sampling, self.vocab_size = sampling, vocab_size
        self._excluded = self._ids("excluded_ids", excluded_ids)
        self._eos = self._ids("eos_ids", eos_ids)
        if len(torch.unique(torch.cat((self._excluded, self._eos)))) == vocab_size:
            raise InputError(f"excluded_ids, eos_ids: want at least one id of {vocab_size} left, given all of them")

    def draw(self, logits: Tensor, uniforms: Float64, *, without_eos: npt.NDArray[np.bool_] | None = None) -> Drawn:
        """One token per row.

        Args:
            logits: f32 or f64 [n, vocab_size].
            uniforms: f64[n] in [0, 1); greedy takes none of them.
            without_eos: bool[n], rows in which the EOS ids are excluded; None: no row.
        Raises:
            InputError: another shape.
            FloatingPointError: a logit that is NaN or infinite; says which.
        """
        if logits.ndim != 2 or logits.shape[1] != self.vocab_size or uniforms.shape != (len(logits),):
            raise InputError(
                f"logits: want [n, {self.vocab_size}] and uniforms [n], given {list(logits.shape)} and "
                f"{list(uniforms.shape)}"
            )
        refuse_non_finite(logits)
        scaled = _padded(logits, self.sampling.temperature or 1.0)
        scaled.index_fill_(1, self._excluded.to(scaled.device), -torch.inf)
        if without_eos is not None and without_eos.any() and len(self._eos):
            rows = torch.from_numpy(np.flatnonzero(without_eos)).to(scaled.device)
            scaled[rows.unsqueeze(1), self._eos.to(scaled.device)] = -torch.inf
        if self.sampling.is_greedy:
            largest, chosen = scaled.max(1, keepdim=True)  # the first of several
            total = _cumulative(scaled.sub_(largest).exp_())[:, -1]
            return Drawn(chosen.squeeze(1).cpu().numpy(), -np.log(total), None, None)
        if self.sampling.top_k is None and self.sampling.top_p == 1:
            tokens, log_probs = _invert(scaled, uniforms)
            return Drawn(tokens, log_probs, None, None)
        return self._draw_truncated(scaled, uniforms)

    def _draw_truncated(self, scaled: Tensor, uniforms: Float64) -> Drawn:
        candidates, ids = scaled, None
        if self.sampling.top_k is not None and self.sampling.top_k < self.vocab_size:
            candidates, ids = _largest(scaled, self.sampling.top_k)
        if self.sampling.top_p < 1:
            thresholds, counts = _nucleus(candidates, self.sampling.top_p)
            candidates, columns = _keep(candidates, thresholds, counts)
            ids = columns if ids is None else ids.gather(1, columns)
        present = candidates > -torch.inf
        tokens, log_probs = _invert(candidates, uniforms)
        if ids is not None:
            tokens = ids.cpu().numpy()[np.arange(len(tokens)), tokens]
        if not self.sampling.keeps_tokens:
            return Drawn(tokens, log_probs, None, None)
        kept = present.nonzero()[:, 1] if ids is None else ids[present]
        return Drawn(tokens, log_probs, kept.cpu().numpy(), present.sum(1).cpu().numpy())

    def _ids(self, name: str, ids: Int64 | None) -> Tensor:
        given = torch.from_numpy(np.unique(np.asarray([] if ids is None else ids, dtype=np.int64)))
        if len(given) and (int(given[0]) < 0 or int(given[-1]) >= self.vocab_size):
            raise InputError(
                f"{name}: want ids in [0, {self.vocab_size}), given {int(given[0])} to {int(given[-1])}; "
                "does the tokenizer belong to this model?"
            )
        return given


def refuse_non_finite(logits: Tensor) -> None:
    """Raises FloatingPointError that says which row and id of logits [n, vocabulary] is NaN or infinite first."""
    # The sum of finite logits is finite but for overflow, so a look at each is needed only rarely.
    if math.isfinite(float(logits.sum())):
        return
    bad = (~torch.isfinite(logits)).nonzero()
    if len(bad):
        row, token = (int(index) for index in bad[0])
        raise FloatingPointError(
            f"logits: want finite numbers, given {float(logits[row, token])} in row {row}, id {token} ({len(bad)} in "
            "all); look at the last update's losses and gradient norm"
        )


def _padded(logits: Tensor, temperature: float) -> Tensor:
    """logits / temperature [n, whole blocks], filled up with -inf."""
    num_rows, vocab_size = logits.shape
    scaled = logits.new_full((num_rows, -(-vocab_size // _BLOCK) * _BLOCK), -torch.inf)
    torch.div(logits, temperature, out=scaled[:, :vocab_size])
    return scaled


def _cumulative(weights: Tensor) -> Float64:
    """Running sums [n, blocks] at the end of each block of weights [n, columns]."""
    sums = weights.view(len(weights), -1, _BLOCK).sum(-1, dtype=torch.float64).cpu().numpy()
    cumulative: Float64 = np.cumsum(sums, axis=1)
    return cumulative


def _invert(scaled: Tensor, uniforms: Float64) -> tuple[Int64, Float64]:
    """The first column whose cumulative weight exceeds uniform x total, and its log-probability; `scaled` is used up.

    What is small is done in NumPy, whose calls cost less.
    """
    num_rows, rows = len(scaled), np.arange(len(scaled))
    log_weights = scaled.sub_(scaled.amax(1, keepdim=True))
    weights = log_weights.exp()
    cumulative = _cumulative(weights)
    totals = cumulative[:, -1]
    targets = (uniforms * totals)[:, None]
    block = (cumulative[:, :-1] <= targets).sum(1)
    before = np.where(block > 0, cumulative[rows, np.maximum(block - 1, 0)], 0.0)[:, None]
    chosen = (torch.from_numpy(rows).to(scaled.device), torch.from_numpy(block).to(scaled.device))
    inside = weights.view(num_rows, -1, _BLOCK)[chosen].cpu().numpy()
    place = (np.cumsum(inside, axis=1, dtype=np.float64) + before <= targets).sum(1)
    # Added up one by one, a block may come out below its own sum by a rounding, and the target lie between.
    last = _BLOCK - 1 - (inside > 0)[:, ::-1].argmax(1)
    place = np.minimum(place, last)
    columns = block * _BLOCK + place
    chosen = (chosen[0], torch.from_numpy(columns).to(scaled.device))
    log_probs: Float64 = log_weights[chosen].double().cpu().numpy() - np.log(totals)
    return columns, log_probs


def _keep(scaled: Tensor, thresholds: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """The `counts` largest of each row, in column order, packed to the left and filled up with -inf; their columns.

    thresholds [n]: the smallest that stays; of several equal to it the first ones stay.
    """
    thresholds, finite = thresholds.unsqueeze(1), scaled > -torch.inf
    larger, equal = scaled > thresholds, (scaled == thresholds) & finite
    room = counts.unsqueeze(1) - larger.sum(1, keepdim=True)
    tied = equal.sum(1, keepdim=True) > room
    if bool(tied.any()):
        equal &= equal.cumsum(1) <= room
    rows, columns = (larger | equal).nonzero(as_tuple=True)
    sizes = torch.bincount(rows, minlength=len(scaled))
    places = torch.arange(len(rows), device=rows.device) - (sizes.cumsum(0) - sizes)[rows]
    width = -(-int(sizes.max()) // _BLOCK) * _BLOCK
    packed, packed_columns = scaled.new_full((len(scaled), width), -torch.inf), columns.new_zeros((len(scaled), width))
    packed[rows, places], packed_columns[rows, places] = scaled[rows, columns], columns
    return packed, packed_columns


def _largest(scaled: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of each row, packed as `_keep` does; their columns."""
    num_rows, num_columns = scaled.shape
    num_blocks = num_columns // _NEIGHBOURS
    if count >= num_blocks:
        return _keep_count(scaled, min(count, num_columns))
    # They lie in the `count` blocks whose largest are largest, of equal ones the first: each of those has one as large.
    blocks = scaled.view(num_rows, num_blocks, _NEIGHBOURS)
    largest, columns = (tensor[:, :count] for tensor in _keep_count(blocks.amax(2), count))
    chosen = blocks.gather(1, columns.unsqueeze(2).expand(-1, -1, _NEIGHBOURS))
    chosen.masked_fill_((largest == -torch.inf).unsqueeze(2), -torch.inf)
    packed, places = _keep_count(chosen.view(num_rows, -1), count)
    return packed, columns.gather(1, places // _NEIGHBOURS) * _NEIGHBOURS + places % _NEIGHBOURS


def _keep_count(scaled: Tensor, count: int) -> tuple[Tensor, Tensor]:
    thresholds = torch.topk(scaled, count).values[:, -1]
    return _keep(scaled, thresholds, torch.full_like(thresholds, count, dtype=torch.long))


def _nucleus(scaled: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The smallest value of the fewest largest ones with mass top_p, and their number, [n] each.

    Only tokens of about the probability of the last one are sorted: those of its bin.
    """
    num_rows = len(scaled)
    weights = (scaled - scaled.amax(1, keepdim=True)).exp_()
    below = (scaled.amax(1, keepdim=True) - scaled).mul_(_BINS_PER_NAT).clamp_(max=_BINS - 1).long()
    keys = below + _BINS * torch.arange(num_rows, device=scaled.device).unsqueeze(1)
    shape = (num_rows, _BINS)
    # One number after the other, in the order of the columns: the bits depend on the row alone.
    mass = torch.bincount(keys.flatten(), weights=weights.flatten().double(), minlength=_BINS * num_rows).view(shape)
    reached = mass.cumsum(1)
    # Of the bins' own total, so that top_p < 1 is always reached.
    targets = top_p * reached[:, -1:]
    bins = (reached < targets).sum(1, keepdim=True)
    before = torch.where(bins > 0, reached.gather(1, (bins - 1).clamp(min=0)), 0.0)
    above = below < bins
    member_rows, member_columns = (below == bins).nonzero(as_tuple=True)
    sizes = torch.bincount(member_rows, minlength=num_rows)
    places = torch.arange(len(member_rows), device=scaled.device) - (sizes.cumsum(0) - sizes)[member_rows]
    members = scaled.new_full((num_rows, int(sizes.max())), -torch.inf)
    members[member_rows, places] = scaled[member_rows, member_columns]
    member_weights = members.new_zeros(members.shape)
    member_weights[member_rows, places] = weights[member_rows, member_columns]
    members, order = members.sort(1, descending=True)
    sums = before + member_weights.gather(1, order).cumsum(1, dtype=torch.float64)
    short = (sums < targets).sum(1, keepdim=True)
    last = torch.minimum(short, sizes.unsqueeze(1) - 1)
    return members.gather(1, last).squeeze(1), (above.sum(1, keepdim=True) + last + 1).squeeze(1)
