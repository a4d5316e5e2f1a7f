"""What a member would do without the federation, and where a model errs: in the silo, through the gate, in the run."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.cli import main
from pipelines.training.alone import AloneAnswers, AloneResult, summary_of
from ray_fed.errors import FedError, PerimeterRefused, Trouble
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.messages import Metrics
from ray_fed.federation.silo import names_told
from ray_fed.federation.task import SiloSpec
from ray_fed.learning.layout import initial_vector
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.materials.best_alone import Questions, best, candidates, predictions
from ray_fed.materials.breakdown import (
    ANIONS,
    GROUPS,
    group_masks,
    importances,
    scores_of_groups,
    shuffled_columns,
    table,
    worst,
)
from ray_fed.materials.chemical_groups import anion_classes, composition_keys
from ray_fed.materials.databases.source import Source
from ray_fed.materials.learners import Columns, NetworkLearner, TreeLearner
from ray_fed.materials.property_silo import ALL, BEST, LEARNERS, OF_GROUPS, OF_LEARNERS, OF_SHUFFLES, PropertySilo
from ray_fed.materials.property_task import CrystalRows, PropertyTask
from ray_fed.materials.study import StudyPart, StudyPlan
from ray_fed.materials.targets import Target
from ray_fed.metrics import RegressionSums
from ray_fed.perimeter.guarded_silo import GuardedSilo
from tests.sites import sites

TASK = PropertyTask("guo65", hidden=(8,))
PLAN = StudyPlan((100, 100), 300, 100)
FEW_TREES = (10, 20)


def spec_of(part: str = "silo-1", test_fraction: float = 0.0) -> SiloSpec:
    source = Source(rows=300)
    if test_fraction:
        return SiloSpec(part, CrystalRows(source, None, test_fraction))
    return SiloSpec(part, CrystalRows(source, StudyPart(PLAN, part)))


def opened(spec: SiloSpec) -> PropertySilo:
    silo = TASK.silo(spec)
    silo.open()
    silo.prepare(TASK.standardizer(silo.moments()))
    return silo


def model_of(silo: PropertySilo, seed: int = 3) -> np.ndarray:
    return initial_vector(silo.task.model(seed), "average")


@pytest.fixture(scope="module")
def silo() -> PropertySilo:
    return opened(spec_of(test_fraction=0.3))


# ---- learners


def columns_of(targets: np.ndarray, features: np.ndarray, *num_classes: int) -> Columns:
    return Columns(features, targets.reshape(len(targets), -1), num_classes)


def steps(num_rows: int = 240) -> tuple[np.ndarray, np.ndarray]:
    """Features and a target that jumps: trees find it, a forest of few less well."""
    random = np.random.default_rng(0)
    features = random.normal(size=(num_rows, 4))
    return features, np.where(features[:, 0] > 0, 1.0, -1.0) + (features[:, 1] > 1) + 0.1 * random.normal(size=num_rows)


def test_the_folds_choose_the_learner_and_its_length_and_spare_those_far_behind():
    features, targets = steps()
    columns = columns_of(targets, features, 0)
    boosting = TreeLearner(TASK, columns, "gradient_boosting", FEW_TREES)
    shuffled = columns_of(np.random.default_rng(1).permutation(targets), features, 0)
    guessing = TreeLearner(TASK, shuffled, "random_forest", (5,))
    found = candidates([guessing, boosting], Questions(TASK, targets, [str(row) for row in range(240)]))
    assert [one.is_complete for one in found] == [False, True]
    chosen = best(found)
    assert (chosen.learner.name, chosen.length, chosen.scores.num_examples) == ("gradient_boosting", 20, 240)
    assert chosen.badness < 0.2
    assert TASK.score(targets, predictions(chosen, 240, features)).mae < chosen.badness


def test_no_group_is_on_both_sides_so_that_what_is_known_by_heart_does_not_count():
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 5)
    features, targets = np.repeat(random.normal(size=(40, 3)), 5, axis=0), np.repeat(random.normal(size=40), 5)
    learner = TreeLearner(TASK, columns_of(targets, features, 0), "random_forest", (10,))
    apart = candidates([learner], Questions(TASK, targets, [str(group) for group in groups]))[0]
    together = candidates([learner], Questions(TASK, targets, [str(row) for row in range(200)]))[0]
    assert together.badness < 0.2 * apart.badness


@pytest.mark.parametrize("name", ["random_forest", "gradient_boosting"])
@pytest.mark.parametrize("num_classes", [2, 3])
def test_trees_give_chances_of_all_classes_also_of_those_that_they_have_not_seen(name, num_classes):
    task = PropertyTask("guo65", targets=(Target("kind", classes=("a", "b", "c")[:num_classes]),))
    features = np.random.default_rng(0).normal(size=(230, 3))
    labels = (features[:, 0] > 0).astype(float) + (num_classes > 2) * (features[:, 1] > 0.5)
    learner = TreeLearner(task, columns_of(labels, features, num_classes), name, (20,))
    for inside in (np.arange(200), np.flatnonzero(labels < 2)[:40], np.flatnonzero(labels == 1)[:20]):
        *_, chances = learner.learn(inside, features[200:], 20)
        assert chances.shape == (30, num_classes)
        np.testing.assert_allclose(chances.sum(axis=1), 1)
        assert np.isfinite(chances).all()
        unseen = sorted(set(range(num_classes)) - set(labels[inside].astype(int)))
        assert (chances[:, unseen] < 0.01).all()
    *_, chances = learner.learn(np.arange(200), features[200:], 20)
    assert (chances.argmax(axis=1) == labels[200:]).mean() > 0.8


def test_trees_learn_each_of_several_targets_from_the_rows_that_have_it():
    task = PropertyTask(
        "guo65", targets=(Target("one"), Target("log", transform="log10"), Target("kind", classes=("x", "y")))
    )
    features, first = steps()
    targets = np.column_stack([first, 10.0**first, first > 0])
    targets[:100, 0] = targets[100:150, 1] = np.nan
    learned, num_classes = task.tree_targets(targets)
    learner = TreeLearner(task, Columns(features, learned, num_classes), "gradient_boosting", FEW_TREES)
    *_, predicted = learner.learn(np.arange(200), features[200:], 20)
    assert predicted.shape == (40, 4)
    assert np.abs(predicted[:, 0] - targets[200:, 0]).mean() < 0.3
    assert np.abs(np.log10(predicted[:, 1]) - first[200:]).mean() < 0.3
    assert ((predicted[:, 3] > 0.5) == targets[200:, 2]).mean() > 0.8


def test_the_network_alone_ends_where_its_fold_does_not_get_better(silo):
    plan = TrainingPlan(0, 200, 4, 1, 0.05)
    learner, rows = NetworkLearner(TASK, silo.samples, plan), np.arange(len(silo.rows.features))
    judged: list[float] = []

    def worse_and_worse(_: np.ndarray) -> float:
        judged.append(float(len(judged)))
        return judged[-1]

    looks = list(learner.learn(rows[:60], learner.of_rows(rows[60:]), 200, worse_and_worse))
    assert len(looks) == 6
    assert len(list(learner.learn(rows[:60], learner.of_rows(rows[60:]), 30))) == 3


# ---- the silo's answers


def told_by(silo: PropertySilo, question: str, names, *given) -> dict[str, Metrics]:
    return silo.query(question, names_told(names), *given)


def learners_of(silo: PropertySilo) -> dict[str, Metrics]:
    return told_by(silo, OF_LEARNERS, (*LEARNERS, BEST), 0, 4, 50, 1e-3, "adam")


def test_a_silo_tells_what_it_could_do_alone_on_rows_that_it_did_not_choose_by(silo):
    told = learners_of(silo)
    result = AloneResult.of(told)
    assert told[BEST] in [told[name] for name in LEARNERS]
    assert result.learner == min(LEARNERS, key=lambda name: result.folds[name]["mae"])
    assert result.learner != "network"
    assert told[BEST].train.num_examples == len(silo.rows.features)
    assert told[BEST].held_out.num_examples == len(silo.rows.held_out_features) > 0
    assert told["network"].held_out.num_examples == 0
    assert told == learners_of(silo), "asked again, it answers the same"


def test_in_a_study_the_published_test_set_is_what_no_silo_trains_on():
    study = opened(spec_of("silo-2"))
    assert learners_of(study)[BEST].held_out.num_examples == len(TASK.load(spec_of("test")).features)


def test_a_silo_of_one_formula_cannot_choose():
    one = opened(spec_of(test_fraction=0.3))
    object.__setattr__(one.rows, "groups", ["8:3,26:2"] * len(one.rows.features))
    with pytest.raises(FedError, match="one formula only"):
        learners_of(one)


def test_errors_by_group_are_those_of_their_rows_and_groups_of_few_rows_are_not_told(silo):
    model, rows = model_of(silo), silo.rows
    told = told_by(silo, OF_GROUPS, GROUPS, model)
    masks = group_masks(rows.groups, GROUPS)
    for name in GROUPS:
        count = int(masks[name].sum())
        assert told[name].train.num_examples == (count if count >= 5 else 0)
    assert sum(told[name].train.num_examples for name in ANIONS) <= len(rows.features)
    oxides = masks["anion.oxide"]
    outputs = silo._outputs(model, rows.features[oxides])
    exact = TASK.score(rows.targets[oxides], TASK.predicted(outputs, silo.samples.standardizer)).mae
    assert told["anion.oxide"].train.values()["mae"] == pytest.approx(exact, rel=0.15)
    assert any("farthest" in note for note in silo.notes_for_owner())
    assert silo.notes_for_owner() == []


def test_a_model_that_tells_no_rows_apart_is_not_marked(silo):
    constant = np.zeros_like(model_of(silo))
    told = told_by(silo, OF_GROUPS, ("anion.oxide",), constant)["anion.oxide"]
    assert np.isnan(told.train.values()["mae"])


def test_shuffling_a_property_that_counts_costs_and_one_that_is_unknown_is_refused(silo):
    names = (ALL, "X", "row")
    told = told_by(silo, OF_SHUFFLES, names, model_of(silo))
    assert {told[name].train.num_examples for name in names} == {len(silo.rows.features)}
    with pytest.raises(FedError, match="no feature of a name"):
        told_by(silo, OF_SHUFFLES, ("my secret",), model_of(silo))


def guarded(tmp_path: Path, perimeter: str = "") -> GuardedSilo:
    site = tmp_path / "site.yaml"
    site.write_text(f"ledger: {tmp_path}\nperimeter: {{{perimeter}}}\n")
    site.chmod(0o600)
    spec = spec_of(test_fraction=0.3)
    silo = GuardedSilo(spec, lambda: TASK.silo(spec), site_file=site)
    silo.open()
    silo.prepare(TASK.standardizer(silo.moments()))
    return silo


def test_answers_pass_the_gate_as_metrics_do_and_worst_rows_stay_in_the_owners_log(tmp_path, silo):
    behind, model = guarded(tmp_path), model_of(silo)
    told = behind.query(OF_GROUPS, names_told(GROUPS), model)
    assert tuple(told) == GROUPS
    assert told["anion.oxide"] == told_by(silo, OF_GROUPS, GROUPS, model)["anion.oxide"]
    assert all(type(one) is Metrics and type(one.held_out) is RegressionSums for one in told.values())
    logs = "".join(path.read_text() for path in tmp_path.rglob("*.log"))
    assert "rows that the model is farthest from" in logs
    assert told == behind.query(OF_GROUPS, names_told(GROUPS), model)


@pytest.mark.parametrize(("perimeter", "reason"), [
    ("kinds: [description, moments, update]", "allows description, moments, update only"),
    ("max_evaluations_per_run: 50", "max_evaluations_per_run=50"),
    ("masks: required", "would leave without"),
    ("noise: required", "would leave without"),
])  # fmt: skip
def test_an_owner_who_keeps_metrics_or_wants_masks_tells_nothing(tmp_path, perimeter, reason, silo):
    allowed = perimeter if "required" not in perimeter else ""
    behind = guarded(tmp_path, allowed)
    if not allowed:
        behind.insistence.site = behind.site = type(behind.site)(
            type(behind.site.policy)(**dict([perimeter.split(": ")])), behind.site.ledger_folder, behind.site.path
        )
    with pytest.raises(PerimeterRefused, match=reason):
        behind.query(OF_GROUPS, names_told(GROUPS), model_of(silo))


# ---- groups and rows


def test_groups_are_anion_classes_and_elements():
    formulas = ["SrTiO3", "NaCl", "Ni3Al", "Fe2O3"]
    keys = composition_keys(formulas)
    masks = group_masks(keys, [*GROUPS, "element.Unobtainium"])
    for at, kind in enumerate(anion_classes(formulas)):
        assert [name for name in ANIONS if masks[name][at]] == [f"anion.{kind}"]
    assert masks["element.O"].tolist() == [True, False, False, True]
    assert not masks["element.Unobtainium"].any()
    assert not group_masks(["?what"], GROUPS)["element.H"].any()


def test_worst_rows_and_tables_put_the_worst_first():
    targets, predicted = np.array([1.0, 2.0, 3.0]), np.array([[1.0], [2.5], [1.0]])
    found = worst(TASK, ["a", "b", "c"], targets, predicted)
    assert [(row.name, row.badness) for row in found] == [("c", 2.0), ("b", 0.5), ("a", 0.0)]
    classes = PropertyTask("guo65", targets=(Target("metal", classes=("no", "yes")),))
    chances = np.array([[0.9, 0.1], [0.2, 0.8]])
    assert [row.name for row in worst(classes, ["sure", "wrong"], np.array([0.0, 0.0]), chances)] == ["wrong", "sure"]
    scores = scores_of_groups(TASK, composition_keys(["NaCl", "KCl", "MgO"]), targets, predicted)
    mae = TASK.metrics[0]
    assert table(scores, mae, 1)[0] == ("anion.oxide", 1, 2.0)
    assert [name for name, *_ in table(scores, mae, 2)] == ["anion.halide", "element.Cl"]


def test_shuffled_columns_move_together_and_others_stay():
    features = np.arange(20.0).reshape(5, 4)
    shuffled = shuffled_columns(features, [1, 2], "x")
    np.testing.assert_array_equal(shuffled[:, [0, 3]], features[:, [0, 3]])
    np.testing.assert_array_equal(shuffled[:, 2] - shuffled[:, 1], np.ones(5))
    assert sorted(shuffled[:, 1]) == sorted(features[:, 1])
    assert (shuffled != features).any()


def test_the_most_important_property_is_the_one_whose_shuffling_costs_most():
    mae = TASK.metrics[0]
    scores = {
        name: RegressionSums.of(np.zeros(4), np.full(4, error)) for name, error in (("all", 1), ("X", 3), ("row", 1.5))
    }
    assert importances(scores, mae, "all") == [("X", 2.0), ("row", 0.5)]


# ---- in a run


def test_of_several_seeds_the_mean_of_whatever_each_chose_counts():
    mae = TASK.metrics[:1]
    folds = {name: {"mae": 0.3} for name in LEARNERS}
    answers = [
        AloneAnswers({"a": AloneResult("gradient_boosting", folds, {"mae": 0.2})}),
        AloneAnswers({"a": AloneResult("network", folds, {})}),
        AloneAnswers({}, {"a": "it gave no answer"}),
    ]
    found = summary_of(answers, {"mae": {"a": [0.9, 0.4, 0.5]}}, mae, "best")
    assert found["best.a.mae"] == pytest.approx(0.3)
    assert found["best.a.mae_std"] == pytest.approx(np.std([0.2, 0.4], ddof=1))
    assert (found["best.a.learner"], found["best.a.cv.network"]) == ("gradient_boosting", 0.3)


RUN = ["train", "--cohort", "local", "--rows", "300", "--test-rows", "100", "--silos", "90,110", "--epochs", "4",
       "--hidden", "8", "--features", "guo65", "--batch-size", "40"]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    assert main([*RUN, "--out", str(out)]) == 0
    return out


def test_a_run_names_what_the_best_silo_could_do_alone(run):
    summary, report = json.loads((run / "summary.json").read_text()), (run / "report.html").read_text()
    assert summary["best.silo-1.learner"] in ("random_forest", "gradient_boosting")
    for place in ("silo-1", "silo-2", "pooled"):
        alone = summary["pooled.mae"] if place == "pooled" else summary[f"silo.{place}.mae"]
        assert summary[f"best.{place}.mae"] < alone, "four epochs make no network"
    assert summary["best.silo-2.num_examples"] == summary["silo.silo-2.num_examples"]
    assert "the best silo alone (silo-" in report
    assert "no other learner was tried" not in report


def test_a_run_says_where_its_model_errs(run):
    analysis = json.loads((run / "analysis.json").read_text())
    assert analysis["rows"] == "the common test set"
    assert analysis["groups"][0]["group"].startswith("anion.")
    assert all(group["num_examples"] >= 5 for group in analysis["groups"])
    assert set(analysis["importances"]) == set(TASK.featurizer().properties())
    assert len(analysis["worst_rows"]) == 10
    assert "Where the model errs" in (run / "report.html").read_text()
    assert (run / "figures" / "analysis.png").is_file()


def test_the_papers_preset_asks_for_neither(tmp_path):
    assert main(["formation-energy", *RUN[1:], "--out", str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert not any(key.startswith("best.") for key in summary)
    assert not (tmp_path / "run" / "analysis.json").exists()
    assert "the same model; no other learner was tried" in (tmp_path / "run" / "report.html").read_text()


def test_without_a_common_test_set_each_silo_compares_on_rows_of_its_own(tmp_path):
    table = "id,formula,energy\n" + "".join(
        f"{number},{cation}{count}{anion},{count * 0.1 + len(anion)}\n"
        for number, (cation, count, anion) in enumerate(
            (cation, count, anion)
            for cation in ("Na", "K", "Ca", "Ti", "Fe", "Al")
            for anion in ("Cl", "O", "S", "N")
            for count in (1, 2, 3, 4)
        )
    )
    for name in ("north", "south"):
        (tmp_path / f"{name}.csv").write_text(table)
    (tmp_path / "federation.yaml").write_text(
        "silos:\n- {name: north, data: north.csv}\n- {name: south, data: south.csv}\n"
    )
    out = tmp_path / "run"
    words = ["train", "--federation", str(tmp_path / "federation.yaml"), "--cohort", "local", "--target", "energy"]
    words += ["--unit", "eV", "--epochs", "4", "--hidden", "8", "--features", "guo65", "--out", str(out)]
    assert main(words) == 0
    summary = json.loads((out / "summary.json").read_text())
    for name in ("north", "south"):
        assert summary[f"own.{name}.learner"] in LEARNERS
        assert summary[f"own.{name}.best_mae"] > 0
    assert not any(key.startswith("best.") for key in summary)
    analysis = json.loads((out / "analysis.json").read_text())
    assert analysis["rows"] == "the silos' held-out rows"
    assert set(analysis["importances_by_silo"]) == {"north", "south"}
    assert analysis["worst_rows"] == []


# ---- through a coordinator


def test_silos_at_sites_tell_what_silos_in_this_process_tell_and_a_silent_one_is_named():
    specs = [SiloSpec(name, spec_of(test_fraction=0.3).source) for name in ("silo-1", "silo-2")]
    specs[1] = replace(specs[1], source=CrystalRows(Source(rows=200), None, 0.3))
    names = [spec.name for spec in specs]

    def told_to(cohort):
        coordinator = Coordinator(cohort, TASK, names)
        coordinator.agree()
        found, silent = coordinator.ask_metrics(OF_GROUPS, names, (*GROUPS[:5], "element.O"), (model_of_task(),))
        learners, _ = coordinator.ask_metrics(OF_LEARNERS, names, (*LEARNERS, BEST), (0, 2, 50, 1e-3, "adam"))
        _, refused = coordinator.ask_metrics(OF_SHUFFLES, names, ("no property",), (model_of_task(),))
        return found, silent, learners, refused

    ours = told_to(LocalCohort(specs, TASK))
    assert (set(ours[0]), ours[1]) == (set(names), {})
    assert all("no feature of a name that it was asked for" in ours[3][name] for name in names)
    with sites(specs, TASK) as cohort:
        *theirs, refused = told_to(cohort)
    assert theirs == [*ours[:3]]
    assert all(Trouble.UNKNOWN_QUERY.value in refused[name] for name in names)


def model_of_task() -> np.ndarray:
    return initial_vector(TASK.model(3), "average")
