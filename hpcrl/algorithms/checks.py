"""Checks of an algorithm's knobs, at the door."""

from __future__ import annotations

import math

from hpcrl.errors import InputError


def check_integer(name: str, given: object, *, minimum: int) -> None:
    """An integer (and no bool) of at least `minimum`."""
    if not isinstance(given, int) or isinstance(given, bool) or given < minimum:
        raise InputError(f"{name}: want an integer >= {minimum}, given {given!r}")


def check_number(
    name: str,
    given: object,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    optional: bool = False,
) -> None:
    """A finite number between the given bounds; or None where `optional`."""
    if given is None and optional:
        return
    limits = ((">", above), (">=", at_least), ("<", below), ("<=", at_most))
    if not (isinstance(given, int | float) and not isinstance(given, bool) and math.isfinite(given)):
        fits = False
    else:
        fits = (above is None or given > above) and (at_least is None or given >= at_least)
        fits = fits and (below is None or given < below) and (at_most is None or given <= at_most)
    if not fits:
        bounds = " and ".join(f"{sign} {bound}" for sign, bound in limits if bound is not None)
        raise InputError(f"{name}: want a number {bounds}{' or None' if optional else ''}, given {given!r}")
