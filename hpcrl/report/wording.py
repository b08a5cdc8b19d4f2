"""Numbers as people read them, and paths as a shell does."""

from __future__ import annotations

import math
import shlex
from pathlib import Path

_BYTES = ("bytes", "kB", "MB", "GB", "TB", "PB")


def bytes_text(count: float) -> str:
    """Decimal units, as disks are sold and quotas are counted.

    Example:
        >>> bytes_text(512), bytes_text(152_688), bytes_text(3.2e9)
        ('512 bytes', '153 kB', '3.2 GB')
    """
    value = float(count)
    for unit in _BYTES[:-1]:
        if value < 999.5:
            return f"{value:.3g} {unit}"
        value /= 1000.0
    return f"{value:,.3g} {_BYTES[-1]}"


def seconds_text(seconds: float) -> str:
    """Two units at most.

    Example:
        >>> [seconds_text(value) for value in (0.0123, 4.06, 75, 3 * 3600 + 120, 200_000)]
        ['12.3 ms', '4.1 s', '1 min 15 s', '3 h 2 min', '2 d 7 h']
    """
    if seconds < 0.9995:
        return f"{seconds * 1000:.3g} ms" if seconds < 0.1 else f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, name, smaller, smaller_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {name} {rest} {smaller_name}" if rest else f"{whole // size} {name}"
    return f"{whole} s"


def count_text(count: int) -> str:
    """A whole number with its thousands apart.

    Example:
        >>> count_text(1234567)
        '1,234,567'
    """
    return f"{count:,}"


def number_text(value: float | None) -> str:
    """Four significant digits, without a needless exponent; a dash where there is none.

    Example:
        >>> [number_text(value) for value in (475.0, -20.6583, 0.00025, 1234567.0, None)]
        ['475', '-20.66', '0.00025', '1,234,567', '–']
    """
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def plural(count: int, noun: str) -> str:
    """A number and its noun.

    Example:
        >>> plural(1, "rank"), plural(2, "launch"), plural(0, "block")
        ('1 rank', '2 launches', '0 blocks')
    """
    ending = "" if count == 1 else "es" if noun.endswith(("s", "h")) else "s"
    return f"{count_text(count)} {noun}{ending}"


def path_text(path: Path) -> str:
    """A path as a word of a command that a person pastes into a shell.

    Example:
        >>> path_text(Path("runs/ppo-pong")), path_text(Path("runs/my run"))
        ('runs/ppo-pong', "'runs/my run'")
    """
    return shlex.quote(str(path))
