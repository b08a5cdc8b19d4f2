"""The decoder against a NumPy llama, packed against one by one, gradients, names, bits, refusals."""

import copy
import dataclasses
import itertools
import pickle

import numpy as np
import pytest
import torch

from hpcrl.errors import InputError
from hpcrl.models.language import Architecture, Rope
from hpcrl.models.language.attention import PackedOffsets, attend
from hpcrl.models.language.decoder import Decoder
from hpcrl.models.language.log_probs import token_log_probs

LLAMA = Architecture.llama(
    50, hidden_size=24, num_layers=3, num_heads=4, num_kv_heads=2, max_positions=64, tied_embeddings=False
)
GEMMA2 = dataclasses.replace(
    LLAMA,
    family="gemma2",
    norm="rms_one_plus",
    post_norms=True,
    activation="gelu_tanh",
    windows=(4, None, 4),
    query_scalar=9.0,
    attention_soft_cap=2.0,
    logit_soft_cap=3.0,
    embedding_multiplier=24**0.5,
    tied_embeddings=True,
)
QWEN3 = dataclasses.replace(LLAMA, family="qwen3", query_key_norm=True, tied_embeddings=True)
GPT2 = Architecture.from_hugging_face(
    {"model_type": "gpt2", "vocab_size": 50, "n_embd": 24, "n_layer": 3, "n_head": 4, "n_positions": 64}
)
ARCHITECTURES = {"llama": LLAMA, "gemma2": GEMMA2, "qwen3": QWEN3, "gpt2": GPT2}
OFFSETS = [0, 7, 7, 8, 27, 41]


def random_decoder(architecture: Architecture, seed: int = 0, std: float = 0.3, **options) -> Decoder:
    decoder = Decoder(architecture, **options)
    generator = torch.Generator().manual_seed(seed)
    decoder.initialize(generator, std=std)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return decoder


def draw_tokens(count: int = OFFSETS[-1], seed: int = 0) -> torch.Tensor:
    return torch.randint(50, (count,), generator=torch.Generator().manual_seed(seed))


