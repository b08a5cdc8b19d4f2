"""The weights that a stage reads: the live ones, or those that an earlier update left in its checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

from hpcrl.envs import EnvDescription
from hpcrl.pipeline import Pipeline
from hpcrl.residents import Residents
from hpcrl.runner.part import Part
from hpcrl.runner.position import INITIAL, read_published
from hpcrl.segments import Need, newest_training, policy_update, trainers_of
from hpcrl.stages import Stage
from hpcrl.store.checkpoint import read_checkpoint
from hpcrl.store.run_folder import RunFolder


class Weights:
    """Chooses a stage's residents. What lies on disk is read once for each update."""

    def __init__(
        self, run: RunFolder, pipeline: Pipeline, description: EnvDescription | None, part: Part, live: Residents
    ) -> None:
        self.run, self.pipeline, self.description, self.part, self.live = run, pipeline, description, part, live
        self._residents: Residents | None = None
        self._holds: Need | None = None

    def of(self, stage: Stage, iteration: int) -> Residents:
        """The residents that hold what the stage should read (or train) in an iteration."""
        trainers = trainers_of(self.pipeline, stage.role)
        update = policy_update(self.pipeline, stage, iteration)
        if not trainers or stage.trains == stage.role or self._is_live(stage, trainers, update, iteration):
            return self.live
        if self._residents is None or self._holds != update:
            self._residents = self._read(update)
            self._holds = update
        return self._residents

    def _is_live(self, stage: Stage, trainers: Sequence[Stage], update: Need | None, iteration: int) -> bool:
        """Whether this loop trains the role itself and its weights have not moved past what the stage should see."""
        if not all(self.part.plays(trainer.name) for trainer in trainers):
            return False
        if update is not None and update.iteration == iteration:
            return True
        assert stage.role is not None  # it has trainers
        return update == newest_training(self.pipeline, stage.role, iteration - 1)

    def _read(self, update: Need | None) -> Residents:
        """Raises: CorruptFileError when the checkpoint is damaged or gone."""
        description = self.description
        residents = self._residents or Residents(self.pipeline.models, description, self.pipeline.seed)
        if update is None:
            if (self.run.path / INITIAL).is_dir():
                checkpoint = read_checkpoint(self.run.path / INITIAL)
                residents.load(checkpoint.roles, checkpoint.state)
            return residents
        checkpoint = read_published(self.run, update)
        residents.load(checkpoint.roles, checkpoint.state)
        return residents
