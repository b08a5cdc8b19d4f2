"""Bad input: one line that says what, wanted, given and what to do; exit code 2; nothing written."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from hpcrl.store.run_folder import RunFolder
from tests.pipelines.forked import forked
from tests.pipelines.runs import TINY, published_bits

PIPELINE = """
from hpcrl import *

def made() -> Pipeline:
    return Pipeline(name={name}, num_iterations=1, seed={seed}, models={models}, stages=[{stages}], {more})
"""
ROLLOUT, CARTPOLE = "Rollout(env='CartPole-v1', num_envs=4, num_steps=4)", "Rollout(env='CartPole-v1', num_envs={n})"
UPDATE = "Update(PPO(num_minibatches=1))"


def file_with(tmp_path: Path, stages: str, **changes: str) -> Path:
    """A pipeline file with these stages."""
    parts = {"name": "'made'", "seed": "1", "models": "{'actor': Mlp()}", "more": "", **changes}
    path = tmp_path / "made.py"
    path.write_text(PIPELINE.format(stages=stages, **parts))
    return path


def refused(tmp_path: Path, *arguments: object, wanted: str, command: str = "run") -> None:
    """The command ends with code 2 and one line, and writes nothing."""
    before = sorted(tmp_path.rglob("*"))
    done = forked(command, *arguments, folder=tmp_path)
    assert done.code == 2, done.output
    lines = done.output.splitlines()
    assert len(lines) == 1, done.output
    assert lines[0].startswith(f"hpcrl {command}: ")
    assert re.search(wanted, lines[0]), lines[0]
    output = sorted(tmp_path.glob("output-*"))
    assert [path for path in sorted(tmp_path.rglob("*")) if path not in output] == [
        path for path in before if path not in output
    ]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--num-env", "16"], r"--num-env: want an option of .*tiny.py or of hpcrl run.*did you mean '--num-envs'"),
        (["--rank", "2"], "--rank: .*did you mean '--ranks'"),
        (["--no-keepall"], "--no-keepall: .*did you mean '--no-keep-all'"),
        (["stray"], "want one pipeline file .* given another word, 'stray'"),
        (["--env", "CartPol-v1"], "want a registered Gymnasium id, given 'CartPol-v1'; near: CartPole-v1"),
        (["--num-envs", "7"], r"Rollout.num_envs: want a multiple of num_blocks=4, given 7; use 4 or 8"),
        (["--num-envs", "0"], "Rollout.num_envs: want a whole number >= 1, given 0"),
        (["--num-steps", "1"], "PPO.num_minibatches: want at most 2 .* given 3; lower it, or play more"),
        (["--ranks", "8"], "want dp <= 4 .* given dp=8; use --ranks 4 or fewer"),
        (["--ranks", "0"], "--ranks: want a whole number >= 1, given 0"),
        (["--ranks", "two"], "--ranks: invalid int value: 'two'; see hpcrl run --help"),
        (["--on", "here", "--ranks", "2"], r"--on here: want 1 rank .* given --ranks 2; use --on mpi"),
        (["--on", "nowhere"], "invalid choice: 'nowhere'"),
        (["--seed", "-1"], r"Pipeline.seed: want a whole number, 0 <= seed < 2\*\*64, given -1"),
        (["--seed", str(2**64)], r"seed < 2\*\*64, given 18446744073709551616"),
        (["--compute-threads", "0"], "Pipeline.compute_threads: want a whole number >= 1, given 0"),
        (["--num-iterations", "0"], "Pipeline.num_iterations: want a whole number >= 1, given 0"),
        (["--progress-every-minutes", "nan"], "progress_every_minutes: want > 0, given nan"),
    ],
)
def test_options(options: list[str], wanted: str, tmp_path: Path) -> None:
    refused(tmp_path, TINY, *options, "--run", tmp_path / "run", wanted=wanted)


def test_a_value_its_option_cannot_take_is_tyro_s_to_explain(tmp_path: Path) -> None:
    done = forked("run", TINY, "--num-envs", "many", "--run", tmp_path / "run", folder=tmp_path)
    assert done.code == 2
    assert "Error parsing --num-envs: invalid literal for int() with base 10: 'many'" in done.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("missing.py", None, "want a Python file, given .*missing.py, which is not there"),
        ("notes.txt", "PPO", r"want a Python file \(.py\), given .*notes.txt"),
        ("syntax.py", "def made(:\n    pass\n", "syntax.py, line 1: invalid syntax"),
        ("absent.py", "import os\nimport numpi\n", "absent.py, line 2: ModuleNotFoundError: No module named 'numpi'"),
        ("broken.py", "\n\n{}['x']\n", "broken.py, line 3: KeyError: 'x'"),
        ("empty.py", "from hpcrl import *\n", "want one public function annotated '-> Pipeline', given none"),
        (
            "two.py",
            "from hpcrl import *\ndef one() -> Pipeline: ...\ndef two() -> Pipeline: ...\n",
            "want one public function annotated '-> Pipeline', given one, two",
        ),
        (
            "unknown_type.py",
            "from hpcrl import *\ndef made(x: Nope = 1) -> Pipeline: ...\n",
            "line 2: NameError: name 'Nope' is not defined",
        ),
        ("nothing.py", "from hpcrl import *\ndef made() -> Pipeline: ...\n", r"want made\(\) to return a Pipeline"),
        (
            "misspelt.py",
            "from hpcrl import *\ndef made() -> Pipeline:\n    return Advantage(gama=1)\n",
            "line 3: TypeError: .* unexpected keyword argument 'gama'",
        ),
        ("json.py", "from hpcrl import *\n", "want a name that no loaded module has, given 'json'; rename the file"),
    ],
)
def test_pipeline_files(name: str, text: str | None, wanted: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    refused(tmp_path, tmp_path / name, "--run", tmp_path / "run", wanted=wanted)


@pytest.mark.parametrize(
    ("stages", "changes", "wanted"),
    [
        (UPDATE, {}, "stage 'update' reads 'observations', which no earlier stage writes; add Rollout"),
        (f"{ROLLOUT}, {UPDATE}", {}, r"stage 'update' reads 'advantages', .* add Advantage\(...\) before it"),
        (f"Advantage(), {ROLLOUT}", {}, "stage 'advantage' reads 'rewards', which no earlier stage writes"),
        (f"{ROLLOUT}, Advantage(), Advantage()", {}, "want every stage once, given 'advantage' 2 times"),
        (
            f"{ROLLOUT}, Advantage(), Update(PPO(num_minibatches=1), advantage=Advantage(recompute='epoch'))",
            {},
            "has an advantage of its own and a stage 'advantage' stands before it; remove one",
        ),
        (f"{ROLLOUT}, Update(PPO(), advantage=Advantage())", {}, r"want Advantage\(..., recompute='epoch'\)"),
        (f"{ROLLOUT}, Advantage(), Update(3)", {}, r"Update.algorithm: want PPO\(...\) or a rule of text, given 3"),
        (f"{ROLLOUT}, 3", {}, r"Pipeline.stages: want stages such as Rollout\(...\), given 3"),
        ("", {}, "want at least one stage, given none"),
        ("Evaluate()", {}, "plays the environment of a Rollout stage, given none"),
        (ROLLOUT, {"models": "{'actr': Mlp()}"}, "stage 'rollout' drives model 'actor'; models given: actr"),
        (
            ROLLOUT,
            {"models": "{'actor': 3}"},
            r"want Mlp\(...\), Cnn\(...\) or LanguageModel\(...\) as 'actor', given 3",
        ),
        (ROLLOUT, {"models": "{'actor': Cnn()}"}, r"Cnn: want observations u8.* given box float32\[4\]; use Mlp"),
        (ROLLOUT, {"name": "'a/b'"}, "Pipeline.name: want a folder name without '/', given 'a/b'"),
        (ROLLOUT, {"name": "'..'"}, "Pipeline.name: want a folder name"),
        (ROLLOUT, {"seed": "1.5"}, "Pipeline.seed: want a whole number.* given 1.5"),
        (ROLLOUT, {"more": "mesh=Mesh(dp=5)"}, "want dp <= 4 .* given dp=5"),
        (ROLLOUT, {"more": "keep=Keep(rollouts=0)"}, "Keep.rollouts: want a whole number >= 1, or None, given 0"),
        (ROLLOUT, {"more": "inputs='nowhere'"}, "rollouts are read from a folder, so want no Rollout stage"),
        (f"Advantage(), {UPDATE}", {"more": "inputs='nowhere'"}, "nowhere: want a run folder"),
        (
            f"{ROLLOUT}, Evaluate(env='Pendulum-v1')",
            {},
            "Evaluate.env: Pendulum-v1: want the observation_space that the model is trained on.*given",
        ),
        (f"{ROLLOUT}, Evaluate(env='CartPole-v7')", {}, "'CartPole-v7'.*CartPole-v1"),
        ("Rollout(env='CartPole-v1', env_options={'max_step': 3})", {}, "max_episode_steps.* given 'max_step'"),
        ("Rollout(env='absent_module:Env')", {}, "want a module that can be imported .* given 'absent_module'"),
    ],
)
def test_graphs_and_values(stages: str, changes: dict[str, str], wanted: str, tmp_path: Path) -> None:
    refused(tmp_path, file_with(tmp_path, stages, **changes), "--run", tmp_path / "run", "--on", "here", wanted=wanted)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    done = forked("run", TINY, "--on", "here", "--num-iterations", 2, "--run", folder / "run", folder=folder)
    assert done.code == 0, done.output
    return folder / "run"


def test_another_configuration_is_refused_and_each_difference_named(whole: Path, tmp_path: Path) -> None:
    before = published_bits(whole)
    options = ["--num-iterations", 2, "--num-steps", 12, "--num-epochs", 5, "--seed", 3]
    wanted = (
        r"stages\[0\].num_steps: stored 24, now 12; stages\[2\].algorithm.num_epochs: stored 2, now 5; "
        r"seed: stored 7, now 3.*give the stored values to resume, --run DIR .*--fresh"
    )
    refused(tmp_path, TINY, *options, "--on", "here", "--run", whole, wanted=wanted)
    wanted = "num_iterations: stored 2, now 1"
    refused(tmp_path, TINY, "--num-iterations", 1, "--on", "here", "--run", whole, wanted=wanted)
    assert published_bits(whole) == before


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--branch", "{}/new"], "--branch: want --from RUN@ITERATION beside it"),
        (["--from", "{run}@1"], "--from: want --branch DIR beside it"),
        (["--branch", "{}/new", "--run", "{}/run", "--from", "{run}@1"], "names the run's folder, as --run"),
        (["--branch", "{}/new", "--from", "{run}"], "--from: want RUN@ITERATION, for example .* given"),
        (["--branch", "{}/new", "--from", "@3"], "--from: want RUN@ITERATION"),
        (["--branch", "{}/new", "--from", "{run}@x"], "--from: want RUN@ITERATION"),
        (["--branch", "{}/new", "--from", "{run}@9"], "want an iteration whose checkpoint is kept, .* kept: 0, 1"),
        (["--branch", "{}/new", "--from", "{}/absent@1"], "absent: want a run folder"),
        (
            ["--branch", "{run}", "--from", "{run}@1"],
            "want a missing folder, or the branch from .* given a run of its own",
        ),
        (["--branch", "{}", "--from", "{run}@1"], "given one that holds other files"),
    ],
)
def test_branches(options: list[str], wanted: str, whole: Path, tmp_path: Path) -> None:
    (tmp_path / "something").touch()
    given = [option.format(tmp_path, run=whole) for option in options]
    refused(tmp_path, TINY, *given, "--on", "here", "--num-iterations", 2, wanted=wanted)


def test_a_branch_is_resumed_by_its_command_and_no_other(whole: Path, tmp_path: Path) -> None:
    command = ("run", TINY, "--on", "here", "--num-iterations", 2, "--branch", tmp_path / "new", "--from")
    for point in ("checkpoint.after_write", "pipeline.before_link", "optimizer.after_step"):
        assert forked(*command, f"{whole}@0", folder=tmp_path, kill_at=point).code == -9
    refused(tmp_path, *command[1:], f"{whole}@1", wanted=f"or the branch from .*@1, given {whole}@0")
    assert forked(*command, f"{whole}@0", folder=tmp_path).code == 0
    command = ("run", TINY, "--on", "here", "--num-iterations", 2, "--branch", tmp_path / "unbroken", "--from")
    assert forked(*command, f"{whole}@0", folder=tmp_path).code == 0
    assert published_bits(tmp_path / "new") == published_bits(tmp_path / "unbroken")


def test_folders_that_hold_no_run(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    refused(tmp_path, TINY, "--run", tmp_path, wanted="given one that holds other files; use --run DIR")
    wanted = "want a folder for the run, given a path through the file .*notes"
    refused(tmp_path, TINY, "--run", tmp_path / "notes", wanted=wanted)
    refused(tmp_path, TINY, "--run", tmp_path / "notes" / "run", wanted=wanted)
    for command in ("status", "replay", "report"):
        refused(tmp_path, tmp_path, command=command, wanted="want a run folder, given one without pipeline.json")
        refused(tmp_path, tmp_path / "absent", command=command, wanted="want a run folder")


def test_commands_without_what_they_need(tmp_path: Path) -> None:
    refused(tmp_path, wanted="want a pipeline file, given none; for example: hpcrl run pipelines/ppo_cartpole.py")
    refused(tmp_path, command="status", wanted="arguments are required: run; see hpcrl status --help")
    refused(tmp_path, tmp_path, "--deep", command="replay", wanted="want no further arguments, given --deep")


def test_offline_training_needs_kept_rollouts_of_as_many_blocks(whole: Path, tmp_path: Path) -> None:
    stages = f"Advantage(), {UPDATE}"
    path = file_with(tmp_path, stages, more=f"inputs={str(whole)!r}, num_blocks=2")
    refused(tmp_path, path, "--run", tmp_path / "run", wanted="Pipeline.num_blocks: want 4, .* given 2")
    shutil.copytree(whole, tmp_path / "emptied")
    for manifest in (tmp_path / "emptied").glob("iteration-*/rollout/manifest.json"):
        manifest.rename(manifest.with_name("removed.json"))
    path = file_with(tmp_path, stages, more=f"inputs={str(tmp_path / 'emptied')!r}")
    refused(tmp_path, path, "--run", tmp_path / "run", wanted="want at least one kept rollout, found none")
    assert RunFolder.exists(tmp_path / "emptied")


def test_too_many_ranks_of_a_foreign_launcher_write_nothing(tmp_path: Path) -> None:
    setup = (
        "import hpcrl.runner.session as s, hpcrl.comm as c; w = c.SingleProcess(); w.size = 5; s.open_world = lambda: w"
    )
    done = forked("run", TINY, "--on", "here", "--run", tmp_path / "run", folder=tmp_path, setup=setup)
    assert done.code == 2
    assert "ranks: want at most num_blocks=4, given 5" in done.output
    assert not (tmp_path / "run").exists()
