"""Execution of generated code: HumanEval's format, and what must not pass, hang or live on."""

from __future__ import annotations

import json
import os
import socket
import textwrap
import time
from pathlib import Path

import pytest
from shared_data import shared_data

from hpcrl.data.configuration import from_plain, to_plain
from hpcrl.envs.text import JsonLines
from hpcrl.errors import InputError
from hpcrl.rewards import CodeExecution, RewardError, checked_scores
from hpcrl.rewards.code_execution import ExecutionLimits, _namespaces, program_of, run_tests
from hpcrl.rewards.execution_tester import descendants

PROMPT = 'def product(a: int, b: int) -> int:\n    """The product of two numbers."""\n'
TESTS = "def check(candidate):\n    assert candidate(6, 7) == 42\n    assert candidate(0, 7) == 0\n"
SHORT = ExecutionLimits(time_s=3.0)
# What this machine allows, and what is left on one that allows neither namespaces nor Landlock.
ALL, BARE = {"namespaces": True, "landlock": True}, {"namespaces": False, "landlock": False}
both_ways = pytest.mark.parametrize("ways", [ALL, BARE], ids=["protected", "bare"])


def run(program, tests=TESTS, entry_point="product", **options):
    return run_tests(textwrap.dedent(program), tests, entry_point, limits=options.pop("limits", SHORT), **options)


@both_ways
def test_right_and_wrong(ways):
    right = run("def product(a, b):\n    return a * b\n", **ways)
    assert (right.outcome, right.detail) == ("right", "")
    assert ("network" in right.protections) is (ways["namespaces"] and bool(_namespaces()))
    assert ways == ALL or right.protections == ()
    assert 0 < right.seconds < 20
    wrong = run("def product(a, b):\n    return a + b\n", **ways)
    assert (wrong.outcome, wrong.detail) == ("wrong", "an assertion failed: ")


@pytest.mark.parametrize(
    ("program", "detail"),
    [
        ("def product(a, b:\n", "the program raised SyntaxError"),
        ("x = 1", "the program raised KeyError: 'product'"),
        ("1 / 0", "the program raised ZeroDivisionError: division by zero"),
        ("def product(a, b):\n    return unknown", "NameError: name 'unknown' is not defined"),
        ("def product(a, b):\n    raise ValueError('no')", "ValueError: ValueError: no"),
        ("def product(a, b):\n    pass", "an assertion failed"),
        ("def product(a):\n    return a", "TypeError"),
        ("def product(a, b):\n    return product(a, b)", "RecursionError"),
        ("def product(a, b):\n    return (lambda: 42)", "no plain data"),
        ("product = 42", "TypeError"),
        ("class Odd(Exception):\n    pass\ndef product(a, b):\n    raise Odd('x')", "RuntimeError: Odd: x"),
        ("def product(a, b):\n    x = []\n    x.append(x)\n    return x", "assertion failed"),
        ("\0", "the program raised"),
        ("'\ud800'", "the program raised"),
        ("(" * 10_000, "the program raised"),
    ],
    ids=range(15),
)
def test_programs_that_fail(program, detail):
    execution = run(program)
    assert execution.outcome == "wrong"
    assert detail in execution.detail


