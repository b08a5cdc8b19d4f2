"""Generates responses to any number of prompts, with bits that are a sequence's own.

Each forward pass takes one token of every sequence that is being decoded, and prompt tokens of waiting ones in the rows
that are left. So a finished sequence's place is taken at once, and no row is padding while a prompt waits. The rows of
a pass are filled up to one of a few numbers that give each row the same bits; where only `rows` does, to that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hpcrl.data.trajectories import Ending, Ragged
from hpcrl.errors import InputError
from hpcrl.models.language.cache import KEYS_PER_BLOCK, KeyValueCache, attend_blocks
from hpcrl.models.language.decoder import Decoder
from hpcrl.models.language.row_counts import equal_row_counts
from hpcrl.models.language.sampling import Drawn, TokenSampler
from hpcrl.models.language.settings import Sampling, Stopping
from hpcrl.models.language.tokenizer import StopStrings, Tokenizer
from hpcrl.ops.random import Draw, uniforms

Int64 = npt.NDArray[np.int64]

_IDLE_TOKEN = 0


@dataclass(frozen=True, kw_only=True)
class TokenNumbers:
    """A stream of counted uniforms for each trajectory: token t of trajectory j draws (j, t, iteration, Draw.TOKEN)."""

    seed: int
    """The run's."""
    iteration: int
    trajectories: Int64
    """i64[n], in [0, 2**32): prompt slot x samples + sample."""

    def draw(self, which: Int64, steps: Int64) -> npt.NDArray[np.float64]:
        """f64[k] in [0, 1) for trajectories[which] and tokens `steps`, i64[k] each."""
        rows = self.trajectories[which]
        return uniforms(self.seed, rows, step=steps, iteration=self.iteration, draw=Draw.TOKEN)[:, 0]


@dataclass(frozen=True, kw_only=True)
class Responses:
    """What was generated for n prompts, in their order."""

    tokens: Ragged
    """i64, a sampled EOS included."""
    log_probs: npt.NDArray[np.float64]
    """f64[T], one per token: of the distribution sampled from."""
    ending: npt.NDArray[np.uint8]
    """u8[n], `Ending`."""
    kept_tokens: Ragged | None
    """i64, a row for each of the T tokens: the ids that top_k and top_p left, ascending; None without top_k."""


class TextGenerator(Protocol):
    """What the stage Generate asks; an engine of another make can stand in."""

    def generate(
        self,
        prompts: Sequence[Int64],
        numbers: TokenNumbers,
        *,
        sampling: Sampling,
        stopping: Stopping,
        progress: Callable[[int, int], None] | None = None,
        stop_requested: Callable[[], bool] | None = None,
    ) -> Responses | None:
        """A response to each prompt i64[k], k >= 1; None where `stop_requested` said so before the last one ended.

        `progress` is told how many responses are done, and of how many.
        Raises InputError for prompts that do not fit, FloatingPointError for logits that are not finite.
        """


