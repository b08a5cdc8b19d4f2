"""Hugging Face folders: both ways with equal bits, heads, shards, tokenizer files, and what is refused."""

import json
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hpcrl.errors import CorruptFileError, InputError
from hpcrl.models.language import Architecture, Rope
from hpcrl.models.language.decoder import Decoder
from hpcrl.models.language.hugging_face import load_decoder, read_folder, save_folder

SMALL = Architecture.llama(37, hidden_size=16, num_layers=2, num_heads=4, num_kv_heads=2, max_positions=32)
UNTIED = Architecture.llama(37, hidden_size=16, num_layers=2, num_heads=4, max_positions=32, tied_embeddings=False)
GPT2 = Architecture.from_hugging_face(
    {"model_type": "gpt2", "vocab_size": 37, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32}
)


def random_decoder(architecture: Architecture, seed: int = 0, **options) -> Decoder:
    """Every parameter drawn, biases, norms and value head too."""
    decoder = Decoder(architecture, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return decoder


def assert_equal_bits(one: Decoder, other: Decoder) -> None:
    first, second = one.state_dict(), other.state_dict()
    assert list(first) == list(second)
    for name in first:
        assert first[name].dtype == second[name].dtype
        assert torch.equal(first[name], second[name]), name


def rewrite(folder: Path, change) -> None:
    """Changes the tensors of a folder with one file."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def without(name: str):
    return lambda tensors: tensors.pop(name)


@pytest.fixture
def folder(tmp_path) -> Path:
    save_folder(tmp_path / "saved", random_decoder(SMALL))
    return tmp_path / "saved"


@pytest.mark.parametrize("architecture", [SMALL, UNTIED, GPT2], ids=["tied", "untied", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_saved_and_opened_has_equal_bits(architecture, dtype, tmp_path) -> None:
    decoder = random_decoder(architecture, heads=("language", "value"), dtype=dtype)
    save_folder(tmp_path / "saved", decoder)
    opened = load_decoder(tmp_path / "saved", heads=("language", "value"), dtype=dtype)
    assert opened.architecture == architecture
    assert_equal_bits(opened, decoder)


@pytest.mark.parametrize("architecture", [SMALL, GPT2], ids=["llama", "gpt2"])
def test_shards_hold_the_same_tensors(architecture, tmp_path) -> None:
    decoder = random_decoder(architecture)
    save_folder(tmp_path / "one", decoder)
    save_folder(tmp_path / "many", decoder, max_shard_bytes=4000)
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2
    assert sorted(file.name for file in (tmp_path / "many").glob("*.safetensors")) == files
    assert index["metadata"]["total_size"] == sum(4 * p.numel() for p in decoder.parameters())
    whole = load_file(tmp_path / "one" / "model.safetensors")
    parts = {name: tensor for file in files for name, tensor in load_file(tmp_path / "many" / file).items()}
    assert whole.keys() == parts.keys() == index["weight_map"].keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    for file in files:
        held = load_file(tmp_path / "many" / file)
        assert len(held) == 1 or sum(4 * tensor.numel() for tensor in held.values()) <= 4000
    assert_equal_bits(load_decoder(tmp_path / "many"), decoder)


def test_tensors_come_one_after_the_other_under_our_names(tmp_path) -> None:
    decoder = random_decoder(GPT2)
    save_folder(tmp_path / "saved", decoder)
    architecture, tensors = read_folder(tmp_path / "saved")
    assert architecture == GPT2
    assert iter(tensors) is tensors
    own = decoder.state_dict()
    seen = []
    for name, tensor in tensors:
        assert torch.equal(tensor, own[name])
        seen.append(name)
    assert sorted(seen) == sorted(own)


def test_two_tensors_at_most_are_in_memory(tmp_path) -> None:
    """The one that was handed out last and the one that is being read."""
    save_folder(tmp_path / "saved", random_decoder(UNTIED), max_shard_bytes=20_000)
    _, tensors = read_folder(tmp_path / "saved")
    alive: set[int] = set()
    most = 0
    for count, (_, tensor) in enumerate(tensors):
        alive.add(count)
        weakref.finalize(tensor, alive.discard, count)
        most = max(most, len(alive))
    assert count == 20
    assert most <= 2


def test_gpt2_of_the_first_days_has_no_prefix_and_holds_masks(tmp_path) -> None:
    decoder = random_decoder(GPT2)
    save_folder(tmp_path / "saved", decoder)

    def age(tensors) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.0.attn.bias"] = torch.ones(1, 1, 32, 32)
        tensors["h.0.attn.masked_bias"] = torch.tensor(-1e4)

    rewrite(tmp_path / "saved", age)
    assert_equal_bits(load_decoder(tmp_path / "saved"), decoder)


def test_tokenizer_files_are_copied_byte_for_byte(folder, tmp_path) -> None:
    source = tmp_path / "source"
    shutil.copytree(folder, source)
    config = json.loads((source / "config.json").read_text()) | {"eos_token_id": [3, 5], "bos_token_id": 1}
    (source / "config.json").write_text(json.dumps(config))
    contents = {
        "tokenizer.json": b'{"version":  "1.0"}\r\n',
        "tokenizer_config.json": b"{}",
        "chat_template.jinja": "{{ ü }}\n\n".encode(),
        "generation_config.json": b'{"temperature": 0.6}',
        "merges.txt": b"a b\n",
    }
    for name, content in contents.items():
        (source / name).write_bytes(content)
    (source / "training_args.bin").write_bytes(b"not mine")
    save_folder(tmp_path / "copy", load_decoder(source), tokenizer_files_from=source)
    assert {name: (tmp_path / "copy" / name).read_bytes() for name in contents} == contents
    assert not (tmp_path / "copy" / "training_args.bin").exists()
    copied = json.loads((tmp_path / "copy" / "config.json").read_text())
    assert (copied["eos_token_id"], copied["bos_token_id"], copied["pad_token_id"]) == ([3, 5], 1, None)


def test_extra_keys_enter_the_config(tmp_path) -> None:
    save_folder(tmp_path / "saved", random_decoder(SMALL), extra_config={"eos_token_id": 4})
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["eos_token_id"] == 4


def test_a_value_head_goes_and_comes(tmp_path) -> None:
    critic = random_decoder(UNTIED, heads=("value",))
    save_folder(tmp_path / "critic", critic)
    assert_equal_bits(load_decoder(tmp_path / "critic", heads=("value",)), critic)
    with pytest.raises(InputError, match=r"lm_head.weight.*heads=\('value',\)"):
        load_decoder(tmp_path / "critic")


@pytest.mark.parametrize("architecture", [SMALL, GPT2], ids=["llama", "gpt2"])
def test_a_token_classifiers_bias_stays(architecture, tmp_path) -> None:
    critic = random_decoder(architecture, heads=("value",), value_bias=True)
    save_folder(tmp_path / "critic", critic, value_class="token")
    assert_equal_bits(load_decoder(tmp_path / "critic", heads=("value",)), critic)
    with pytest.raises(InputError, match="no bias; want 'token'"):
        save_folder(tmp_path / "other", critic)
    assert not (tmp_path / "other").exists()


def test_a_critic_begins_from_a_language_model_only_by_request(folder) -> None:
    with pytest.raises(InputError, match=r"want score.weight.*new_value_head=True"):
        load_decoder(folder, heads=("value",))
    critic = load_decoder(folder, heads=("value",), new_value_head=True)
    hidden = critic(torch.arange(5), [0, 5])
    assert torch.equal(critic.values(hidden), torch.zeros(5))
    assert critic.lm_head is None


def test_heads_that_are_not_asked_for_are_left_out(tmp_path) -> None:
    both = random_decoder(UNTIED, heads=("language", "value"))
    save_folder(tmp_path / "both", both)
    language = load_decoder(tmp_path / "both")
    assert language.score is None
    assert torch.equal(language.state_dict()["lm_head.weight"], both.state_dict()["lm_head.weight"])


def test_nothing_is_written_over_an_existing_folder(folder) -> None:
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(InputError, match="exists already"):
        save_folder(folder, random_decoder(SMALL, seed=1))
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_save_that_fails_leaves_nothing(tmp_path, monkeypatch) -> None:
    def no_space(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("hpcrl.models.language.hugging_face.save_file", no_space)
    with pytest.raises(OSError, match="no space left"):
        save_folder(tmp_path / "saved", random_decoder(SMALL))
    assert list(tmp_path.iterdir()) == []


def test_a_source_without_tokenizer_is_refused(folder, tmp_path) -> None:
    with pytest.raises(InputError, match=r"want a folder with tokenizer files"):
        save_folder(tmp_path / "copy", random_decoder(SMALL), tokenizer_files_from=folder)
    assert not (tmp_path / "copy").exists()


LAYER = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(LAYER), rf"want {LAYER}, which its files lack"),
        (without("model.norm.weight"), r"want model.norm.weight"),
        (
            lambda t: t.update({"model.layers.7.mlp.up_proj.weight": t[LAYER].clone()}),
            r"holds model.layers.7.mlp.up_proj",
        ),
        (
            lambda t: t.update({"model.layers.0.self_attn.query.weight": t[LAYER].clone()}),
            r"self_attn.query.weight, which",
        ),
        (lambda t: t.update({LAYER: t[LAYER].T.contiguous()}), rf"{LAYER}: want \[64, 16\].*given \[16, 64\]"),
        (lambda t: t.update({"score.weight": torch.zeros(3, 16)}), r"score.weight: want \[1, 16\]"),
    ],
    ids=["missing", "missing norm", "too many layers", "misnamed", "transposed", "three labels"],
)
def test_tensors_that_do_not_fit_are_named(change, message, folder) -> None:
    rewrite(folder, change)
    with pytest.raises(InputError, match=message):
        read_folder(folder)


def test_quantised_weights_are_refused(folder) -> None:
    rewrite(folder, lambda tensors: tensors.update({LAYER: tensors[LAYER].to(torch.int8)}))
    with pytest.raises(InputError, match=r"want floating point weights, given torch.int8"):
        load_decoder(folder)


@pytest.mark.parametrize("kept", [0, 5, 300, 0.5, -1])
def test_a_truncated_file_is_named(kept, folder) -> None:
    file = folder / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * kept) if isinstance(kept, float) else kept])
    with pytest.raises(CorruptFileError, match=r"model.safetensors: truncated"):
        load_decoder(folder)


def test_shards_and_index_must_agree(tmp_path) -> None:
    sharded = tmp_path / "many"
    save_folder(sharded, random_decoder(SMALL), max_shard_bytes=4000)
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    last = sorted(sharded.glob("*.safetensors"))[-1]
    moved = last.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=rf"want {last.name}, which model.safetensors.index.json names"):
        load_decoder(sharded)
    moved.rename(last)
    wrong = index | {"weight_map": index["weight_map"] | {"model.norm.weight": last.name}}
    if index["weight_map"]["model.norm.weight"] == last.name:
        wrong["weight_map"]["model.embed_tokens.weight"] = last.name
    (sharded / "model.safetensors.index.json").write_text(json.dumps(wrong))
    with pytest.raises(InputError, match=r"index.json says, which it lacks"):
        load_decoder(sharded)
    (sharded / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CorruptFileError, match="want a weight_map"):
        load_decoder(sharded)


def test_folders_that_are_none(folder, tmp_path) -> None:
    with pytest.raises(InputError, match=r"want a Hugging Face folder with config.json"):
        load_decoder(tmp_path / "nowhere")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"found neither; convert pytorch_model.bin to safetensors"):
        load_decoder(folder)
    (folder / "config.json").write_text('{"model_type": "llama"')
    with pytest.raises(CorruptFileError, match=r"config.json: no JSON"):
        load_decoder(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(CorruptFileError, match=r"want a JSON object, found list"):
        load_decoder(folder)


def test_what_a_family_cannot_say_is_not_written(tmp_path) -> None:
    odd = Architecture(**{**SMALL.__dict__, "query_key_norm": True})
    with pytest.raises(InputError, match=r"a llama config cannot say query_key_norm=True"):
        save_folder(tmp_path / "saved", random_decoder(odd))
    assert list(tmp_path.iterdir()) == []
    assert SMALL.rope == Rope()
