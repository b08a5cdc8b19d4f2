"""The generator: bits that are a sequence's own, a naive loop, fresh forwards, transformers, endings, refusals."""

import math

import numpy as np
import pytest
import torch

from hpcrl.data import Ending
from hpcrl.errors import InputError
from hpcrl.models.language import Architecture
from hpcrl.models.language.decoder import Decoder
from hpcrl.models.language.decoding import Generator, Responses, TokenNumbers
from hpcrl.models.language.row_counts import equal_row_counts
from hpcrl.models.language.settings import Sampling, Stopping
from hpcrl.models.language.tokenizer import CharacterTokenizer
from hpcrl.ops.random import Draw, uniforms

TOKENIZER = CharacterTokenizer("0123456789abcdefghijklmno;")
VOCAB_SIZE = 32
"""Three more than the tokenizer's: they are never sampled."""
NEVER = [0, 2, 29, 30, 31]
LLAMA = Architecture.llama(VOCAB_SIZE, hidden_size=48, num_layers=3, num_heads=4, num_kv_heads=2, max_positions=160)
GEMMA2 = Architecture(
    family="gemma2",
    vocab_size=VOCAB_SIZE,
    hidden_size=32,
    intermediate_size=48,
    num_layers=4,
    num_heads=4,
    num_kv_heads=1,
    head_dim=8,
    max_positions=160,
    norm="rms_one_plus",
    post_norms=True,
    activation="gelu_tanh",
    windows=(20, None, 20, None),
    query_scalar=10.0,
    attention_soft_cap=5.0,
    logit_soft_cap=6.0,
    embedding_multiplier=4.0,
    tied_embeddings=True,
)
GPT2 = Architecture(
    family="gpt2",
    vocab_size=VOCAB_SIZE,
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=4,
    head_dim=8,
    max_positions=160,
    norm="layer",
    rope=None,
    learned_positions=True,
    query_key_value_bias=True,
    attention_output_bias=True,
    mlp_bias=True,
    gated_mlp=False,
    activation="gelu_new",
    tied_embeddings=True,
)
ARCHITECTURES = {"llama": LLAMA, "gemma2": GEMMA2, "gpt2": GPT2}
DTYPES = [torch.float32, torch.float64]
COUNT = 14
STOPPING = Stopping(max_tokens=45)


def decoder_of(architecture=LLAMA, dtype=torch.float64, *, std=0.3) -> Decoder:
    decoder = Decoder(architecture, dtype=dtype)
    decoder.initialize(torch.Generator().manual_seed(1), std=std)
    return decoder


def prompts_of(count=COUNT, *, longest=90) -> list[np.ndarray]:
    """Ragged, some longer than a block of keys; 3, 4 and 5 equal."""
    draw = np.random.default_rng(0)
    prompts = [draw.integers(3, 29, length) for length in draw.integers(1, longest, count)]
    if count > 5:
        prompts[4] = prompts[5] = prompts[3]
    return prompts


def numbers_of(which) -> TokenNumbers:
    return TokenNumbers(seed=7, iteration=3, trajectories=np.asarray(which, np.int64))


def generate(generator, prompts, which=None, *, sampling=None, stopping=STOPPING) -> Responses:
    numbers = numbers_of(range(len(prompts)) if which is None else which)
    given = generator.generate(prompts, numbers, sampling=sampling or Sampling(), stopping=stopping)
    assert given is not None
    return given


def rows_of(responses: Responses) -> list[tuple]:
    """Of each response its tokens, log-probabilities (bits), ending and kept ids."""
    offsets, kept = responses.tokens.offsets, responses.kept_tokens
    return [
        (
            responses.tokens[i].tolist(),
            responses.log_probs[offsets[i] : offsets[i + 1]].tobytes(),
            int(responses.ending[i]),
            None if kept is None else [kept[t].tolist() for t in range(offsets[i], offsets[i + 1])],
        )
        for i in range(len(responses.ending))
    ]


