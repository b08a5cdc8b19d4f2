"""Text to tokens and back: a small interface, characters as tokens, and Hugging Face's tokenizer.json."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from hpcrl.errors import InputError

Int64 = npt.NDArray[np.int64]

_INCOMPLETE = "\ufffd"
"""What a decoder writes for bytes that are no character yet."""


class Tokenizer(Protocol):
    """What stages ask of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Ids are 0 to vocab_size - 1."""

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end a response; the first is written behind demonstrations."""

    @property
    def reserved_ids(self) -> tuple[int, ...]:
        """Ids that are never sampled: padding, the beginning of a text, whatever has no text."""

    def encode(self, text: str) -> Int64:
        """i64[n], without special tokens but those spelt out in the text.

        Raises: InputError for text that has no tokens.
        """

    def encode_prompt(self, text: str) -> Int64:
        """i64[n], n >= 1, with the token that opens a text where the vocabulary has one."""

    def decode(self, tokens: Sequence[int] | Int64) -> str:
        """The text; special tokens have none."""

    def character_ends(self, tokens: Sequence[int] | Int64) -> Int64:
        """i64[n]: how many characters of `decode(tokens)` the first 1, 2, ..., n tokens make.

        A character that several tokens spell is made by the last of them.
        """


class IncrementalText:
    """The text of tokens that come one by one; a character that several tokens spell is given with the last of them.

    Only the last few tokens are decoded again, so a response costs time in proportion to its length.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # Tokens whose text is known, as the context that some decoders want (a space before the first word is
        # dropped), and those behind them, whose text is not known yet.
        self._known: list[int] = []
        self._open: list[int] = []

    def push(self, token: int) -> str:
        """What this token adds to the text."""
        self._open.append(token)
        text = self._new_text()
        if not text or text.endswith(_INCOMPLETE):
            return ""
        self._known, self._open = self._open, []
        return text

    def finish(self) -> str:
        """What was held back as incomplete."""
        text = self._new_text()
        self._known, self._open = self._open, []
        return text

    def _new_text(self) -> str:
        return self._tokenizer.decode([*self._known, *self._open])[len(self._tokenizer.decode(self._known)) :]


class StopStrings:
    """Finds the first of some strings in a text that grows token by token.

    Args:
        tokenizer: of the tokens.
        strings: none empty.
    Raises:
        InputError: an empty string.
    """

    def __init__(self, tokenizer: Tokenizer, strings: Sequence[str]) -> None:
        if "" in strings:
            raise InputError(f"stop_strings: want strings of at least one character, given {tuple(strings)}")
        self._text, self._strings = IncrementalText(tokenizer), tuple(strings)
        self._overlap = max(map(len, self._strings), default=1) - 1
        self._tail = ""

    def push(self, token: int) -> bool:
        """Whether this token completes one of the strings."""
        new = self._text.push(token)
        if not new:
            return False
        tail = self._tail + new
        self._tail = tail[max(len(tail) - self._overlap, 0) :]
        # A string that lies whole in what was there before was found, or passed over, then.
        return any(tail.find(string, max(len(tail) - len(new) - len(string) + 1, 0)) >= 0 for string in self._strings)


@dataclasses.dataclass(frozen=True)
class CharacterTokenizer:
    """One token for each character of an alphabet, behind the reserved ids 0 (padding), 1 (end) and 2 (beginning).

    Raises: InputError for an alphabet that is empty or holds a character twice.
    Example:
        >>> tokenizer = CharacterTokenizer("0123456789+=")
        >>> tokenizer.encode("1+1=").tolist(), tokenizer.decode([4, 13, 1])
        ([4, 13, 4, 14], '1+')
    """

    alphabet: str
    """Its characters, in the order of their ids."""

    PAD: ClassVar[int] = 0
    EOS: ClassVar[int] = 1
    BOS: ClassVar[int] = 2
    NUM_RESERVED: ClassVar[int] = 3

    def __post_init__(self) -> None:
        if not self.alphabet or len(set(self.alphabet)) < len(self.alphabet):
            raise InputError(f"CharacterTokenizer.alphabet: want each character once, given {self.alphabet!r}")

    @property
    def vocab_size(self) -> int:
        return self.NUM_RESERVED + len(self.alphabet)

    @property
    def eos_ids(self) -> tuple[int, ...]:
        return (self.EOS,)

    @property
    def reserved_ids(self) -> tuple[int, ...]:
        return (self.PAD, self.BOS)

    def encode(self, text: str) -> Int64:
        places = [self.alphabet.find(character) for character in text]
        if -1 in places:
            where = places.index(-1)
            raise InputError(
                f"CharacterTokenizer: want characters of {self.alphabet!r}, given {text[where]!r} at {where} of "
                f"{text[:80]!r}"
            )
        return np.array(places, np.int64) + self.NUM_RESERVED

    def encode_prompt(self, text: str) -> Int64:
        return np.concatenate([np.array([self.BOS], np.int64), self.encode(text)])

    def decode(self, tokens: Sequence[int] | Int64) -> str:
        return "".join(self.alphabet[int(token) - self.NUM_RESERVED] for token in tokens if token >= self.NUM_RESERVED)

    def character_ends(self, tokens: Sequence[int] | Int64) -> Int64:
        return np.cumsum(np.asarray(tokens, np.int64) >= self.NUM_RESERVED)

    def hugging_face_files(self) -> dict[str, str]:
        """tokenizer.json and tokenizer_config.json, so that transformers' AutoTokenizer opens an exported model.

        Characters outside the alphabet, refused here, are dropped there.
        """
        specials = {"<pad>": self.PAD, "<eos>": self.EOS, "<bos>": self.BOS}
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        characters = {character: self.NUM_RESERVED + place for place, character in enumerate(self.alphabet)}
        pieces = [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
        tokenizer = {
            "version": "1.0",
            "added_tokens": [{"id": token, "content": content, **flags} for content, token in specials.items()],
            "post_processor": {
                "type": "TemplateProcessing",
                "single": pieces,
                "pair": [*pieces, {"Sequence": {"id": "B", "type_id": 0}}],
                "special_tokens": {"<bos>": {"id": "<bos>", "ids": [self.BOS], "tokens": ["<bos>"]}},
            },
            "decoder": {"type": "Fuse"},
            "model": {"type": "BPE", "vocab": {**specials, **characters}, "merges": []},
        }
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{f"{content[1:-1]}_token": content for content in specials},
            "clean_up_tokenization_spaces": False,
        }
        return {
            "tokenizer.json": json.dumps(tokenizer, ensure_ascii=False, indent=1) + "\n",
            "tokenizer_config.json": json.dumps(config, indent=1) + "\n",
        }


@dataclasses.dataclass(frozen=True)
class HuggingFaceTokenizer:
    """The tokenizer of a Hugging Face folder: tokenizer.json, its special tokens, its chat template.

    EOS ids are those of generation_config.json, else of config.json, else tokenizer_config.json's `eos_token`.
    Needs the extra `language` (tokenizers; jinja2 for chat templates).
    Raises: InputError for a file that is missing or not what its name says, or a library that is not installed.
    """

    folder: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", str(self.folder))
        _ = self._library
        for token in (*self.eos_ids, *self.reserved_ids):
            if not 0 <= token < self.vocab_size:
                raise InputError(f"{self.folder}: special tokens: want ids in [0, {self.vocab_size}), given {token}")

    def __getstate__(self) -> dict[str, Any]:
        """The folder alone; its files are read again where it arrives."""
        return {"folder": self.folder}

    @functools.cached_property
    def vocab_size(self) -> int:
        ids: dict[str, int] = self._library.get_vocab(with_added_tokens=True)
        return max(ids.values()) + 1

    @functools.cached_property
    def eos_ids(self) -> tuple[int, ...]:
        for name in ("generation_config.json", "config.json"):
            given = self._json(name).get("eos_token_id")
            if given is not None:
                # In the order of the file: the first is written behind demonstrations.
                return tuple(dict.fromkeys(given if isinstance(given, list) else [given]))
        token = self._special_id("eos_token")
        if token is None:
            raise InputError(
                f"{self.folder}: want an EOS token in generation_config.json, config.json or tokenizer_config.json, "
                "found none; add eos_token_id to generation_config.json"
            )
        return (token,)

    @functools.cached_property
    def reserved_ids(self) -> tuple[int, ...]:
        special = {token for token, added in self._library.get_added_tokens_decoder().items() if added.special}
        pad = self._special_id("pad_token")
        if pad is not None:
            special.add(pad)
        return tuple(sorted(special - set(self.eos_ids)))

    def encode(self, text: str) -> Int64:
        return np.array(self._library.encode(text, add_special_tokens=False).ids, np.int64)

    def encode_prompt(self, text: str) -> Int64:
        return np.array(self._library.encode(text, add_special_tokens=True).ids, np.int64)

    def decode(self, tokens: Sequence[int] | Int64) -> str:
        text: str = self._library.decode([int(token) for token in tokens], skip_special_tokens=True)
        return text

    def character_ends(self, tokens: Sequence[int] | Int64) -> Int64:
        text = IncrementalText(self)
        ends = np.cumsum([len(text.push(int(token))) for token in tokens], dtype=np.int64)
        if len(ends):
            ends[-1] += len(text.finish())
        return ends

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> str:
        """A conversation as the text that the chat template makes of it; `encode` it, as it has its special tokens.

        Templates run in jinja2's sandbox, as a template is a program that came with the weights.
        Args:
            messages: each with `role` and `content`.
            add_generation_prompt: ends with what begins the assistant's answer.
        Raises:
            InputError: no chat template, or one that refuses these messages.
        """
        template = self._template
        from jinja2 import TemplateError

        try:
            text: str = template.render(
                messages=list(messages), add_generation_prompt=add_generation_prompt, **self._special_texts
            )
        except TemplateError as error:
            raise InputError(f"{self.folder}: the chat template refuses these messages: {error}") from error
        return text

    @functools.cached_property
    def _template(self) -> Any:
        source = self._template_source()
        if source is None:
            raise InputError(
                f"{self.folder}: want chat_template.jinja, or chat_template in tokenizer_config.json, found none; "
                "give prompts as plain text"
            )
        try:
            from jinja2 import TemplateError
            from jinja2.ext import loopcontrols
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError:
            raise InputError("chat templates: want the library jinja2; pip install 'hpcrl[language]'") from None

        def refuse(message: str) -> None:
            raise TemplateError(message)

        # As transformers renders them.
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
        environment.globals["raise_exception"] = refuse
        try:
            return environment.from_string(source)
        except TemplateError as error:
            raise InputError(f"{self.folder}: the chat template is no template: {error}") from error

    def _template_source(self) -> str | None:
        file = Path(self.folder, "chat_template.jinja")
        if file.exists():
            return file.read_text()
        for name in ("chat_template.json", "tokenizer_config.json"):
            given = self._json(name).get("chat_template")
            if isinstance(given, list):  # several by name
                given = {each["name"]: each["template"] for each in given}.get("default")
            if given is not None:
                return str(given)
        return None

    @functools.cached_property
    def _special_texts(self) -> dict[str, str]:
        """`bos_token` and its like: their text."""
        config = self._json("tokenizer_config.json")
        given = {name: config.get(name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
        return {
            name: value["content"] if isinstance(value, dict) else value
            for name, value in given.items()
            if value is not None
        }

    def _special_id(self, name: str) -> int | None:
        text = self._special_texts.get(name)
        if text is None:
            return None
        token: int | None = self._library.token_to_id(text)
        if token is None:
            raise InputError(f"{self.folder}: tokenizer_config.json: {name} is {text!r}, which tokenizer.json lacks")
        return token

    @functools.cached_property
    def _library(self) -> Any:
        file = Path(self.folder, "tokenizer.json")
        if not file.exists():
            raise InputError(
                f"{self.folder}: want tokenizer.json, found none; save it with transformers' "
                "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
            )
        try:
            import tokenizers
        except ImportError:
            raise InputError("tokenizer.json: want the library tokenizers; pip install 'hpcrl[language]'") from None
        try:
            return tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises nothing narrower
            raise InputError(f"{file}: no tokenizer that the library tokenizers reads ({error})") from error

    def _json(self, name: str) -> dict[str, Any]:
        file = Path(self.folder, name)
        if not file.exists():
            return {}
        try:
            value = json.loads(file.read_text())
        except ValueError as error:
            raise InputError(f"{file}: no JSON ({error})") from error
        if not isinstance(value, dict):
            raise InputError(f"{file}: want a JSON object, given {type(value).__name__}")
        return value
