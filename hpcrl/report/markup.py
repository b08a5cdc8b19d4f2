"""Pieces of the page. Well-formed XML throughout, so that a parser can check it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def text(value: object) -> str:
    """Escaped, for element content and attributes alike."""
    return escape(str(value), quote=True)


def section(title: str, *content: str, name: str) -> str:
    """A headed part of the page; `name` is its anchor."""
    return f'<section id="{name}"><h2>{text(title)}</h2>{"".join(content)}</section>'


def paragraph(sentence: str, kind: str = "") -> str:
    """One paragraph; `kind` is a class of page.css."""
    return f'<p class="{kind}">{text(sentence)}</p>' if kind else f"<p>{text(sentence)}</p>"


def figure(svg: str) -> str:
    """An SVG in its frame."""
    return f"<figure>{svg}</figure>"


def cards(entries: Iterable[tuple[str, str, str]]) -> str:
    """Headline numbers: (name, value, remark)."""
    made = "".join(
        f'<div class="card"><div class="name">{text(name)}</div><div class="value">{text(value)}</div>'
        f'<div class="remark">{text(remark)}</div></div>'
        for name, value, remark in entries
    )
    return f'<div class="cards">{made}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, kinds: Sequence[str] = ()) -> str:
    """A table; `kinds` are classes of the rows (page.css), one each, where given."""
    columns = "".join(f"<th>{text(name)}</th>" for name in head)
    body = []
    for index, row in enumerate(rows):
        kind = f' class="{kinds[index]}"' if kinds and kinds[index] else ""
        body.append(f"<tr{kind}>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>")
    return f'<div class="wide"><table><thead><tr>{columns}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def folded(summary: str, *content: str) -> str:
    """Shown on demand."""
    return f"<details><summary>{text(summary)}</summary>{''.join(content)}</details>"


def bar(share: float, faded_share: float) -> str:
    """A horizontal bar: a full and a faded part, shares of the width in [0, 1]."""
    return (
        f'<div class="bar"><i style="width:{100 * share:.2f}%"></i>'
        f'<i class="faded" style="width:{100 * faded_share:.2f}%"></i></div>'
    )


def strip(pictures: Iterable[tuple[str, str]]) -> str:
    """A film strip: (label, address of the picture)."""
    made = "".join(
        f'<figure><img src="{address}" alt="{text(label)}"/><figcaption>{text(label)}</figcaption></figure>'
        for label, address in pictures
    )
    return f'<div class="strip">{made}</div>'
