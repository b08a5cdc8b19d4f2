"""What a decoder is made of, for all families; to and from Hugging Face's config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from hpcrl.errors import InputError
from hpcrl.models.checks import check_member

Family = Literal["llama", "qwen2", "qwen3", "mistral", "gemma2", "gpt2"]
FAMILIES: tuple[Family, ...] = ("llama", "qwen2", "qwen3", "mistral", "gemma2", "gpt2")
"""Values of `model_type` that open."""

Norm = Literal["rms", "rms_one_plus", "layer"]
Activation = Literal["silu", "gelu", "gelu_tanh", "gelu_new"]
RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn"]

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_new",
}
_ACTIVATION_NAMES: dict[Activation, str] = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "gelu_new": "gelu_new",
}
_CLASS_PREFIXES: dict[Family, str] = {
    "llama": "Llama",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "mistral": "Mistral",
    "gemma2": "Gemma2",
    "gpt2": "GPT2",
}


def _check_count(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name}: want an integer >= 1, given {value!r}")


def _check_positive(name: str, value: object) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise InputError(f"{name}: want a number > 0, given {value!r}")


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary position embedding (Su et al. 2021, arXiv:2104.09864) and how it is stretched to longer contexts."""

    kind: RopeKind = "default"
    """linear: positions / factor.  dynamic: the default up to `max_positions`, where this decoder ends.  llama3 and
    yarn (Peng et al. 2023, arXiv:2309.00071): by wavelength."""
    theta: float = 10_000.0
    """Base of the wavelengths."""
    factor: float = 1.0
    """Contexts become this much longer; all kinds but default."""
    original_max_positions: int | None = None
    """Context before stretching; llama3 and yarn."""
    low_freq_factor: float | None = None
    """llama3: wavelengths above original_max_positions / this are stretched whole."""
    high_freq_factor: float | None = None
    """llama3: wavelengths below original_max_positions / this are left alone."""
    attention_factor: float | None = None
    """yarn: cosines and sines are multiplied by it; None: from factor, mscale and mscale_all_dim."""
    beta_fast: float = 32.0
    """yarn: dimensions that turn more often within the original context are left alone."""
    beta_slow: float = 1.0
    """yarn: dimensions that turn less often are stretched whole."""
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    """yarn: the borders of the ramp are rounded outwards to whole dimensions."""

    def __post_init__(self) -> None:
        check_member("Rope.kind", self.kind, ("default", "linear", "dynamic", "llama3", "yarn"))
        _check_positive("Rope.theta", self.theta)
        _check_positive("Rope.factor", self.factor)
        if self.kind in ("llama3", "yarn"):
            _check_count("Rope.original_max_positions", self.original_max_positions)
        if self.kind == "llama3":
            _check_positive("Rope.low_freq_factor", self.low_freq_factor)
            _check_positive("Rope.high_freq_factor", self.high_freq_factor)

    @property
    def magnitude(self) -> float:
        """What cosines and sines are multiplied by: 1, but for yarn (its section 3.4)."""
        if self.kind != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._mscale(self.mscale) / self._mscale(self.mscale_all_dim)
        return self._mscale(1.0)

    def _mscale(self, coefficient: float) -> float:
        return 1.0 if self.factor <= 1 else 0.1 * coefficient * math.log(self.factor) + 1.0


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The shape of a decoder: sizes and switches, no weights.

    `Architecture.llama(vocab_size)` makes a small one; `from_hugging_face` reads a config.json.  No dropout anywhere.
    Raises InputError for sizes that do not fit each other.
    """

    family: Family = "llama"
    """Which `model_type` it is written as."""
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    """Units inside the MLP."""
    num_layers: int
    num_heads: int
    num_kv_heads: int
    """Key and value heads; each serves num_heads / num_kv_heads query heads (Ainslie et al. 2023, arXiv:2305.13245)."""
    head_dim: int
    max_positions: int
    """Context that the model was made for."""
    norm: Norm = "rms"
    """rms: w x / rms(x); rms_one_plus: (1 + w) x / rms(x); layer: mean subtracted, with bias."""
    norm_eps: float = 1e-6
    post_norms: bool = False
    """A norm after attention and after the MLP too, before the residual is added."""
    query_key_norm: bool = False
    """rms norm over each head's query and key, before rotation."""
    rope: Rope | None = Rope()
    """None: no rotation."""
    learned_positions: bool = False
    """A learned vector per position is added to the embedding."""
    query_key_value_bias: bool = False
    attention_output_bias: bool = False
    mlp_bias: bool = False
    gated_mlp: bool = True
    """down(activation(gate(x)) * up(x)); else down(activation(up(x)))."""
    activation: Activation = "silu"
    """gelu_tanh and gelu_new are one function under two names."""
    windows: tuple[int | None, ...] = ()
    """Per layer: keys a query sees, itself included; None: all. (): no layer has a window."""
    query_scalar: float | None = None
    """Scores are divided by its square root; None: head_dim."""
    scale_by_inverse_layer: bool = False
    """Scores of layer i are divided by i + 1 as well."""
    attention_soft_cap: float | None = None
    """Scores become cap tanh(scores / cap)."""
    logit_soft_cap: float | None = None
    """Logits become cap tanh(logits / cap)."""
    embedding_multiplier: float = 1.0
    """Token embeddings are multiplied by it."""
    tied_embeddings: bool = False
    """The language head is the embedding."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads"):
            _check_count(f"Architecture.{name}", getattr(self, name))
        _check_count("Architecture.head_dim", self.head_dim)
        _check_count("Architecture.max_positions", self.max_positions)
        check_member("Architecture.family", self.family, FAMILIES)
        check_member("Architecture.norm", self.norm, ("rms", "rms_one_plus", "layer"))
        check_member("Architecture.activation", self.activation, tuple(_ACTIVATION_NAMES))
        if self.num_heads % self.num_kv_heads:
            raise InputError(
                f"Architecture.num_heads: want a multiple of num_kv_heads (= {self.num_kv_heads}), "
                f"given {self.num_heads}"
            )
        if self.rope is not None and self.head_dim % 2:
            raise InputError(f"Architecture.head_dim: want an even number (pairs are rotated), given {self.head_dim}")
        if self.windows and len(self.windows) != self.num_layers:
            raise InputError(
                f"Architecture.windows: want one per layer (= {self.num_layers}) or none, given {len(self.windows)}"
            )
        for window in self.windows:
            if window is not None:
                _check_count("Architecture.windows", window)
        for name in ("norm_eps", "query_scalar", "attention_soft_cap", "logit_soft_cap", "embedding_multiplier"):
            if getattr(self, name) is not None:
                _check_positive(f"Architecture.{name}", getattr(self, name))

    @classmethod
    def llama(
        cls,
        vocab_size: int,
        *,
        hidden_size: int = 128,
        num_layers: int = 4,
        num_heads: int = 4,
        num_kv_heads: int | None = None,
        intermediate_size: int | None = None,
        max_positions: int = 2048,
        tied_embeddings: bool = True,
    ) -> Architecture:
        """A small llama to train from nothing.

        `num_kv_heads` defaults to `num_heads`; `intermediate_size` to 8/3 hidden_size, up to the next multiple of 32: a
        gated MLP then has about the parameters of a plain one four times as wide (Shazeer 2020, arXiv:2002.05202).
        Example:
            >>> Architecture.llama(64, hidden_size=128).intermediate_size
            352
        """
        if hidden_size % num_heads:
            raise InputError(f"hidden_size: want a multiple of num_heads (= {num_heads}), given {hidden_size}")
        return cls(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            intermediate_size=intermediate_size or -(-8 * hidden_size // 96) * 32,
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads or num_heads,
            head_dim=hidden_size // num_heads,
            max_positions=max_positions,
            tied_embeddings=tied_embeddings,
        )

    @property
    def context_length(self) -> int:
        """Tokens a sequence may have: `max_positions`, or what linear, llama3 or yarn stretch it to."""
        if self.learned_positions or self.rope is None or self.rope.kind in ("default", "dynamic"):
            return self.max_positions
        stretched = self.rope.factor * (self.rope.original_max_positions or self.max_positions)
        return max(self.max_positions, int(stretched))

    @property
    def class_prefix(self) -> str:
        """The family in Hugging Face's class names: `LlamaForCausalLM`."""
        return _CLASS_PREFIXES[self.family]

    def window(self, layer: int) -> int | None:
        """Keys a query of this layer sees, itself included; None: all."""
        return self.windows[layer] if self.windows else None

    def attention_scale(self, layer: int) -> float:
        """What this layer's scores are multiplied by."""
        scalar = self.head_dim if self.query_scalar is None else self.query_scalar
        scale = 1.0 / math.sqrt(scalar)
        return scale / (layer + 1) if self.scale_by_inverse_layer else scale

    @classmethod
    def from_hugging_face(cls, config: Mapping[str, Any]) -> Architecture:
        """Reads config.json, as transformers 4.5x (`rope_theta`, `rope_scaling`) or 5.x (`rope_parameters`) write it.

        A key that is absent has the value that transformers gives it.  Raises InputError for a family or a value that
        this decoder does not have.
        Example:
            >>> Architecture.from_hugging_face({"model_type": "mamba"})
            Traceback (most recent call last):
            ...
            hpcrl.errors.InputError: config.json: model_type: want one of llama, qwen2, qwen3, mistral, gemma2, gpt2, \
given 'mamba'; convert the model or open it elsewhere
        """
        family = config.get("model_type")
        if family not in FAMILIES:
            raise InputError(
                f"config.json: model_type: want one of {', '.join(FAMILIES)}, given {family!r}; "
                "convert the model or open it elsewhere"
            )
        _only(config, "quantization_config", None)
        return cls(**(_from_gpt2(config) if family == "gpt2" else _from_llama_like(family, config)))

    def to_hugging_face(self) -> dict[str, Any]:
        """The config.json of a causal language model, with keys that transformers 4.5x and 5.x both read.

        Raises InputError where the family's config cannot say what this architecture has.
        """
        config = _to_gpt2(self) if self.family == "gpt2" else _to_llama_like(self)
        read_back = Architecture.from_hugging_face(config)
        different = [f.name for f in fields(self) if getattr(self, f.name) != getattr(read_back, f.name)]
        # No windows can be said in two ways.
        if "windows" in different and not any(self.windows) and not any(read_back.windows):
            different.remove("windows")
        if different:
            own = ", ".join(f"{name}={getattr(self, name)!r}" for name in different)
            raise InputError(f"architecture: a {self.family} config cannot say {own}; choose another family")
        return config


