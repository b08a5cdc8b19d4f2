"""The weights that a stage reads: the live ones, or those that an earlier update left in its checkpoint."""

from __future__ import annotations

from hpcrl.envs import EnvDescription
from hpcrl.errors import CorruptFileError
from hpcrl.pipeline import Pipeline
from hpcrl.residents import Residents
from hpcrl.runner.branch import INITIAL
from hpcrl.runner.part import Part
from hpcrl.runner.position import checkpoint_of
from hpcrl.segments import Need, policy_update, trainer_of
from hpcrl.stages import Stage
from hpcrl.store.checkpoint import read_checkpoint
from hpcrl.store.run_folder import RunFolder


class Weights:
    """Chooses a stage's residents. What lies on disk is read once for each update."""

    def __init__(
        self, run: RunFolder, pipeline: Pipeline, description: EnvDescription, part: Part, live: Residents
    ) -> None:
        self.run, self.pipeline, self.description, self.part, self.live = run, pipeline, description, part, live
        self._residents: Residents | None = None
        self._holds: Need | None = None

    def of(self, stage: Stage, iteration: int) -> Residents:
        """The residents that hold what the stage should read (or train) in an iteration."""
        trainer = trainer_of(self.pipeline, stage.role)
        if trainer is None or stage.trains is not None or self._is_live(stage, trainer, iteration):
            return self.live
        update = policy_update(self.pipeline, stage, iteration)
        if self._residents is None or self._holds != update:
            self._residents = self._read(update)
            self._holds = update
        return self._residents

    def _is_live(self, stage: Stage, trainer: Stage, iteration: int) -> bool:
        """Whether this loop trains the role itself and its weights have not moved past what the stage should see."""
        if not self.part.plays(trainer.name):
            return False
        update = policy_update(self.pipeline, stage, iteration)
        newest = iteration if update is not None and update.iteration == iteration else iteration - 1
        wanted = -1 if update is None else update.iteration
        return wanted == newest

    def _read(self, update: Need | None) -> Residents:
        """Raises: CorruptFileError when the checkpoint is damaged or gone."""
        description = self.description
        residents = self._residents or Residents(
            self.pipeline.models, description.observation_space, description.action_space, self.pipeline.seed
        )
        if update is None:
            if (self.run.path / INITIAL).is_dir():
                checkpoint = read_checkpoint(self.run.path / INITIAL)
                residents.load(checkpoint.roles, checkpoint.state)
            return residents
        folder = self.run.stage(update.iteration, update.stage)
        manifest, path = folder.manifest(), checkpoint_of(folder)
        if manifest is None or path is None:
            raise CorruptFileError(
                f"{folder.path}: want the checkpoint that later stages read, found none; its files were removed: "
                "restore them from a copy, or branch from a checkpoint that is kept"
            )
        checkpoint = read_checkpoint(path, [record for record in manifest.files if "/checkpoint/" in record.name])
        residents.load(checkpoint.roles, checkpoint.state)
        return residents
