"""Tokenizers: round trips, character ends against decoded prefixes, stop strings, chat templates, refusals."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcrl.data.configuration import from_plain, to_plain
from hpcrl.errors import InputError
from hpcrl.models.language.tokenizer import (
    CharacterTokenizer,
    HuggingFaceTokenizer,
    IncrementalText,
    StopStrings,
)

CHARACTERS = CharacterTokenizer("0123456789+=; ")
TEXTS = ["The sum of 12 and 7 is 19.", "Grüße, 世界! 🙂🙂 ok", "a\nb\n\nc", " leading and trailing ", ""]


def bytes_folder(folder, **config):
    """A folder with a byte-level BPE tokenizer trained here, in which most characters of TEXTS are several tokens."""
    tokenizers = pytest.importorskip("tokenizers", reason="the library tokenizers is not installed")
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<s>", "</s>", "<tool>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(["the sum of the sum and the sum of sums"] * 3, trainer)
    library.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    library.save(str(folder / "tokenizer.json"))
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens | config))
    return folder


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory) -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer(str(bytes_folder(tmp_path_factory.mktemp("bytes"))))


def test_characters_round_trip():
    tokens = CHARACTERS.encode("12+7=19")
    assert tokens.dtype == np.int64
    assert CHARACTERS.decode(tokens) == "12+7=19"
    assert CHARACTERS.decode([2, *tokens, 1, 0]) == "12+7=19"
    assert CHARACTERS.encode_prompt("1").tolist() == [2, 4]


@pytest.mark.parametrize("copied", [pickle.loads(pickle.dumps(CHARACTERS)), from_plain(to_plain(CHARACTERS))])
def test_a_character_tokenizer_is_a_configuration(copied):
    assert copied == CHARACTERS
    assert copied.decode(copied.encode("1+1")) == "1+1"


def test_characters_refuse_what_they_do_not_have():
    with pytest.raises(InputError, match=r"given 'x' at 2"):
        CHARACTERS.encode("12x")
    with pytest.raises(InputError, match="each character once"):
        CharacterTokenizer("aba")


def test_transformers_opens_a_character_tokenizer(tmp_path):
    for name, text in CHARACTERS.hugging_face_files().items():
        (tmp_path / name).write_text(text)
    ours = HuggingFaceTokenizer(str(tmp_path))
    assert ours.eos_ids == CHARACTERS.eos_ids
    assert ours.reserved_ids == CHARACTERS.reserved_ids
    assert ours.vocab_size == CHARACTERS.vocab_size
    text = "12 + 7=19; 0"
    assert ours.encode(text).tolist() == CHARACTERS.encode(text).tolist()
    assert ours.encode_prompt(text).tolist() == CHARACTERS.encode_prompt(text).tolist()
    assert ours.decode(ours.encode(text)) == text
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(text, add_special_tokens=False)["input_ids"] == CHARACTERS.encode(text).tolist()
    assert theirs.decode(CHARACTERS.encode(text)) == text
    assert (theirs.pad_token_id, theirs.eos_token_id, theirs.bos_token_id) == (0, 1, 2)


@pytest.mark.parametrize("text", TEXTS)
def test_hugging_face_round_trip(hugging_face, text):
    tokens = hugging_face.encode(text)
    assert hugging_face.decode(tokens) == text
    assert hugging_face.encode_prompt(text).tolist() == [1, *tokens]
    assert hugging_face.decode([1, *tokens, 2]) == text


def test_hugging_face_special_ids(hugging_face):
    assert (hugging_face.eos_ids, hugging_face.reserved_ids) == ((2,), (0, 1, 3))
    assert hugging_face.vocab_size == max(hugging_face._library.get_vocab().values()) + 1
    for copied in (pickle.loads(pickle.dumps(hugging_face)), from_plain(to_plain(hugging_face))):
        assert copied == hugging_face
        assert copied.decode(copied.encode("Grüße")) == "Grüße"


def test_eos_of_the_generation_config_comes_first(tmp_path):
    folder = bytes_folder(tmp_path)
    (folder / "config.json").write_text('{"eos_token_id": 3}')
    assert HuggingFaceTokenizer(str(folder)).eos_ids == (3,)
    (folder / "generation_config.json").write_text('{"eos_token_id": [3, 2]}')
    tokenizer = HuggingFaceTokenizer(str(folder))
    assert tokenizer.eos_ids == (3, 2)
    assert tokenizer.reserved_ids == (0, 1)


# ---- Characters of tokens ------------------------------------------------------------------------------------------


def ends_by_prefixes(tokenizer, tokens) -> list[int]:
    """Decodes every prefix: a token's text ends where the text of the prefix agrees with that of the whole."""
    whole = tokenizer.decode(tokens)
    ends = []
    for count in range(1, len(tokens) + 1):
        text = tokenizer.decode(tokens[:count])
        ends.append(len(text.rstrip("\ufffd")) if count < len(tokens) else len(whole))
        assert whole.startswith(text.rstrip("\ufffd"))
    return ends


