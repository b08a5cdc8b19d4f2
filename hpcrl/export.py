"""Export: a role of a run as a Hugging Face folder, which transformers and vLLM open."""

from __future__ import annotations

import json
from pathlib import Path

from hpcrl.errors import InputError
from hpcrl.models.language import LanguageModel
from hpcrl.runner.position import newest_checkpoint, read_published, trained_roles
from hpcrl.runner.stored import stored_pipeline
from hpcrl.store.run_folder import RunFolder


def export(path: Path, out: Path, *, role: str | None = None, iteration: int | None = None) -> str:
    """Writes a role's newest checkpoint as config.json, model.safetensors and tokenizer files; says what it wrote.

    Args:
        path: run folder.
        out: folder to write; must not exist.
        role: None: the first role that is trained.
        iteration: the newest checkpoint up to and with this one; None: the newest.
    Raises: InputError for a role that is no language model or was never trained, an iteration whose checkpoint is not
        kept, or an `out` that exists; CorruptFileError for a damaged checkpoint.
    """
    run = RunFolder.open(path)
    pipeline = stored_pipeline(run.pipeline())
    roles = trained_roles(pipeline)
    role = role if role is not None else next(iter(roles), "actor")
    config = pipeline.models.get(role)
    if not isinstance(config, LanguageModel):
        known = [name for name, model in pipeline.models.items() if isinstance(model, LanguageModel)]
        raise InputError(
            f"--role: want a language model of this run, given '{role}'; it has {', '.join(known) or 'none'}"
        )
    newest = max(run.iterations(), default=-1) if iteration is None else iteration
    checkpoint = newest_checkpoint(run, pipeline, role, newest)
    if checkpoint is None:
        raise InputError(
            f"{path}: want a checkpoint of '{role}' up to iteration {newest}, found none; choose a later one"
        )
    from hpcrl.models.language.hugging_face import save_folder

    decoder = config.build(None, None, seed=0)
    decoder.load_arrays(read_published(run, checkpoint.need).roles[role])
    tokenizer = config.tokenizer
    if tokenizer is None:
        save_folder(out, decoder, tokenizer_files_from=config.folder)
        return f"{out}: {role} as it was after iteration {checkpoint.iteration}"
    ids = {"bos_token_id": tokenizer.BOS, "eos_token_id": tokenizer.EOS, "pad_token_id": tokenizer.PAD}
    # What is never sampled here is not sampled there either.
    generation = {**ids, "suppress_tokens": list(decoder.excluded_ids)}
    save_folder(
        out,
        decoder,
        extra_config=ids,
        extra_files={
            **tokenizer.hugging_face_files(),
            "generation_config.json": json.dumps(generation, indent=1) + "\n",
        },
    )
    return f"{out}: {role} as it was after iteration {checkpoint.iteration}"
