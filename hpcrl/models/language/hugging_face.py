"""Opens and saves Hugging Face folders, tensor by tensor."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hpcrl.errors import CorruptFileError, InputError
from hpcrl.models.checks import check_member
from hpcrl.models.language.architecture import Architecture
from hpcrl.models.language.decoder import Decoder, Head

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt",
    "spiece.model", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
"""What a tokenizer may consist of; copied byte for byte where it is there."""
TOKEN_ID_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")

_GPT2_TRUNK = {"wte": "model.embed_tokens", "wpe": "model.embed_positions", "ln_f": "model.norm"}
_GPT2_LAYER = {
    "ln_1": ("input_layernorm",),
    "attn.c_attn": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.c_proj": ("self_attn.o_proj",),
    "ln_2": ("post_attention_layernorm",),
    "mlp.c_fc": ("mlp.up_proj",),
    "mlp.c_proj": ("mlp.down_proj",),
}
_HEADS = ("lm_head.", "score.", "classifier.")


@dataclass(frozen=True)
class _StoredTensor:
    """One tensor of a file: parameters of the decoder one below the other, transposed where gpt2 has them so."""

    parameters: tuple[str, ...]
    transposed: bool = False

    def shape(self, shapes: Mapping[str, tuple[int, ...]]) -> list[int]:
        """In the file."""
        parts = [shapes[name] for name in self.parameters]
        shape = [sum(part[0] for part in parts), *parts[0][1:]]
        return shape[::-1] if self.transposed else shape

    def split(self, stored: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, Tensor]]:
        rows = stored.T if self.transposed else stored
        yield from zip(self.parameters, torch.split(rows, [shapes[name][0] for name in self.parameters]), strict=True)

    def join(self, parameters: Mapping[str, Tensor]) -> Tensor:
        parts = [parameters[name].detach() for name in self.parameters]
        rows = parts[0] if len(parts) == 1 else torch.cat(parts)
        return (rows.T if self.transposed else rows).contiguous()


@dataclass(frozen=True)
class _Contents:
    """What the headers of a folder's files say."""

    architecture: Architecture
    files: Mapping[Path, Mapping[str, str]]
    """Per file: name as `stored` has it -> name in the file."""
    stored: Mapping[str, _StoredTensor]
    shapes: Mapping[str, tuple[int, ...]]
    """Of the decoder's parameters."""

    @property
    def parameters(self) -> set[str]:
        """The decoder's parameters that are there."""
        names = {name for in_file in self.files.values() for name in in_file}
        return {parameter for name in names for parameter in self.stored[name].parameters}

    def read(self, wanted: set[str]) -> Iterator[tuple[str, Tensor]]:
        """The wanted parameters, one tensor of a file after the other."""
        for file, names in self.files.items():
            with _open(file) as tensors:
                for name, name_in_file in names.items():
                    if wanted.isdisjoint(self.stored[name].parameters):
                        continue
                    tensor = tensors.get_tensor(name_in_file)
                    if not tensor.is_floating_point() or tensor.element_size() < 2:
                        raise InputError(f"{file}: {name_in_file}: want floating point weights, given {tensor.dtype}")
                    yield from self.stored[name].split(tensor, self.shapes)


def read_folder(path: str | os.PathLike[str]) -> tuple[Architecture, Iterator[tuple[str, Tensor]]]:
    """The architecture of a Hugging Face folder, and its tensors one after the other under this decoder's names.

    Names and shapes of all tensors are checked against config.json before the first is read; dtypes are as stored.
    The language head comes where it is a tensor of its own, the value head (`score.weight`, `score.bias`) where the
    folder has one.
    Raises:
        InputError: no such folder, no safetensors, an unknown family, or a tensor that is missing, unknown or of
            another shape.  CorruptFileError: a file is truncated or no safetensors file.
    """
    contents = _contents(Path(path))
    return contents.architecture, contents.read(contents.parameters)