@pytest.mark.parametrize("text", TEXTS)
def test_character_ends(hugging_face, text):
    tokens = [*hugging_face.encode(text).tolist(), 2]
    assert hugging_face.character_ends(tokens).tolist() == ends_by_prefixes(hugging_face, tokens)


@settings(max_examples=100, deadline=None)
@given(tokens=st.lists(st.integers(0, 259), max_size=40))
def test_texts_of_any_tokens_add_up_to_the_whole(hugging_face, tokens):
    """Random bytes are seldom characters: what is held back must come with the last token."""
    ends = hugging_face.character_ends(tokens)
    assert (np.diff(ends) >= 0).all()
    if tokens:
        assert ends[-1] == len(hugging_face.decode(tokens))
    text = IncrementalText(hugging_face)
    assert "".join([text.push(token) for token in tokens] + [text.finish()]) == hugging_face.decode(tokens)


def test_character_ends_of_characters():
    assert CHARACTERS.character_ends([2, 4, 13, 1, 5]).tolist() == [0, 1, 2, 2, 3]
    assert CHARACTERS.character_ends([]).tolist() == []


# ---- Stop strings --------------------------------------------------------------------------------------------------


def first_stop(tokenizer, tokens, strings) -> int | None:
    stop = StopStrings(tokenizer, strings)
    return next((place for place, token in enumerate(tokens) if stop.push(token)), None)


@settings(max_examples=200)
@given(text=st.text("01;", max_size=30), strings=st.lists(st.text("01;", min_size=1, max_size=4), max_size=3))
def test_stop_strings_end_where_the_text_first_holds_one(text, strings):
    ends = [text.find(string) + len(string) for string in strings if string in text]
    wanted = min(ends) - 1 if ends else None
    assert first_stop(CHARACTERS, CHARACTERS.encode(text).tolist(), strings) == wanted


def test_a_stop_string_across_tokens(hugging_face):
    tokens = hugging_face.encode("Grüße! 🙂 the end").tolist()
    for string in ("ß", "e! 🙂", "🙂 t", "d"):
        place = first_stop(hugging_face, tokens, [string])
        assert place is not None
        assert string in hugging_face.decode(tokens[: place + 1])
        assert string not in hugging_face.decode(tokens[:place])
    assert first_stop(hugging_face, tokens, ["nowhere"]) is None
    with pytest.raises(InputError, match="at least one character"):
        StopStrings(hugging_face, [""])


# ---- Chat templates ------------------------------------------------------------------------------------------------

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}\n"
    "    {% if message.role not in ['user', 'assistant'] %}{{ raise_exception('no ' + message.role) }}{% endif %}\n"
    "[{{ message.role }}] {{ message.content | trim }}\n{% endfor %}\n"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
MESSAGES = [{"role": "user", "content": " hi "}, {"role": "assistant", "content": "ho"}]


def test_chat_template_as_transformers_renders_it(tmp_path):
    tokenizer = HuggingFaceTokenizer(str(bytes_folder(tmp_path, chat_template=TEMPLATE)))
    text = tokenizer.render(MESSAGES)
    assert text.startswith("<s>")
    assert text.endswith("[assistant]")
    with pytest.raises(InputError, match="no tool"):
        tokenizer.render([{"role": "tool", "content": ""}])
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True) == text


def test_a_chat_template_cannot_reach_out_of_its_sandbox(tmp_path):
    folder = bytes_folder(tmp_path, chat_template="{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(InputError, match="refuses"):
        HuggingFaceTokenizer(str(folder)).render(MESSAGES)


def test_a_template_file_comes_before_the_configuration(tmp_path):
    folder = bytes_folder(tmp_path, chat_template="from the configuration")
    (folder / "chat_template.jinja").write_text("from the file")
    assert HuggingFaceTokenizer(str(folder)).render(MESSAGES) == "from the file"


def test_bad_folders_are_refused(tmp_path, hugging_face):
    with pytest.raises(InputError, match=r"want tokenizer\.json, found none"):
        HuggingFaceTokenizer(str(tmp_path))
    with pytest.raises(InputError, match="found none; give prompts as plain text"):
        hugging_face.render(MESSAGES)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="no tokenizer"):
        HuggingFaceTokenizer(str(tmp_path))
    bytes_folder(tmp_path, eos_token={"content": "<gone>"})
    with pytest.raises(InputError, match="which tokenizer"):
        HuggingFaceTokenizer(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(InputError, match="add eos_token_id"):
        HuggingFaceTokenizer(str(tmp_path))