def _from_llama_like(family: Family, config: Mapping[str, Any]) -> dict[str, Any]:
    gemma, qwen = family == "gemma2", family in ("qwen2", "qwen3")
    num_heads, hidden_size = _required(config, "num_attention_heads"), _required(config, "hidden_size")
    num_layers = _required(config, "num_hidden_layers")
    default_head_dim = {"qwen3": 128, "gemma2": 256}.get(family, hidden_size // num_heads)
    default_kv_heads = {"mistral": 8, "gemma2": 4, "qwen2": 32, "qwen3": 32}.get(family, num_heads)
    max_positions = int(
        config.get(
            "max_position_embeddings",
            {"llama": 2048, "mistral": 131_072, "gemma2": 8192}.get(family, 32_768),
        )
    )
    attention_bias = _flag(config, "attention_bias", False) if family in ("llama", "qwen3", "gemma2") else False
    _only(config, "use_bidirectional_attention", False)
    return {
        "family": family,
        "vocab_size": _required(config, "vocab_size"),
        "hidden_size": hidden_size,
        "intermediate_size": _required(config, "intermediate_size"),
        "num_layers": num_layers,
        "num_heads": num_heads,
        # null means as many as heads; absence means the family's default.
        "num_kv_heads": config.get("num_key_value_heads", default_kv_heads) or num_heads,
        "head_dim": config.get("head_dim") or default_head_dim,
        "max_positions": max_positions,
        "norm": "rms_one_plus" if gemma else "rms",
        "norm_eps": float(config.get("rms_norm_eps", 1e-6)),
        "post_norms": gemma,
        "query_key_norm": family == "qwen3",
        "rope": _rope(config, max_positions),
        "query_key_value_bias": True if family == "qwen2" else attention_bias,
        "attention_output_bias": attention_bias,
        "mlp_bias": _flag(config, "mlp_bias", False) if family == "llama" else False,
        "activation": _activation(config, "hidden_activation", "gelu_pytorch_tanh")
        if gemma
        else _activation(config, "hidden_act", "silu"),
        "windows": _windows(family, config, num_layers) if qwen or family in ("mistral", "gemma2") else (),
        "query_scalar": float(config.get("query_pre_attn_scalar", 256)) if gemma else None,
        "attention_soft_cap": _optional_number(config, "attn_logit_softcapping", 50.0) if gemma else None,
        "logit_soft_cap": _optional_number(config, "final_logit_softcapping", 30.0) if gemma else None,
        "embedding_multiplier": math.sqrt(hidden_size) if gemma else 1.0,
        "tied_embeddings": _flag(config, "tie_word_embeddings", gemma),
    }


def _from_gpt2(config: Mapping[str, Any]) -> dict[str, Any]:
    hidden_size, num_heads = _required(config, "n_embd"), _required(config, "n_head")
    if hidden_size % num_heads:
        raise InputError(f"config.json: n_embd: want a multiple of n_head (= {num_heads}), given {hidden_size}")
    _only(config, "add_cross_attention", False)
    return {
        "family": "gpt2",
        "vocab_size": _required(config, "vocab_size"),
        "hidden_size": hidden_size,
        "intermediate_size": config.get("n_inner") or 4 * hidden_size,
        "num_layers": _required(config, "n_layer"),
        "num_heads": num_heads,
        "num_kv_heads": num_heads,
        "head_dim": hidden_size // num_heads,
        "max_positions": config.get("n_positions", 1024),
        "norm": "layer",
        "norm_eps": float(config.get("layer_norm_epsilon", 1e-5)),
        "rope": None,
        "learned_positions": True,
        "query_key_value_bias": True,
        "attention_output_bias": True,
        "mlp_bias": True,
        "gated_mlp": False,
        "activation": _activation(config, "activation_function", "gelu_new"),
        "query_scalar": None if _flag(config, "scale_attn_weights", True) else 1.0,
        "scale_by_inverse_layer": _flag(config, "scale_attn_by_inverse_layer_idx", False),
        "tied_embeddings": _flag(config, "tie_word_embeddings", True),
    }


def _to_llama_like(architecture: Architecture) -> dict[str, Any]:
    family, windows = architecture.family, [window for window in architecture.windows if window is not None]
    config = {
        "architectures": [f"{architecture.class_prefix}ForCausalLM"],
        "model_type": family,
        "vocab_size": architecture.vocab_size,
        "hidden_size": architecture.hidden_size,
        "intermediate_size": architecture.intermediate_size,
        "num_hidden_layers": architecture.num_layers,
        "num_attention_heads": architecture.num_heads,
        "num_key_value_heads": architecture.num_kv_heads,
        "head_dim": architecture.head_dim,
        "max_position_embeddings": architecture.max_positions,
        "rms_norm_eps": architecture.norm_eps,
        "tie_word_embeddings": architecture.tied_embeddings,
        "attention_dropout": 0.0,
        **_rope_keys(architecture.rope),
    }
    config["hidden_activation" if family == "gemma2" else "hidden_act"] = _ACTIVATION_NAMES[architecture.activation]
    if family in ("llama", "qwen3", "gemma2"):
        config["attention_bias"] = architecture.attention_output_bias
    if family == "llama":
        config["mlp_bias"] = architecture.mlp_bias
    if family in ("mistral", "gemma2", "qwen2", "qwen3"):
        config["sliding_window"] = windows[0] if windows else None
    if family in ("gemma2", "qwen2", "qwen3"):
        sliding = [architecture.window(layer) is not None for layer in range(architecture.num_layers)]
        config["layer_types"] = ["sliding_attention" if s else "full_attention" for s in sliding]
    if family in ("qwen2", "qwen3"):
        config["use_sliding_window"] = bool(windows)
        config["max_window_layers"] = sliding.index(True) if windows else architecture.num_layers
    if family == "gemma2":
        scalar = architecture.head_dim if architecture.query_scalar is None else architecture.query_scalar
        config["query_pre_attn_scalar"] = int(scalar) if scalar == int(scalar) else scalar
        config["attn_logit_softcapping"] = architecture.attention_soft_cap
        config["final_logit_softcapping"] = architecture.logit_soft_cap
    return config


def _to_gpt2(architecture: Architecture) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": architecture.vocab_size,
        "n_embd": architecture.hidden_size,
        "n_inner": architecture.intermediate_size,
        "n_layer": architecture.num_layers,
        "n_head": architecture.num_heads,
        "n_positions": architecture.max_positions,
        "layer_norm_epsilon": architecture.norm_eps,
        "activation_function": _ACTIVATION_NAMES[architecture.activation],
        "scale_attn_weights": architecture.query_scalar is None,
        "scale_attn_by_inverse_layer_idx": architecture.scale_by_inverse_layer,
        "tie_word_embeddings": architecture.tied_embeddings,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    }