# ---- A sequence's bits are its own ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ARCHITECTURES)
def test_order_company_and_slots_change_no_bits(family, dtype):
    decoder, prompts = decoder_of(ARCHITECTURES[family], dtype), prompts_of()
    wanted = rows_of(generate(Generator(decoder, TOKENIZER), prompts))
    order = np.random.default_rng(1).permutation(COUNT)
    for which, num_slots in (
        (order, None),  # another order
        (np.arange(COUNT), 1),  # one at a time
        (np.arange(COUNT), 5),  # slots used again and again
        (order[:6], 3),  # a rank's share, or what a restart has left
        (order[6:], None),
    ):
        got = generate(Generator(decoder, TOKENIZER, num_slots=num_slots), [prompts[i] for i in which], which)
        assert rows_of(got) == [wanted[i] for i in which]


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ARCHITECTURES)
def test_fewer_or_more_rows_than_the_fixed_number_change_no_bits(family, dtype):
    """Where another number of rows is used because it has equal bits, it has them."""
    decoder, prompts = decoder_of(ARCHITECTURES[family], dtype), prompts_of()
    wanted = rows_of(generate(Generator(decoder, TOKENIZER), prompts))
    fixed = Generator(decoder, TOKENIZER, num_slots=9)
    fixed.row_counts = (32,)
    assert rows_of(generate(fixed, prompts)) == wanted


def test_a_cache_too_small_for_all_takes_fewer_at_a_time_and_the_same_bits():
    decoder, prompts = decoder_of(), prompts_of()
    wanted = rows_of(generate(Generator(decoder, TOKENIZER), prompts))
    for max_cache_bytes in (1, 2 * 3 * 2 * 12 * 8 * 500):
        assert rows_of(generate(Generator(decoder, TOKENIZER, max_cache_bytes=max_cache_bytes), prompts)) == wanted


def test_on_two_threads_order_and_slots_change_no_bits():
    decoder, prompts, before = decoder_of(dtype=torch.float32), prompts_of(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        wanted = rows_of(generate(Generator(decoder, TOKENIZER), prompts))
        got = rows_of(generate(Generator(decoder, TOKENIZER, num_slots=3), prompts[::-1], range(COUNT)[::-1]))
    finally:
        torch.set_num_threads(before)
    assert got == wanted[::-1]


@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=0), Sampling(top_k=4), Sampling(top_k=9, top_p=0.7)], ids=str
)
def test_other_samplings_keep_bits_too(sampling):
    decoder, prompts = decoder_of(dtype=torch.float32), prompts_of()
    wanted = rows_of(generate(Generator(decoder, TOKENIZER), prompts, sampling=sampling))
    order = np.random.default_rng(1).permutation(COUNT)
    generator = Generator(decoder, TOKENIZER, num_slots=4)
    got = generate(generator, [prompts[i] for i in order], order, sampling=sampling)
    assert rows_of(got) == [wanted[i] for i in order]


@pytest.mark.parametrize("num_slots", [1, 3, 8, None])
def test_samples_of_a_prompt_are_those_of_the_prompt_alone(num_slots):
    decoder = decoder_of()
    prompts = [prompt for prompt in prompts_of(4, longest=70) for _ in range(6)]
    got = rows_of(generate(Generator(decoder, TOKENIZER, num_slots=num_slots), prompts))
    alone = Generator(decoder, TOKENIZER)
    assert got == [rows_of(generate(alone, [prompt], [i]))[0] for i, prompt in enumerate(prompts)]
    assert len({tuple(row[0]) for row in got}) > 20


# ---- Against other ways to the same numbers ------------------------------------------------------------------------


