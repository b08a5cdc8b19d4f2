"""Tasks from files: formats, order, ranges, and lines that cannot be used."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import tracemalloc

import pytest
from shared_data import shared_data

from hpcrl.data.configuration import from_plain, to_plain
from hpcrl.envs.text import Gsm8k, Gsm8kSolutions, HhPairs, JsonLines, Message, Problem, TextTask
from hpcrl.errors import CorruptFileError, InputError


def lines_of(rows):
    return [row if isinstance(row, (str, bytes)) else json.dumps(row) for row in rows]


@pytest.fixture(params=["rows.jsonl", "rows.jsonl.gz"])
def write(request, tmp_path):
    """Writes rows (or raw lines) into a file, plain or compressed; gives its path."""

    def put(rows, end="\n"):
        lines = [line if isinstance(line, bytes) else line.encode() for line in lines_of(rows)]
        content = b"\n".join(lines) + end.encode()
        path = tmp_path / request.param
        path.write_bytes(gzip.compress(content) if request.param.endswith(".gz") else content)
        return str(path)

    return put


def turn(role, content):
    return {"role": role, "content": content}


USER, ASSISTANT, OTHER = turn("user", "6*7?"), turn("assistant", "42"), turn("assistant", "41")
ASKED, RIGHT, WRONG = (Message("user", "6*7?"),), (Message("assistant", "42"),), (Message("assistant", "41"),)


@pytest.mark.parametrize(
    ("kind", "row", "expected"),
    [
        ("prompts", {"prompt": "6*7="}, Problem("6*7=")),
        ("prompts", {"prompt": "6*7=", "answer": 42}, Problem("6*7=", {"answer": 42})),
        ("prompts", {"prompt": [USER]}, Problem(ASKED)),
        ("prompts", {"messages": [USER], "level": "easy"}, Problem(ASKED, {"level": "easy"})),
        ("demonstrations", {"prompt": "6*7=", "completion": "42"}, Problem("6*7=", {"completion": "42"})),
        ("demonstrations", {"prompt": [USER], "completion": [ASSISTANT]}, Problem(ASKED, {"completion": RIGHT})),
        ("demonstrations", {"messages": [USER, ASSISTANT]}, Problem(ASKED, {"completion": RIGHT})),
        (
            "preferences",
            {"prompt": "6*7=", "chosen": "42", "rejected": "41"},
            Problem("6*7=", {"chosen": "42", "rejected": "41"}),
        ),
        (
            "preferences",
            {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [OTHER]},
            Problem(ASKED, {"chosen": RIGHT, "rejected": WRONG}),
        ),
        (
            "preferences",
            {"chosen": [USER, ASSISTANT], "rejected": [USER, OTHER]},
            Problem(ASKED, {"chosen": RIGHT, "rejected": WRONG}),
        ),
    ],
)
def test_formats(write, kind, row, expected):
    task = JsonLines(write([row]), kind=kind)
    assert task.problem(0) == expected
    assert task.size == 1
    assert task.steps("a\nb\n") == []


def test_indices_wrap_around_in_a_new_order_on_each_pass(write):
    path = write([{"prompt": str(number)} for number in range(50)])
    task: TextTask = JsonLines(path, seed=3)
    passes = [[task.problem(50 * number + place).prompt for place in range(50)] for number in range(3)]
    for order in passes:
        assert sorted(order, key=int) == [str(number) for number in range(50)]
    assert len({tuple(order) for order in passes}) == 3
    again = JsonLines(path, seed=3)
    there = [prompt for order in passes for prompt in order]
    assert [again.problem(index).prompt for index in reversed(range(150))] == there[::-1]
    assert [JsonLines(path, seed=4).problem(index).prompt for index in range(50)] != passes[0]
    plain = JsonLines(path, shuffle=False)
    assert [plain.problem(index).prompt for index in (0, 1, 49, 50, 51)] == ["0", "1", "49", "0", "1"]


def test_ranges_of_lines_hold_out(write):
    path = write([{"prompt": str(number)} for number in range(10)])
    held_out = JsonLines(path, start=8)
    rest = JsonLines(path, stop=8)
    assert (rest.size, held_out.size) == (8, 2)
    assert {held_out.problem(index).prompt for index in range(4)} == {"8", "9"}
    assert {rest.problem(index).prompt for index in range(8)} == set(map(str, range(8)))


def test_the_task_is_its_own_configuration_and_travels(write):
    task = JsonLines(write([{"prompt": "a"}, {"prompt": "b"}]), seed=2, required=("prompt",))
    assert task.size == 2
    assert from_plain(to_plain(task)) == task
    assert pickle.loads(pickle.dumps(task)).problem(1) == task.problem(1)


def test_without_a_last_newline_and_with_carriage_returns(write):
    assert (
        JsonLines(write(['{"prompt": "a"}\r', '{"prompt": "\u2028é"}'], end=""), shuffle=False).problem(1).prompt
        == "\u2028é"
    )


BAD = [
    ("prompts", '{"prompt": "a"', "line 3: want a JSON object: Expecting ',' delimiter"),
    ("prompts", "", "want a JSON object, given an empty line"),
    ("prompts", "[1]", "want a JSON object, given a list"),
    ("prompts", "null", "want a JSON object, given null"),
    ("prompts", b'{"prompt": "\xff"}', "want a JSON object: 'utf-8' codec can't decode"),
    ("prompts", "[" * 100_000, "want a JSON object: "),
    ("prompts", {"promt": "a"}, "want the key 'prompt', given 'promt'"),
    ("prompts", {"prompt": ""}, "prompt: want text, given an empty one"),
    ("prompts", {"prompt": 3}, "prompt: want text, given a number"),
    ("prompts", {"prompt": None}, "prompt: want text, given null"),
    ("prompts", '{"prompt": "\\ud800"}', "prompt: want Unicode text, given half of a surrogate pair"),
    ("prompts", {"prompt": []}, "prompt: want a list of messages, given a list"),
    ("prompts", {"prompt": [{"role": "user"}]}, "prompt: message 0: want the keys role and content, given role"),
    ("prompts", {"prompt": ["hello"]}, "prompt: message 0: want the keys role and content, given text"),
    ("prompts", {"prompt": [turn("user", None)]}, "prompt: message 0: content: want text, given null"),
    ("prompts", {"messages": [USER, ASSISTANT]}, "messages: want a last message that the assistant answers, given one"),
    ("demonstrations", {"prompt": "a"}, "want the key 'completion', given 'prompt'"),
    ("demonstrations", {"prompt": "a", "completion": ""}, "completion: want text, given an empty one"),
    ("demonstrations", {"prompt": "a", "completion": [ASSISTANT]}, "completion: want text, given a list"),
    ("demonstrations", {"prompt": [USER], "completion": "42"}, "completion: want a list of messages, given text"),
    ("demonstrations", {"prompt": [USER]}, "want the key 'completion', given 'prompt'"),
    ("demonstrations", {"messages": [USER]}, "want a prompt, then a last message of the assistant"),
    ("demonstrations", {"messages": [ASSISTANT]}, "want a prompt, then a last message of the assistant"),
    ("preferences", {"prompt": "a", "chosen": "b"}, "want the key 'rejected', given 'prompt', 'chosen'"),
    ("preferences", {"chosen": "a", "rejected": "b"}, "want the key 'prompt', or chosen and rejected as lists"),
    ("preferences", {"chosen": [USER], "rejected": [ASSISTANT]}, "the messages both begin with: want a last message"),
]


GOOD = {
    "prompts": {"prompt": "a"},
    "demonstrations": {"prompt": "a", "completion": "b"},
    "preferences": {"prompt": "a", "chosen": "b", "rejected": "c"},
}


@pytest.mark.parametrize(("kind", "bad", "message"), BAD)
def test_a_line_that_cannot_be_used_is_named_or_counted(write, kind, bad, message):
    path = write([GOOD[kind], GOOD[kind], bad, GOOD[kind]])
    with pytest.raises(InputError) as caught:
        JsonLines(path, kind=kind).problem(0)
    assert f"{path}, line 3: " in str(caught.value)
    assert message in str(caught.value)
    assert "count and skip its like with skip_bad=True" in str(caught.value)
    task = JsonLines(path, kind=kind, skip_bad=True)
    with pytest.warns(UserWarning, match="skipped 1 of 4 lines: line 3: "):
        assert task.size == 3
    assert task.skipped.count == 1
    assert message.removeprefix("line 3: ") in task.skipped.examples[0]
    assert {task.problem(index).prompt for index in range(3)} == {"a"}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "chosen": "b", "rejected": "b"},
        {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [ASSISTANT]},
        {"chosen": [USER, ASSISTANT], "rejected": [USER, ASSISTANT]},
    ],
)
def test_equal_sides_have_an_option_of_their_own(write, row):
    path = write([GOOD["preferences"], row])
    for options in ({}, {"skip_bad": True}):
        with pytest.raises(InputError, match=r"line 2: want a chosen and a rejected side that differ.*skip_equal=True"):
            JsonLines(path, kind="preferences", **options).problem(0)
    task = JsonLines(path, kind="preferences", skip_equal=True)
    with pytest.warns(UserWarning, match="skipped 1 of 2 lines: line 2: want a chosen"):
        assert task.size == 1


def test_required_keys(write):
    path = write([{"prompt": "a", "answer": "1"}, {"prompt": "b"}])
    assert JsonLines(path).size == 2
    with pytest.raises(InputError, match="line 2: want the key 'answer', given 'prompt'"):
        JsonLines(path, required=("answer",)).problem(0)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"missing\.jsonl: want a file that can be read: No such file"):
        JsonLines(str(tmp_path / "missing.jsonl")).problem(0)
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(InputError, match=r"folder\.jsonl: want a file that can be read: Is a directory"):
        JsonLines(str(tmp_path / "folder.jsonl")).problem(0)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(InputError, match="the file is empty"):
        JsonLines(str(tmp_path / "empty.jsonl")).problem(0)
    whole = gzip.compress(b'{"prompt": "a"}\n' * 1000)
    for content in (b'{"prompt": "a"}\n', whole[:-20], whole[:30] + b"\0\1\2\3" + whole[34:]):
        (tmp_path / "damaged.jsonl.gz").write_bytes(content)
        with pytest.raises(CorruptFileError, match=r"damaged\.jsonl.gz: want a gzip file"):
            JsonLines(str(tmp_path / "damaged.jsonl.gz")).problem(0)


def test_nothing_left_is_an_error(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("x\ny\n")
    with (
        pytest.warns(UserWarning, match="skipped 2 of 2"),
        pytest.raises(InputError, match="want a line that can be used, all 2 were skipped: line 1"),
    ):
        JsonLines(str(path), skip_bad=True).problem(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "rows.json"}, "path: want the name of a .jsonl or .jsonl.gz file, given 'rows.json'"),
        ({"kind": "pairs"}, "kind: want one of prompts, demonstrations, preferences, given 'pairs'"),
        ({"start": 3, "stop": 3}, "want 0 <= start < stop"),
        ({"start": -1}, "want 0 <= start < stop"),
        ({"seed": -1}, "seed"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(InputError, match=message):
        JsonLines(**{"path": "rows.jsonl", **options})


@pytest.mark.parametrize("options", [{"start": 2}, {"stop": 3}])
def test_ranges_beyond_the_file(write, options):
    path = write([{"prompt": "a"}, {"prompt": "b"}])
    with pytest.raises(InputError, match="want start < stop <= 2, its number of lines, given start="):
        JsonLines(path, **options).problem(0)


def test_a_file_that_changes_underneath_is_noticed(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a"}\n')
    task = JsonLines(str(path))
    assert task.problem(0).prompt == "a"
    with path.open("a") as file:
        file.write('{"prompt": "b"}\n')
    with pytest.raises(InputError, match="want the file as it was when the run began"):
        task.problem(0)
    # A file put in its place is another file: the one opened is still there.
    task = JsonLines(str(path))
    assert task.size == 2
    (tmp_path / "new.jsonl").write_text("")
    os.replace(tmp_path / "new.jsonl", path)
    assert {task.problem(index).prompt for index in range(2)} == {"a", "b"}


def test_a_plain_file_is_not_held_in_memory(tmp_path):
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        for number in range(2000):
            file.write(json.dumps({"prompt": f"{number} " + "x" * 10_000}) + "\n")
    assert path.stat().st_size > 20_000_000
    tracemalloc.start()
    task = JsonLines(str(path), shuffle=False)
    assert task.problem(1234).prompt.startswith("1234 x")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000


# --- GSM8K

WORKED = "He pays 3*4=$<<3*4=12>>12.\nTogether 12+1=<<12+1=13>>13.\n#### 13"


def test_gsm8k_synthetic(write):
    path = write([{"question": "How much?", "answer": WORKED}, {"question": "How far?", "answer": "Far.\n#### 1,200"}])
    task = Gsm8k(path, shuffle=False)
    assert task.problem(0) == Problem("How much?", {"answer": "13", "completion": WORKED})
    assert task.problem(1).columns["answer"] == "1,200"
    bare = Gsm8k(path, shuffle=False, keep_annotations=False).problem(0).columns["completion"]
    assert bare == "He pays 3*4=$12.\nTogether 12+1=13.\n#### 13"
    assert [WORKED[start:end] for start, end in task.steps(WORKED)] == WORKED.splitlines(keepends=True)
    assert task.steps("a #### 3") == []
    assert task.steps("A: 3") == [(0, 4)]


@pytest.mark.parametrize("answer", ["no mark", "a ####", "a #### "])
def test_gsm8k_without_an_answer(write, answer):
    with pytest.raises(InputError, match="line 1: want an answer behind '####'"):
        Gsm8k(write([{"question": "q", "answer": answer}])).problem(0)


def test_gsm8k_solutions_synthetic(write):
    models = {"small": {"is_correct": False, "solution": "A: 12"}, "large": {"is_correct": True, "solution": "A: 13"}}
    rows = [{"question": f"q{number}", "ground_truth": "so\nA: 13", **models} for number in range(3)]
    task = Gsm8kSolutions(write(rows), shuffle=False)
    assert task.size == 6
    expected = {"answer": "13", "completion": "A: 13", "model": "large", "is_correct": True}
    assert task.problem(3) == Problem("q1", expected)
    assert Gsm8kSolutions(task.path, start=1, stop=2).size == 2
    # Lines need not hold equally many, nor all be good.
    rows[1].pop("small")
    rows.insert(1, {"question": "q", "ground_truth": "A: 1"})
    task = Gsm8kSolutions(write(rows), shuffle=False, skip_bad=True)
    with pytest.warns(UserWarning, match="line 2: want a model's solution beside question and ground_truth"):
        assert task.size == 5
    assert [task.problem(index).prompt for index in range(5)] == ["q0", "q0", "q1", "q2", "q2"]
    bad = {"question": "q", "ground_truth": "A: 1", "m": {"solution": "A: 1", "is_correct": "yes"}}
    with pytest.raises(InputError, match="m: want an object with solution and is_correct"):
        Gsm8kSolutions(write([bad])).problem(0)


def test_gsm8k_real():
    train = Gsm8k(shared_data("gsm8k/train.jsonl.gz"))
    assert train.size == 7473
    answers = [int(train.problem(index).columns["answer"].replace(",", "")) for index in range(train.size)]
    assert min(answers) < 0 < max(answers)
    solutions = Gsm8kSolutions(shared_data("gsm8k/model-solutions-a.jsonl.gz"))
    assert solutions.size % 4 == 0
    models = {solutions.problem(index).columns["model"] for index in range(100)}
    assert models == {"6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"}


# --- HH


def transcript(*turns):
    names = ("Human", "Assistant")
    return "".join(f"\n\n{names[place % 2]}: {text}" for place, text in enumerate(turns))


def test_hh_synthetic(write):
    rows = [
        {"chosen": transcript("Hi", "Hello", "Who?", "Ada"), "rejected": transcript("Hi", "Hello", "Who?", "Ben")},
        # One side goes on for another turn.
        {"chosen": transcript("Hi", "Ada", "So?", "Yes"), "rejected": transcript("Hi", "Adam")},
    ]
    task = HhPairs(write(rows), shuffle=False)
    prompt = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Who?\n\nAssistant:"
    assert task.problem(0) == Problem(prompt, {"chosen": " Ada", "rejected": " Ben"})
    expected = {"chosen": " Ada\n\nHuman: So?\n\nAssistant: Yes", "rejected": " Adam"}
    assert task.problem(1) == Problem("\n\nHuman: Hi\n\nAssistant:", expected)
    talk = HhPairs(task.path, shuffle=False, conversational=True)
    asked = (Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Who?"))
    sides = {"chosen": (Message("assistant", "Ada"),), "rejected": (Message("assistant", "Ben"),)}
    assert talk.problem(0) == Problem(asked, sides)
    assert [message.role for message in talk.problem(1).columns["chosen"]] == ["assistant", "user", "assistant"]


@pytest.mark.parametrize(
    ("chosen", "rejected", "message", "option"),
    [
        (
            transcript("Hi", "Ada"),
            transcript("Hi", "Ada"),
            "want a chosen and a rejected side that differ",
            "skip_equal",
        ),
        (transcript("Hi", "Ada"), transcript("Hi", ""), "rejected: want a response, given an empty one", "skip_bad"),
        (transcript("Hi", "Ada"), transcript("Ho", "Ada"), "want transcripts that share all up to", "skip_bad"),
        ("", transcript("Hi", "Ada"), "chosen: want text, given an empty one", "skip_bad"),
    ],
)
def test_hh_pairs_that_cannot_be_used(write, chosen, rejected, message, option):
    good = {"chosen": transcript("Hi", "Ada"), "rejected": transcript("Hi", "Ben")}
    path = write([good, {"chosen": chosen, "rejected": rejected}])
    with pytest.raises(InputError, match=f"line 2: {message}.*{option}=True"):
        HhPairs(path).problem(0)
    task = HhPairs(path, **{option: True})
    with pytest.warns(UserWarning, match="skipped 1 of 2 lines"):
        assert task.size == 1


def test_hh_real():
    path = shared_data("hh-harmless/pairs-a.jsonl.gz")
    tasks = [HhPairs(path, shuffle=False, skip_bad=True, conversational=talk) for talk in (False, True)]
    with pytest.warns(UserWarning, match="want a response, given an empty one"):
        assert tasks[0].size == tasks[1].size
    assert tasks[0].size + tasks[0].skipped.count == 1500
    for index in range(0, tasks[0].size, 7):
        plain, talk = (task.problem(index) for task in tasks)
        assert plain.prompt.endswith("\n\nAssistant:")
        assert plain.columns["chosen"] != plain.columns["rejected"]
        assert talk.prompt[-1].role == "user"
        assert talk.columns["chosen"][0].content == plain.columns["chosen"].split("\n\nHuman:")[0].strip()
