"""`hpcrl report`: one HTML file about a run, that opens without a server and without a network."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path

import hpcrl
from hpcrl.errors import InputError
from hpcrl.report import markup
from hpcrl.report.outcome import outcome_of
from hpcrl.report.queue import find_scheduler
from hpcrl.report.record import RunRecord
from hpcrl.report.sections import headline, sections
from hpcrl.store.disk_errors import explain_write_errors

FILE_NAME = "report.html"


def write_report(path: Path, out: Path | None = None, tensorboard: Path | None = None) -> Path:
    """Writes the report of the run at `path`, finished or not; nothing else in the run changes.

    Args:
        out: the file to write; None: RUN/report.html.
        tensorboard: also write TensorBoard files into this folder.
    Returns: the file written.
    Raises: InputError when `path` holds no run, `out` is a folder, a disk is full or read-only; CorruptFileError naming
        a damaged file.
    """
    record = RunRecord.read(Path(path), scheduler=find_scheduler(Path(path)))
    out = Path(path) / FILE_NAME if out is None else Path(out)
    if out.is_dir():
        raise InputError(f"--out: want a file to write, given the folder {out}; for example --out {out / FILE_NAME}")
    page = page_of(record)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    with explain_write_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(page, encoding="utf-8")
            os.replace(temporary, out)  # a browser that reloads meanwhile sees the old page or the new one
        finally:
            temporary.unlink(missing_ok=True)
    if tensorboard is not None:
        from hpcrl.report.tensorboard import write_events

        write_events(record, Path(tensorboard))
    return out


def page_of(record: RunRecord) -> str:
    """The page as text: well-formed XML that is HTML too."""
    outcome = outcome_of(record)
    style = resources.files("hpcrl.report").joinpath("page.css").read_text(encoding="utf-8")
    parts = sections(record)
    links = "".join(f'<a href="#{part.name}">{markup.text(part.title)}</a>' for part in parts)
    body = "".join(markup.section(part.title, part.content, name=part.name) for part in parts)
    made = datetime.fromtimestamp(record.read_at, UTC).strftime("%Y-%m-%d %H:%M UTC")
    name = markup.text(record.pipeline.name)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/><title>{name}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"/><style>{style}</style></head>'
        f'<body><main><header><h1>{name}</h1><span class="badge {outcome.state}">{outcome.state}</span></header>'
        f'<p class="sentence">{markup.text(outcome.sentence)}</p><nav>{links}</nav>'
        f"{markup.cards(headline(record))}{body}"
        f"<footer>{markup.text(record.run.path.resolve())} · made {made} by hpcrl {markup.text(hpcrl.__version__)}"
        "</footer></main></body></html>\n"
    )
