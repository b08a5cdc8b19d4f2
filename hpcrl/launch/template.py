"""The templates of batch scripts: valid scripts of their own; rendering replaces what stands between their markers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.resources import files

_REGION = re.compile(r"^(# >>> hpcrl (\w+)\b[^\n]*\n)(.*?)^(# <<< hpcrl \2\n)", re.MULTILINE | re.DOTALL)


def template(name: str) -> str:
    """The text of a template, for example 'segment'."""
    return (files("hpcrl.launch") / "templates" / f"{name}.sbatch").read_text(encoding="utf-8")


def fill(text: str, regions: Mapping[str, Sequence[str]]) -> str:
    """The template with other lines between its markers.

    Args: regions: name of a region -> its lines.
    Raises: ValueError when the template has other regions.
    Example:
        >>> print(fill("# >>> hpcrl run: what\\nRUN=a\\n# <<< hpcrl run\\n", {"run": ["RUN=b"]}), end="")
        # >>> hpcrl run: what
        RUN=b
        # <<< hpcrl run
    """
    names = [match[2] for match in _REGION.finditer(text)]
    if sorted(names) != sorted(regions):
        raise ValueError(f"template: want the regions {', '.join(sorted(regions))}, found {', '.join(names) or 'none'}")

    def replace(match: re.Match[str]) -> str:
        return "".join([match[1], *(f"{line}\n" for line in regions[match[2]]), match[4]])

    return _REGION.sub(replace, text)


def around(text: str, region: str) -> tuple[str, str]:
    """What a script does before a region and after it: its lines but for the comments at its head and #SBATCH lines.

    Raises: ValueError when there is no such region.
    """
    spans = {match[2]: match.span() for match in _REGION.finditer(text)}
    if region not in spans or "resources" not in spans:
        raise ValueError(f"template: want the regions resources and {region}, found {', '.join(spans) or 'none'}")
    return text[spans["resources"][1] : spans[region][0]].strip("\n"), text[spans[region][1] :].strip("\n")