def fresh_log_probs(decoder, prompt, response, sampling, kept=None) -> np.ndarray:
    """Of a response's tokens by one packed forward, with `sampling` and the ids it kept applied to the logits."""
    sequence = torch.from_numpy(np.concatenate((prompt, response)))
    with torch.no_grad():
        logits = decoder.logits(decoder(sequence, [0, len(sequence)]))[len(prompt) - 1 : -1]
    logits = logits.double() / (sampling.temperature or 1.0)
    logits[:, NEVER] = -torch.inf
    if kept is not None:
        for row, ids in zip(logits, kept, strict=True):
            outside = torch.ones(VOCAB_SIZE, dtype=torch.bool)
            outside[ids] = False
            row[outside] = -torch.inf
    return torch.log_softmax(logits, -1).gather(1, torch.from_numpy(response)[:, None])[:, 0].numpy()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
@pytest.mark.parametrize(
    "sampling",
    [Sampling(), Sampling(temperature=0.7), Sampling(top_k=6), Sampling(temperature=1.2, top_k=8, top_p=0.8)],
)
@pytest.mark.parametrize("family", ARCHITECTURES)
def test_log_probs_are_those_of_a_fresh_forward(family, sampling, dtype, tolerance):
    decoder, prompts = decoder_of(ARCHITECTURES[family], dtype), prompts_of()
    responses = generate(Generator(decoder, TOKENIZER), prompts, sampling=sampling)
    offsets, kept = responses.tokens.offsets, None
    for i, prompt in enumerate(prompts):
        if responses.kept_tokens is not None:
            kept = [responses.kept_tokens[t] for t in range(offsets[i], offsets[i + 1])]
            assert all(len(ids) <= sampling.top_k for ids in kept)
        wanted = fresh_log_probs(decoder, prompt, responses.tokens[i], sampling, kept)
        np.testing.assert_allclose(responses.log_probs[offsets[i] : offsets[i + 1]], wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("sampling", [Sampling(temperature=0.9), Sampling(temperature=0)], ids=str)
def test_tokens_are_those_of_a_loop_over_whole_forwards(sampling):
    """Inverse cumulative distribution in vocabulary order, with trajectory j's uniforms (j, step, iteration, TOKEN)."""
    decoder, prompts = decoder_of(), prompts_of(5)
    trajectories = [11, 0, 40, 7, 3]
    responses = generate(Generator(decoder, TOKENIZER), prompts, trajectories, sampling=sampling)
    for i, (prompt, trajectory) in enumerate(zip(prompts, trajectories, strict=True)):
        tokens = prompt.tolist()
        while len(tokens) - len(prompt) < STOPPING.max_tokens and (len(tokens) == len(prompt) or tokens[-1] != 1):
            with torch.no_grad():
                logits = decoder.logits(decoder(torch.tensor(tokens), [0, len(tokens)]))[-1]
            logits[NEVER] = -torch.inf
            step = len(tokens) - len(prompt)
            uniform = uniforms(7, trajectory, step=step, iteration=3, draw=Draw.TOKEN)[0, 0]
            cumulative = torch.softmax(logits / (sampling.temperature or 1.0), -1).cumsum(0)
            tokens.append(int(logits.argmax() if sampling.is_greedy else (cumulative <= uniform).sum()))
        assert responses.tokens[i].tolist() == tokens[len(prompt) :]


def test_greedy_tokens_are_those_of_transformers(subtests, tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed: pip install --group test")
    from transformers_models import CASES, float64_throughout, model

    from hpcrl.models.language.hugging_face import load_decoder

    for number, case in enumerate(CASES):
        with subtests.test(case):
            reference = model(case, dtype=torch.float64, bos_token_id=2, eos_token_id=1)
            reference.save_pretrained(tmp_path / str(number))
            decoder = load_decoder(tmp_path / str(number))
            tokenizer = CharacterTokenizer("".join(map(chr, range(256, 253 + decoder.architecture.vocab_size))))
            draw = np.random.default_rng(number)
            prompts = [draw.integers(3, decoder.architecture.vocab_size, length) for length in (1, 7, 18, 5)]
            stopping = Stopping(max_tokens=20, min_tokens=4)
            ours = generate(Generator(decoder, tokenizer), prompts, sampling=Sampling(temperature=0), stopping=stopping)
            for prompt, response in zip(prompts, ours.tokens, strict=True):
                with float64_throughout(), torch.no_grad():
                    theirs = reference.generate(
                        torch.from_numpy(prompt)[None],
                        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                        do_sample=False,
                        max_new_tokens=20,
                        min_new_tokens=4,
                        suppress_tokens=[0, 2],
                    )
                assert response.tolist() == theirs[0, len(prompt) :].tolist()


# ---- Endings -------------------------------------------------------------------------------------------------------


def test_eos_terminates_and_a_length_truncates():
    responses = generate(
        Generator(decoder_of(), TOKENIZER), prompts_of(60, longest=20), stopping=Stopping(max_tokens=30)
    )
    assert set(responses.ending.tolist()) == {Ending.TERMINATED, Ending.TRUNCATED}
    for tokens, ending in zip(responses.tokens, responses.ending, strict=True):
        assert (1 in tokens) == (ending == Ending.TERMINATED)
        assert not (tokens[:-1] == 1).any()
        assert ending == Ending.TERMINATED or len(tokens) == 30
        assert not np.isin(tokens, NEVER).any()


def test_a_full_context_truncates():
    prompts = prompts_of(8, longest=40)
    stopping = Stopping(max_tokens=100, min_tokens=100)
    responses = generate(Generator(decoder_of(), TOKENIZER, max_context=50), prompts, stopping=stopping)
    for prompt, tokens in zip(prompts, responses.tokens, strict=True):
        assert len(prompt) + len(tokens) == 50
    assert (responses.ending == Ending.TRUNCATED).all()


def test_the_whole_context_of_the_decoder_can_be_filled():
    responses = generate(
        Generator(decoder_of(), TOKENIZER), prompts_of(3), stopping=Stopping(max_tokens=999, min_tokens=999)
    )
    lengths = [len(prompt) + len(tokens) for prompt, tokens in zip(prompts_of(3), responses.tokens, strict=True)]
    assert lengths == [LLAMA.context_length] * 3


def test_min_tokens_come_before_an_end():
    prompts = prompts_of(40, longest=20)
    responses = generate(Generator(decoder_of(), TOKENIZER), prompts, stopping=Stopping(max_tokens=30, min_tokens=12))
    lengths = np.diff(responses.tokens.offsets)
    assert lengths.min() >= 13
    assert len(set(lengths.tolist())) > 3
    free = generate(Generator(decoder_of(), TOKENIZER), prompts, stopping=Stopping(max_tokens=30))
    assert np.diff(free.tokens.offsets).min() < 12


def test_a_stop_string_terminates_with_the_token_that_completes_it():
    prompts, generator = prompts_of(40, longest=20), Generator(decoder_of(), TOKENIZER)
    free = generate(generator, prompts, stopping=Stopping(max_tokens=30))
    texts = [TOKENIZER.decode(tokens) for tokens in free.tokens]
    strings = (texts[0][3:5], texts[1][6:7])
    stopped = generate(generator, prompts, stopping=Stopping(max_tokens=30, stop_strings=strings))
    for i, text in enumerate(texts):
        ends = [text.find(string) + len(string) for string in strings if string in text]
        assert stopped.tokens[i].tolist() == free.tokens[i][: min(ends, default=30)].tolist()
        assert not ends or stopped.ending[i] == Ending.TERMINATED
    late = generate(generator, prompts, stopping=Stopping(max_tokens=30, min_tokens=9, stop_strings=strings))
    assert np.diff(late.tokens.offsets).min() >= 9


# ---- Being asked to stop, progress, refusals -----------------------------------------------------------------------


def test_progress_and_stopping():
    generator, told = Generator(decoder_of(), TOKENIZER, num_slots=2), []
    arguments = {"sampling": Sampling(), "stopping": Stopping(max_tokens=5)}
    generator.generate(prompts_of(7), numbers_of(range(7)), progress=lambda *counts: told.append(counts), **arguments)
    assert told[-1] == (7, 7)
    assert told == sorted(told)
    looks = iter([False, False, True])
    assert (
        generator.generate(prompts_of(7), numbers_of(range(7)), stop_requested=lambda: next(looks), **arguments) is None
    )


def test_no_prompts_give_no_responses():
    responses = generate(Generator(decoder_of(), TOKENIZER), [])
    assert len(responses.tokens) == len(responses.log_probs) == len(responses.ending) == 0


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (np.zeros(0, np.int64), "n >= 1"),
        (np.ones(3, np.int32), "given int32"),
        (np.full(160, 3), r"fewer than 160 tokens \(the context"),
        (np.array([32]), "does the tokenizer belong to this model"),
        (np.array([-1]), "does the tokenizer belong to this model"),
    ],
)
def test_prompts_that_do_not_fit_are_refused_by_number(prompt, message):
    with pytest.raises(InputError, match=rf"prompts\[1\].*{message}"):
        generate(Generator(decoder_of(), TOKENIZER), [np.array([3]), prompt])


