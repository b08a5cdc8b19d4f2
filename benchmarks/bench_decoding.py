"""Decoding against `transformers.generate`: the same weights, prompts and response lengths, float32, one thread.

    OMP_NUM_THREADS=1 python benchmarks/bench_decoding.py --json

A llama of 2M parameters, sampled at temperature 1. Equal: prompts of 32 tokens, responses of 64. Ragged: prompts of 8
to 64 tokens; each token of a response ends it with a probability of 4 %, at 64 at the latest. The peer is given the
very lengths that hpcrl's counted random numbers made, by a stopping criterion for each row, and prompts padded on the
left, as its documentation says. Of 64 prompts it takes all at once, or 16 at a time: a row for each.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from harness import Bench, Result, Row, add_arguments, interleave

from hpcrl.models.language import Architecture
from hpcrl.models.language.decoder import Decoder
from hpcrl.models.language.decoding import Generator, TokenNumbers
from hpcrl.models.language.settings import Sampling, Stopping
from hpcrl.models.language.tokenizer import CharacterTokenizer

Int64 = npt.NDArray[np.int64]

VOCAB_SIZE, MAX_TOKENS, EOS = 1024, 64, 1
ARCHITECTURE = Architecture.llama(VOCAB_SIZE, hidden_size=192, num_layers=4, num_heads=4, max_positions=256)
TOKENIZER = CharacterTokenizer("".join(map(chr, range(0x4E00, 0x4E00 + VOCAB_SIZE - 3))))
ENDS = tuple(TOKENIZER.alphabet[:41])
"""4 % of the vocabulary, about what a token of a model with random weights is."""


@dataclass(frozen=True)
class Case:
    """Prompts, and how responses to them end."""

    name: str
    prompts: list[Int64]
    stopping: Stopping
    peer_batch: int
    """Prompts that the peer takes at a time."""


def cases() -> list[Case]:
    """Equal and ragged lengths."""
    draw = np.random.default_rng(0)

    def prompts(lengths: Int64) -> list[Int64]:
        return [draw.integers(3, VOCAB_SIZE, length) for length in lengths]

    equal = Stopping(max_tokens=MAX_TOKENS, min_tokens=MAX_TOKENS)
    ragged = Stopping(max_tokens=MAX_TOKENS, stop_strings=ENDS)
    many = prompts(draw.integers(8, 65, 64))
    return [
        Case("16 equal", prompts(np.full(16, 32)), equal, 16),
        Case("16 ragged", prompts(draw.integers(8, 65, 16)), ragged, 16),
        Case("64 ragged", many, ragged, 64),
        Case("64 ragged, 16 at a time", many, ragged, 16),
    ]


class Ours:
    """hpcrl's generator."""

    def __init__(self) -> None:
        self.decoder = Decoder(ARCHITECTURE)
        self.decoder.initialize(torch.Generator().manual_seed(0))
        self._generator = Generator(self.decoder, TOKENIZER)

    def lengths(self, case: Case) -> Int64:
        """Tokens of each response; the same in every call."""
        numbers = TokenNumbers(seed=0, iteration=0, trajectories=np.arange(len(case.prompts)))
        responses = self._generator.generate(case.prompts, numbers, sampling=Sampling(), stopping=case.stopping)
        assert responses is not None
        return np.diff(responses.tokens.offsets)


class Transformers:
    """The peer, with hpcrl's weights."""

    def __init__(self, decoder: Decoder) -> None:
        import transformers

        transformers.logging.set_verbosity_error()
        self.version = transformers.__version__
        config = transformers.LlamaConfig(**decoder.architecture.to_hugging_face(), eos_token_id=EOS, pad_token_id=0)
        self._model = transformers.LlamaForCausalLM(config).eval()
        self._model.load_state_dict(decoder.state_dict(), strict=False)
        self._model.tie_weights()

    def generate(self, case: Case, lengths: Int64) -> None:
        """Responses of these lengths, `case.peer_batch` at a time."""
        for start in range(0, len(case.prompts), case.peer_batch):
            batch = slice(start, start + case.peer_batch)
            self._generate(case.prompts[batch], torch.from_numpy(lengths[batch]))

    def _generate(self, prompts: list[Int64], lengths: torch.Tensor) -> None:
        longest = max(map(len, prompts))
        tokens = torch.zeros(len(prompts), longest, dtype=torch.int64)
        for row, prompt in zip(tokens, prompts, strict=True):
            row[longest - len(prompt) :] = torch.from_numpy(prompt)

        def ends(generated: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
            return generated.shape[1] - longest >= lengths

        with torch.inference_mode():
            given = self._model.generate(
                tokens,
                attention_mask=(tokens != 0).long(),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=MAX_TOKENS,
                suppress_tokens=[0, EOS, 2],
                stopping_criteria=[ends],
            )
        assert given.shape[1] - longest == int(lengths.max())


def seconds(call: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def main() -> None:
    """Measures each case and publishes the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bench, ours = Bench(), Ours()
    peer = Transformers(ours.decoder)
    rows: list[Row] = []
    ratios: dict[str, float] = {}
    for case in cases():
        lengths = ours.lengths(case)
        candidates: dict[str, Callable[[], float]] = {
            "hpcrl": lambda case=case: seconds(lambda: ours.lengths(case)),  # type: ignore[misc]
            "peer": lambda case=case, lengths=lengths: seconds(lambda: peer.generate(case, lengths)),  # type: ignore[misc]
        }
        samples = interleave(candidates, repeats=arguments.repeats, warmups=1)
        medians = {name: statistics.median(values) for name, values in samples.items()}
        ratios[case.name] = medians["peer"] / medians["hpcrl"]
        rows.append(
            {
                "case": case.name,
                "tokens": int(lengths.sum()),
                "longest": int(lengths.max()),
                "hpcrl ms": medians["hpcrl"] * 1e3,
                "transformers ms": medians["peer"] * 1e3,
                "hpcrl tokens/s": float(lengths.sum()) / medians["hpcrl"],
                "transformers tokens/s": float(lengths.sum()) / medians["peer"],
                "ratio": ratios[case.name],
            }
        )
    num_parameters = sum(parameter.numel() for parameter in ours.decoder.parameters())
    bench.publish(
        Result(
            name="decoding",
            rows=rows,
            peer=f"transformers.generate ({peer.version})",
            ratio=ratios["16 ragged"],
            wanted="at least 2 for 16 ragged prompts, and at least 1 for 16 equal ones",
            met=ratios["16 ragged"] >= 2 and ratios["16 equal"] >= 1,
            notes=[
                f"{num_parameters:,} parameters; hpcrl also computes the log-probabilities that training needs, "
                "which the peer was not asked for",
            ],
        ),
        arguments.json,
    )


if __name__ == "__main__":
    main()
