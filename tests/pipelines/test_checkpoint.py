"""A user's own folder, prompts and reward: opened, improved, exported, and opened again by transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpcrl.models.language import Architecture, CharacterTokenizer, LanguageModel
from hpcrl.models.language.hugging_face import save_folder
from hpcrl.runner.stored import stored_pipeline
from hpcrl.store.run_folder import RunFolder
from tests.pipelines.runs import ROOT, hpcrl, published_bits

PIPELINE = ROOT / "pipelines" / "rlhf_checkpoint.py"
REWARD = """
def short_and_even(prompts, responses, columns):
    assert len(prompts) == len(responses) == len(columns["wanted"])
    return [(len(response) == wanted) - 0.1 * len(response) for response, wanted in zip(responses, columns["wanted"])]
"""


@pytest.fixture
def own(tmp_path: Path) -> dict[str, Path]:
    """A folder that begins as a random model, prompts with a column, a reward."""
    tokenizer = CharacterTokenizer("0123456789+=")
    architecture = Architecture.llama(tokenizer.vocab_size, hidden_size=16, num_layers=1, num_heads=2, max_positions=32)
    decoder = LanguageModel(architecture=architecture, tokenizer=tokenizer).build(None, None, seed=3)
    save_folder(
        tmp_path / "model",
        decoder,
        extra_config={"eos_token_id": 1, "bos_token_id": 2, "pad_token_id": 0},
        extra_files=tokenizer.hugging_face_files(),
    )
    lines = [json.dumps({"prompt": f"{a}+{b}=", "wanted": 1 + (a + b) % 2}) for a in range(5) for b in range(5)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "reward.py").write_text(REWARD)
    return {
        "model": tmp_path / "model",
        "prompts": tmp_path / "prompts.jsonl",
        "reward": Path(f"{tmp_path / 'reward.py'}:short_and_even"),
    }


def command(own: dict[str, Path], run: Path, *options: object) -> list[object]:
    """A short run."""
    named = [word for name, value in own.items() for word in (f"--{name}", value)]
    sizes = ("--num-iterations", 3, "--num-prompts", 4, "--samples-per-prompt", 4, "--max-tokens", 6)
    return ["run", PIPELINE, "--run", run, *named, *sizes, "--evaluate-every", 3, "--learning-rate", "1e-3", *options]


def test_a_folder_is_improved_and_exported(own: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    done = hpcrl(*command(own, tmp_path / "run", "--on", "here", "--kl-coef", 0.05))
    assert done.code == 0, done.output
    again = hpcrl(*command(own, tmp_path / "two", "--on", "mpi", "--ranks", 2, "--kl-coef", 0.05))
    assert again.code == 0, again.output
    assert published_bits(tmp_path / "run") == published_bits(tmp_path / "two")
    exported = hpcrl("export", tmp_path / "run", "--out", tmp_path / "out")
    assert exported.code == 0, exported.output
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    before = transformers.AutoModelForCausalLM.from_pretrained(own["model"])
    assert any(not (one == other).all() for one, other in zip(theirs.parameters(), before.parameters(), strict=True)), (
        "it has learned"
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (own["model"] / name).read_bytes()


def test_status_needs_no_folder(own: dict[str, Path], tmp_path: Path) -> None:
    """A run is looked at where the folder is not."""
    pytest.importorskip("tokenizers")
    done = hpcrl(*command(own, tmp_path / "run", "--on", "here", "--num-iterations", 1))
    assert done.code == 0, done.output
    own["model"].rename(tmp_path / "elsewhere")
    looked = hpcrl("status", tmp_path / "run")
    assert looked.code == 0, looked.output
    assert stored_pipeline(RunFolder.open(tmp_path / "run").pipeline()).name == "rlhf-checkpoint"


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("model", "nowhere"),
        ("prompts", "nowhere"),
        ("reward", "nowhere"),
    ],
)
def test_what_is_not_there_is_refused_and_nothing_written(
    own: dict[str, Path], tmp_path: Path, what: str, words: str
) -> None:
    own[what] = Path(f"{tmp_path}/nowhere" + (".py:reward" if what == "reward" else ""))
    done = hpcrl(*command(own, tmp_path / "run", "--on", "here"))
    assert done.code == 2, done.output
    assert words in done.output
    assert "Traceback" not in done.output
    assert not (tmp_path / "run").exists()