def test_what_does_not_fit_the_decoder_is_refused():
    decoder = decoder_of()
    with pytest.raises(InputError, match="does it belong to this model"):
        Generator(decoder, CharacterTokenizer("".join(map(chr, range(256, 300)))))
    for arguments in ({"rows": 0}, {"num_slots": 999}, {"max_context": 1}, {"max_context": 161}):
        with pytest.raises(InputError, match=r"want"):
            Generator(decoder, TOKENIZER, **arguments)
    with pytest.raises(InputError, match="one for each of 1 prompts"):
        generate(Generator(decoder, TOKENIZER), [np.array([3])], [0, 1])
    for arguments in ({"max_tokens": 0}, {"max_tokens": 5, "min_tokens": 6}, {"max_tokens": 5, "stop_strings": ("",)}):
        with pytest.raises(InputError, match=r"want"):
            Stopping(**arguments)


def test_logits_that_are_no_numbers_are_told_with_prompt_and_token():
    decoder = decoder_of()
    with torch.no_grad():
        decoder.model.embed_tokens.weight[5] = math.nan
    decoder.lm_head = decoder_of().lm_head
    prompts = [np.array([3, 4]), np.array([4, 5, 3])]
    with pytest.raises(FloatingPointError, match=r"prompt \d, token 0 of its response: logits: want finite numbers"):
        generate(Generator(decoder, TOKENIZER), prompts)


