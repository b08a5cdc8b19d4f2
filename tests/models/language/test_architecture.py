"""Architectures: what is read from config.json, what is refused, what is derived."""

import dataclasses
import math
import subprocess
import sys

import pytest

from hpcrl.errors import InputError
from hpcrl.models.language import Architecture, Rope

LLAMA = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
QWEN2, GEMMA2 = LLAMA | {"model_type": "qwen2"}, LLAMA | {"model_type": "gemma2"}


PUBLISHED = {
    "Llama-3.1-8B": (
        {
            "model_type": "llama",
            "vocab_size": 128_256,
            "hidden_size": 4096,
            "intermediate_size": 14_336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131_072,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500_000.0,
            "rope_scaling": {
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
            "pretraining_tp": 1,
            "mlp_bias": False,
            "attention_bias": False,
        },
        8_030_261_248,
        131_072,
    ),
    "Qwen2.5-0.5B": (
        {
            "model_type": "qwen2",
            "vocab_size": 151_936,
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32_768,
            "max_window_layers": 24,
            "sliding_window": 32_768,
            "use_sliding_window": False,
            "use_mrope": False,
            "rope_theta": 1_000_000.0,
            "tie_word_embeddings": True,
        },
        494_032_768,
        32_768,
    ),
    "Qwen3-0.6B": (
        {
            "model_type": "qwen3",
            "vocab_size": 151_936,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 40_960,
            "max_window_layers": 28,
            "sliding_window": None,
            "use_sliding_window": False,
            "rope_scaling": None,
            "rope_theta": 1_000_000,
            "tie_word_embeddings": True,
        },
        596_049_920,
        40_960,
    ),
    "Mistral-7B-v0.1": (
        {
            "model_type": "mistral",
            "vocab_size": 32_000,
            "hidden_size": 4096,
            "intermediate_size": 14_336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 32_768,
            "sliding_window": 4096,
            "rope_theta": 10_000.0,
        },
        7_241_732_096,
        32_768,
    ),
    "gemma-2-2b": (
        {
            "model_type": "gemma2",
            "vocab_size": 256_000,
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_hidden_layers": 26,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "max_position_embeddings": 8192,
            "sliding_window": 4096,
            "query_pre_attn_scalar": 256,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh",
            "cache_implementation": "hybrid",
        },
        2_614_341_888,
        8192,
    ),
    "gpt2": (
        {
            "model_type": "gpt2",
            "vocab_size": 50_257,
            "n_embd": 768,
            "n_layer": 12,
            "n_head": 12,
            "n_positions": 1024,
            "n_ctx": 1024,
            "summary_type": "cls_index",
            "activation_function": "gelu_new",
            "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
        },
        124_439_808,
        1024,
    ),
}
"""Shapes of published models, the number of parameters that they are known to have, and their contexts."""


def read(config: dict, **changes) -> Architecture:
    return Architecture.from_hugging_face(config | changes)


def test_importing_an_architecture_imports_no_torch() -> None:
    code = "import sys, hpcrl.models.language; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_small_llama_from_nothing() -> None:
    small = Architecture.llama(64)
    assert (small.hidden_size, small.intermediate_size, small.head_dim) == (128, 352, 32)
    assert small.num_kv_heads == small.num_heads
    assert Architecture.from_hugging_face(small.to_hugging_face()) == small
    with pytest.raises(InputError, match=r"hidden_size: want a multiple of num_heads \(= 3\), given 128"):
        Architecture.llama(64, num_heads=3)


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2}},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500_000}},
        {"rope_theta": 5e5, "rope_parameters": {"rope_type": "linear", "factor": 2.0}, "rope_scaling": None},
    ],
)
def test_every_spelling_of_rope_is_read(spelling) -> None:
    assert read(LLAMA, **spelling).rope == Rope(kind="linear", theta=5e5, factor=2.0)


def test_windows_follow_the_layers() -> None:
    assert read(LLAMA, model_type="mistral", sliding_window=8).windows == (8, 8, 8, 8)
    assert read(LLAMA, model_type="mistral", sliding_window=None).windows == ()
    assert read(GEMMA2, sliding_window=8).windows == (8, None, 8, None)
    assert read(QWEN2, sliding_window=8).windows == ()
    sliding = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3}
    assert read(QWEN2, **sliding).windows == (None, None, None, 8)
    kinds = ["full_attention", "sliding_attention", "full_attention", "full_attention"]
    assert read(QWEN2, **sliding, layer_types=kinds).windows == (None, 8, None, None)
    assert [read(GEMMA2, sliding_window=8).window(layer) for layer in range(2)] == [8, None]
    assert read(LLAMA).window(3) is None


def test_contexts() -> None:
    """yarn and llama3 stretch the original context, linear the stated one; dynamic ends where it would change."""
    config = LLAMA | {"max_position_embeddings": 64, "rope_theta": 1e4}
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    for scaling, context in [
        (None, 64),
        ({"rope_type": "linear", "factor": 4.0}, 256),
        ({"rope_type": "dynamic", "factor": 4.0}, 64),
        ({"rope_type": "yarn", "factor": 4.0}, 256),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}, 64),
        (llama3 | {"original_max_position_embeddings": 16}, 128),
    ]:
        assert read(config, rope_scaling=scaling).context_length == context