def _rope(config: Mapping[str, Any], max_positions: int) -> Rope:
    """4.5x: `rope_theta` and `rope_scaling`, which is null for the default; 5.x: all in `rope_parameters`."""
    given: Mapping[str, Any] = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if any(isinstance(value, Mapping) for value in given.values()):
        raise InputError("config.json: rope_parameters: want one for all layers, given one per layer type")
    for where in (config, given):
        _only(where, "partial_rotary_factor", 1.0)
    kind = given.get("rope_type", given.get("type", "default"))
    check_member("config.json: rope_type", kind, ("default", "linear", "dynamic", "llama3", "yarn"))
    theta = float(given.get("rope_theta") or config.get("rope_theta") or 10_000.0)
    if kind == "default":
        return Rope(theta=theta)
    known: dict[str, Any] = {"kind": kind, "theta": theta, "factor": float(_required_in(given, "factor", kind))}
    if kind in ("llama3", "yarn"):
        known["original_max_positions"] = given.get("original_max_position_embeddings") or max_positions
    if kind == "llama3":
        for name in ("low_freq_factor", "high_freq_factor"):
            known[name] = float(_required_in(given, name, kind))
    if kind == "yarn":
        for name in ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"):
            if given.get(name) is not None:
                known[name] = float(given[name])
        known["truncate"] = _flag(given, "truncate", True)
    return Rope(**known)


