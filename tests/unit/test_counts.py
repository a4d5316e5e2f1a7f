"""Counts of rows that leave silos: none of few rows, alike with and without masks, and only as their owner allows."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from ray_fed.errors import PerimeterRefused, SiloFailed
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.counted_rows import counted_together
from ray_fed.federation.messages import Counts, Raised
from ray_fed.federation.silo import Evaluator, Silo
from ray_fed.learning.counted_quantiles import histogram
from ray_fed.learning.layout import initial_vector
from ray_fed.perimeter.checks import KINDS
from ray_fed.perimeter.gate import Gate, Request
from ray_fed.perimeter.guarded_evaluator import GuardedEvaluator
from ray_fed.perimeter.guarded_silo import GuardedSilo
from ray_fed.perimeter.policy import Policy
from tests.synthetic import SyntheticTask, silos

SPECS = silos(40, 60, 3)
NAMES = tuple(spec.name for spec in SPECS)
QUESTION = "count_errors"


@dataclass(frozen=True)
class CountingTask(SyntheticTask):
    """Tells in which bins the outputs of a model on the training rows are."""

    def countings(self):
        return {QUESTION: self._counted}

    def _counted(self, samples, care, vector):
        outputs = self.predictor()(vector, samples.features)
        if care.is_probe("train", outputs):
            return 0, histogram(np.empty(0))
        return len(outputs), histogram(np.abs(outputs[:, 0]), care.fewest)


TASK = CountingTask()
VECTOR = initial_vector(TASK.model(0))


def opened(specs=SPECS):
    coordinator = Coordinator(LocalCohort(specs, TASK), TASK, NAMES)
    coordinator.agree()
    return coordinator


def test_silos_count_together_and_each_count_has_enough_rows():
    coordinator = opened()
    found = coordinator.count(QUESTION, (VECTOR,), NAMES)
    assert found.num_examples == 103
    assert found.counts.sum() == 100  # three rows alone tell nothing
    assert not found.missing
    assert ((found.counts == 0) | (found.counts >= 5)).all()


def test_counts_under_masks_are_the_counts_without():
    clear = opened().count(QUESTION, (VECTOR,), NAMES)
    masked = opened().count(QUESTION, (VECTOR,), NAMES, secure_threshold=2)
    assert masked.num_examples == clear.num_examples
    np.testing.assert_array_equal(masked.counts, clear.counts)


def test_the_same_sum_cannot_be_had_with_and_without_one_silo():
    coordinator = opened(silos(40, 60, 50))
    coordinator.count(QUESTION, (VECTOR,), NAMES, secure_threshold=2)
    with pytest.raises(Exception, match="secure aggregation needs"):
        coordinator.count(QUESTION, (VECTOR,), NAMES[:2], secure_threshold=2)


def test_a_question_that_the_task_does_not_count_is_refused_by_name():
    found = opened().count("count_sheep", (), NAMES[:1])
    assert set(found.missing) == {"silo-1"}
    assert "'count_sheep'" in found.missing["silo-1"]
    with pytest.raises(SiloFailed, match="its task counts"):
        opened().cohort.silos["silo-1"].count("count_sheep")


def test_a_model_that_tells_few_rows_apart_is_not_counted():
    silo = opened().cohort.silos["silo-1"]
    assert silo.count(QUESTION, np.zeros_like(VECTOR)).counts.sum() == 0


def guarded(tmp_path, text="", spec=SPECS[0]):
    path = tmp_path / "site.yaml"
    path.write_text(text)
    path.chmod(0o600)
    boundary = GuardedSilo(replace(spec, ledger_folder=str(tmp_path)), lambda: Silo(spec, TASK), site_file=path)
    boundary.open()
    boundary.prepare(None)
    return boundary


def test_counts_pass_the_gate_and_are_a_line_in_the_ledger(tmp_path):
    boundary = guarded(tmp_path)
    found = boundary.query(QUESTION, VECTOR)
    assert found.counts.sum() == 40
    lines = "".join(path.read_text() for path in tmp_path.glob("**/*.jsonl"))
    assert f'"{QUESTION}"' in lines
    assert '"counts"' in lines


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("perimeter: {kinds: [description, moments, update]}", "its owner allows description, moments, update only"),
        ("perimeter: {counts: [elements]}", "its owner's 'counts' are elements, and do not name this question"),
        ("perimeter: {counts: []}", "its owner's 'counts' are none"),
        ("perimeter: {noise: required}", "noise: required"),
        ("perimeter: {masks: required}", "masks: required"),
        ("perimeter: {max_evaluations_per_run: 1}", "max_evaluations_per_run=1"),
    ],
)
def test_an_owner_forbids_counts_by_a_word_in_the_site_file(tmp_path, text, why):
    boundary = guarded(tmp_path, text)
    with pytest.raises(PerimeterRefused, match=why):
        [boundary.query(QUESTION, VECTOR) for _ in range(2)]


@pytest.mark.parametrize(
    "counts",
    [[4, 0], [-5, 10], [11, 0], [[5, 5]], [5.0, 5.0]],
    ids=["few rows", "negative", "more than there are", "two rows", "no whole numbers"],
)
def test_counts_of_another_form_stay_inside(counts):
    gate = Gate("north", Policy(), KINDS)
    with pytest.raises(PerimeterRefused):
        gate.admit(Counts("north", QUESTION, 10, np.array(counts)), Request("counts", QUESTION))


def test_of_too_few_rows_nothing_is_told():
    gate = Gate("north", Policy(), KINDS)
    told = gate.admit(Counts("north", QUESTION, 4, np.array([4, 0])), Request("counts", QUESTION))
    assert (told.num_examples, told.counts.tolist()) == (0, [0, 0])


def test_a_hostile_answer_has_no_part_in_the_sum_and_is_named():
    good = Counts("a", QUESTION, 10, np.array([5, 5]))
    told = {
        "a": good,
        "b": replace(good, silo="c"),
        "c": replace(good, silo="c", counts=np.array([-5, 5])),
        "d": replace(good, silo="d", counts=np.array([5, 5, 0])),
        "e": replace(good, silo="e", num_examples=4),
        "f": Raised("f", 0, "its owner forbids it"),
    }
    found = counted_together(QUESTION, told)
    assert (found.num_examples, found.counts.tolist()) == (10, [5, 5])
    assert set(found.missing) == set("bcdef")
    assert found.missing["f"] == "its owner forbids it"


def test_who_knows_a_test_set_gets_exact_counts_of_it_and_others_do_not(tmp_path):
    def evaluator(possession):
        spec = replace(SPECS[2], possession=possession)
        boundary = GuardedEvaluator(spec, lambda: Evaluator(spec, TASK), site_file=tmp_path / "site.yaml")
        boundary.open()
        boundary.prepare(None)
        return boundary.count(QUESTION, VECTOR)

    (tmp_path / "site.yaml").write_text("perimeter: {min_examples: 2}")
    (tmp_path / "site.yaml").chmod(0o600)
    assert evaluator(TASK.possession(SPECS[2].source)).counts.sum() == 3
    told = evaluator("").counts
    assert told[told > 0].tolist() == [3]
