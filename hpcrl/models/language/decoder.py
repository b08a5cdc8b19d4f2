"""The decoder of all families, on packed sequences, open in the middle of each layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, silu
from torch.utils.checkpoint import checkpoint

from hpcrl.errors import InputError
from hpcrl.models.checks import check_member
from hpcrl.models.language.architecture import Architecture
from hpcrl.models.language.attention import Backend, PackedOffsets, attend
from hpcrl.models.language.normalization import LayerNorm, RmsNorm, norm_layer
from hpcrl.models.language.rotary import RotaryTable
from hpcrl.models.parameters import FlatParameters, check_arrays

Array = npt.NDArray[np.generic]
Head = Literal["language", "value"]
DTYPES = (torch.float32, torch.float64, torch.bfloat16)


class Linear(nn.Module):
    """x W^T + b, weights not drawn yet."""

    def __init__(self, num_inputs: int, num_outputs: int, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_outputs, num_inputs))
        self.bias = nn.Parameter(torch.empty(num_outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Embedding(nn.Module):
    """Rows of a table, not drawn yet."""

    def __init__(self, num_rows: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_rows, size))

    def forward(self, indices: Tensor) -> Tensor:
        return nn.functional.embedding(indices, self.weight)


class SelfAttention(nn.Module):
    """The projections around attention."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        hidden_size, head_dim = architecture.hidden_size, architecture.head_dim
        num_queries, num_keys = architecture.num_heads * head_dim, architecture.num_kv_heads * head_dim
        self.q_proj = Linear(hidden_size, num_queries, bias=architecture.query_key_value_bias)
        self.k_proj = Linear(hidden_size, num_keys, bias=architecture.query_key_value_bias)
        self.v_proj = Linear(hidden_size, num_keys, bias=architecture.query_key_value_bias)
        self.o_proj = Linear(num_queries, hidden_size, bias=architecture.attention_output_bias)
        self.q_norm: nn.Module | None = None
        self.k_norm: nn.Module | None = None
        if architecture.query_key_norm:
            self.q_norm = norm_layer("rms", head_dim, architecture.norm_eps)
            self.k_norm = norm_layer("rms", head_dim, architecture.norm_eps)


class Mlp(nn.Module):
    """down(activation(gate(x)) * up(x)), or without a gate down(activation(up(x)))."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        sizes, bias = (architecture.hidden_size, architecture.intermediate_size), architecture.mlp_bias
        self.gate_proj = Linear(*sizes, bias=bias) if architecture.gated_mlp else None
        self.up_proj = Linear(*sizes, bias=bias)
        self.down_proj = Linear(*reversed(sizes), bias=bias)
        self.activation = architecture.activation

    def forward(self, x: Tensor) -> Tensor:
        if self.gate_proj is None:
            return cast(Tensor, self.down_proj(self._activate(self.up_proj(x))))
        return cast(Tensor, self.down_proj(self._activate(self.gate_proj(x)) * self.up_proj(x)))

    def _activate(self, x: Tensor) -> Tensor:
        if self.activation == "silu":
            return silu(x)
        return gelu(x, approximate="none" if self.activation == "gelu" else "tanh")


class Layer(nn.Module):
    """Two functions with attention between them: `project`, then `attend` or a cache, then `complete`."""

    def __init__(self, architecture: Architecture, index: int, rotary: RotaryTable | None) -> None:
        super().__init__()
        self.window = architecture.window(index)
        """Keys a query sees, itself included; None: all."""
        self.scale = architecture.attention_scale(index)
        self.soft_cap = architecture.attention_soft_cap
        self.head_dim = architecture.head_dim
        self.rotary = rotary
        self.input_layernorm = self._norm(architecture)
        self.self_attn = SelfAttention(architecture)
        self.post_attention_layernorm = self._norm(architecture)
        # With norms on both sides, post_attention_layernorm is the one behind attention (gemma2's names).
        self.pre_feedforward_layernorm = self._norm(architecture) if architecture.post_norms else None
        self.post_feedforward_layernorm = self._norm(architecture) if architecture.post_norms else None
        self.mlp = Mlp(architecture)

    def project(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [T, heads, d], keys and values [T, kv_heads, d] of [T, hidden]; rotated to positions i64[T]."""
        attention = self.self_attn
        normalized = self.input_layernorm(hidden)
        q, k, v = (
            projection(normalized).unflatten(-1, (-1, self.head_dim))
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        if attention.q_norm is not None and attention.k_norm is not None:
            q, k = attention.q_norm(q), attention.k_norm(k)
        if self.rotary is not None:
            q, k = self.rotary.rotate(q, positions), self.rotary.rotate(k, positions)
        return q, k, v

    def complete(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """Output projection of attended [T, heads, d], residual, MLP, residual: the next layer's hidden [T, hidden]."""
        update: Tensor = self.self_attn.o_proj(attended.flatten(1))
        if self.pre_feedforward_layernorm is None or self.post_feedforward_layernorm is None:
            hidden = hidden + update
            update = self.mlp(self.post_attention_layernorm(hidden))
            return hidden + update
        hidden = hidden + self.post_attention_layernorm(update)
        update = self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(hidden)))
        return hidden + update

    def forward(
        self, hidden: Tensor, positions: Tensor, offsets: PackedOffsets, backend: Backend | None = None
    ) -> Tensor:
        """The whole layer on packed sequences."""
        q, k, v = self.project(hidden, positions)
        attended = attend(
            q, k, v, offsets, scale=self.scale, window=self.window, soft_cap=self.soft_cap, backend=backend
        )
        return self.complete(hidden, attended)

    @staticmethod
    def _norm(architecture: Architecture) -> RmsNorm | LayerNorm:
        return norm_layer(architecture.norm, architecture.hidden_size, architecture.norm_eps)


