"""Packed attention: every backend against float64 NumPy, gradients, windows, hazards."""

import itertools

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hpcrl.errors import InputError
from hpcrl.models.language import attention
from hpcrl.models.language.attention import PackedOffsets, attend

OFFSETS = [0, 5, 5, 6, 17, 41]
"""Of ragged sequences: an empty one and one of one token among them."""


def draw(heads: int, kv_heads: int, dtype=torch.float64, tokens: int = OFFSETS[-1], head_dim: int = 8):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(tokens, n, head_dim, generator=generator).to(dtype) for n in (heads, kv_heads, kv_heads)]


def oracle(q, k, v, offsets, scale, window=None, soft_cap=None) -> np.ndarray:
    """Token by token, head by head."""
    q, k, v = (tensor.double().numpy() for tensor in (q, k, v))
    result = np.zeros_like(q)
    group = q.shape[1] // k.shape[1]
    for first, last in itertools.pairwise(offsets):
        for t in range(first, last):
            start = first if window is None else max(first, t + 1 - window)
            for head in range(q.shape[1]):
                scores = k[start : t + 1, head // group] @ q[t, head] * scale
                if soft_cap is not None:
                    scores = soft_cap * np.tanh(scores / soft_cap)
                weights = np.exp(scores - scores.max())
                result[t, head] = weights @ v[start : t + 1, head // group] / weights.sum()
    return result


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("backend", ["per_sequence", "masked", None])
def test_backends_equal_the_oracle(heads, kv_heads, backend) -> None:
    q, k, v = draw(heads, kv_heads)
    got = attend(q, k, v, OFFSETS, scale=0.3, backend=backend)
    np.testing.assert_allclose(got.numpy(), oracle(q, k, v, OFFSETS, 0.3), atol=1e-13)


@pytest.mark.parametrize("window", [1, 3, 23, 24, 100])
@pytest.mark.parametrize("soft_cap", [None, 0.7])
def test_windows_and_soft_caps_equal_the_oracle(window, soft_cap) -> None:
    q, k, v = draw(4, 2)
    got = attend(q, k, v, OFFSETS, scale=1.0, window=window, soft_cap=soft_cap)
    np.testing.assert_allclose(got.numpy(), oracle(q, k, v, OFFSETS, 1.0, window, soft_cap), atol=1e-13)


@pytest.mark.parametrize("options", [{}, {"window": 3}, {"soft_cap": 0.7}])
def test_gradients_equal_finite_differences(options) -> None:
    inputs = [tensor.requires_grad_() for tensor in draw(2, 1, tokens=9, head_dim=3)]
    assert torch.autograd.gradcheck(lambda q, k, v: attend(q, k, v, [0, 4, 4, 9], scale=0.6, **options), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 3])
def test_the_fused_backend_equals_the_reference(dtype, window) -> None:
    q, k, v = draw(4, 2, dtype)
    fused, masked = (
        attend(q, k, v, OFFSETS, scale=0.3, window=window, backend=name) for name in ("per_sequence", "masked")
    )
    assert fused.dtype == dtype
    torch.testing.assert_close(fused, masked, atol=1e-6 if dtype == torch.float32 else 0.02, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("length", [1, 5, 41, 100])
@pytest.mark.parametrize("window", [None, 7])
def test_sequences_of_one_length_have_the_bits_of_single_calls(dtype, length, window) -> None:
    q, k, v = (tensor.requires_grad_() for tensor in draw(4, 2, dtype, tokens=3 * length))
    results = []
    for offsets in ([0, length, 2 * length, 3 * length], [0, length, length, 2 * length, 3 * length]):
        attended = attend(q, k, v, offsets, scale=0.3, window=window, backend="per_sequence")
        results.append((attended, *torch.autograd.grad(attended.square().sum(), [q, k, v])))
    for together, single in zip(*results, strict=True):
        assert torch.equal(together, single)


@pytest.mark.parametrize("options", [{}, {"window": 11}, {"window": 4}, {"soft_cap": 0.7}])
def test_a_sequence_does_not_see_its_neighbours(options) -> None:
    """Nor do its bits: whatever they hold, however many and long they are."""
    q, k, v = draw(4, 2, torch.float32)
    before = attend(q, k, v, OFFSETS, scale=0.3, **options)
    alone = attend(q[6:17], k[6:17], v[6:17], [0, 11], scale=0.3, **options)
    for tensor in (q, k, v):
        tensor[:6] = 1e3
        tensor[17:] = torch.nan
    for offsets in (OFFSETS, [0, 6, 17, 28, 39, 41]):
        assert torch.equal(attend(q, k, v, offsets, scale=0.3, **options)[6:17], before[6:17])
    assert torch.equal(alone, before[6:17])


@pytest.mark.parametrize("backend", ["per_sequence", "masked"])
def test_no_tokens(backend) -> None:
    q, k, v = draw(4, 2, tokens=0)
    for offsets in ([0], [0, 0, 0]):
        assert attend(q, k, v, offsets, scale=0.3, backend=backend).shape == (0, 4, 8)


def test_offsets_are_read_once() -> None:
    packed = PackedOffsets(torch.tensor(OFFSETS))
    assert (packed.lengths, packed.longest, packed.num_tokens) == ([5, 0, 1, 11, 24], 24, 41)
    assert PackedOffsets.of(packed) is packed
    assert packed.on(torch.device("cpu")).dtype == torch.int32
    assert packed.on(torch.device("cpu")) is packed.on(torch.device("cpu"))
    assert packed.positions(torch.device("cpu")).tolist() == [*range(5), 0, *range(11), *range(24)]


@pytest.mark.parametrize("offsets", [[], [1, 3], [0, 3, 2], torch.tensor([2, 4])])
def test_offsets_that_are_none_are_refused(offsets) -> None:
    with pytest.raises(InputError, match="want integers from 0 that never fall"):
        PackedOffsets(offsets)


def test_what_a_backend_cannot_do_is_refused() -> None:
    q, k, v = draw(4, 2)
    for options, message in [
        ({"backend": "varlen"}, r"'varlen': wants a CUDA device, given cpu; use backend='masked'"),
        ({"backend": "per_sequence", "soft_cap": 1.0}, r"'per_sequence': has no soft cap"),
        ({"backend": "flash"}, r"attention backend: want one of .*given 'flash'"),
    ]:
        with pytest.raises(InputError, match=message):
            attend(q, k, v, OFFSETS, scale=0.3, **options)
    with pytest.raises(InputError, match=r"T = 41 .*given \[40, 4, 8\]"):
        attend(q[:-1], k, v, OFFSETS, scale=0.3)
    with pytest.raises(InputError, match=r"heads a multiple of kv_heads"):
        attend(q[:, :3], k, v, OFFSETS, scale=0.3)


def stand_in(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa) -> torch.Tensor:
    """What PyTorch documents of varlen_attn: a query sees `left` keys before its own and `right` after it, -1 all."""
    left, right = window_size
    assert right == 0
    assert cu_seq_q.dtype == torch.int32
    assert torch.equal(cu_seq_q, cu_seq_k)
    assert max_q == max_k == int(cu_seq_q.diff().max())
    assert enable_gqa == (query.shape[1] != key.shape[1])
    window = None if left == -1 else left + 1
    return torch.from_numpy(oracle(query, key, value, cu_seq_q.tolist(), scale, window))


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_varlen_is_called_as_pytorch_documents_it(window, kv_heads, monkeypatch) -> None:
    """On a stand-in: this machine has no GPU."""
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", stand_in)
    monkeypatch.setattr(attention, "_problem", lambda *_: None)
    attention._varlen_options.cache_clear()
    q, k, v = draw(4, kv_heads)
    got = attend(q, k, v, OFFSETS, scale=0.3, window=window, backend="varlen")
    attention._varlen_options.cache_clear()
    np.testing.assert_allclose(got.numpy(), oracle(q, k, v, OFFSETS, 0.3, window), atol=1e-13)


def test_varlen_takes_the_pinned_pytorchs_signature() -> None:
    """Shapes alone, on a CUDA device that is only pretended."""
    with FakeTensorMode():
        q = torch.empty(41, 4, 64, device="cuda", dtype=torch.bfloat16)
        k = torch.empty(41, 2, 64, device="cuda", dtype=torch.bfloat16)
        assert attend(q, k, k, OFFSETS, scale=0.125, window=3, backend="varlen").shape == (41, 4, 64)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device, or a PyTorch without CUDA")
@pytest.mark.parametrize("window", [None, 3])
def test_varlen_equals_the_reference_on_a_gpu(window) -> None:
    q, k, v = (tensor.cuda() for tensor in draw(4, 2, torch.bfloat16, head_dim=64))
    varlen = attend(q, k, v, OFFSETS, scale=0.125, window=window, backend="varlen")
    masked = attend(q, k, v, OFFSETS, scale=0.125, window=window, backend="masked")
    torch.testing.assert_close(varlen, masked, atol=0.02, rtol=0)