def numpy_llama(arrays: dict[str, np.ndarray], architecture: Architecture, tokens: np.ndarray) -> np.ndarray:
    """Logits [T, vocabulary] of one sequence: written from the papers, position by position, in float64."""
    arrays = {name: array.astype(np.float64) for name, array in arrays.items()}
    head_dim, group = architecture.head_dim, architecture.num_heads // architecture.num_kv_heads

    def norm(x, name):
        return arrays[name] * x / np.sqrt((x**2).mean() + architecture.norm_eps)

    def rotate(head, position):
        """Pair (i, i + d/2) as the complex number that is turned by position / theta^(2 i / d)."""
        pairs = head[: head_dim // 2] + 1j * head[head_dim // 2 :]
        angles = position / architecture.rope.theta ** (2 * np.arange(head_dim // 2) / head_dim)
        turned = pairs * np.exp(1j * angles)
        return np.concatenate([turned.real, turned.imag])

    hidden = [arrays["model.embed_tokens.weight"][token] for token in tokens]
    for layer in range(architecture.num_layers):
        prefix = f"model.layers.{layer}."
        keys, values, following = [], [], []
        for position, x in enumerate(hidden):
            normalized = norm(x, prefix + "input_layernorm.weight")
            q, k, v = (
                (arrays[f"{prefix}self_attn.{name}_proj.weight"] @ normalized).reshape(-1, head_dim) for name in "qkv"
            )
            keys.append([rotate(head, position) for head in k])
            values.append(v)
            attended = []
            for head, query in enumerate(q):
                scores = np.array([rotate(query, position) @ key[head // group] for key in keys]) / np.sqrt(head_dim)
                weights = np.exp(scores - scores.max())
                attended.append(
                    sum(w * value[head // group] for w, value in zip(weights / weights.sum(), values, strict=True))
                )
            x = x + arrays[prefix + "self_attn.o_proj.weight"] @ np.concatenate(attended)
            normalized = norm(x, prefix + "post_attention_layernorm.weight")
            gate = arrays[prefix + "mlp.gate_proj.weight"] @ normalized
            gated = gate / (1 + np.exp(-gate)) * (arrays[prefix + "mlp.up_proj.weight"] @ normalized)
            following.append(x + arrays[prefix + "mlp.down_proj.weight"] @ gated)
        hidden = following
    head = arrays.get("lm_head.weight", arrays["model.embed_tokens.weight"])
    return np.array([head @ norm(x, "model.norm.weight") for x in hidden])


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_a_packed_batch_equals_the_numpy_llama(tied, dtype, tolerance) -> None:
    architecture = dataclasses.replace(LLAMA, tied_embeddings=tied, rope=Rope(theta=77.0))
    decoder = random_decoder(architecture, dtype=dtype)
    tokens = draw_tokens()
    with torch.no_grad():
        got = decoder.logits(decoder(tokens, torch.tensor(OFFSETS))).numpy()
    for first, last in itertools.pairwise(OFFSETS):
        want = numpy_llama(decoder.arrays(), architecture, tokens[first:last].numpy())
        np.testing.assert_allclose(got[first:last], want.reshape(-1, 50), atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_equals_one_by_one(name) -> None:
    decoder = random_decoder(ARCHITECTURES[name], dtype=torch.float64)
    tokens = draw_tokens()
    packed = decoder(tokens, OFFSETS)
    for first, last in itertools.pairwise(OFFSETS):
        alone = decoder(tokens[first:last], [0, last - first])
        torch.testing.assert_close(packed[first:last], alone, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_sequence_keeps_its_bits_beside_other_neighbours(name) -> None:
    """Rows of equal number; what lies in the other rows does not matter."""
    decoder = random_decoder(ARCHITECTURES[name])
    tokens, others = draw_tokens(), draw_tokens(seed=1)
    others[8:27] = tokens[8:27]
    one, other = decoder(tokens, OFFSETS), decoder(others, [0, 3, 8, 27, 41])
    assert torch.equal(one[8:27], other[8:27])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_layers_open_in_the_middle(name) -> None:
    """What decoding and tensor parallelism call is what `forward` does."""
    decoder = random_decoder(ARCHITECTURES[name], heads=("language", "value"))
    tokens, packed = draw_tokens(), PackedOffsets(OFFSETS)
    positions = packed.positions(tokens.device)
    hidden = decoder.embed(tokens, positions)
    for layer in decoder.layers:
        q, k, v = layer.project(hidden, positions)
        assert (q.shape, k.shape, v.shape) == ((41, 4, 6), (41, k.shape[1], 6), k.shape)
        attended = attend(q, k, v, packed, scale=layer.scale, window=layer.window, soft_cap=layer.soft_cap)
        hidden = layer.complete(hidden, attended)
    hidden = decoder.normalize(hidden)
    assert torch.equal(hidden, decoder(tokens, OFFSETS))
    assert decoder.logits(hidden).shape == (41, 50)
    assert decoder.values(hidden).shape == (41,)


def test_positions_count_from_zero_unless_given() -> None:
    decoder = random_decoder(LLAMA, dtype=torch.float64)
    tokens = draw_tokens(9)
    shifted = decoder(tokens, [0, 9], positions=torch.arange(9) + 20)
    torch.testing.assert_close(shifted, decoder(tokens, [0, 9]), atol=1e-12, rtol=0)  # rotation is relative
    learned = random_decoder(GPT2, dtype=torch.float64)
    shifted = learned(tokens, [0, 9], positions=torch.arange(9) + 20)
    assert (shifted - learned(tokens, [0, 9])).abs().max() > 0.01


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("checkpoint_activations", [False, True])
def test_gradients_equal_finite_differences(name, checkpoint_activations) -> None:
    """Of a loss on log-probabilities, entropies and values, along random directions of all parameters at once."""
    decoder = random_decoder(ARCHITECTURES[name], heads=("language", "value"), dtype=torch.float64)
    decoder.checkpoint_activations = checkpoint_activations
    tokens, targets = draw_tokens(), draw_tokens(seed=5)

    def loss() -> torch.Tensor:
        hidden = decoder(tokens, OFFSETS)
        log_probs, entropies = token_log_probs(decoder, hidden, targets, chunk_rows=16)
        return log_probs.mean() + 0.3 * entropies.square().mean() + decoder.values(hidden).square().mean()

    flat = decoder.flat
    loss().backward()
    generator = torch.Generator().manual_seed(0)
    start, step = flat.values.clone(), 1e-6
    for _ in range(3):
        direction = torch.randn(flat.size, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            flat.values.copy_(start + step * direction)
            above = loss()
            flat.values.copy_(start - step * direction)
            below = loss()
            flat.values.copy_(start)
        slope = (above - below) / (2 * step)
        assert flat.gradients @ direction == pytest.approx(slope.item(), rel=1e-6)
    for parameter_name, parameter in decoder.named_parameters():
        # Softmax does not see what is added to all scores of a query.
        if parameter_name.endswith("k_proj.bias"):
            assert parameter.grad.abs().max() < 1e-12
        else:
            assert parameter.grad.abs().max() > 0, parameter_name


def test_checkpointing_changes_no_bits() -> None:
    gradients = []
    for checkpoint_activations in (False, True):
        decoder = random_decoder(LLAMA)
        decoder.checkpoint_activations = checkpoint_activations
        decoder(draw_tokens(), OFFSETS).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for n, p in decoder.named_parameters() if n != "lm_head.weight"]))
    assert torch.equal(*gradients)


def test_checkpointing_keeps_one_hidden_state_per_layer() -> None:
    def kept(checkpoint_activations: bool) -> int:
        decoder = random_decoder(LLAMA)
        decoder.checkpoint_activations = checkpoint_activations
        parameters = {parameter.data_ptr() for parameter in decoder.parameters()}
        sizes = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.data_ptr() not in parameters:
                sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            hidden = decoder(draw_tokens(), OFFSETS)
        assert hidden.requires_grad
        return sum(sizes.values())

    assert kept(True) < kept(False) / 5


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_bfloat16_is_close(name) -> None:
    exact = random_decoder(ARCHITECTURES[name], heads=("language", "value"), std=0.1)
    rounded = Decoder(ARCHITECTURES[name], heads=("language", "value"), dtype=torch.bfloat16)
    rounded.load_arrays(exact.arrays())
    hidden = rounded(draw_tokens(), OFFSETS)
    assert hidden.dtype == torch.bfloat16
    logits, want = rounded.logits(hidden), exact.logits(exact(draw_tokens(), OFFSETS))
    assert logits.dtype == rounded.values(hidden).dtype == torch.float32
    assert (logits - want).norm() < 0.03 * want.norm()
    logits.sum().backward()
    assert all(p.grad.dtype == torch.bfloat16 for n, p in rounded.named_parameters() if n != "score.weight")


def test_autocast_keeps_the_parameters_in_float32() -> None:
    decoder = random_decoder(LLAMA, std=0.1)
    tokens = draw_tokens()
    want = token_log_probs(decoder, decoder(tokens, OFFSETS), tokens)[0]
    with torch.autocast("cpu", torch.bfloat16):
        got, entropies = token_log_probs(decoder, decoder(tokens, OFFSETS), tokens, chunk_rows=16)
    assert not torch.equal(got, want)
    assert (got - want).abs().max() < 0.05
    (got.sum() + entropies.sum()).backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in decoder.parameters())


def test_initialisation_is_the_generators_alone() -> None:
    architecture = Architecture.llama(300, hidden_size=128, num_layers=2)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    decoder = Decoder(architecture, heads=("language", "value"))
    decoder.initialize(torch.Generator().manual_seed(7), scale_residual=True)
    assert torch.equal(torch.get_rng_state(), before)
    again = Decoder(architecture, heads=("language", "value"))
    again.initialize(torch.Generator().manual_seed(7), scale_residual=True)
    assert torch.equal(decoder.flat.values, again.flat.values)
    for name, parameter in decoder.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.ones(128))
        elif name == "score.weight":
            assert not parameter.any()
        else:
            std = 0.02 / 2 if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
            assert parameter.std().item() == pytest.approx(std, rel=0.03), name
    gemma = Decoder(GEMMA2)
    gemma.initialize(torch.Generator().manual_seed(7))
    assert not gemma.model.norm.weight.any()
    gpt2 = Decoder(GPT2)
    gpt2.initialize(torch.Generator().manual_seed(7))
    assert not any(p.any() for n, p in gpt2.named_parameters() if n.endswith("bias"))


def test_parameters_have_hugging_faces_names() -> None:
    layer = ["input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    layer += ["post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    names = ["model.embed_tokens", *(f"model.layers.{i}.{name}" for i in range(3) for name in layer), "model.norm"]
    names = [f"{name}.weight" for name in [*names, "lm_head", "score"]]
    assert [name for name, _ in Decoder(LLAMA, heads=("language", "value")).named_parameters()] == names
    tied = Decoder(QWEN3, device="meta")
    assert "lm_head.weight" not in dict(tied.named_parameters())
    assert tied.state_dict().keys() == dict(tied.named_parameters()).keys()
    assert Decoder(LLAMA, heads=("value",), value_bias=True, device="meta").lm_head is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_arrays_go_and_come(dtype) -> None:
    decoder = random_decoder(GPT2, heads=("language", "value"), dtype=dtype)
    arrays = decoder.arrays()
    other = random_decoder(GPT2, seed=9, heads=("language", "value"), dtype=dtype)
    other.load_arrays(arrays)
    for name, tensor in decoder.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])
    arrays["model.norm.bias"][:] = 7.0
    assert not (decoder.state_dict()["model.norm.bias"] == 7.0).any()


def test_foreign_arrays_change_nothing() -> None:
    decoder = random_decoder(LLAMA)
    before = decoder.arrays()
    foreign = {name: array + 1 for name, array in before.items()}
    lacking = {name: array for name, array in foreign.items() if name != "model.norm.weight"}
    for arrays, message in [
        (lacking, r"want model.norm.weight, which it lacks"),
        (foreign | {"score.weight": np.zeros((1, 24), np.float32)}, r"holds score.weight, which this model lacks"),
        (foreign | {"lm_head.weight": np.zeros((50, 23), np.float32)}, r"lm_head.weight: want \[50, 24\], given"),
    ]:
        with pytest.raises(InputError, match=message):
            decoder.load_arrays(arrays)
    assert all(np.array_equal(array, before[name]) for name, array in decoder.arrays().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_flat_parameters_and_gradients_are_views(dtype) -> None:
    decoder = random_decoder(QWEN3, dtype=dtype)
    before = decoder(draw_tokens(), OFFSETS)
    flat = decoder.flat
    assert flat is decoder.flat
    assert flat.values.dtype == flat.gradients.dtype == dtype
    assert flat.size == sum(parameter.numel() for parameter in decoder.parameters())
    assert torch.equal(decoder(draw_tokens(), OFFSETS), before)
    decoder(draw_tokens(), OFFSETS).sum().backward()
    assert torch.equal(flat.gradients, torch.cat([parameter.grad.flatten() for parameter in decoder.parameters()]))
    assert flat.gradients.any()
    decoder.zero_grad()
    assert not flat.gradients.any()
    assert all(parameter.grad is not None for parameter in decoder.parameters())
    flat.values.zero_()
    assert not any(parameter.any() for parameter in decoder.parameters())


def test_flat_bfloat16_is_refused() -> None:
    with pytest.raises(InputError, match=r"want all float32 or all float64, given torch.bfloat16"):
        _ = random_decoder(LLAMA, dtype=torch.bfloat16).flat


@pytest.mark.parametrize("flat_first", [False, True])
def test_copies_are_whole_and_apart(flat_first) -> None:
    decoder = random_decoder(QWEN3)
    if flat_first:
        decoder.flat.gradients.fill_(2.0)
    for other in (copy.deepcopy(decoder), pickle.loads(pickle.dumps(decoder))):
        assert torch.equal(other(draw_tokens(), OFFSETS), decoder(draw_tokens(), OFFSETS))
        other.flat.values.zero_()
        assert not other.model.norm.weight.any()
        assert decoder.model.norm.weight.any()


def test_another_dtype_is_flat_again() -> None:
    decoder = random_decoder(LLAMA)
    _ = decoder.flat
    decoder.double()
    assert decoder.flat.values.dtype == torch.float64
    assert decoder.model.norm.weight.data_ptr() >= decoder.flat.values.data_ptr()
    assert decoder(draw_tokens(), OFFSETS).dtype == torch.float64


def test_no_tokens_at_all() -> None:
    decoder = random_decoder(LLAMA, heads=("language", "value"))
    hidden = decoder(draw_tokens(0), [0])
    assert hidden.shape == (0, 24)
    assert decoder.logits(hidden).shape == (0, 50)
    assert decoder.values(hidden).shape == (0,)


def test_inference_mode_leaves_training_possible() -> None:
    """The tables of cosines are made once, perhaps while acting; a backward pass must still be able to keep them."""
    decoder = random_decoder(LLAMA)
    with torch.inference_mode():
        acted = decoder(draw_tokens(), OFFSETS)
    learned = decoder(draw_tokens(), OFFSETS)
    learned.sum().backward()
    assert torch.equal(acted, learned)


def test_a_sequence_longer_than_the_context_is_refused() -> None:
    for architecture in (LLAMA, GPT2):
        decoder = random_decoder(architecture)
        assert decoder(draw_tokens(64), [0, 64]).shape == (64, 24)
        with pytest.raises(InputError, match=r"at most 64 tokens \(the context\), given one of 65"):
            decoder(draw_tokens(65), [0, 65])
    stretched = random_decoder(dataclasses.replace(LLAMA, rope=Rope(kind="linear", factor=2.0)))
    assert stretched(draw_tokens(128), [0, 128]).shape == (128, 24)


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match=r"heads: want .*given \('policy',\)"):
        Decoder(LLAMA, heads=("policy",))
    with pytest.raises(InputError, match=r"dtype: want one of .*given torch.float16"):
        Decoder(LLAMA, dtype=torch.float16)
    language, value = random_decoder(GPT2), random_decoder(LLAMA, heads=("value",))
    hidden = value(draw_tokens(), OFFSETS)
    with pytest.raises(InputError, match=r"values: this decoder has no value head"):
        language.values(hidden)
    with pytest.raises(InputError, match=r"logits: this decoder has no language head"):
        value.logits(hidden)
    with pytest.raises(InputError, match=r"offsets: want offsets\[-1\] = 41 \(= len\(tokens\)\), given 40"):
        value(draw_tokens(), [0, 40])
    with pytest.raises(InputError, match=r"this architecture learned its positions; want i64\[T\]"):
        language.embed(draw_tokens())
