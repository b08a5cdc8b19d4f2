"""Random tiny models of every family in transformers, in float32 as it is and in float64 throughout."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install --group test")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

PREFIXES = {
    "llama": "Llama",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "mistral": "Mistral",
    "gemma2": "Gemma2",
    "gpt2": "GPT2",
}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama tied, biases, head_dim": (
        "llama",
        {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "head_dim": 10},
    ),
    "llama every head its own keys, gelu": ("llama", {"num_key_value_heads": 4, "hidden_act": "gelu"}),
    "llama linear": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.5}, "rope_theta": 500.0}),
    "llama dynamic": ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}),
    "llama llama3": (
        "llama",
        {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 32}, "rope_theta": 500_000.0},
    ),
    "llama yarn": ("llama", {"rope_scaling": YARN}),
    "llama yarn, mscale": (
        "llama",
        {"rope_scaling": YARN | {"mscale": 0.7, "mscale_all_dim": 0.3, "beta_fast": 6.0, "truncate": False}},
    ),
    "qwen2": ("qwen2", {"rope_theta": 1_000_000.0}),
    "qwen2 tied, windows": (
        "qwen2",
        {"tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen2 yarn": ("qwen2", {"rope_scaling": YARN | {"attention_factor": 1.3}}),
    "qwen3": ("qwen3", {"head_dim": 12}),
    "qwen3 biases, windows": (
        "qwen3",
        {
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "mistral": ("mistral", {"sliding_window": 6}),
    "mistral without window": ("mistral", {"sliding_window": None, "head_dim": 6, "rope_theta": 1_000_000.0}),
    "gemma2": ("gemma2", {"query_pre_attn_scalar": 20, "head_dim": 12, "sliding_window": 5}),
    "gemma2 tight caps, biases, untied": (
        "gemma2",
        {
            "attn_logit_softcapping": 1.5,
            "final_logit_softcapping": 2.0,
            "attention_bias": True,
            "tie_word_embeddings": False,
        },
    ),
    "gemma2 no caps": ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "gpt2": ("gpt2", {}),
    "gpt2 unscaled, gelu, untied": (
        "gpt2",
        {"scale_attn_weights": False, "activation_function": "gelu", "tie_word_embeddings": False, "n_inner": 44},
    ),
    "gpt2 by inverse layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
}
LENGTHS = (7, 1, 19, 12, 30)
"""Of a ragged batch; longer than the windows, within each context."""


def random_case(seed: int) -> str:
    """Adds a case: a family and whatever its config can say, drawn; some of it far from any published model."""
    draw = random.Random(seed)
    family = draw.choice(list(PREFIXES))
    options: dict[str, Any] = {"tie_word_embeddings": draw.random() < 0.5}
    if family == "gpt2":
        options["scale_attn_weights"] = draw.random() < 0.6
        options["scale_attn_by_inverse_layer_idx"] = draw.random() < 0.5
        options["activation_function"] = draw.choice(["gelu", "gelu_new", "gelu_pytorch_tanh", "silu"])
    else:
        options |= _random_rope(draw)
        options["num_key_value_heads"] = draw.choice([1, 2, 4])
    if family in ("llama", "qwen3", "gemma2"):
        options["attention_bias"] = draw.random() < 0.5
    if family == "llama":
        options["mlp_bias"] = draw.random() < 0.5
    if family in ("llama", "qwen2", "qwen3", "mistral"):
        options["hidden_act"] = draw.choice(["silu", "gelu", "gelu_new", "gelu_pytorch_tanh"])
    if family in ("qwen2", "qwen3"):
        options["use_sliding_window"] = draw.random() < 0.6
        options |= {"sliding_window": draw.choice([1, 2, 5, 11]), "max_window_layers": draw.choice([0, 1, 2, 3])}
    if family == "mistral":
        options["sliding_window"] = draw.choice([None, 1, 3, 9, 40])
    if family == "gemma2":
        options |= {"sliding_window": draw.choice([1, 3, 9, 40]), "query_pre_attn_scalar": draw.choice([1, 10, 256])}
        options["attn_logit_softcapping"] = draw.choice([None, 0.5, 3.0])
        options["final_logit_softcapping"] = draw.choice([None, 1.0, 3.0])
    CASES[f"random {seed}"] = (family, options)
    return f"random {seed}"


def _random_rope(draw: random.Random) -> dict[str, Any]:
    kind, theta = draw.choice(["default", "linear", "dynamic", "llama3", "yarn"]), draw.choice([100.0, 1e4, 1e6])
    if kind == "default":
        return {"rope_theta": theta}
    scaling: dict[str, Any] = {"rope_type": kind, "factor": draw.choice([1.5, 2.0, 4.0])}
    if kind in ("llama3", "yarn"):
        scaling["original_max_position_embeddings"] = draw.choice([8, 16, 32])
    if kind == "llama3":
        scaling |= {"low_freq_factor": draw.choice([0.5, 1.0]), "high_freq_factor": draw.choice([2.0, 4.0])}
    if kind == "yarn":
        optional = [{}, {"attention_factor": 1.2}, {"mscale": 0.8, "mscale_all_dim": 0.5}, {"truncate": False}]
        scaling |= draw.choice(optional) | draw.choice([{}, {"beta_fast": 4.0, "beta_slow": 0.5}])
    return {"rope_theta": theta, "rope_scaling": scaling}


def config(case: str, **changes: Any) -> Any:
    """A transformers config of random small sizes, drawn from the case's name."""
    family, options = CASES[case]
    draw = np.random.default_rng(list(case.encode()))
    head_dim = 2 * int(draw.integers(3, 7))
    vocab_size = int(draw.integers(40, 70))
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if family == "gpt2":
        sizes = {"n_embd": 4 * head_dim, "n_layer": 3, "n_head": 4, "n_positions": 40}
    else:
        sizes = {
            "hidden_size": 4 * head_dim,
            "intermediate_size": int(draw.integers(20, 60)),
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": int(draw.choice([1, 2])),
            "head_dim": head_dim,
            "max_position_embeddings": 64,
        }
    kind = getattr(transformers, f"{PREFIXES[family]}Config")
    return kind(**{"vocab_size": vocab_size, **sizes, **ids, "attn_implementation": "eager", **options, **changes})


