"""Logits of every family against transformers, packed ragged batches against unpadded single sequences."""

import dataclasses
import itertools

import pytest
import torch
from transformers_models import CASES, float64_throughout, model, ragged_batch

from hpcrl.models.language import Rope
from hpcrl.models.language.decoder import Decoder
from hpcrl.models.language.hugging_face import load_decoder


def theirs_one_by_one(reference, tokens, offsets) -> torch.Tensor:
    with torch.no_grad():
        rows = [reference(tokens[a:b][None], use_cache=False).logits[0] for a, b in itertools.pairwise(offsets)]
    return torch.cat(rows)


def ours_packed(decoder: Decoder, tokens, offsets) -> torch.Tensor:
    with torch.no_grad():
        return decoder.logits(decoder(tokens, torch.tensor(offsets)))


@pytest.mark.parametrize("case", CASES)
def test_float32_logits_equal_transformers_to_1e_4(case: str, tmp_path) -> None:
    reference = model(case)
    reference.save_pretrained(tmp_path)
    tokens, offsets = ragged_batch(reference.config.vocab_size)
    want = theirs_one_by_one(reference, tokens, offsets)
    assert want.std() > 0.1
    torch.testing.assert_close(ours_packed(load_decoder(tmp_path), tokens, offsets), want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_float64_logits_equal_transformers_to_1e_10(case: str, tmp_path) -> None:
    with float64_throughout():
        reference = model(case, dtype=torch.float64)
        reference.save_pretrained(tmp_path)
        tokens, offsets = ragged_batch(reference.config.vocab_size)
        want = theirs_one_by_one(reference, tokens, offsets)
    decoder = load_decoder(tmp_path, dtype=torch.float64)
    torch.testing.assert_close(ours_packed(decoder, tokens, offsets), want, atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("case", "plain"),
    [
        ("llama linear", {"rope": Rope(theta=500.0)}),
        ("llama llama3", {"rope": Rope(theta=500_000.0)}),
        ("llama yarn", {"rope": Rope()}),
        ("qwen2 tied, windows", {"windows": ()}),
        ("mistral", {"windows": ()}),
        ("gemma2", {"attention_soft_cap": None}),
        ("gemma2", {"logit_soft_cap": None}),
        ("gemma2", {"query_scalar": None}),
        ("gemma2", {"embedding_multiplier": 1.0}),
        ("gpt2", {"activation": "gelu"}),
        ("gpt2 by inverse layer", {"scale_by_inverse_layer": False}),
    ],
)
def test_each_part_shows_in_the_logits(case: str, plain: dict, tmp_path) -> None:
    """Else the comparisons above would prove nothing about it."""
    reference = model(case)
    reference.save_pretrained(tmp_path)
    tokens, offsets = ragged_batch(reference.config.vocab_size)
    decoder = load_decoder(tmp_path)
    without = Decoder(dataclasses.replace(decoder.architecture, **plain))
    without.load_state_dict(decoder.state_dict())
    difference = ours_packed(without, tokens, offsets) - ours_packed(decoder, tokens, offsets)
    assert difference.abs().max() > 5e-4
