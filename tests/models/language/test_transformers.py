"""Logits of every family against transformers, packed ragged batches against unpadded single sequences."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from transformers_models import (
    CASES,
    PREFIXES,
    config,
    float64_throughout,
    model,
    ragged_batch,
    random_case,
    transformers,
)

from hpcrl.models.language import Architecture, Rope
from hpcrl.models.language.decoder import Decoder
from hpcrl.models.language.hugging_face import load_decoder, save_folder

EAGER = {"attn_implementation": "eager", "dtype": "auto"}


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


@pytest.mark.parametrize("seed", [*range(8), *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(8, 250))])
def test_drawn_architectures_equal_transformers_to_1e_10(seed, tmp_path) -> None:
    test_float64_logits_equal_transformers_to_1e_10(random_case(seed), tmp_path)


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


def family_cases() -> list[str]:
    """The first case of each family and those that are tied otherwise."""
    return [*{family: case for case, (family, _) in reversed(CASES.items())}.values(), "qwen2 tied, windows"]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folder_goes_from_transformers_to_us_and_back_with_equal_bits(case, dtype, tmp_path) -> None:
    reference = model(case, dtype=dtype)
    reference.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    save_folder(tmp_path / "ours", load_decoder(tmp_path / "theirs", dtype=dtype))
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", **EAGER)
    assert type(opened) is type(reference)
    assert_equal_tensors(opened, reference)
    if dtype == torch.float32:
        tokens, offsets = ragged_batch(reference.config.vocab_size)
        want = theirs_one_by_one(reference, tokens, offsets)
        # Not bit for bit: what is mapped from a file begins anywhere in memory, and products of few rows feel that.
        torch.testing.assert_close(theirs_one_by_one(opened.eval(), tokens, offsets), want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", family_cases())
def test_bfloat16_errs_no_more_than_transformers(case, tmp_path) -> None:
    reference = model(case, dtype=torch.bfloat16)
    reference.save_pretrained(tmp_path)
    tokens, offsets = ragged_batch(reference.config.vocab_size)
    exact = ours_packed(load_decoder(tmp_path, dtype=torch.float64), tokens, offsets)
    ours = ours_packed(load_decoder(tmp_path, dtype=torch.bfloat16), tokens, offsets)
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, **EAGER).eval()
    theirs = theirs_one_by_one(opened, tokens, offsets)
    assert theirs.dtype == torch.bfloat16
    assert ours.dtype == torch.float32
    assert (ours - exact).norm() <= 1.2 * (theirs - exact).norm()


def assert_equal_tensors(one, other) -> None:
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].dtype == second[name].dtype
        assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize("case", CASES)
def test_a_folder_goes_from_us_to_transformers_and_back_with_equal_bits(case, tmp_path) -> None:
    architecture = Architecture.from_hugging_face(config(case).to_dict())
    decoder = Decoder(architecture)
    decoder.initialize(torch.Generator().manual_seed(3), std=0.3)
    save_folder(tmp_path / "ours", decoder, max_shard_bytes=20_000)
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", **EAGER).eval()
    tokens, offsets = ragged_batch(architecture.vocab_size)
    want = theirs_one_by_one(opened, tokens, offsets)
    torch.testing.assert_close(ours_packed(decoder, tokens, offsets), want, atol=1e-4, rtol=0)
    opened.save_pretrained(tmp_path / "theirs")
    back = load_decoder(tmp_path / "theirs")
    assert back.architecture == architecture
    for name, array in back.arrays().items():
        assert np.array_equal(array, decoder.arrays()[name]), name


@pytest.mark.parametrize("case", family_cases())
@pytest.mark.parametrize("kind", ["Sequence", "Token"])
def test_a_classifier_with_one_label_is_a_value_head(case, kind, tmp_path) -> None:
    reference = model(case, f"{kind}Classification", num_labels=1)
    reference.save_pretrained(tmp_path / "theirs")
    decoder = load_decoder(tmp_path / "theirs", heads=("value",))
    tokens, offsets = ragged_batch(reference.config.vocab_size)
    tokens = tokens.clamp(min=3)  # transformers scores a sequence at its last token that is not padding
    theirs = [reference(tokens[a:b][None], use_cache=False).logits[0] for a, b in itertools.pairwise(offsets)]
    values = decoder.values(decoder(tokens, offsets))
    if kind == "Token":
        torch.testing.assert_close(values, torch.cat(theirs).squeeze(1), atol=1e-4, rtol=0)
    else:
        ends = torch.tensor(offsets[1:]) - 1
        torch.testing.assert_close(values[ends], torch.cat(theirs), atol=1e-4, rtol=0)
    save_folder(tmp_path / "ours", decoder, value_class=kind.lower(), extra_config={"pad_token_id": 0})
    auto = getattr(transformers, f"AutoModelFor{kind}Classification")
    opened = auto.from_pretrained(tmp_path / "ours")
    assert type(opened) is type(reference)
    assert opened.config.num_labels == 1
    assert_equal_tensors(opened, reference)


@pytest.mark.parametrize("case", ["llama", "gpt2"])
def test_a_value_head_beside_the_language_head_hinders_no_one(case, tmp_path) -> None:
    """One folder opens as a language model and as a critic."""
    decoder = Decoder(Architecture.from_hugging_face(config(case).to_dict()), heads=("language", "value"))
    decoder.initialize(torch.Generator().manual_seed(3), std=0.3)
    with torch.no_grad():
        decoder.score.weight.normal_(generator=torch.Generator().manual_seed(4))
    save_folder(tmp_path / "both", decoder)
    tokens, offsets = ragged_batch(decoder.architecture.vocab_size)
    language = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "both", **EAGER).eval()
    want = theirs_one_by_one(language, tokens, offsets)
    torch.testing.assert_close(ours_packed(decoder, tokens, offsets), want, atol=1e-4, rtol=0)
    options = {"num_labels": 1, "pad_token_id": 0}
    auto = transformers.AutoModelForSequenceClassification
    critic = auto.from_pretrained(tmp_path / "both", **EAGER, **options).eval()
    with torch.no_grad():
        want = critic(tokens.clamp(min=3)[: offsets[1]][None]).logits[0]
        values = decoder.values(decoder(tokens.clamp(min=3)[: offsets[1]], [0, offsets[1]]))
    torch.testing.assert_close(values[-1:], want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_configs_say_the_same_in_both_spellings(case) -> None:
    """5.x writes `rope_parameters`, 4.5x `rope_theta` and `rope_scaling`; transformers reads ours as its own."""
    theirs = config(case)
    architecture = Architecture.from_hugging_face(theirs.to_dict())
    ours = architecture.to_hugging_face()
    assert Architecture.from_hugging_face(ours) == architecture
    read = type(theirs).from_dict(ours)
    assert Architecture.from_hugging_face(read.to_dict()) == architecture


@pytest.mark.parametrize("family", PREFIXES)
def test_absent_keys_have_transformers_defaults(family) -> None:
    """A config.json may leave out what its family's class fills in."""
    sizes = {"vocab_size": 64, "hidden_size": 256, "intermediate_size": 96, "num_hidden_layers": 30}
    sizes |= {"num_attention_heads": 32}
    if family == "gpt2":
        sizes = {"vocab_size": 64, "n_embd": 256, "n_layer": 30, "n_head": 8}
    filled = getattr(transformers, f"{PREFIXES[family]}Config")(**sizes)
    assert Architecture.from_hugging_face({"model_type": family, **sizes}) == Architecture.from_hugging_face(
        filled.to_dict()
    )
