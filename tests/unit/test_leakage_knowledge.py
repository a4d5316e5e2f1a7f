"""Attackers who know or do more: marginals, crafted models, shadow models, means over rows, answers to evaluations."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ray_fed import TorchTask
from ray_fed.federation.silo import Silo
from ray_fed.federation.task import SiloSpec
from ray_fed.leakage import evaluation_answers
from ray_fed.leakage.attribution import attributed
from ray_fed.leakage.audit import audit, audit_crafted, audit_together
from ray_fed.leakage.crafted_models import BINS, FISHING, TRAPS, crafted, guesses_of
from ray_fed.leakage.defences import parse_defence
from ray_fed.leakage.listed_records import LEAST_SQUARES, LEFT_ENTRIES, RecordList, large_ones, named, suspected
from ray_fed.leakage.marginals import Marginals
from ray_fed.leakage.membership import membership
from ray_fed.leakage.property_inference import Property, read_properties
from ray_fed.leakage.replay import between_models, one_batch, single_records, spread_rounds
from ray_fed.leakage.shadow_models import Shadows, shadow_trainer, train_shadows
from ray_fed.leakage.tabular import match_rows
from ray_fed.learning.layout import initial_vector
from ray_fed.learning.models import seeded_mlp
from ray_fed.learning.standardisation import Standardizer
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.materials.databases.source import EMBEDDED, Source
from ray_fed.materials.property_task import CrystalRows, PropertyTask

OWN = 60


@pytest.fixture(scope="module")
def silo():
    torch.set_num_threads(1)
    silo = Silo(SiloSpec("mine", CrystalRows(Source(EMBEDDED, rows=400))), PropertyTask(hidden=(100, 100)))
    silo.open()
    silo.prepare(Standardizer.from_moments(silo.moments()))
    silo._samples = replace(silo.samples, features=silo.samples.features[:OWN], targets=silo.samples.targets[:OWN])
    return silo


@pytest.fixture(scope="module")
def public(silo):
    """Records of the attacker's own with their targets, none of the silo's."""
    rows = silo.rows
    samples = silo.task.prepare(rows, silo.samples.standardizer, "cpu")
    return samples.features[OWN:], samples.targets[OWN:]


def audited(silo, replay, defence=None, **knows):
    scale = Standardizer.from_moments(silo.moments()).scale
    return audit(silo, replay, silo.task.featurizer().feature_units(), scale, defence, **knows)


def test_who_knows_how_records_are_distributed_corrects_guesses_from_noised_messages(silo, public):
    noised, marginals = parse_defence("noise:1"), Marginals.of(public[0].numpy())
    found = audited(silo, single_records(silo, initial_vector(silo.task.model(0))), defence=noised, marginals=marginals)
    assert found.with_marginals > found.found
    assert found.share_with_marginals == found.with_marginals / found.records == found.worst_share
    np.testing.assert_allclose(marginals.likeliest(public[0].numpy()[:5]), public[0].numpy()[:5], atol=0.01)


def test_a_message_that_lost_most_entries_is_attacked_by_those_that_are_left(silo, public):
    features = silo.samples.features.numpy()
    listed = RecordList(np.concatenate([features, public[0].numpy()]))
    batch = one_batch(silo, initial_vector(silo.task.model(0)), 30)
    pruned = parse_defence("prune:0.99").on_message([torch.from_numpy(part) for part in batch.messages[0]])
    sent = [part.numpy() for part in pruned]
    strengths, _ = listed.strengths(sent, silo.task.model(0), 30)
    behind = listed.positions(features[:30])
    right = {attack: named(found, behind, behind)[0].right for attack, found in strengths.items()}
    assert right[LEFT_ENTRIES] > 2 * right[LEAST_SQUARES]
    assert LEFT_ENTRIES not in listed.strengths(batch.messages[0], silo.task.model(0), 30)[0]


def test_who_is_not_told_how_many_records_are_behind_a_message_parts_large_from_small(silo, public):
    features = silo.samples.features.numpy()
    listed = RecordList(np.concatenate([features, public[0].numpy()]))
    for size in (1, 20, 50):
        found = audited(silo, one_batch(silo, initial_vector(silo.task.model(0)), size), listed=listed).unguided
        assert found.right >= 0.9 * found.listed
        assert found.named <= 1.2 * found.listed + 1
    assert len(large_ones(np.abs(np.random.default_rng(0).normal(size=500)))) == 0
    assert len(large_ones(np.zeros(9))) == 0
    strengths = np.array([0.0, 5.0, 4.0, 1e-3, 2e-3, 1e-3])
    assert suspected(strengths, np.array([1, 2]), np.array([1])).named == 1, "those of other silos are no mistake"


def test_rounds_together_name_more_records_than_one(silo, public):
    features = silo.samples.features.numpy()
    listed = RecordList(np.concatenate([features, public[0].numpy()]))
    batch = one_batch(silo, initial_vector(silo.task.model(0)), 20)
    random = np.random.default_rng(0)
    noised = [
        replace(batch, messages=([p + random.normal(0, 5 * p.std(), p.shape) for p in batch.messages[0]],))
        for _ in range(8)
    ]
    single = np.mean([audited(silo, one, listed=listed).named[LEAST_SQUARES].right for one in noised])
    together = audit_together(silo, noised, listed)
    assert together.named_most.right > 1.3 * single
    assert together.records == 20


def test_another_silo_takes_its_own_part_off_the_change_of_the_global_model(silo):
    vector = initial_vector(silo.task.model(0))
    few, many = one_batch(silo, vector, 3), replace(one_batch(silo, vector, 8), silo="large")
    change = [(3 * a + 8 * b) / 11 for a, b in zip(few.messages[0], many.messages[0], strict=True)]
    of_few, of_many = between_models([few, many], change, [3, 8])
    for found, one in ((of_few, few), (of_many, many)):
        assert (found.summed, found.together) == (1, one.together)
        assert audited(silo, found).found == one.records
    third = replace(few, silo="third")
    of_three = [(6 * a + 8 * b) / 14 for a, b in zip(few.messages[0], many.messages[0], strict=True)]
    seen = between_models([few, many, third], of_three, [3, 8, 3])
    assert [(one.summed, one.together) for one in seen] == [(2, 6), (2, 11), (2, 6)]
    other = between_models([few, many], [np.sign(part) for part in change], [3, 8])
    assert [one.summed for one in other] == [2, 2], "a server's own optimiser: the change as it is"


@pytest.mark.parametrize(("kind", "least"), [(BINS, 0.6), (TRAPS, 0.4)])
def test_crafted_models_let_rows_of_a_large_batch_stand_alone(silo, public, kind, least):
    made = crafted(silo.task.model(0), public[0].numpy(), 40)[kind]
    batch = one_batch(silo, initial_vector(made), 40)
    assert audited(silo, one_batch(silo, initial_vector(silo.task.model(0)), 40)).found < 5
    assert audit_crafted(silo, batch, kind).found >= least * 40


def test_class_fishing_leaves_the_records_of_one_class(public):
    network = seeded_mlp(73, (100, 100), 0, 3)
    rows = public[0][:60]
    labels = torch.arange(60) % 3
    made = crafted(network, public[0].numpy(), 60)
    assert set(made) == {BINS, TRAPS, FISHING}
    loss = torch.nn.functional.cross_entropy(made[FISHING](rows), labels)
    parts = torch.autograd.grad(loss, list(made[FISHING].parameters()))
    guesses = guesses_of(FISHING, parts[0].numpy(), parts[1].numpy())
    fished, others = (match_rows(guesses, rows[labels == one].numpy()) for one in (0, 1))
    assert fished.exact + fished.near >= 12
    assert others.exact + others.near == 0
    other = torch.nn.Sequential(torch.nn.Linear(73, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))
    assert crafted(other, rows.numpy(), 1) == {}


def test_classes_of_named_records_are_read_from_fresh_and_trained_networks():
    random = np.random.default_rng(0)
    x = random.normal(size=(200, 12)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64) + (x[:, 1] > 1)
    task = TorchTask(lambda: seeded_mlp(12, (60, 60), 0, 3), torch.nn.functional.cross_entropy, lambda _: (x, y), {})
    silo = Silo(SiloSpec("mine", 0), task)
    silo.open()
    silo.prepare(None)
    listed = RecordList(np.concatenate([x, random.normal(size=(200, 12))]))
    trained, _ = shadow_trainer(silo, silo.samples.features, silo.samples.targets, TrainingPlan(0, 6, 10, 1)).fit_round(
        initial_vector(task.model(0)), 1
    )
    for vector in (initial_vector(task.model(0)), trained):
        found = audit(silo, one_batch(silo, vector, 8), {}, np.ones(12), None, listed)
        assert found.named[LEAST_SQUARES].right == 8
        assert found.labels == (8, 8)


def test_shadow_models_score_members_higher_and_name_the_surest(silo, public):
    features = torch.cat([silo.samples.features, public[0][:OWN]])
    targets = torch.cat([silo.samples.targets, public[1][:OWN]])
    plan = TrainingPlan(0, epochs=60, steps_per_epoch=6, num_rounds=1)
    shadows = train_shadows(silo, features, targets, plan, 4, 0)
    assert shadows.is_in.sum() == shadows.is_in.size / 2
    model = shadow_trainer(silo, silo.samples.features, silo.samples.targets, plan)
    vector, _ = model.fit_round(initial_vector(silo.task.model(0)), 1)
    with torch.no_grad():
        losses = (model.predict(features, vector) - targets).square()[:, 0].numpy()
    scores = -shadows.scores(losses)
    found = membership("mine", "model", scores[:OWN], scores[OWN:])
    assert found.auc > 0.7
    assert found.exposed >= 1


def test_more_models_asked_make_the_interval_wider():
    random = np.random.default_rng(0)
    one, many = (membership("a", "m", random.normal(-0.3, 1, 99), random.normal(size=99), tests=n) for n in (1, 20))
    assert many.interval[1] - many.interval[0] > 1.3 * (one.interval[1] - one.interval[0])


def test_scores_of_shadows_follow_the_models_a_record_was_in():
    is_in = np.array([[True, True], [True, False], [False, True], [False, False]])
    shadows = Shadows(np.where(is_in, -4.0, 0.0) + np.array([[0.1], [-0.1], [0.1], [-0.1]]), is_in)
    assert shadows.scores(np.exp([-4.0, 0.0])) @ [1, -1] > 0


def test_a_mean_over_a_silos_rows_is_read_from_its_update(silo, public):
    plan = TrainingPlan(0, epochs=1, steps_per_epoch=6, num_rounds=1)
    sent = initial_vector(silo.task.model(0))
    order = np.argsort(silo.samples.targets.numpy()[:, 0])[: OWN // 2]
    moved, _ = shadow_trainer(silo, silo.samples.features[order], silo.samples.targets[order], plan).fit_round(sent, 1)
    true = float(silo.samples.targets[order].mean())
    asked = [Property("mean target", "eV/atom", public[1].numpy()[:, 0].astype(float), true)]
    features, values = public
    (found,) = read_properties(silo, features, values, asked, plan, sent, moved, 1)
    assert found.share > 0.5
    assert found.interval[0] < found.explained < found.interval[1]
    assert abs(found.read - true) < 3 * found.error < 3 * found.guess_error


def test_exact_answers_to_many_evaluations_name_members_and_few_rounded_ones_little():
    random = np.random.default_rng(0)
    errors = np.abs(random.normal(size=(200, 100)))
    exact = errors[:, :40].mean(1)
    suspicion = evaluation_answers.scores(exact, errors, 40)
    assert membership("a", "answers", -suspicion[:40], -suspicion[40:]).auc > 0.95
    alike = errors[:1] + 0.01 * errors[:5]
    few = evaluation_answers.scores(np.append(np.round(alike[:4, :40].mean(1), 1), np.nan), alike, 40)
    assert membership("a", "answers", -few[:40], -few[40:]).auc < 0.75
    assert not evaluation_answers.scores(np.array([np.nan]), errors[:1], 40).any()


def test_rows_named_in_a_sum_are_given_to_silos_that_hold_others_and_by_chance_to_silos_alike():
    random = np.random.default_rng(0)
    apart = {name: random.normal(centre, 1, (60, 8)) for name, centre in (("a", 0.0), ("b", 3.0))}
    alike = {name: random.normal(0, 1, (60, 8)) for name in apart}
    for rows, least, most in ((apart, 75, 80), (alike, 25, 55)):
        owners = ["a"] * 40 + ["b"] * 40
        known = {name: part[-20:] for name, part in rows.items()}
        found = attributed("a batch", np.concatenate([part[:40] for part in rows.values()]), owners, known).counted
        assert least <= found.right <= most
        assert (found.named, found.by_chance) == (80, 40)


def test_rounds_are_spread_over_the_whole_run():
    assert spread_rounds(25, 8) == (1, 4, 8, 11, 15, 18, 22, 25)
    assert spread_rounds(3, 8) == (1, 2, 3)
    assert spread_rounds(9, 1) == (1,)
