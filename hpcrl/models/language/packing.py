"""Prompts and responses as one packed batch of tokens, and which rows predict the responses."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hpcrl.data import Ragged, Trajectories
from hpcrl.errors import InputError
from hpcrl.models.language.attention import PackedOffsets

Int64 = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class TextPart:
    """Some trajectories of a block, as a loss reads them.

    Each sequence is a prompt and its response; response token j is predicted by the row before it.
    """

    tokens: Tensor
    """i64[T], prompts and responses in turn."""
    offsets: PackedOffsets
    rows: Tensor
    """i64[N]: the row of `tokens` whose hidden state predicts each response token."""
    targets: Tensor
    """i64[N], the response tokens."""
    response_lengths: Int64
    """i64[S]."""
    fields: Mapping[str, Tensor]
    """Step fields [N, ...] and per-trajectory fields [S, ...], by name."""

    @property
    def num_sequences(self) -> int:
        return len(self.response_lengths)


def pack_text(trajectories: Trajectories, fields: tuple[str, ...] = ()) -> TextPart:
    """Trajectories whose steps are response tokens (`actions`) and whose context is `prompt_tokens`.

    Args: fields: step and per-trajectory fields to take along as tensors.
    Raises: InputError for a prompt without a token: nothing would predict the response's first.
    Example:
        >>> prompts = Ragged(np.array([5, 6, 7]), np.array([0, 2, 3]))
        >>> part = pack_text(Trajectories(np.array([0, 1, 3]), {"actions": np.array([1, 2, 3])}, {},
        ...                               {"prompt_tokens": prompts}))
        >>> part.tokens.tolist(), part.rows.tolist(), part.targets.tolist()
        ([5, 6, 1, 7, 2, 3], [1, 3, 4], [1, 2, 3])
    """
    prompts: Ragged = trajectories.ragged["prompt_tokens"]
    prompt_lengths = np.diff(prompts.offsets)
    if len(prompt_lengths) and prompt_lengths.min() == 0:
        where = int(np.argmin(prompt_lengths))
        raise InputError(f"prompt_tokens: want at least one token in each prompt, given none in trajectory {where}")
    lengths = trajectories.lengths
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(prompt_lengths + lengths, out=offsets[1:])
    tokens = np.empty(offsets[-1], np.int64)
    # Where each response begins, repeated for each of its tokens, plus its place in the response.
    begins = offsets[:-1] + prompt_lengths
    place = np.arange(trajectories.num_steps) - np.repeat(trajectories.offsets[:-1], lengths)
    at = np.repeat(begins, lengths) + place
    tokens[at] = trajectories["actions"]
    prompt_place = np.arange(len(prompts.values)) - np.repeat(prompts.offsets[:-1], prompt_lengths)
    tokens[np.repeat(offsets[:-1], prompt_lengths) + prompt_place] = prompts.values
    return TextPart(
        tokens=torch.from_numpy(tokens),
        offsets=PackedOffsets.of(offsets.tolist()),
        rows=torch.from_numpy(at - 1),
        targets=torch.from_numpy(np.array(trajectories["actions"])),  # a copy: shards are mapped read-only
        response_lengths=lengths,
        fields={name: torch.from_numpy(np.array(trajectories[name])) for name in fields},
    )