class Generator:
    """Generates with a decoder of this process.

    Equal prompts that follow each other (the samples of a group) are read once. Which slots, how many, and in which
    order prompts come changes no bits; another `rows` may.
    Args:
        decoder: with a language head; its weights may change between calls.
        tokenizer: whose EOS ids end a response; its reserved ids, and logits behind its last id, are never sampled.
        rows: of every matrix product, or of one with the same bits: `row_counts` says which numbers have them here.
        num_slots: sequences at a time; None: as many as the largest of `row_counts`.
        max_context: tokens of prompt and response together; None: the decoder's context.
        max_cache_bytes: fewer sequences at a time, but one, where keys and values of the longest possible ones would
            take more.
    Raises:
        InputError: values out of range, or a tokenizer that has more ids than the decoder.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        *,
        rows: int = 32,
        num_slots: int | None = None,
        max_context: int | None = None,
        max_cache_bytes: int = 2 * 1024**3,
    ) -> None:
        architecture = decoder.architecture
        context = architecture.context_length
        if rows < 1:
            raise InputError(f"rows: want an integer >= 1, given {rows}")
        if max_context is not None and not 2 <= max_context <= context:
            raise InputError(f"max_context: want 2 to {context} (the decoder's context), given {max_context}")
        if tokenizer.vocab_size > architecture.vocab_size:
            raise InputError(
                f"tokenizer: want at most {architecture.vocab_size} ids (the decoder's vocabulary), given "
                f"{tokenizer.vocab_size}; does it belong to this model?"
            )
        self.decoder, self.tokenizer = decoder, tokenizer
        self.row_counts = equal_row_counts(decoder, rows)
        self.num_slots = num_slots or self.row_counts[-1]
        self.max_context, self.max_cache_bytes = max_context or context, max_cache_bytes
        if not 1 <= self.num_slots <= self.row_counts[-1]:
            raise InputError(
                f"num_slots: want 1 to {self.row_counts[-1]} (the most rows a pass may have here), given {num_slots}"
            )

    def sampler(self, sampling: Sampling) -> TokenSampler:
        """Draws from this decoder's logits what this tokenizer may sample."""
        vocab_size = self.decoder.architecture.vocab_size
        excluded = [*self.tokenizer.reserved_ids, *range(self.tokenizer.vocab_size, vocab_size)]
        return TokenSampler(
            sampling,
            vocab_size,
            excluded_ids=np.array(excluded, np.int64),
            eos_ids=np.array(self.tokenizer.eos_ids, np.int64),
        )

    def generate(
        self,
        prompts: Sequence[Int64],
        numbers: TokenNumbers,
        *,
        sampling: Sampling,
        stopping: Stopping,
        progress: Callable[[int, int], None] | None = None,
        stop_requested: Callable[[], bool] | None = None,
    ) -> Responses | None:
        """As `TextGenerator` says."""
        self._check(prompts, numbers)
        with torch.inference_mode():
            batch = _Batch(self, prompts, numbers, self.sampler(sampling), stopping)
            while batch.num_done < len(prompts):
                if stop_requested is not None and stop_requested():
                    return None
                done = batch.num_done
                batch.step()
                if progress is not None and batch.num_done > done:
                    progress(batch.num_done, len(prompts))
        return batch.responses()

    def _check(self, prompts: Sequence[Int64], numbers: TokenNumbers) -> None:
        if numbers.trajectories.shape != (len(prompts),):
            raise InputError(
                f"trajectories: want one for each of {len(prompts)} prompts, given {list(numbers.trajectories.shape)}"
            )
        for index, prompt in enumerate(prompts):
            if prompt.ndim != 1 or prompt.dtype != np.int64 or len(prompt) == 0:
                raise InputError(
                    f"prompts[{index}]: want int64[n] with n >= 1, given {prompt.dtype}{list(prompt.shape)}"
                )
            if len(prompt) >= self.max_context:
                raise InputError(
                    f"prompts[{index}]: want fewer than {self.max_context} tokens (the context, with room for a "
                    f"response), given {len(prompt)}; shorten the prompt or leave it out"
                )
            if prompt.min() < 0 or prompt.max() >= self.decoder.architecture.vocab_size:
                raise InputError(
                    f"prompts[{index}]: want ids in [0, {self.decoder.architecture.vocab_size}), given "
                    f"{prompt.min()} to {prompt.max()}; does the tokenizer belong to this model?"
                )


@dataclass
class _Group:
    """Equal prompts that follow each other: read once, in a slot that its last member takes over."""

    prompt: Int64
    members: deque[int]
    """Trajectories that did not start yet."""
    slot: int
    num_read: int = 0
    logits: Tensor | None = None
    """[1, vocabulary] behind the prompt, once it is read."""


@dataclass
class _Sequence:
    """A response on its way."""

    index: int
    prompt_length: int
    slot: int
    stop: StopStrings | None
    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    kept: list[Int64] = field(default_factory=list)


@dataclass
class _Forward:
    """The rows of one forward pass: decoded sequences first, then prompt tokens, then idle ones."""

    tokens: Int64
    positions: Int64
    slots: Int64
    """Of the rows that are not idle."""
    num_decoded: int
    units: Int64
    """[2, U]: slot and block of each prompt block that has rows here."""
    unit_rows: tuple[Int64, Int64]
    """Unit and place inside of each prompt row."""
    finished: list[tuple[_Group, int]]
    """Prompts read to their end here, and the row of their last token."""