def test_yarns_magnitude() -> None:
    yarn = Rope(kind="yarn", factor=4.0, original_max_positions=16)
    assert yarn.magnitude == pytest.approx(0.1 * math.log(4.0) + 1.0)
    assert dataclasses.replace(yarn, attention_factor=1.5).magnitude == 1.5
    assert dataclasses.replace(yarn, factor=1.0).magnitude == 1.0
    scaled = dataclasses.replace(yarn, mscale=2.0, mscale_all_dim=1.0)
    assert scaled.magnitude == pytest.approx((0.2 * math.log(4.0) + 1.0) / (0.1 * math.log(4.0) + 1.0))
    assert Rope().magnitude == 1.0


def test_scales() -> None:
    assert read(LLAMA).attention_scale(3) == pytest.approx(8**-0.5)
    assert read(GEMMA2, query_pre_attn_scalar=144).attention_scale(0) == pytest.approx(1 / 12)
    gpt2 = {"model_type": "gpt2", "vocab_size": 9, "n_embd": 16, "n_layer": 3, "n_head": 4}
    assert read(gpt2, scale_attn_weights=False).attention_scale(1) == 1.0
    assert read(gpt2, scale_attn_by_inverse_layer_idx=True).attention_scale(1) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, r"model_type: want one of llama, .*gpt2, given 'mamba'"),
        ({"model_type": None}, r"model_type: want one of llama, .*given None"),
        ({"hidden_size": None}, r"hidden_size: want an integer >= 1, given None"),
        ({"vocab_size": 0}, r"vocab_size: want an integer >= 1, given 0"),
        ({"num_attention_heads": 4.0}, r"num_attention_heads: want an integer >= 1, given 4.0"),
        ({"num_key_value_heads": 3}, r"num_heads: want a multiple of num_kv_heads \(= 3\), given 4"),
        ({"head_dim": 7}, r"head_dim: want an even number"),
        ({"hidden_act": "relu"}, r"hidden_act: want one of 'silu'.*given 'relu'"),
        ({"tie_word_embeddings": "yes"}, r"tie_word_embeddings: want true or false, given 'yes'"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, r"rope_type: want one of .*given 'longrope'"),
        ({"rope_scaling": {"rope_type": "linear"}}, r"rope of type linear: factor: want a number, given None"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, r"llama3: low_freq_factor: want a number"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, r"want one for all layers"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, r"partial_rotary_factor: want 1.0, given 0.5"),
        ({"quantization_config": {"bits": 4}}, r"quantization_config: want None, given .*has no such part"),
        (
            {"model_type": "gemma2", "use_bidirectional_attention": True},
            r"use_bidirectional_attention: want .*given True",
        ),
        ({"model_type": "qwen2", "layer_types": ["chunked_attention"] * 4}, r"layer_types: want one of"),
        ({"model_type": "qwen2", "layer_types": ["sliding_attention"] * 4}, r"sliding_window: want a number"),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "layer_types": ["sliding_attention"] * 3},
            r"windows: want one per layer \(= 4\)",
        ),
        ({"model_type": "mistral", "layer_types": ["full_attention"] * 4}, r"layer_types: mistral has one window"),
        ({"model_type": "gpt2"}, r"n_embd: want an integer >= 1, given None"),
        ({"model_type": "gpt2", "n_embd": 10, "n_head": 3}, r"n_embd: want a multiple of n_head \(= 3\), given 10"),
        (
            {"model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 1, "add_cross_attention": True},
            r"add_cross_attention: want False, given True",
        ),
    ],
)
def test_what_this_decoder_has_not_is_refused_by_name(changes, message) -> None:
    with pytest.raises(InputError, match=message):
        read(LLAMA, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "batch"}, r"Architecture.norm: want one of 'rms'.*given 'batch'"),
        ({"windows": (4,)}, r"windows: want one per layer \(= 4\) or none, given 1"),
        ({"windows": (4, 0, 4, 4)}, r"windows: want an integer >= 1, given 0"),
        ({"logit_soft_cap": -1.0}, r"logit_soft_cap: want a number > 0, given -1.0"),
        ({"norm_eps": math.nan}, r"norm_eps: want a number > 0, given nan"),
    ],
)
def test_sizes_and_switches_are_checked(changes, message) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(Architecture.llama(10), **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"family": "mistral", "mlp_bias": True},
        {"family": "qwen2"},
        {"family": "gpt2"},
        {"windows": (4, 4, 4, 4)},
        {"family": "mistral", "windows": (4, None, 4, 4)},
        {"family": "gemma2", "query_scalar": 3.5},
    ],
)
def test_a_family_that_cannot_say_it_is_refused(changes) -> None:
    odd = dataclasses.replace(Architecture.llama(10), **changes)
    with pytest.raises(InputError, match=r"config cannot say .*choose another family"):
        odd.to_hugging_face()


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_their_number_of_parameters(name) -> None:
    from hpcrl.models.language.decoder import Decoder

    config, num_parameters, context = PUBLISHED[name]
    architecture = Architecture.from_hugging_face(config)
    assert architecture.context_length == context
    assert Architecture.from_hugging_face(architecture.to_hugging_face()) == architecture
    decoder = Decoder(architecture, device="meta")
    assert sum(parameter.numel() for parameter in decoder.parameters()) == num_parameters
