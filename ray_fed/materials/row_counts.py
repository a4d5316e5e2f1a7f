"""What a silo counts so that predictions know their limits: its answers to the questions of `limits.py`.

A question about models comes as arrays: for each model whether it is one silo's own, what is asked of it, then its
vector. M counts models, R regression targets, C targets of classes, G chemistries, B bins (counted_quantiles).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ray_fed.federation.messages import COUNT, Vector
from ray_fed.federation.task import Care, Counting, LocalRows, Predictor, Samples
from ray_fed.learning.confidence import counted_odds
from ray_fed.learning.counted_quantiles import NUM_BINS, histogram
from ray_fed.learning.intervals import counted_errors, spread_of
from ray_fed.materials.chemical_groups import ANION_CLASSES
from ray_fed.materials.domain import counted_elements, counted_places
from ray_fed.materials.targets import Target, predicted_values, values_by_target

CHEMISTRIES = (*ANION_CLASSES, "other")
SPREADS, ERRORS, CONFIDENCES = f"{COUNT}spreads", f"{COUNT}errors", f"{COUNT}confidences"
ELEMENTS, PLACES = f"{COUNT}elements", f"{COUNT}places"
PARTS = ("calibration", "held out", "test")
"""Of the rows; as numbers in a question. A test set is what its holder has in place of training rows."""


@dataclass(frozen=True)
class CrystalLocalRows(LocalRows):
    """A silo's rows with those held out for calibration, and what is counted of them."""

    calibration_features: np.ndarray = field(default_factory=lambda: np.empty((0, 0)), repr=False)
    """float64 [num_calibration, num_features]"""
    calibration_targets: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False)
    chemistries: Mapping[str, Sequence[str]] = field(default_factory=dict, repr=False)
    """Part of the rows -> chemistry of each."""
    formulas: Sequence[str] = field(default=(), repr=False)
    """Of the training rows."""
    num_imputed: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False)
    """int64 [num_examples]: imputed element properties of the training rows."""


@dataclass(frozen=True)
class CrystalSamples(Samples):
    """Samples with the calibration rows, and all labels as the network learns them."""

    parts: Mapping[str, tuple[torch.Tensor, np.ndarray]] = field(default_factory=dict, repr=False)
    """Part of the rows -> (features on the CPU, learned targets [rows, T])."""


