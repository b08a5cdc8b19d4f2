"""How many rows a forward pass may have so that each row keeps its bits: looked at once, on the machine that decodes.

Measured (AMD Zen 4, PyTorch 2.13, 1 thread): at a fixed number of rows, 1 to 64, a row of `linear` has the same bits at
any place, beside any neighbours, NaN among them; in float32 and float64 any number of rows from 4 to 1024 gives the
bits of 32 (Intel Xeon, AVX-512: from 16 on), and a matrix of `bmm` has the same bits in any batch; not in bfloat16.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from hpcrl.errors import InputError
from hpcrl.models.language.cache import KEYS_PER_BLOCK, attention_dtype
from hpcrl.models.language.decoder import Decoder

ROW_COUNTS = (4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 64, 80, 96, 128, 192, 256)
"""Numbers of rows that a pass may have, where they give a row the bits that `rows` give it."""
_WHOLE = 64
"""Elements of a multiple of every vector that PyTorch's loops take at a time."""

_counts_found: dict[tuple[object, ...], tuple[int, ...]] = {}


def equal_row_counts(decoder: Decoder, rows: int) -> tuple[int, ...]:
    """Numbers of rows, ascending, with which this machine gives each row of a pass the bits that it has among `rows`.

    Of `rows` itself it is asked that a row's bits depend neither on its place nor on the other rows. Looked at once per
    process for each architecture, dtype and number of threads, with random rows through every kind of product. Only on
    a CPU: elsewhere no bits are promised, and all numbers are there.
    Raises:
        InputError: `rows` itself, or attention's products, do not keep a row's bits; says what to do.
    """
    if decoder.device.type != "cpu":
        return tuple(sorted({rows, *ROW_COUNTS}))
    key = (decoder.architecture, decoder.dtype, rows, torch.get_num_threads())
    if key not in _counts_found:
        with torch.inference_mode():
            _counts_found[key] = _find_row_counts(decoder, rows)
    return _counts_found[key]


def _find_row_counts(decoder: Decoder, rows: int) -> tuple[int, ...]:
    architecture = decoder.architecture
    group_size = architecture.num_heads // architecture.num_kv_heads
    for queries in (group_size, KEYS_PER_BLOCK * group_size):
        if not _keeps_matrices(decoder, queries):
            raise InputError(_row_dependence(f"attention: a product of {queries} queries and its batch"))
    # One layer with weights of its own: those of a model that diverged, or was not drawn yet, would show nothing.
    generator = torch.Generator().manual_seed(rows)
    one_layer = dataclasses.replace(architecture, num_layers=1, windows=architecture.windows[:1])
    decoder = type(decoder)(one_layer, dtype=decoder.dtype)
    decoder.initialize(generator, std=architecture.hidden_size**-0.5)
    num_rows = -(-max(rows, *ROW_COUNTS) // rows) * rows
    hidden = torch.randn(num_rows, architecture.hidden_size, generator=generator).to(decoder.device, decoder.dtype)
    wanted = _without_attention(decoder, hidden, rows)
    # Backwards: each row at another place, beside others; then beside rows that are no numbers.
    moved = hidden.flip(0)
    if not torch.equal(_without_attention(decoder, moved, rows).flip(0), wanted):
        raise InputError(_row_dependence(f"rows: a row of {rows} and its neighbours"))
    moved[: num_rows // 2] = torch.nan
    kept = num_rows - num_rows // 2
    if not torch.equal(_without_attention(decoder, moved, rows).flip(0)[:kept], wanted[:kept]):
        raise InputError(_row_dependence(f"rows: a row of {rows} and its neighbours"))
    # What is left over behind the last whole vector is computed by other functions: elementwise ones want whole ones.
    widths = (architecture.intermediate_size, architecture.vocab_size if architecture.logit_soft_cap else _WHOLE)
    equal = [rows]
    # Rounded to bf16, most differences of a sum's order are gone, so that equal bits here would prove little.
    for count in ROW_COUNTS if decoder.dtype != torch.bfloat16 else ():
        if count != rows and all(count * width % _WHOLE == 0 for width in widths):
            given = _without_attention(decoder, hidden[:count], count)
            equal += [count] if torch.equal(given, wanted[:count]) else []
    return tuple(sorted(equal))


def _without_attention(decoder: Decoder, hidden: Tensor, rows: int) -> Tensor:
    """Logits of hidden [n, hidden], `rows` at a time, through one layer; its projections stand for attention."""
    layer = decoder.layers[0]
    outputs = []
    for part in torch.split(hidden, rows):
        positions = torch.ones(len(part), dtype=torch.int64, device=part.device)
        queries, keys, values = layer.project(part, positions)
        repeats = queries.shape[1] // keys.shape[1]
        attended = queries + (keys + values).repeat_interleave(repeats, dim=1)
        outputs.append(decoder.logits(decoder.normalize(layer.complete(part, attended))))
    return torch.cat(outputs)


def _keeps_matrices(decoder: Decoder, queries: int) -> bool:
    generator, head_dim = torch.Generator().manual_seed(queries), decoder.architecture.head_dim
    dtype = attention_dtype(decoder.dtype, decoder.device)
    shapes = ((queries, head_dim), (KEYS_PER_BLOCK, head_dim), (queries, KEYS_PER_BLOCK))
    q, k, weights = (torch.randn(37, *shape, generator=generator).to(decoder.device, dtype) for shape in shapes)
    bias = torch.zeros_like(weights)

    def products(which: slice) -> tuple[Tensor, Tensor]:
        scores = torch.baddbmm(bias[which], q[which], k[which].transpose(1, 2), alpha=0.3)
        return scores, torch.bmm(weights[which], k[which])

    wanted = products(slice(37))
    parts = (slice(1), slice(36, 37), slice(5, 13))
    return all(
        torch.equal(got, whole[which]) for which in parts for got, whole in zip(products(which), wanted, strict=True)
    )


def _row_dependence(what: str) -> str:
    return (
        f"{what}: want the same bits whatever is beside them, given others on this machine with "
        f"{torch.get_num_threads()} compute thread(s); choose another number of rows (32 or 64), or one thread"
    )
