"""Chunked log-probabilities: values and gradients, memory, hazards."""

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hpcrl.errors import InputError
from hpcrl.models.language import Architecture
from hpcrl.models.language.decoder import Decoder
from hpcrl.models.language.log_probs import score_logits, token_log_probs

VOCABULARY = 211
PLAIN = Architecture.llama(VOCABULARY, hidden_size=16, num_layers=1, num_heads=2, tied_embeddings=False)
CAPPED = dataclasses.replace(PLAIN, logit_soft_cap=1.5, tied_embeddings=True)


def random_decoder(architecture: Architecture, dtype=torch.float64) -> Decoder:
    decoder = Decoder(architecture, dtype=dtype)
    decoder.initialize(torch.Generator().manual_seed(0), std=0.5)
    return decoder


def draw(rows: int, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(rows, 16, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    return hidden, torch.randint(VOCABULARY, (rows,), generator=generator)


def whole(decoder: Decoder, hidden, targets, temperature=1.0):
    """The definition, by PyTorch's own autograd."""
    all_log_probs = torch.log_softmax(decoder.logits(hidden) / temperature, dim=-1)
    log_probs = all_log_probs.gather(1, targets.unsqueeze(1)).squeeze(1)
    return log_probs, -(all_log_probs.exp() * all_log_probs).sum(-1)


def gradients(decoder: Decoder, hidden, results) -> list[torch.Tensor]:
    """Of a loss that weights each row's log-probability and entropy differently."""
    weights = torch.linspace(-1.0, 2.0, len(hidden), dtype=torch.float64)
    loss = (results[0] * weights).sum() + (results[1] * weights.flip(0) ** 2).sum()
    return list(
        torch.autograd.grad(loss, [hidden, *decoder.model.embed_tokens.parameters(), *head(decoder)], allow_unused=True)
    )


def head(decoder: Decoder) -> list[torch.Tensor]:
    return [] if decoder.lm_head is None else [decoder.lm_head.weight]


@pytest.mark.parametrize("architecture", [PLAIN, CAPPED], ids=["plain", "capped and tied"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize(("rows", "chunk_rows"), [(1, 512), (13, 4), (16, 4), (13, 1), (13, 13)])
def test_values_and_gradients_equal_the_whole_to_1e_10(architecture, temperature, rows, chunk_rows) -> None:
    decoder = random_decoder(architecture)
    hidden, targets = draw(rows)
    got = token_log_probs(decoder, hidden, targets, temperature=temperature, chunk_rows=chunk_rows)
    want = whole(decoder, hidden, targets, temperature)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)
    pairs = zip(gradients(decoder, hidden, got), gradients(decoder, hidden, want), strict=True)
    for ours, theirs in pairs:
        if theirs is None:
            assert ours is None
        else:
            torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)


@pytest.mark.parametrize("used", [0, 1])
def test_one_result_alone_can_be_learned_from(used) -> None:
    decoder = random_decoder(PLAIN)
    hidden, targets = draw(13)
    ours, theirs = (
        torch.autograd.grad(results[used].square().sum(), hidden)[0]
        for results in (token_log_probs(decoder, hidden, targets, chunk_rows=4), whole(decoder, hidden, targets))
    )
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)


def test_no_rows() -> None:
    decoder = random_decoder(PLAIN)
    hidden, targets = draw(0)
    log_probs, entropies = token_log_probs(decoder, hidden, targets)
    assert log_probs.shape == entropies.shape == (0,)
    (log_probs.sum() + entropies.sum()).backward()
    assert hidden.grad.shape == (0, 16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_are_float32(dtype) -> None:
    decoder = random_decoder(PLAIN, dtype)
    hidden, targets = draw(9, dtype)
    log_probs, entropies = token_log_probs(decoder, hidden, targets, chunk_rows=4)
    assert log_probs.dtype == entropies.dtype == torch.float32
    exact = random_decoder(PLAIN)
    exact.load_arrays(decoder.arrays())
    want = whole(exact, hidden.detach().double(), targets)
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(log_probs.double(), want[0], atol=tolerance, rtol=0)
    torch.testing.assert_close(entropies.double(), want[1], atol=tolerance, rtol=0)
    log_probs.sum().backward()
    assert hidden.grad.dtype == dtype


def test_extremes() -> None:
    """One token certain, another a million nats away: nothing overflows."""
    logits = torch.tensor([[1e6, 0.0, -1e6], [0.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    log_probs, entropies = score_logits(logits, torch.tensor([0, 1]))
    assert log_probs.tolist() == pytest.approx([0.0, -1.0986122886681098])
    assert entropies.tolist() == pytest.approx([0.0, 1.0986122886681098])
    (log_probs.sum() + entropies.sum()).backward()
    assert logits.grad.isfinite().all()


def test_excluded_tokens_add_nothing() -> None:
    """-inf logits, as top-k leaves them: equal to the distribution over the tokens that are kept."""
    generator = torch.Generator().manual_seed(2)
    kept = torch.randn(3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    excluded = torch.full((3, 5), -torch.inf, dtype=torch.float64)
    targets = torch.tensor([0, 3, 1])
    masked, plain = score_logits(torch.cat([kept, excluded], 1), targets), score_logits(kept, targets)
    for one, other in zip(masked, plain, strict=True):
        torch.testing.assert_close(one, other, atol=1e-14, rtol=0)
    (ours,) = torch.autograd.grad(masked[0].sum() + 2 * masked[1].sum(), kept)
    (theirs,) = torch.autograd.grad(plain[0].sum() + 2 * plain[1].sum(), kept)
    torch.testing.assert_close(ours, theirs, atol=1e-14, rtol=0)


def test_ids_that_are_never_sampled_have_probability_zero() -> None:
    decoder, hidden_and_targets = random_decoder(CAPPED), draw(13)
    hidden, targets = hidden_and_targets[0], hidden_and_targets[1].clamp(min=3)
    decoder.excluded_ids = (0, 2, VOCABULARY - 1)
    targets[targets == VOCABULARY - 1] = 5
    got = token_log_probs(decoder, hidden, targets, chunk_rows=4)
    kept = [i for i in range(VOCABULARY) if i not in decoder.excluded_ids]
    all_log_probs = torch.log_softmax(decoder.logits(hidden)[:, kept], dim=-1)
    places = torch.tensor([kept.index(target) for target in targets.tolist()])
    want = (all_log_probs.gather(1, places[:, None]).squeeze(1), -(all_log_probs.exp() * all_log_probs).sum(-1))
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)
    for ours, theirs in zip(gradients(decoder, hidden, got), gradients(decoder, hidden, want), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)


class Sizes(TorchDispatchMode):
    """The largest leading extent of any tensor as wide as the vocabulary."""

    most_rows = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.dim() == 2 and tensor.shape[1] == VOCABULARY:
                self.most_rows = max(self.most_rows, tensor.shape[0])
        return result


def test_the_logits_never_exist_whole() -> None:
    decoder = random_decoder(PLAIN)
    hidden, targets = draw(100)
    with Sizes() as sizes:
        log_probs, entropies = token_log_probs(decoder, hidden, targets, chunk_rows=8)
        (log_probs.sum() + entropies.sum()).backward()
    # Eight rows of logits; the weight's transpose is [16, vocabulary].
    assert sizes.most_rows == 16


@pytest.mark.parametrize(("rows", "chunks"), [(32, [32]), (33, [17, 16]), (100, [25, 25, 25, 25])])
def test_chunks_are_of_about_one_size(rows, chunks, monkeypatch) -> None:
    """Matrix libraries take other kernels below 16 rows."""
    decoder = random_decoder(PLAIN)
    logits, seen = decoder.logits, []
    monkeypatch.setattr(decoder, "logits", lambda part: seen.append(len(part)) or logits(part))
    token_log_probs(decoder, *draw(rows), chunk_rows=32)
    assert seen == chunks


def test_nothing_as_wide_as_the_vocabulary_is_kept_for_backward() -> None:
    decoder = random_decoder(PLAIN)
    hidden, targets = draw(100)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda t: t):
        token_log_probs(decoder, hidden, targets, chunk_rows=8)
    assert not [shape for shape in kept if len(shape) == 2 and shape[1] == VOCABULARY]


def test_bad_input_is_refused() -> None:
    decoder = random_decoder(PLAIN)
    hidden, targets = draw(4)
    for options, message in [
        ({"temperature": 0.0}, r"temperature: want a number > 0, given 0.0"),
        ({"temperature": float("nan")}, r"temperature: want a number > 0"),
        ({"chunk_rows": 0}, r"chunk_rows: want >= 1, given 0"),
    ]:
        with pytest.raises(InputError, match=message):
            token_log_probs(decoder, hidden, targets, **options)
    with pytest.raises(InputError, match=r"targets: want one per row of hidden \(= 4\), given \[3\]"):
        token_log_probs(decoder, hidden, targets[:3])
