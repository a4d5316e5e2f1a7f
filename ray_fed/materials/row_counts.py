"""What a silo counts so that predictions know their limits: its answers to the questions of `limits.py`.

A question about models comes as arrays: for each model whether it is one silo's own, what is asked of it, then its
vector. M counts models, R regression targets, C targets of classes, G chemistries, B bins (counted_quantiles).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ray_fed.federation.messages import COUNT, Vector
from ray_fed.federation.task import Care, Counting, LocalRows, Predictor, Samples
from ray_fed.learning.confidence import counted_odds
from ray_fed.learning.counted_quantiles import NUM_BINS, histogram
from ray_fed.learning.intervals import counted_errors, spread_of
from ray_fed.learning.standardisation import Standardizer
from ray_fed.materials.chemical_groups import ANION_CLASSES, anion_classes
from ray_fed.materials.domain import counted_elements, counted_places
from ray_fed.materials.features.feature_sets import FeatureSet
from ray_fed.materials.targets import Target, learned_values, predicted_values, values_by_target

CHEMISTRIES = (*ANION_CLASSES, "other")
SPREADS, ERRORS, CONFIDENCES = f"{COUNT}spreads", f"{COUNT}errors", f"{COUNT}confidences"
ELEMENTS, PLACES = f"{COUNT}elements", f"{COUNT}places"
PARTS = CALIBRATION, HELD_OUT, TEST, VALIDATION = "calibration", "held out", "test", "validation"
"""Of the rows; as numbers in a question. A test set is what its holder has in place of training rows."""


@dataclass(frozen=True, kw_only=True)
class CrystalLocalRows(LocalRows):
    """A silo's rows with those held out for calibration and for early stopping."""

    calibration_features: np.ndarray = field(default_factory=lambda: np.empty((0, 0)), repr=False)
    """float64 [num_calibration, num_features]"""
    calibration_targets: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False)
    validation_features: np.ndarray = field(default_factory=lambda: np.empty((0, 0)), repr=False)
    validation_targets: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False)
    formulas: Mapping[str, Sequence[str]] = field(default_factory=dict, repr=False)
    """Part of the rows -> formula of each; see PARTS."""

    def part(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return features and targets of a part of the rows."""
        return {
            CALIBRATION: (self.calibration_features, self.calibration_targets),
            HELD_OUT: (self.held_out_features, self.held_out_targets),
            TEST: (self.features, self.targets),
            VALIDATION: (self.validation_features, self.validation_targets),
        }[name]


@dataclass(frozen=True, kw_only=True)
class CrystalSamples(Samples):
    """Samples with the scaler of their targets."""

    of_targets: Standardizer | None = None

    @property
    def own_rows(self) -> CrystalLocalRows:
        assert isinstance(self.rows, CrystalLocalRows)
        return self.rows


class CountedTask(Protocol):
    """What is asked of a property task."""

    @property
    def targets(self) -> tuple[Target, ...]: ...

    def predictor(self) -> Predictor: ...

    def featurizer(self) -> FeatureSet: ...

    def inputs(self, features: Any, standardizer: Standardizer | None, device: str = "cpu") -> Any: ...

    def described(self, features: Any) -> np.ndarray: ...


@dataclass(frozen=True)
class Part:
    """A part of a silo's rows as its models see them."""

    name: str
    features: Any
    """As the model takes them, on the CPU; None of no rows."""
    learned: np.ndarray
    """Targets [rows, T] as the network learns them; NaN without a label."""
    chemistries: Sequence[str]

    @classmethod
    def of(cls, samples: Samples, number: np.ndarray, task: CountedTask) -> "Part":
        rows, of_targets = samples.rows, None
        if isinstance(samples, CrystalSamples):
            rows, of_targets = samples.own_rows, samples.of_targets
        assert isinstance(rows, CrystalLocalRows)
        targets, name = task.targets, PARTS[int(number[0])]
        features, labels = rows.part(name)
        table = labels.reshape(len(labels), len(targets))
        learned = learned_values(table, targets, of_targets) if len(table) else table
        inputs = task.inputs(features, samples.standardizer) if len(features) else None
        return cls(name, inputs, learned, anion_classes(rows.formulas[name]))

    def __len__(self) -> int:
        return len(self.learned)


@dataclass(frozen=True)
class RowCounts:
    """Counts of rows for a property task."""

    task: CountedTask

    @property
    def targets(self) -> tuple[Target, ...]:
        return self.task.targets

    def questions(self) -> dict[str, Counting]:
        return {
            SPREADS: self.spreads, ERRORS: self.errors, CONFIDENCES: self.confidences, ELEMENTS: self.elements,
            PLACES: self.places,
        }  # fmt: skip

    def spreads(
        self, samples: Samples, care: Care, part: np.ndarray, own: np.ndarray, *vectors: Vector
    ) -> tuple[int, np.ndarray]:
        """Count how far the silos' own models are apart, in the space of the network's outputs: [M, R, B]."""
        rows = Part.of(samples, part, self.task)
        outputs = self._outputs(rows, care, vectors)
        counts = np.zeros((len(vectors), len(self._numbers), NUM_BINS), np.int64)
        for model, target in self._pairs(outputs):
            spread = _spread(outputs, own, model, self._numbers[target])
            counts[model, target] = histogram(spread, care.fewest)
        return len(rows), counts.ravel()

    def errors(
        self, samples: Samples, care: Care, part: np.ndarray, own: np.ndarray, scales: np.ndarray, *vectors: Vector
    ) -> tuple[int, np.ndarray]:
        """Count errors in units of their usual size, and these sizes: [M, R, 2, 1 + G, B].

        scales: float64 [M, R, 2 + G], of each model and target the floor, then what is usual for all and for each
        chemistry, as multiples of it.
        """
        rows = Part.of(samples, part, self.task)
        outputs = self._outputs(rows, care, vectors)
        shape = len(vectors), len(self._numbers), 2, 1 + len(CHEMISTRIES), NUM_BINS
        counts, places = np.zeros(shape, np.int64), [CHEMISTRIES.index(name) for name in rows.chemistries]
        for model, target in self._pairs(outputs):
            column, floor, usual = self._numbers[target], scales[model, target, 0], scales[model, target, 2:]
            output = outputs[model]
            assert output is not None
            scale = (floor + _spread(outputs, own, model, column)) * usual[places]
            error = rows.learned[:, self._labels[target]] - output[:, column]
            counts[model, target] = counted_errors(error, scale, rows.chemistries, CHEMISTRIES, care.fewest)
        return len(rows), counts.ravel()

    def confidences(
        self, samples: Samples, care: Care, part: np.ndarray, _own: np.ndarray, *vectors: Vector
    ) -> tuple[int, np.ndarray]:
        """Count how sure the models are where they are right and where they are wrong: [M, C, 2, B]."""
        rows = Part.of(samples, part, self.task)
        outputs = self._outputs(rows, care, vectors)
        classes = [at for at, target in enumerate(self.targets) if target.classes]
        counts = np.zeros((len(vectors), len(classes), 2, NUM_BINS), np.int64)
        for model, output in enumerate(outputs):
            if output is None:
                continue
            values = values_by_target(predicted_values(output, self.targets, None), self.targets)
            for place, target in enumerate(classes):
                counts[model, place] = counted_odds(values[target], rows.learned[:, target], care.fewest)
        return len(rows), counts.ravel()

    def elements(self, samples: Samples, care: Care) -> tuple[int, np.ndarray]:
        """Count the elements of the training rows: whether enough have it, int64 [118]."""
        assert isinstance(samples.rows, CrystalLocalRows)
        formulas = samples.rows.formulas[TEST]
        return len(formulas), counted_elements(formulas, care.fewest)

    def places(self, samples: Samples, care: Care) -> tuple[int, np.ndarray]:
        """Count the training rows' distances from the mean of all rows, and their imputed properties: [2, B]."""
        assert isinstance(samples, CrystalSamples)
        imputed = self.task.featurizer().num_imputed(list(samples.own_rows.formulas[TEST]))
        return len(imputed), counted_places(self.task.described(samples.features), imputed, care.fewest).ravel()

    def _outputs(self, rows: Part, care: Care, vectors: Sequence[Vector]) -> list[np.ndarray | None]:
        """Return each model's outputs [rows, O]; None of one that is made to tell rows apart."""
        predict = self.task.predictor()
        found = [predict(vector, rows.features) if len(rows) else None for vector in vectors]
        return [None if one is None or care.is_probe(rows.name, one) else one for one in found]

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