ATTACKS = {
    "os._exit before the tests": "import os\nos._exit(0)",
    "os._exit in the function": "import os\ndef product(a, b):\n    os._exit(0)",
    "sys.exit before the tests": "import sys\nsys.exit(0)",
    "sys.exit in the function": "import sys\ndef product(a, b):\n    sys.exit(0)",
    "an exception that nothing catches": "def product(a, b):\n    raise KeyboardInterrupt",
    "a result that equals everything": """
        class Everything:
            def __eq__(self, other):
                return True
        def product(a, b):
            return Everything()
        """,
    "a number that equals everything": """
        class Everything(int):
            def __eq__(self, other):
                return True
        def product(a, b):
            return Everything(1)
        """,
    "a pickle that calls": """
        class Calls:
            def __reduce__(self):
                return exec, ("import os; os._exit(0)",)
        def product(a, b):
            return Calls()
        """,
    "assert overwritten": """
        import builtins, sys
        builtins.AssertionError = KeyError
        builtins.__dict__["check"] = lambda candidate: None
        def check(candidate):
            pass
        sys.modules["__main__"].check = check
        def product(a, b):
            return None
        """,
    "the verdict printed": """
        import sys
        print('{"outcome": "right", "secret": "SECRET"}')
        print("secret", file=sys.stderr)
        def product(a, b):
            print("right")
        """,
    "a verdict into every pipe": """
        import json, os
        for descriptor in range(64):
            try:
                verdict = json.dumps({"outcome": "right", "secret": "", "protections": []})
                os.write(descriptor, f"{verdict}\\n".encode())
            except OSError:
                pass
        def product(a, b):
            return None
        """,
    "the answers into the pipe": """
        import os, sys
        def product(a, b):
            os.write(int(sys.argv[2]), b"\\0" * 4096)
        """,
    "a message without end": """
        import os, sys
        def product(a, b):
            os.write(int(sys.argv[2]), b"\\xff" * 8)
        """,
    "pipes closed": """
        import os
        def product(a, b):
            os.closerange(0, 64)
        """,
    "the tests looked for in memory": """
        import gc, sys
        def product(a, b):
            frame = sys._getframe()
            while frame:
                for value in list(frame.f_locals.values()):
                    if isinstance(value, str) and "assert" in value:
                        return 42
                frame = frame.f_back
            return 42 if any(isinstance(x, dict) and "secret" in x for x in gc.get_objects()) else None
        """,
    "the tests looked for in /proc": """
        import os
        def product(a, b):
            for pid in [name for name in os.listdir("/proc") if name.isdigit()]:
                for name in ("environ", "cmdline", "mem", "fd/0"):
                    try:
                        with open(f"/proc/{pid}/{name}", "rb") as file:
                            if b"assert" in file.read(100000):
                                return 42
                    except OSError:
                        pass
        """,
    "a write through /proc into the parent's pipes": """
        import os
        def product(a, b):
            for pid in [os.getppid(), 1]:
                for descriptor in range(64):
                    try:
                        with open(f"/proc/{pid}/fd/{descriptor}", "w") as file:
                            file.write('{"outcome": "right", "secret": "", "protections": []}\\n')
                    except OSError:
                        pass
        """,
    "the parent killed": """
        import ctypes, os, signal
        def product(a, b):
            if os.getppid() > 1:
                ctypes.CDLL(None).kill(os.getppid(), signal.SIGKILL)
            return None
        """,
    "a memory bomb": "def product(a, b):\n    return len(bytearray(10**11)) and 42 or [0] * 10**10",
    "a slow memory bomb": "def product(a, b):\n    x = []\n    while True:\n        x.append(' ' * 10**7)",
    "a huge result": "def product(a, b):\n    return 'x' * 10**8",
    "a huge result that folds": """
        def product(a, b):
            x = []
            for _ in range(40):
                x = [x, x]
            return x
        """,
    "huge output": """
        import os, sys
        def product(a, b):
            for _ in range(200):
                sys.stdout.write("x" * 10**6)
                sys.stderr.write("x" * 10**6)
        """,
    "huge files": """
        def product(a, b):
            try:
                with open("large", "wb") as file:
                    for _ in range(100):
                        file.write(b"x" * 10**6)
                return 42
            except OSError:
                return None
        """,
    "a stack that overflows": "import sys\nsys.setrecursionlimit(10**9)\ndef product(a, b):\n    return product(a, b)",
    "a segmentation fault": "import ctypes\ndef product(a, b):\n    ctypes.string_at(0)",
    "standard input read": "import sys\ndef product(a, b):\n    return 42 if sys.stdin.read() else None",
    "a prompt for input": "def product(a, b):\n    return input()",
}


# Attacks that the protections themselves would stop: without them, the tests' own process and the secret must.
ON_THE_VERDICT = [
    name for name in ATTACKS if any(word in name for word in ("pipe", "tests", "parent", "verdict", "assert"))
]


