"""A silo that trains on its tiles: own and synthetic ones mixed, augmented on the device, seeded step by step."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import nn

from ray_fed.federation.messages import Metrics, SessionSpec, Vector
from ray_fed.federation.silo import Silo, feature_tensor
from ray_fed.federation.task import SiloSpec
from ray_fed.learning.scores import MeanScores
from ray_fed.learning.standardisation import Standardizer
from ray_fed.learning.trainer import LocalTrainer, TrainingPlan
from ray_fed.micrographs.augmentation import augmented
from ray_fed.micrographs.segmentation_task import SegmentationTask, TileRows, deal_tiles, name_on_tests
from ray_fed.randomness import generator


class TileTrainer(LocalTrainer):
    """A `LocalTrainer` whose batches are mixed and augmented tiles, and whose learning rate may decay."""

    def __init__(
        self,
        module: nn.Module,
        features: torch.Tensor,
        targets: torch.Tensor,
        plan: TrainingPlan,
        silo: str,
        task: SegmentationTask,
        rows: TileRows,
    ):
        super().__init__(module, task.loss, features, targets, plan, silo)
        self.task, self.rows = task, rows
        self._epoch_of_tiles = 0
        self._rate: torch.Tensor | None = None
        if features.device.type == "cuda":  # a captured graph re-reads a tensor, but keeps a number for ever
            self._rate = torch.tensor(plan.learning_rate, device=features.device)
            self.optimizer.learning_rate = self._rate  # type: ignore[attr-defined]

    def _batches(self, steps: range) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield (images, masks) of each step; everything drawn depends on (seed, step, silo) alone."""
        epoch, order = -1, np.zeros(0, np.int64)
        for step in steps:
            if step // self.plan.steps_per_epoch != epoch:
                epoch = step // self.plan.steps_per_epoch
                order = self._dealt(epoch)
                self._renew_synthetic(epoch)
            self._set_rate(step)
            start = step % self.plan.steps_per_epoch * self.task.batch_size
            index = torch.from_numpy(order[start : start + self.task.batch_size]).to(self.features.device)
            rng = generator(self.plan.seed, "augmentation", step, self.silo)
            images, masks = self.features.index_select(0, index), self.targets.index_select(0, index)
            yield augmented(images, masks, rng, self.task.erasing)

    def _dealt(self, epoch: int) -> np.ndarray:
        real, slots = self.rows.num_real, self.plan.steps_per_epoch * self.task.batch_size
        rng = generator(self.plan.seed, "tiles", epoch, self.silo)
        return deal_tiles(real, len(self.rows.features) - real, slots, self.task.synthetic_weight, rng)

    def _renew_synthetic(self, epoch: int) -> None:
        if self.rows.synthesis is None or epoch == self._epoch_of_tiles:
            return
        made, real, device = self.rows.synthesis(epoch), self.rows.num_real, self.features.device
        self.features = torch.cat([self.features[:real], torch.from_numpy(made.images).to(device)])
        self.targets = torch.cat([self.targets[:real], torch.from_numpy(made.masks).to(device)])
        self._epoch_of_tiles = epoch

    def _set_rate(self, step: int) -> None:
        rate = self.plan.learning_rate
        rate *= 1 - step / self.plan.total_steps if self.task.decay else 1
        if self._rate is None:
            self.optimizer.learning_rate = rate  # type: ignore[attr-defined]
        else:
            self._rate.fill_(rate)


class SegmentationSilo(Silo):
    """See `Silo`. Scores a model on all validation tiles, but only on a fixed sample of its own training tiles."""

    def __init__(self, spec: SiloSpec, task: SegmentationTask, device: str = "cpu"):
        super().__init__(spec, task, device)
        self.segmentation = task
        self.test_features: torch.Tensor | None = None

    def open_session(self, spec: SessionSpec) -> str:
        digest = super().open_session(spec)
        module = self.task.model(spec.model_seed)
        self.sessions[spec.session] = TileTrainer(
            module, self.features, self.targets, spec.plan, self.spec.name, self.segmentation, self.tiles
        )
        return digest

    def evaluate(self, session: str, models: Mapping[str, Vector]) -> dict[str, Metrics]:
        return {name: self._scored(session, vector) for name, vector in models.items()}

    def prepare(self, standardizer: Standardizer | None) -> None:
        super().prepare(standardizer)
        self.test_features = (
            None if self.tiles.test is None else feature_tensor(self.tiles.test.images, None, self.device)
        )

    @property
    def tiles(self) -> TileRows:
        rows = self.rows
        assert isinstance(rows, TileRows)
        return rows

    def _scored(self, session: str, vector: Vector) -> Metrics:
        trainer, tiles = self._session(session), self.tiles
        count = min(tiles.num_real, self.segmentation.num_scored)
        sample = np.linspace(0, tiles.num_real - 1, count).astype(np.int64)
        train = trainer.predict(self.features[torch.from_numpy(sample).to(self.features.device)], vector)
        held_out = trainer.predict(self.held_out_features, vector)
        scores = self.segmentation.score(tiles.held_out_targets, held_out.cpu().numpy())
        if tiles.test is not None and self.test_features is not None:
            tested = trainer.predict(self.test_features, vector)
            scores = _beside(scores, self.segmentation.score(tiles.test.masks, tested.cpu().numpy()))
        return Metrics(self.spec.name, self.task.score(tiles.targets[sample], train.cpu().numpy()), scores)


def _beside(scores: MeanScores, tested: MeanScores) -> MeanScores:
    """Return the scores with the test's means as `test_<name>`.

    One count serves both, so that merged silos' test means are weighted by the silos' validation tiles.
    """
    means = {name_on_tests(name): value * scores.num_examples for name, value in tested.values().items()}
    return MeanScores(scores.num_examples, {**scores.sums, **means})