def _rope_keys(rope: Rope | None) -> dict[str, Any]:
    """The 4.5x spelling, which 5.x reads too."""
    if rope is None:
        return {}
    if rope.kind == "default":
        return {"rope_theta": rope.theta, "rope_scaling": None}
    scaling: dict[str, Any] = {"rope_type": rope.kind, "factor": rope.factor}
    if rope.kind in ("llama3", "yarn"):
        scaling["original_max_position_embeddings"] = rope.original_max_positions
    if rope.kind == "llama3":
        scaling |= {"low_freq_factor": rope.low_freq_factor, "high_freq_factor": rope.high_freq_factor}
    if rope.kind == "yarn":
        scaling |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow, "truncate": rope.truncate}
        optional = ("attention_factor", "mscale", "mscale_all_dim")
        scaling |= {name: getattr(rope, name) for name in optional if getattr(rope, name) is not None}
    return {"rope_theta": rope.theta, "rope_scaling": scaling}


def _windows(family: Family, config: Mapping[str, Any], num_layers: int) -> tuple[int | None, ...]:
    window = config.get("sliding_window", 4096)
    if family in ("qwen2", "qwen3") and not _flag(config, "use_sliding_window", False):
        window = None
    if family == "mistral":
        sliding = [True] * num_layers
        if any(kind != "sliding_attention" for kind in config.get("layer_types") or ()):
            raise InputError("config.json: layer_types: mistral has one window for all layers; want the key absent")
    elif (layer_types := config.get("layer_types")) is not None:
        for kind in layer_types:
            check_member("config.json: layer_types", kind, ("sliding_attention", "full_attention"))
        sliding = [kind == "sliding_attention" for kind in layer_types]
        if window is None and any(sliding):
            raise InputError("config.json: sliding_window: want a number, as layer_types has sliding_attention")
    elif family == "gemma2":
        sliding = [layer % 2 == 0 for layer in range(num_layers)]
    else:
        sliding = [layer >= config.get("max_window_layers", 28) for layer in range(num_layers)]
    windows = tuple(window if slides else None for slides in sliding)
    return windows if any(windows) else ()


def _activation(config: Mapping[str, Any], key: str, default: str) -> Activation:
    name = config.get(key) or default
    check_member(f"config.json: {key}", name, tuple(_ACTIVATIONS))
    return _ACTIVATIONS[name]


def _required(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    _check_count(f"config.json: {key}", value)
    assert isinstance(value, int)
    return value


def _required_in(rope: Mapping[str, Any], key: str, kind: str) -> float:
    value = rope.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise InputError(f"config.json: rope of type {kind}: {key}: want a number, given {value!r}")
    return value


def _flag(config: Mapping[str, Any], key: str, default: bool) -> bool:
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise InputError(f"config.json: {key}: want true or false, given {value!r}")
    return value


def _optional_number(config: Mapping[str, Any], key: str, default: float) -> float | None:
    value = config.get(key, default)
    return None if value is None else float(value)


def _only(config: Mapping[str, Any], key: str, wanted: object) -> None:
    """Absent, null or the one value that this decoder can do."""
    if config.get(key) not in (None, wanted):
        raise InputError(f"config.json: {key}: want {wanted!r}, given {config[key]!r}; this decoder has no such part")