@dataclass(frozen=True)
class Counted:
    """Counts of rows for a property task."""

    targets: tuple[Target, ...]
    predictor: Predictor

    def questions(self) -> dict[str, Counting]:
        return {
            SPREADS: self.spreads, ERRORS: self.errors, CONFIDENCES: self.confidences, ELEMENTS: self.elements,
            PLACES: self.places,
        }  # fmt: skip

    def spreads(
        self, samples: Samples, care: Care, part: np.ndarray, own: np.ndarray, *vectors: Vector
    ) -> tuple[int, np.ndarray]:
        """Count how far the silos' own models are apart, in the space of the network's outputs: [M, R, B]."""
        name, (features, _), _ = _part(samples, part)
        outputs = self._outputs(features, care, name, vectors)
        counts = np.zeros((len(vectors), len(self._numbers), NUM_BINS), np.int64)
        for model, target in self._pairs(outputs):
            spread = _spread(outputs, own, model, self._numbers[target])
            counts[model, target] = histogram(spread, care.fewest)
        return len(features), counts.ravel()

    def errors(
        self, samples: Samples, care: Care, part: np.ndarray, own: np.ndarray, scales: np.ndarray, *vectors: Vector
    ) -> tuple[int, np.ndarray]:
        """Count errors in units of their usual size, and these sizes: [M, R, 2, 1 + G, B].

        scales: float64 [M, R, 2 + G], of each model and target the floor, then what is usual for all and for each
        chemistry, as multiples of it.
        """
        name, (features, learned), chemistries = _part(samples, part)
        outputs = self._outputs(features, care, name, vectors)
        shape = len(vectors), len(self._numbers), 2, 1 + len(CHEMISTRIES), NUM_BINS
        counts, places = np.zeros(shape, np.int64), [CHEMISTRIES.index(name) for name in chemistries]
        for model, target in self._pairs(outputs):
            column, floor, usual = self._numbers[target], scales[model, target, 0], scales[model, target, 2:]
            output = outputs[model]
            assert output is not None
            scale = (floor + _spread(outputs, own, model, column)) * usual[places]
            error = learned[:, self._labels[target]] - output[:, column]
            counts[model, target] = counted_errors(error, scale, chemistries, CHEMISTRIES, care.fewest)
        return len(features), counts.ravel()

    def confidences(
        self,
        samples: Samples,
        care: Care,
        part: np.ndarray,
        own: np.ndarray,
        *vectors: Vector,
    ) -> tuple[int, np.ndarray]:
        """Count how sure the models are where they are right and where they are wrong: [M, C, 2, B]."""
        name, (features, learned), _ = _part(samples, part)
        outputs = self._outputs(features, care, name, vectors)
        classes = [at for at, target in enumerate(self.targets) if target.classes]
        counts = np.zeros((len(vectors), len(classes), 2, NUM_BINS), np.int64)
        for model, output in enumerate(outputs):
            for place, target in enumerate(classes if output is not None else []):
                chances = values_by_target(predicted_values(output, self.targets, None), self.targets)[target]
                counts[model, place] = counted_odds(chances, learned[:, target], care.fewest)
        return len(features), counts.ravel()

    def elements(self, samples: Samples, care: Care) -> tuple[int, np.ndarray]:
        """Count the elements of the training rows: whether enough have it, int64 [118]."""
        rows = samples.rows
        assert isinstance(rows, CrystalLocalRows)
        return len(rows.formulas), counted_elements(rows.formulas, care.fewest)

    def places(self, samples: Samples, care: Care) -> tuple[int, np.ndarray]:
        """Count the training rows' distances from the mean of all rows, and their imputed properties: [2, B]."""
        rows = samples.rows
        assert isinstance(rows, CrystalLocalRows)
        features = samples.features.cpu().numpy()
        return len(features), counted_places(features, rows.num_imputed, care.fewest).ravel()

    def _outputs(
        self, features: torch.Tensor, care: Care, part: str, vectors: Sequence[Vector]
    ) -> list[np.ndarray | None]:
        """Return each model's outputs [rows, O]; None of one that is made to tell rows apart."""
        found = [self.predictor(vector, features) if len(features) else None for vector in vectors]
        return [None if one is None or care.is_probe(part, one) else one for one in found]

    def _pairs(self, outputs: Sequence[np.ndarray | None]) -> list[tuple[int, int]]:
        """Return (model, regression target) of all models that are counted."""
        return [(m, r) for m, one in enumerate(outputs) if one is not None for r in range(len(self._numbers))]

    @property
    def _labels(self) -> list[int]:
        """Columns of the regression targets among the targets."""
        return [at for at, target in enumerate(self.targets) if not target.classes]

    @property
    def _numbers(self) -> list[int]:
        """Columns of the regression targets among the outputs."""
        return output_columns(self.targets)


def output_columns(targets: Sequence[Target]) -> list[int]:
    """Return the column of each regression target among a network's outputs."""
    starts = np.cumsum([0, *(target.num_outputs for target in targets)]).tolist()
    return [start for start, target in zip(starts, targets, strict=False) if not target.classes]


def _spread(outputs: Sequence[np.ndarray | None], own: np.ndarray, model: int, column: int) -> np.ndarray:
    """Return how far the silos' own models are from one model, [rows]."""
    this = outputs[model]
    assert this is not None
    others = [one[:, column] for one, is_own in zip(outputs, own, strict=True) if is_own and one is not None]
    return spread_of(np.array(others), this[:, column])


def _part(samples: Samples, part: np.ndarray) -> tuple[str, tuple[torch.Tensor, np.ndarray], Sequence[str]]:
    assert isinstance(samples, CrystalSamples)
    assert isinstance(samples.rows, CrystalLocalRows)
    name = PARTS[int(part[0])]
    return name, samples.parts[name], samples.rows.chemistries[name]