class _Batch:
    """One call of `generate`: what waits, what is read, what is decoded, what is done."""

    def __init__(
        self,
        generator: Generator,
        prompts: Sequence[Int64],
        numbers: TokenNumbers,
        sampler: TokenSampler,
        stopping: Stopping,
    ) -> None:
        self._decoder, self._tokenizer = generator.decoder, generator.tokenizer
        self._row_counts, self._max_context = generator.row_counts, generator.max_context
        self._num_slots = max(
            min(generator.num_slots, len(prompts), _affordable_slots(generator, prompts, stopping)), 1
        )
        self._numbers, self._sampler, self._stopping = numbers, sampler, stopping
        self._eos = frozenset(generator.tokenizer.eos_ids)
        # A prompt that is read for several members keeps a slot of its own until the last one starts.
        num_slots = 2 * self._num_slots
        self._free_slots = list(range(num_slots - 1, -1, -1))
        # One more block for each sequence than its prompt fills, to begin with.
        num_blocks = sum(2 + len(prompt) // KEYS_PER_BLOCK for prompt in prompts[: self._num_slots])
        self._cache = KeyValueCache(
            self._decoder.architecture, num_slots, num_blocks, dtype=self._decoder.dtype, device=self._decoder.device
        )
        self._waiting = deque(_groups(prompts))
        self._reading: deque[_Group] = deque()
        self._read: deque[_Group] = deque()
        self._decoding: list[_Sequence] = []
        self._done: dict[int, tuple[_Sequence, Ending]] = {}
        self._num_prompts = len(prompts)

    @property
    def num_done(self) -> int:
        """Responses that ended."""
        return len(self._done)

    def step(self) -> None:
        """One forward pass, one token for each sequence in it and for each that starts."""
        self._admit()
        sources: list[Tensor] = []
        starting: list[tuple[_Group, _Sequence]] = []
        if self._decoding or self._reading:
            forward = self._next_forward()
            logits = self._logits(forward)
            if forward.num_decoded:
                sources.append(logits[: forward.num_decoded])
            for row, (group, _) in enumerate(forward.finished, start=forward.num_decoded):
                # A copy: a view would keep the whole pass's logits for as long as members wait.
                group.logits = logits[row : row + 1].clone()
                self._reading.remove(group)
                self._read.append(group)
        for group in list(self._read):
            while group.members and len(self._decoding) + len(starting) < self._num_slots:
                assert group.logits is not None, "the group is read"
                sequence = _Sequence(group.members.popleft(), len(group.prompt), -1, self._stop_strings())
                starting.append((group, sequence))
                sources.append(group.logits)
        sequences = [*self._decoding, *(sequence for _, sequence in starting)]
        if sequences:
            endings = self._sample(torch.cat(sources), sequences)
            self._settle(starting, sequences, endings)

    def responses(self) -> Responses:
        """Of all prompts, in their order."""
        sequences = [self._done[index][0] for index in range(self._num_prompts)]
        lengths = [len(sequence.tokens) for sequence in sequences]
        tokens = np.array([token for sequence in sequences for token in sequence.tokens], np.int64)
        kept_tokens = None
        if self._sampler.sampling.keeps_tokens:
            kept = [row for sequence in sequences for row in sequence.kept]
            values = np.concatenate(kept) if kept else np.zeros(0, np.int64)
            kept_tokens = Ragged(values, _offsets([len(row) for row in kept]))
        return Responses(
            tokens=Ragged(tokens, _offsets(lengths)),
            log_probs=np.array([number for sequence in sequences for number in sequence.log_probs], np.float64),
            ending=np.array([self._done[index][1] for index in range(self._num_prompts)], np.uint8),
            kept_tokens=kept_tokens,
        )

    def _admit(self) -> None:
        """Starts to read prompts for the slots that neither a sequence nor a prompt already read will fill."""
        ready = sum(len(group.members) for group in self._read)
        while self._waiting and len(self._decoding) + ready + self._num_reading() < self._num_slots:
            index_and_prompt = self._waiting.popleft()
            self._reading.append(_Group(index_and_prompt[1], deque(index_and_prompt[0]), self._free_slots.pop()))

    def _num_reading(self) -> int:
        return sum(len(group.members) for group in self._reading)

    def _stop_strings(self) -> StopStrings | None:
        strings = self._stopping.stop_strings
        return StopStrings(self._tokenizer, strings) if strings else None

    # ---- One forward pass ------------------------------------------------------------------------------------------

    def _next_forward(self) -> _Forward:
        decoding = self._decoding
        tokens = [sequence.tokens[-1] for sequence in decoding]
        positions = [sequence.prompt_length + len(sequence.tokens) - 1 for sequence in decoding]
        slots = [sequence.slot for sequence in decoding]
        for slot, position in zip(slots, positions, strict=True):
            if position % KEYS_PER_BLOCK == 0:
                self._cache.reserve(slot, position, position + 1)
        units: list[tuple[int, int]] = []
        unit_of_row: list[int] = []
        finished: list[tuple[_Group, int]] = []
        for group in self._reading:
            start = group.num_read
            stop = min(len(group.prompt), start + self._row_counts[-1] - len(tokens))
            if stop == start:
                break
            self._cache.reserve(group.slot, start, stop)
            for position in range(start, stop):
                block = position // KEYS_PER_BLOCK
                if not units or units[-1] != (group.slot, block):
                    units.append((group.slot, block))
                unit_of_row.append(len(units) - 1)
            tokens.extend(group.prompt[start:stop].tolist())
            positions.extend(range(start, stop))
            slots.extend([group.slot] * (stop - start))
            group.num_read = stop
            if stop == len(group.prompt):
                finished.append((group, len(tokens) - 1))
        idle = self._filled(len(tokens)) - len(tokens)
        inside = np.array(positions[len(decoding) :], np.int64) % KEYS_PER_BLOCK
        return _Forward(
            tokens=np.array(tokens + [_IDLE_TOKEN] * idle, np.int64),
            positions=np.array(positions + [0] * idle, np.int64),
            slots=np.array(slots, np.int64),
            num_decoded=len(decoding),
            units=np.array(units, np.int64).reshape(-1, 2).T,
            unit_rows=(np.array(unit_of_row, np.int64), inside),
            finished=finished,
        )

    def _logits(self, forward: _Forward) -> Tensor:
        """[n, vocabulary]: of the decoded sequences, then behind the finished prompts, then of idle rows."""
        decoder, cache = self._decoder, self._cache
        architecture, device = decoder.architecture, decoder.device
        live, decoded = len(forward.slots), forward.num_decoded
        kv_heads, head_dim = architecture.num_kv_heads, architecture.head_dim
        group_size = architecture.num_heads // kv_heads
        tokens = torch.from_numpy(forward.tokens).to(device)
        positions = torch.from_numpy(forward.positions).to(device)
        places = [pool.places(forward.slots, forward.positions[:live]) for pool in cache.pools]
        single = [
            pool.plan_single(forward.slots[:decoded], forward.positions[:decoded], group_size) if decoded else None
            for pool in cache.pools
        ]
        num_units = forward.units.shape[1]
        blocks = [
            pool.plan_blocks(forward.units[0], forward.units[1], group_size) if num_units else None
            for pool in cache.pools
        ]
        unit_of_row, inside = (torch.from_numpy(array).to(device) for array in forward.unit_rows)
        hidden = decoder.embed(tokens, positions)
        # Each layer writes the same rows of it; idle ones stay 0.
        attended = hidden.new_zeros((len(hidden), architecture.num_heads, head_dim))
        for index, layer in enumerate(decoder.layers):
            q, k, v = layer.project(hidden, positions)
            number, place = cache.place_of_layer[index]
            pool = cache.pools[number]
            pool.write(place, places[number], k[:live], v[:live])
            keys, values = pool.keys[place], pool.values[place]
            plan = single[number]
            if plan is not None:
                queries = q[:decoded].reshape(decoded, kv_heads, group_size, head_dim)
                result = attend_blocks(queries, keys, values, plan, scale=layer.scale, soft_cap=layer.soft_cap)
                attended[:decoded] = result.view(decoded, -1, head_dim)
            plan = blocks[number]
            if plan is not None:
                queries = q.new_zeros((num_units, KEYS_PER_BLOCK, kv_heads, group_size, head_dim))
                queries[unit_of_row, inside] = q[decoded:live].view(-1, kv_heads, group_size, head_dim)
                queries = queries.transpose(1, 2).reshape(num_units, kv_heads, -1, head_dim)
                result = attend_blocks(queries, keys, values, plan, scale=layer.scale, soft_cap=layer.soft_cap)
                result = result.view(num_units, kv_heads, KEYS_PER_BLOCK, group_size, head_dim)
                attended[decoded:live] = result[unit_of_row, :, inside].reshape(live - decoded, -1, head_dim)
            hidden = layer.complete(hidden, attended)
        # Of the rows that are sampled from alone: a vocabulary is wide.
        wanted = [*range(decoded), *(row for _, row in forward.finished)]
        rows = torch.tensor(wanted + [0] * (self._filled(len(wanted)) - len(wanted)), device=device)
        return decoder.logits(decoder.normalize(hidden.index_select(0, rows)))

    def _filled(self, num_rows: int) -> int:
        """The smallest number of rows allowed that holds these."""
        return next(count for count in self._row_counts if count >= num_rows)

    # ---- One token of each -----------------------------------------------------------------------------------------

    def _sample(self, logits: Tensor, sequences: list[_Sequence]) -> list[Ending | None]:
        which = np.array([sequence.index for sequence in sequences], np.int64)
        steps = np.array([len(sequence.tokens) for sequence in sequences], np.int64)
        early = steps < self._stopping.min_tokens
        try:
            drawn = self._sampler.draw(logits, self._numbers.draw(which, steps), without_eos=early)
        except FloatingPointError as error:
            bad = int((~torch.isfinite(logits)).any(1).nonzero()[0])
            raise FloatingPointError(f"prompt {which[bad]}, token {steps[bad]} of its response: {error}") from None
        kept = _kept_rows(drawn)
        endings: list[Ending | None] = []
        pairs = zip(sequences, drawn.tokens.tolist(), drawn.log_probs.tolist(), strict=True)
        for sequence, token, log_prob in pairs:
            sequence.tokens.append(token)
            sequence.log_probs.append(log_prob)
            if kept is not None:
                sequence.kept.append(next(kept))
            endings.append(self._ending(sequence, token))
        return endings

    def _ending(self, sequence: _Sequence, token: int) -> Ending | None:
        length = len(sequence.tokens)
        stopped = sequence.stop is not None and sequence.stop.push(token) and length >= self._stopping.min_tokens
        if stopped or token in self._eos:
            return Ending.TERMINATED
        if length == self._stopping.max_tokens or sequence.prompt_length + length == self._max_context:
            return Ending.TRUNCATED
        return None

    def _settle(
        self,
        starting: list[tuple[_Group, _Sequence]],
        sequences: list[_Sequence],
        endings: list[Ending | None],
    ) -> None:
        """Ended sequences leave their slots, those that started get one."""
        ended = {id(sequence): ending for sequence, ending in zip(sequences, endings, strict=True)}
        for sequence in self._decoding:
            if ended[id(sequence)] is not None:
                self._release(sequence.slot)
        last_to_start: dict[int, _Sequence] = {}
        for group, sequence in starting:
            if ended[id(sequence)] is None:
                last_to_start[id(group)] = sequence
        for group, sequence in starting:
            if ended[id(sequence)] is None and (group.members or last_to_start[id(group)] is not sequence):
                sequence.slot = self._free_slots.pop()
                self._cache.copy(group.slot, sequence.slot)
        for group in [group for group in self._read if not group.members]:
            self._read.remove(group)
            if id(group) in last_to_start:
                last_to_start[id(group)].slot = group.slot
            else:
                self._release(group.slot)
        for sequence, ending in zip(sequences, endings, strict=True):
            if ending is not None:
                self._done[sequence.index] = (sequence, ending)
        self._decoding = [sequence for sequence in sequences if ended[id(sequence)] is None]

    def _release(self, slot: int) -> None:
        self._cache.release(slot)
        self._free_slots.append(slot)


def _affordable_slots(generator: Generator, prompts: Sequence[Int64], stopping: Stopping) -> int:
    """Sequences of the greatest possible length whose keys and values fit."""
    architecture = generator.decoder.architecture
    longest = min(max(map(len, prompts), default=0) + stopping.max_tokens, generator.max_context)
    token_bytes = 2 * architecture.num_layers * architecture.num_kv_heads * architecture.head_dim
    token_bytes *= generator.decoder.dtype.itemsize
    return generator.max_cache_bytes // (token_bytes * (longest + KEYS_PER_BLOCK))


def _groups(prompts: Sequence[Int64]) -> Iterator[tuple[list[int], Int64]]:
    """Equal neighbours: their indices, and the prompt."""
    members: list[int] = []
    for index, prompt in enumerate(prompts):
        if members and not np.array_equal(prompts[members[0]], prompt):
            yield members, prompts[members[0]]
            members = []
        members.append(index)
    if members:
        yield members, prompts[members[0]]


def _kept_rows(drawn: Drawn) -> Iterator[Int64] | None:
    if drawn.kept_tokens is None or drawn.kept_counts is None:
        return None
    return iter(np.split(drawn.kept_tokens, np.cumsum(drawn.kept_counts)[:-1]))


def _offsets(lengths: Sequence[int]) -> Int64:
    return np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