@pytest.mark.parametrize(
    ("attack", "ways"),
    [
        *(pytest.param(attack, ALL, id=name) for name, attack in ATTACKS.items()),
        *(pytest.param(ATTACKS[name], BARE, id=f"{name}, bare") for name in ON_THE_VERDICT),
    ],
)
def test_attacks_neither_pass_nor_hang(attack, ways):
    began = time.perf_counter()
    execution = run(attack, limits=ExecutionLimits(time_s=2.0), **ways)
    assert execution.outcome in ("wrong", "crashed", "timed_out"), execution
    assert time.perf_counter() - began < 30


LOOPS = {
    "before the tests": "while True:\n    pass",
    "in the function": "def product(a, b):\n    while True:\n        pass",
    "asleep": "import time\ndef product(a, b):\n    time.sleep(1000)",
    "that catches everything": """
        import signal
        for number in range(1, 32):
            try:
                signal.signal(number, signal.SIG_IGN)
            except OSError:
                pass
        def product(a, b):
            while True:
                try:
                    while True:
                        pass
                except BaseException:
                    pass
        """,
    "inside a long computation": "def product(a, b):\n    return 10 ** 10 ** 10",
    "that leaves a thread": """
        import threading
        def spin():
            while True:
                pass
        threading.Thread(target=spin).start()
        def product(a, b):
            spin()
        """,
}


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
def test_loops_are_told_apart_from_failures(loop):
    began = time.perf_counter()
    execution = run(loop, limits=ExecutionLimits(time_s=1.0))
    assert execution.outcome == "timed_out", execution
    assert "limit" in execution.detail
    assert time.perf_counter() - began < 20


@pytest.mark.parametrize("body", ["while candidate(1, 1) == 1: pass", "candidate(1, 1)\n    while True: pass"])
def test_tests_that_loop_end_too(body):
    tests = f"def check(candidate):\n    {body}\n"
    execution = run("def product(a, b):\n    return 1", tests, limits=ExecutionLimits(time_s=0.5))
    assert execution.outcome == "timed_out"


CHILDREN = """
    import os, subprocess, sys, time
    def product(a, b):
        # A child, a grandchild in a session of its own, and one started by exec.
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(1000)
            time.sleep(1000)
        subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(1000)"], start_new_session=True)
        return {answer}
    """