class NeighbourlyDecoder(Decoder):
    """As a machine might be whose products depend on the row's place."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().logits(hidden) * (1 + 1e-7 * torch.arange(len(hidden)).unsqueeze(1))


class ShortDecoder(Decoder):
    """As a machine whose products of fewer than 16 rows have other bits."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().logits(hidden) * (1.0 if len(hidden) >= 16 else 1 + 1e-6)


def test_rows_that_depend_on_others_are_refused():
    decoder = NeighbourlyDecoder(Architecture.llama(17))
    decoder.initialize(torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match="choose another number of rows"):
        Generator(decoder, CharacterTokenizer("0123"))


def test_weights_that_are_no_numbers_are_not_taken_for_rows_that_depend_on_others():
    decoder = decoder_of(dtype=torch.float32)
    with torch.no_grad():
        decoder.layers[0].mlp.up_proj.weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="look at the last update"):
        generate(Generator(decoder, TOKENIZER), prompts_of(2))


def test_no_bits_are_promised_on_a_gpu():
    class OnGpu(NeighbourlyDecoder):
        device = torch.device("cuda")

    assert {4, 32, 36, 256} <= set(equal_row_counts(OnGpu(Architecture.llama(17)), 36))


def test_numbers_of_rows_with_other_bits_are_not_used():
    short, whole = ShortDecoder(Architecture.llama(18)), Decoder(Architecture.llama(19))
    for decoder in (short, whole):
        decoder.initialize(torch.Generator().manual_seed(0))
    assert not {4, 8, 12} & set(equal_row_counts(short, 32))
    assert {16, 32} <= set(equal_row_counts(short, 32))
    assert 32 in equal_row_counts(whole, 32)