def model(case: str, kind: str = "CausalLM", dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A model with random weights, so strong that every part shows in the logits."""
    family, _ = CASES[case]
    class_name = "GPT2LMHeadModel" if (family, kind) == ("gpt2", "CausalLM") else f"{PREFIXES[family]}For{kind}"
    made = getattr(transformers, class_name)(config(case, **changes)).to(dtype).eval()
    generator = torch.Generator().manual_seed(len(case))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            is_norm = name.endswith("weight") and ("norm" in name or ".ln_" in name)
            centre = 1.0 if is_norm and family != "gemma2" else 0.0
            parameter.copy_(centre + 0.25 * torch.randn(parameter.shape, generator=generator, dtype=dtype))
    return made


def ragged_batch(vocab_size: int, seed: int = 0) -> tuple[torch.Tensor, list[int]]:
    """Random tokens and the offsets of `LENGTHS`."""
    offsets = [0, *np.cumsum(LENGTHS).tolist()]
    return torch.randint(vocab_size, (offsets[-1],), generator=torch.Generator().manual_seed(seed)), offsets


class _Float64(TorchFunctionMode):
    """transformers computes norms, softmax and angles in float32 whatever the weights are; this makes them float64."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        wider = {torch.float32: torch.float64}
        kwargs = {
            name: wider.get(value, value) if isinstance(value, torch.dtype) else value
            for name, value in (kwargs or {}).items()
        }
        args = tuple(wider.get(value, value) if isinstance(value, torch.dtype) else value for value in args)
        return args[0].double() if function is torch.Tensor.float else function(*args, **kwargs)


@contextlib.contextmanager
def float64_throughout() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        with _Float64():
            yield
    finally:
        torch.set_default_dtype(torch.float32)