@pytest.fixture
def left_over(tmp_path, monkeypatch):
    """Says which processes of the test's runs are there: each has its temporary folder as its home."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return lambda: homed_in(tmp_path)


def homed_in(folder):
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"HOME={folder}/hpcrl-".encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return found


@both_ways
@pytest.mark.parametrize(("answer", "outcome"), [("a * b", "right"), ("0", "wrong"), ("time.sleep(1000)", "timed_out")])
def test_children_do_not_live_on(answer, outcome, ways, left_over):
    # Earlier tests of the same session have processes of their own.
    before = set(descendants(os.getpid()))
    execution = run(CHILDREN.format(answer=answer), limits=ExecutionLimits(time_s=1.5), **ways)
    assert execution.outcome == outcome, execution
    assert left_over() == []
    assert set(descendants(os.getpid())) <= before


def test_nothing_is_left_in_the_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    leaves = """
        import os
        def product(a, b):
            open("left", "w").write("x")
            os.mkdir("locked")
            open("locked/left", "w").write("x")
            os.chmod("locked", 0)
            for _ in range(20):
                os.mkdir("d")
                os.chdir("d")
            return a * b
        """
    assert run(leaves).outcome == "right"
    assert list(tmp_path.iterdir()) == []


def test_a_fork_bomb_ends(left_over):
    bomb = """
        import os, time
        def product(a, b):
            try:
                for _ in range(200):
                    if os.fork() == 0:
                        time.sleep(1000)
            except OSError:
                return None
            return None
        """
    assert run(bomb).outcome in ("wrong", "timed_out", "crashed")
    assert left_over() == []


def test_the_network_and_the_users_files_are_out_of_reach(tmp_path):
    protections = run("def product(a, b):\n    return a * b").protections
    private = tmp_path / "private.txt"
    private.write_text("mine")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        connects = f"""
            import socket
            def product(a, b):
                try:
                    socket.create_connection(("127.0.0.1", {port}), 1)
                    return 1
                except OSError:
                    return 0
            """
        reads = f"def product(a, b):\n    try:\n        open({str(private)!r}).read()\n        return 1\n"
        reads += "    except OSError:\n        return 0\n"
        removes = f"import os\ndef product(a, b):\n    try:\n        os.remove({str(private)!r})\n        return 1\n"
        removes += "    except OSError:\n        return 0\n"
        none = "def check(candidate):\n    assert candidate(1, 1) == 0\n"
        if {"network", "tcp"} & set(protections):
            assert run(connects, none).outcome == "right"
        if "files" in protections:
            assert run(reads, none).outcome == "right"
            assert run(removes, none).outcome == "right"
            assert private.read_text() == "mine"
    if not protections:
        pytest.skip("this kernel allows neither user namespaces nor Landlock: nothing to test")


def test_the_environment_is_not_inherited(monkeypatch):
    monkeypatch.setenv("HPCRL_PRIVATE", "mine")
    program = "import os\ndef product(a, b):\n    return sorted(os.environ)"
    tests = "def check(candidate):\n    assert 'HPCRL_PRIVATE' not in candidate(1, 1)\n"
    assert run(program, tests).outcome == "right"


# --- what tests can see


def test_definitions_of_the_prompt_are_there_for_the_tests():
    prompt = "import math\ndef half(x):\n    return x / 2\n\ndef twice(x):\n"
    tests = "def check(candidate):\n    assert half(candidate(math.pi)) == math.pi\n"
    assert run(prompt + "    return 2 * x\n", tests, "twice", definitions=prompt).outcome == "right"
    execution = run(prompt + "    return 2 * x\n", tests, "twice")
    assert execution.outcome == "unsupported"
    assert "the tests want more than the function twice: name 'half' is not defined" in execution.detail


def test_assertions_without_check():
    tests = "assert product(6, 7) == 42\nassert product(a=1, b=2) == 2\n"
    assert run("def product(a, b):\n    return a * b", tests).outcome == "right"
    assert run("def product(a, b):\n    return 42", tests).outcome == "wrong"


@pytest.mark.parametrize(
    "value",
    [
        "[1, (2.5, None), {'a': {1, 2}}, 'é', b'x', True, 1j, frozenset([3]), range(3)]",
        "float('inf')",
        "10 ** 400",
        "__import__('collections').Counter('abca')",
        "__import__('fractions').Fraction(1, 3)",
        "__import__('decimal').Decimal('0.1')",
        "__import__('datetime').date(2020, 1, 1)",
        "__import__('collections').defaultdict(list, a=[1])",
        "__import__('collections').deque([1])",
    ],
)
def test_plain_data_crosses(value):
    program = f"def product(a, b):\n    return a, {value}"
    tests = f"def check(candidate):\n    assert candidate({value}, 0) == ({value}, {value})\n"
    assert run(program, tests).outcome == "right"


def test_exceptions_cross_by_their_builtin_name():
    tests = """def check(candidate):
        try:
            candidate(1, 0)
        except ZeroDivisionError:
            return
        assert False
    """
    assert run("def product(a, b):\n    return a / b", tests).outcome == "right"
    assert run("def product(a, b):\n    return 0", tests).outcome == "wrong"


@pytest.mark.parametrize(
    ("tests", "detail"),
    [
        ("def check(candidate):\n    candidate(lambda: 1)\n", "an argument cannot be sent to another process"),
        ("def check(candidate:\n", "the tests cannot be run: SyntaxError"),
        ("import sys\nsys.exit()\n", "the tests left Python"),
        ("def check(candidate):\n    helper(1)\n", "the tests want more than the function product"),
    ],
)
def test_tests_that_cannot_be_run_are_the_datas_fault(tests, detail):
    execution = run("def product(a, b=1):\n    return 1", tests)
    assert execution.outcome == "unsupported"
    assert detail in execution.detail
    with pytest.raises(RewardError, match="want tests that can be run, row 0 cannot: "):
        CodeExecution().verify([PROMPT], ["    return a * b"], {"test": [tests], "entry_point": ["product"]})


def test_limits_too_low_for_python_are_said_and_not_scored():
    execution = run("def product(a, b):\n    return a * b", limits=ExecutionLimits(memory_mb=4))
    assert execution.outcome == "unsupported"
    assert "Python does not start under these limits" in execution.detail


@pytest.mark.parametrize(
    "limits", [{"time_s": 0}, {"memory_mb": -1}, {"file_mb": float("inf")}, {"num_processes": "9"}]
)
def test_limits_out_of_range(limits):
    with pytest.raises(InputError, match=f"ExecutionLimits: {next(iter(limits))}: want a number > 0"):
        ExecutionLimits(**limits)
    with pytest.raises(InputError, match="entry_point: want the name of a function, given 'a b'"):
        run_tests("", "", "a b")
    with pytest.raises(InputError, match="workers: want a whole number >= 1, given 0"):
        CodeExecution(workers=0)


# --- the reward


def test_the_reward():
    responses = [
        "    return a * b\n",
        "    return 0\n",
        " \n",
        "    import os\n    os._exit(0)\n",
        "    while 1: pass\n",
    ]
    columns = {"test": [TESTS] * 5, "entry_point": ["product"] * 5}
    reward = CodeExecution(limits=ExecutionLimits(time_s=2.0), workers=2, right=10.0)
    scores = checked_scores(reward, [PROMPT] * 5, responses, columns)
    assert scores.values.tolist() == [10, 0, 0, 0, 0]
    assert scores.outcomes == {"right": 1, "wrong": 1, "no_code": 1, "crashed": 1, "timed_out": 1}
    assert from_plain(to_plain(reward)) == reward
    with pytest.raises(RewardError, match="want the column 'test', given 'entry_point'"):
        reward.verify([PROMPT], ["x"], {"entry_point": ["product"]})
    with pytest.raises(RewardError, match="want test as text, given 3 in row 0"):
        reward.verify([PROMPT], ["x"], {"entry_point": ["product"], "test": [3]})


def test_fenced_programs():
    fenced = "Let us see.\n```python\nwrong\n```\nBetter:\n```python\ndef product(a, b):\n    return a * b\n```\nDone."
    columns = {"test": [TESTS] * 2, "entry_point": ["product"] * 2}
    bare = "def product(a, b):\n    return a * b\n"
    assert CodeExecution(continues_prompt=False).verify(["", ""], [fenced, bare], columns) == ["right", "right"]
    assert program_of("", "no fence", False) == "no fence"
    assert program_of("", "", False) is None
    assert program_of("", "```\nx\n```", False) == "x\n"


# --- HumanEval


def humaneval(path, every=1):
    """Outcomes of the canonical solutions, and of empty bodies for every so many-th problem."""
    task = JsonLines(path, shuffle=False, required=("test", "entry_point"))
    problems = [task.problem(index) for index in range(task.size)]
    prompts = [problem.prompt for problem in problems]
    columns = {name: [problem.columns[name] for problem in problems] for name in ("test", "entry_point")}
    reward = CodeExecution(workers=2, limits=ExecutionLimits(time_s=30.0))
    right = checked_scores(reward, prompts, [problem.columns["canonical_solution"] for problem in problems], columns)
    some = {name: column[::every] for name, column in columns.items()}
    empty = checked_scores(reward, prompts[::every], ["    pass\n"] * len(prompts[::every]), some)
    return right.outcomes, empty.outcomes


def test_humaneval_format(tmp_path):
    row = {"prompt": PROMPT, "entry_point": "product", "canonical_solution": "    return a * b\n", "test": TESTS}
    path = tmp_path / "problems.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps({**row, "task_id": "T/1"}))
    assert humaneval(str(path)) == ({"right": 2}, {"wrong": 2})


def test_humaneval():
    right, empty = humaneval(shared_data("humaneval/problems-a.jsonl.gz"), every=5)
    assert right == {"right": 100}
    assert empty == {"wrong": 20}


@pytest.mark.soak
def test_humaneval_with_every_empty_body():
    assert humaneval(shared_data("humaneval/problems-a.jsonl.gz"))[1] == {"wrong": 100}