class Trunk(nn.Module):
    """Everything below the heads; `model` in parameter names."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.embed_tokens = Embedding(architecture.vocab_size, architecture.hidden_size)
        self.embed_positions = (
            Embedding(architecture.max_positions, architecture.hidden_size) if architecture.learned_positions else None
        )
        rotary = None
        if architecture.rope is not None:
            rotary = RotaryTable(architecture.rope, architecture.head_dim, architecture.context_length)
        self.layers = nn.ModuleList(Layer(architecture, index, rotary) for index in range(architecture.num_layers))
        self.norm = norm_layer(architecture.norm, architecture.hidden_size, architecture.norm_eps)


class Decoder(nn.Module):
    """A causal decoder with a language head, a value head or both.

    Weights are not drawn: call `initialize`, `load_arrays`, or open a folder with `load_decoder`.  No dropout.

    Args:
        architecture: sizes and switches.
        heads: "language" gives `logits`, "value" gives `values`.
        dtype: of parameters and arithmetic: float32, float64 or bfloat16 (norms and softmax in float32).
        value_bias: the value head has a bias, as transformers' token classification has; a reward model has none.
        device: where the parameters are; "meta" for names and shapes alone.
    Raises:
        InputError: heads or a dtype that do not exist.
    Example: two sequences of 2 and 3 tokens.
        >>> decoder = Decoder(Architecture.llama(10, hidden_size=8, num_layers=1, num_heads=2))
        >>> decoder.initialize(torch.Generator().manual_seed(0))
        >>> hidden = decoder(torch.tensor([1, 2, 1, 2, 3]), [0, 2, 5])
        >>> decoder.logits(hidden).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        heads: Sequence[Head] = ("language",),
        dtype: torch.dtype = torch.float32,
        value_bias: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        if tuple(heads) not in (("language",), ("language", "value"), ("value",)):
            raise InputError(f"heads: want ('language',), ('language', 'value') or ('value',), given {tuple(heads)}")
        check_member("dtype", dtype, DTYPES)
        self.architecture, self.heads = architecture, tuple(heads)
        self.checkpoint_activations = False
        """Backward computes each layer's inside again instead of keeping it: memory of one layer, a third more work."""
        self.excluded_ids: tuple[int, ...] = ()
        """Ids that are never sampled; probabilities of tokens are taken over the others."""
        self.attention_backend: Backend | None = None
        """Of `forward`; None: the fastest that can, as `attend` says."""
        # On no device first: two megabytes or twenty gigabytes are then allocated once, in their dtype.
        with torch.device("meta"):
            self.model = Trunk(architecture)
            has_own_head = "language" in heads and not architecture.tied_embeddings
            self.lm_head = (
                Linear(architecture.hidden_size, architecture.vocab_size, bias=False) if has_own_head else None
            )
            self.score = Linear(architecture.hidden_size, 1, bias=value_bias) if "value" in heads else None
        self.to(dtype).to_empty(device=device)
        # As the parameters' dtype holds it.
        self._embedding_multiplier = float(torch.tensor(architecture.embedding_multiplier, dtype=dtype))

    _flat: FlatParameters | None = None

    @property
    def layers(self) -> list[Layer]:
        """From the bottom up."""
        return cast(list[Layer], list(self.model.layers))

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return self.model.embed_tokens.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.model.embed_tokens.weight.device

    def initialize(self, generator: torch.Generator, *, std: float = 0.02, scale_residual: bool = False) -> None:
        """Weights normal(0, std), biases zero, norms the identity, value head zero.

        `scale_residual`: the two projections that write to the residual stream get std / sqrt(2 layers), as GPT-2 does
        (Radford et al. 2019, section 2.3).  The bits depend on the generator alone.
        """
        residual_std = std / math.sqrt(2 * self.architecture.num_layers) if scale_residual else std
        with torch.no_grad():
            for name, module in self.named_modules():
                if isinstance(module, RmsNorm | LayerNorm):
                    module.initialize()
                elif isinstance(module, Linear | Embedding):
                    if module is self.score:
                        module.weight.zero_()
                    else:
                        is_residual = name.endswith(("o_proj", "down_proj"))
                        module.weight.normal_(0.0, residual_std if is_residual else std, generator=generator)
                    if isinstance(module, Linear) and module.bias is not None:
                        module.bias.zero_()

    def embed(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """Hidden [T, hidden] of tokens i64[T]; positions i64[T] where the architecture learned them (gpt2)."""
        hidden = self.model.embed_tokens(tokens)
        if self._embedding_multiplier != 1.0:
            hidden = hidden * self._embedding_multiplier
        if self.model.embed_positions is not None:
            if positions is None:
                raise InputError("positions: this architecture learned its positions; want i64[T], given None")
            hidden = hidden + self.model.embed_positions(positions)
        return cast(Tensor, hidden)

    def forward(
        self, tokens: Tensor, offsets: PackedOffsets | Tensor | Sequence[int], *, positions: Tensor | None = None
    ) -> Tensor:
        """Hidden after the final norm, [T, hidden], of packed sequences.

        Args:
            tokens: i64[T].
            offsets: i64[S + 1]; a PackedOffsets made before saves asking the device.
            positions: i64[T]; default: from 0 in each sequence.
        Raises:
            InputError: offsets that do not fit, or a sequence longer than the context.
        """
        packed = PackedOffsets.of(offsets)
        if packed.num_tokens != len(tokens):
            raise InputError(f"offsets: want offsets[-1] = {len(tokens)} (= len(tokens)), given {packed.num_tokens}")
        if packed.longest > self.architecture.context_length:
            raise InputError(
                f"tokens: want sequences of at most {self.architecture.context_length} tokens (the context), "
                f"given one of {packed.longest}; shorten the prompt or the response"
            )
        if positions is None:
            positions = packed.positions(tokens.device)
        hidden = self.embed(tokens, positions)
        for layer in self.model.layers:
            arguments = (hidden, positions, packed, self.attention_backend)
            if self.checkpoint_activations and torch.is_grad_enabled():
                # Nothing is drawn inside a layer, so no generator's state need be kept.
                hidden = checkpoint(layer, *arguments, use_reentrant=False, preserve_rng_state=False)
            else:
                hidden = layer(*arguments)
        return self.normalize(hidden)

    def normalize(self, hidden: Tensor) -> Tensor:
        """The final norm."""
        return cast(Tensor, self.model.norm(hidden))

    def logits(self, hidden: Tensor) -> Tensor:
        """[N, vocabulary] of normalised hidden [N, hidden], soft cap applied; f32 (f64 for f64)."""
        if "language" not in self.heads:
            raise InputError("logits: this decoder has no language head; make it with heads=('language', 'value')")
        weight = self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight
        logits = linear(hidden, weight)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        cap = self.architecture.logit_soft_cap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def values(self, hidden: Tensor) -> Tensor:
        """[N] of normalised hidden [N, hidden]; f32 (f64 for f64)."""
        if self.score is None:
            raise InputError("values: this decoder has no value head; make it with heads=('language', 'value')")
        values = self.score(hidden).squeeze(-1)
        return cast(Tensor, values if values.dtype == torch.float64 else values.float())

    @property
    def flat(self) -> FlatParameters:
        """All parameters in one buffer and their gradients in another, moved there when first asked for."""
        if self._flat is None:
            self._flat = FlatParameters(self)
        return self._flat

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Zeros the gradients; flat ones stay views of their buffer, so `set_to_none` then has no effect."""
        if self._flat is None:
            super().zero_grad(set_to_none)
        else:
            self._flat.zero_gradients()

    def arrays(self) -> dict[str, Array]:
        """Parameters by name, copied; bf16 as f32, which holds each bf16."""
        return {
            name: (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().cpu().numpy().copy()
            for name, tensor in self.state_dict().items()
        }

    def load_arrays(self, arrays: Mapping[str, Array]) -> None:
        """Takes what `arrays()` gave; refuses other names or shapes and then changes nothing."""
        own = self.state_dict()
        check_arrays(own, arrays)
        for name, tensor in own.items():
            tensor.copy_(torch.tensor(arrays[name]))  # a copy: checkpoints are mapped read-only

    def _apply(self, fn: Any, recurse: bool = True) -> Decoder:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self._flat is not None:
            self._flat = FlatParameters(self)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Views do not survive copying and pickling; they are taken anew when asked for."""
        return {name: value for name, value in self.__dict__.items() if name != "_flat"}
