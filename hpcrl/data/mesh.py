"""Mesh: the ranks of a world on which a stage runs."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hpcrl.errors import InputError


@dataclass(frozen=True)
class Mesh:
    """`dp x tp x pp` ranks of one world (one MPI launch, one job). Ranks are laid out with tp innermost, dp outermost.

    Raises: InputError when a degree is not a positive integer or the world's name could not name a job.
    Example:
        >>> Mesh(dp=2, tp=4).size
        8
    """

    world: str = "main"
    """Name of the MPI launch; stages of one world share its ranks."""
    dp: int = 1
    """Data-parallel degree: how many ranks share the run's blocks. Changes no bits."""
    tp: int = 1
    """Tensor-parallel degree: how many ranks share each layer. Re-associates sums."""
    pp: int = 1
    """Pipeline-parallel degree: how many ranks share the sequence of layers. Re-associates sums."""

    def __post_init__(self) -> None:
        if not isinstance(self.world, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", self.world):
            raise InputError(f"mesh.world: want a name of letters, digits, '_', '-' and '.', given {self.world!r}")
        for axis in ("dp", "tp", "pp"):
            degree = getattr(self, axis)
            if not isinstance(degree, int) or isinstance(degree, bool) or degree < 1:
                raise InputError(f"mesh.{axis}: want an integer >= 1, given {degree!r}")

    @property
    def size(self) -> int:
        """Ranks in the mesh."""
        return self.dp * self.tp * self.pp