def load_decoder(
    path: str | os.PathLike[str],
    *,
    heads: Sequence[Head] = ("language",),
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    new_value_head: bool = False,
) -> Decoder:
    """Opens a Hugging Face folder; one tensor is in memory beside the decoder at a time.

    Args:
        path: a folder with config.json and safetensors.
        heads: what the decoder predicts; a head that the folder has and `heads` lacks is left out.
        dtype: of the decoder; stored tensors are converted.
        device: of the decoder.
        new_value_head: a folder without a value head gets one of zeros; else that is refused.
    Raises:
        InputError: as `read_folder`, or a head that the folder lacks.
    """
    contents = _contents(Path(path))
    there = contents.parameters
    if "language" in heads and not contents.architecture.tied_embeddings and "lm_head.weight" not in there:
        raise InputError(f"{path}: want lm_head.weight, which its files lack; open it with heads=('value',)")
    if "value" in heads and "score.weight" not in there and not new_value_head:
        raise InputError(
            f"{path}: want score.weight (a value head), which its files lack; "
            "pass new_value_head=True to begin with one of zeros"
        )
    value_bias = "value" in heads and "score.bias" in there
    decoder = Decoder(contents.architecture, heads=heads, dtype=dtype, value_bias=value_bias, device=device)
    parameters = dict(decoder.named_parameters())
    with torch.no_grad():
        if "score.weight" in parameters.keys() - there:
            parameters["score.weight"].zero_()
        for name, tensor in contents.read(parameters.keys() & there):
            parameters[name].copy_(tensor)
    return decoder


