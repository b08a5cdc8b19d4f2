"""A run's policy as a Hugging Face folder: transformers opens it and answers as the run does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hpcrl.errors import InputError
from hpcrl.export import export
from hpcrl.models.language.decoding import Generator, TokenNumbers
from hpcrl.models.language.settings import Sampling, Stopping
from hpcrl.residents import Residents
from hpcrl.runner.position import newest_checkpoint, read_published
from hpcrl.runner.stored import stored_pipeline
from hpcrl.store.run_folder import RunFolder
from tests.pipelines.runs import ROOT, hpcrl

PIPELINE = ROOT / "tests" / "pipelines" / "text_tiny.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "run"
    done = hpcrl("run", PIPELINE, "--on", "here", "--run", path)
    assert done.code == 0, done.output
    return path


def test_transformers_gives_the_same_greedy_tokens(run: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    import torch

    done = hpcrl("export", run, "--out", tmp_path / "model")
    assert done.code == 0, done.output
    assert "actor as it was after iteration 3" in done.output
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")

    opened = RunFolder.open(run)
    pipeline = stored_pipeline(opened.pipeline())
    residents = Residents(pipeline.models, None, pipeline.seed)
    checkpoint = newest_checkpoint(opened, pipeline, "actor", 3)
    assert checkpoint is not None
    stored = read_published(opened, checkpoint.need)
    residents.load(stored.roles, stored.state)
    ours = residents.get("actor").decoder

    task = pipeline.stages[0].task  # type: ignore[attr-defined]
    texts = [str(task.problem(index).prompt) for index in range(100)]
    own = residents.tokenizer("actor")
    prompts = [own.encode_prompt(text) for text in texts]
    assert [tokenizer(text)["input_ids"] for text in texts] == [prompt.tolist() for prompt in prompts]
    responses = Generator(ours, own).generate(
        prompts,
        TokenNumbers(seed=0, iteration=0, trajectories=np.arange(100)),
        sampling=Sampling(temperature=0),
        stopping=Stopping(max_tokens=12),
    )
    assert responses is not None
    for prompt, response in zip(prompts, responses.tokens, strict=True):
        answer = theirs.generate(torch.tensor(prompt)[None], do_sample=False, max_new_tokens=12)
        assert answer[0, len(prompt) :].tolist() == response.tolist()
        assert tokenizer.decode(response, skip_special_tokens=True) == own.decode(response)


def test_a_critic_opens_as_a_classifier(run: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    export(run, tmp_path / "critic", role="critic")
    critic = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "critic")
    assert critic.config.num_labels == 1


def test_an_earlier_iteration(run: Path, tmp_path: Path) -> None:
    assert export(run, tmp_path / "early", role="reference").endswith("reference as it was after iteration 0")


def test_what_cannot_be_exported_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--role: want a language model of this run, given 'nobody'; it has actor"):
        export(run, tmp_path / "out", role="nobody")
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="exists already"):
        export(run, tmp_path / "there")
    assert not (tmp_path / "out").exists()
