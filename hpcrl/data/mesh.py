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
    ranks: tuple[int, ...] | None = None
    """Which ranks of its world; None: the next free ones, in the order in which meshes are named."""
    array: int = 1
    """Independent jobs that share the mesh's blocks, as one job array; for stages that work block by block."""

    def __post_init__(self) -> None:
        if not isinstance(self.world, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", self.world):
            raise InputError(f"mesh.world: want a name of letters, digits, '_', '-' and '.', given {self.world!r}")
        for axis in ("dp", "tp", "pp", "array"):
            degree = getattr(self, axis)
            if not isinstance(degree, int) or isinstance(degree, bool) or degree < 1:
                raise InputError(f"mesh.{axis}: want an integer >= 1, given {degree!r}")
        if self.array > 1 and self.tp * self.pp > 1:
            raise InputError(
                f"mesh.array: want 1 with tp={self.tp}, pp={self.pp} (jobs of an array share no layer), "
                f"given {self.array}"
            )
        if self.ranks is not None:
            self._check_ranks(self.ranks)

    def _check_ranks(self, ranks: tuple[int, ...]) -> None:
        object.__setattr__(self, "ranks", tuple(ranks))
        if len(set(ranks)) != self.size or len(ranks) != self.size or min(ranks) < 0:
            raise InputError(
                f"mesh.ranks: want {self.size} different ranks >= 0 (dp x tp x pp), given {', '.join(map(str, ranks))}"
            )

    @property
    def size(self) -> int:
        """Ranks in the mesh."""
        return self.dp * self.tp * self.pp