def save_folder(
    path: str | os.PathLike[str],
    decoder: Decoder,
    tokenizer_files_from: str | os.PathLike[str] | None = None,
    *,
    max_shard_bytes: int = 5_000_000_000,
    value_class: Literal["sequence", "token"] = "sequence",
    extra_config: Mapping[str, Any] | None = None,
    extra_files: Mapping[str, str] | None = None,
) -> None:
    """Writes a folder that transformers and vLLM open: config.json, safetensors (with index where sharded), tokenizer.

    A decoder with a language head is a `...ForCausalLM`, a value head beside it one more tensor, `score.weight`; one
    with a value head alone is a `...ForSequenceClassification` or, by `value_class`, a `...ForTokenClassification`
    with one label.  Written beside its final name, then renamed.

    Args:
        path: must not exist.
        tokenizer_files_from: a folder whose tokenizer files, chat template and generation_config.json are copied byte
            for byte, and whose token ids go into config.json; without it the ids are null.
        max_shard_bytes: larger models become several files.
        extra_config: more keys of config.json, such as `eos_token_id`.
        extra_files: further files, name -> text, such as those of a tokenizer that has no folder.
    Raises:
        InputError: the path exists, or the folder to copy from has no tokenizer.
    """
    check_member("value_class", value_class, ("sequence", "token"))
    target = Path(path)
    if target.exists():
        raise InputError(f"{target}: exists already; choose another folder or remove it")
    config, copied = _config(decoder, value_class), []
    if tokenizer_files_from is not None:
        source = Path(tokenizer_files_from)
        copied = _files_to_copy(source)
        if (source / CONFIG).is_file():
            config |= {key: value for key, value in read_config(source).items() if key in TOKEN_ID_KEYS}
    config |= extra_config or {}
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    beside.mkdir()
    try:
        (beside / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        _write_weights(beside, decoder, max_shard_bytes, value_class)
        for file in copied:
            shutil.copyfile(file, beside / file.name)
        for name, text in (extra_files or {}).items():
            (beside / name).write_text(text, encoding="utf-8")
        beside.rename(target)
    except BaseException:
        shutil.rmtree(beside)
        raise


def _files_to_copy(source: Path) -> list[Path]:
    tokenizer_files = [file for name in TOKENIZER_FILES if (file := source / name).is_file()]
    if not tokenizer_files:
        raise InputError(f"{source}: want a folder with tokenizer files (tokenizer.json, ...), found none")
    generation = source / "generation_config.json"
    return [*tokenizer_files, generation] if generation.is_file() else tokenizer_files


def _write_weights(folder: Path, decoder: Decoder, max_shard_bytes: int, value_class: str) -> None:
    parameters: dict[str, Tensor] = dict(decoder.named_parameters())
    is_token_classifier = decoder.heads == ("value",) and value_class == "token"
    if is_token_classifier and "score.bias" not in parameters:
        parameters["score.bias"] = torch.zeros(1, dtype=decoder.dtype)
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    stored = _stored_tensors(decoder.architecture, shapes)
    if is_token_classifier and decoder.architecture.family == "gpt2":
        # The one class that names its head otherwise.
        stored = {name.replace("score.", "classifier."): tensor for name, tensor in stored.items()}
    shards = _shards(stored, parameters, max_shard_bytes)
    for file_name, names in shards.items():
        # Pointers are handed on, so only what is fused or transposed is copied, one shard of it at a time.
        tensors = {name: stored[name].join(parameters).cpu() for name in names}
        save_file(tensors, folder / file_name, {"format": "pt"})
    if len(shards) > 1:
        total = sum(parameter.numel() * parameter.element_size() for parameter in parameters.values())
        weight_map = {name: file_name for file_name, names in shards.items() for name in names}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a folder.  Raises InputError where there is none, CorruptFileError where it is no JSON object."""
    file = folder / CONFIG
    if not file.is_file():
        raise InputError(f"{folder}: want a Hugging Face folder with {CONFIG}, found none")
    return _json_object(file)


def _config(decoder: Decoder, value_class: str) -> dict[str, Any]:
    config = decoder.architecture.to_hugging_face()
    # transformers would fill in its family's ids, which belong to another vocabulary.
    config |= dict.fromkeys(TOKEN_ID_KEYS)
    config["torch_dtype"] = str(decoder.dtype).removeprefix("torch.")
    if decoder.heads == ("value",):
        if value_class == "sequence" and decoder.score is not None and decoder.score.bias is not None:
            raise InputError("value_class: a sequence classification has no bias; want 'token' for this value head")
        kind = "Sequence" if value_class == "sequence" else "Token"
        config["architectures"] = [f"{decoder.architecture.class_prefix}For{kind}Classification"]
        config |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    return config


def _stored_tensors(architecture: Architecture, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, _StoredTensor]:
    """By name in the file, with prefix; heads under this decoder's names."""
    if architecture.family != "gpt2":
        return {name: _StoredTensor((name,)) for name in shapes}
    stored = {name: _StoredTensor((name,)) for name in shapes if name.startswith(_HEADS)}
    for theirs, ours in _GPT2_TRUNK.items():
        for kind in ("weight", "bias"):
            if f"{ours}.{kind}" in shapes:
                stored[f"transformer.{theirs}.{kind}"] = _StoredTensor((f"{ours}.{kind}",))
    for layer in range(architecture.num_layers):
        for theirs, modules in _GPT2_LAYER.items():
            for kind in ("weight", "bias"):
                names = tuple(f"model.layers.{layer}.{ours}.{kind}" for ours in modules)
                # OpenAI's layers multiply from the right: weights are [inputs, outputs].
                transposed = kind == "weight" and not theirs.startswith("ln_")
                stored[f"transformer.h.{layer}.{theirs}.{kind}"] = _StoredTensor(names, transposed)
    return stored


def _contents(folder: Path) -> _Contents:
    architecture = Architecture.from_hugging_face(read_config(folder))
    files = _tensor_files(folder, architecture)
    names = {name for in_file in files.values() for name in in_file}
    heads: tuple[Head, ...] = ("language", "value") if "score.weight" in names else ("language",)
    decoder = Decoder(architecture, heads=heads, value_bias="score.bias" in names, device="meta")
    shapes = {name: tuple(parameter.shape) for name, parameter in decoder.named_parameters()}
    stored = _stored_tensors(architecture, shapes)
    if unknown := sorted(names - stored.keys()):
        raise InputError(f"{folder}: holds {_few(unknown)}, which a {architecture.family} of this config lacks")
    # A model for classification has no language head; the trunk must be whole in any case.
    if missing := sorted(stored.keys() - names - {"lm_head.weight"}):
        raise InputError(f"{folder}: want {_few(missing)}, which its files lack; is the download complete?")
    for file, in_file in files.items():
        with _open(file) as tensors:
            for name, name_in_file in in_file.items():
                wanted, given = stored[name].shape(shapes), list(tensors.get_slice(name_in_file).get_shape())
                if wanted != given:
                    raise InputError(f"{file}: {name_in_file}: want {wanted}, as {CONFIG} says, given {given}")
    return _Contents(architecture, files, stored, shapes)


def _tensor_files(folder: Path, architecture: Architecture) -> dict[Path, dict[str, str]]:
    """Per file: name with prefix, heads under this decoder's names -> name in the file; buffers left out."""
    if (folder / INDEX).is_file():
        weight_map = _json_object(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CorruptFileError(f"{folder / INDEX}: want a weight_map from tensor names to files, found none")
        paths = [folder / name for name in sorted(set(weight_map.values()))]
    elif (folder / WEIGHTS).is_file():
        weight_map, paths = None, [folder / WEIGHTS]
    else:
        hint = "; convert pytorch_model.bin to safetensors" if (folder / "pytorch_model.bin").is_file() else ""
        raise InputError(f"{folder}: want {WEIGHTS} or {INDEX}, found neither{hint}")
    files: dict[Path, dict[str, str]] = {}
    for path in paths:
        if not path.is_file():
            raise InputError(f"{folder}: want {path.name}, which {INDEX} names, found none; is the download complete?")
        with _open(path) as tensors:
            names = list(tensors.keys())
        if weight_map is not None:
            indexed = {name for name, file in weight_map.items() if file == path.name}
            if lacking := sorted(indexed - set(names)):
                raise InputError(f"{path}: want {_few(lacking)}, as {INDEX} says, which it lacks")
        files[path] = {own: name for name in names if (own := _own_name(name, architecture)) is not None}
    return files


def _own_name(name: str, architecture: Architecture) -> str | None:
    """With prefix and with the heads' names of this decoder; None for what is no parameter of it."""
    gpt2 = architecture.family == "gpt2"
    # Old files hold causal masks and rotary frequencies, which are computed here.
    if name.endswith("rotary_emb.inv_freq") or (gpt2 and name.endswith((".attn.bias", ".attn.masked_bias"))):
        return None
    if name == "lm_head.weight" and architecture.tied_embeddings:
        return None
    if name.startswith(_HEADS):
        return name.replace("classifier.", "score.")
    prefix = "transformer." if gpt2 else "model."
    return name if name.startswith(prefix) else prefix + name


def _shards(
    stored: Mapping[str, _StoredTensor], parameters: Mapping[str, Tensor], max_bytes: int
) -> dict[str, list[str]]:
    """File names and the tensors in them, filled in order; a tensor larger than the limit has a file of its own."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, tensor in stored.items():
        size = sum(parameters[p].numel() * parameters[p].element_size() for p in tensor.parameters)
        if shards[-1] and filled + size > max_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    if len(shards) == 1:
        return {WEIGHTS: shards[0]}
    return {f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors": names for i, names in enumerate(shards)}


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise CorruptFileError(f"{file}: truncated or no safetensors file ({error}); copy it again") from error


def _json_object(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text())
    except ValueError as error:
        raise CorruptFileError(f"{file}: no JSON ({error}); copy it again") from error
    if not isinstance(value, dict):
        raise CorruptFileError(f"{file}: want a JSON object, found {type(value).__name__}")
    return value


def _few(names: Sequence[str]) -> str:
    """The first names of a list that may be long."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
