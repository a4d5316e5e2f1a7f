"""Secure aggregation in the normal round path: the bits of plain rounds, whoever drops out and when."""

from dataclasses import replace

import numpy as np
import pytest

from pipelines import cli
from ray_fed.errors import ConfigError, PerimeterRefused, QuorumLost, SiloFailed
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.messages import MaskedUpdate, SessionSpec
from ray_fed.federation.rounds.job import Job
from ray_fed.federation.rounds.machine import RoundRules
from ray_fed.federation.rounds.secure_driver import default_threshold
from ray_fed.federation.rounds.secure_tally import masked_moments
from ray_fed.federation.secure_client import MASKED_METRICS, MASKED_MOMENTS
from ray_fed.federation.silo import make_silo
from ray_fed.federation.strategies import STRATEGIES, make_strategy
from ray_fed.learning.layout import Layout, initial_vector
from ray_fed.learning.standardisation import ColumnMoments
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.perimeter.coordinator_record import CoordinatorRecord
from ray_fed.perimeter.guarded_silo import GuardedSilo
from ray_fed.privacy.secure_sum.wire import as_bytes, of_bytes
from tests.synthetic import SyntheticTask, silos

PLAN = TrainingPlan(seed=0, epochs=4, steps_per_epoch=2, num_rounds=3, learning_rate=0.01)
SPECS = silos(40, 60, 25, 30)
NAMES = tuple(spec.name for spec in SPECS)
PHASES = ("secure_keys", "secure_shares", "secure_deliver", "fit", "secure_agree", "secure_unmask")


class Failing(LocalCohort):
    """A silo that is not there in one phase of one round; in `fit` it trains, and fails with the answer."""

    def __init__(self, *args, phase="", silo="", server_round=2):
        super().__init__(*args)
        self.fault = phase, silo, server_round

    def query(self, question, given):
        rounds = {parts[1] for parts in given.values()}
        if self.fault[0] == question and self.fault[2] in rounds:
            given = {name: parts for name, parts in given.items() if name != self.fault[1]}
        return super().query(question, given)

    def next_event(self, timeout=None):
        if self._asked and not self._back:
            _, server_round, name, _ = self._asked[0]
            if ("fit", name, server_round) == self.fault:
                silo = self.silos[name]
                fit, silo.fit = silo.fit, self._fitted_and_failed(silo)
                answer = super().next_event(timeout)
                silo.fit = fit
                return answer
        return super().next_event(timeout)

    @staticmethod
    def _fitted_and_failed(silo):
        fit = silo.fit

        def fails(*question):
            fit(*question)
            raise SiloFailed(silo.spec.name, "training", "the test says so")

        return fails


def test_behind_boundaries_nothing_of_a_single_silo_is_told_in_a_secure_run_but_its_description():
    task = SyntheticTask()
    guarded = LocalCohort(SPECS, task)
    guarded.silos = {spec.name: GuardedSilo(spec, lambda spec=spec: make_silo(spec, task)) for spec in SPECS}
    record = KeptRecord(task)
    secure = run(3, guarded, observers=[record], agrees_under_masks=True)
    assert bits(secure) == bits(run())
    kinds = {note["message"]["kind"] for note in record.notes if note["kind"] == "received"}
    assert kinds == {"description", "masked", "artifact"}
    assert not [name for each in secure for name in each.metrics if name.startswith("silo.")]


@pytest.mark.parametrize("held_out", [0, 12])
def test_metrics_under_masks_are_those_of_all_rows_together(held_out):
    specs = silos(40, 60, 25, 30, held_out=held_out)
    secure = run(3, LocalCohort(specs, SyntheticTask()))
    plain = run(0, LocalCohort(specs, SyntheticTask()), evaluate_silos=True)
    for one, other in zip(secure, plain, strict=True):
        pooled = {name: value for name, value in other.metrics.items() if name.startswith("federated.")}
        found = {name: value for name, value in one.metrics.items() if name.startswith("federated.")}
        assert found == pytest.approx(pooled, rel=1e-12)
    assert bool(held_out) == ("federated.mae" in secure[-1].metrics)


def test_a_silo_that_is_not_in_the_sums_of_an_evaluation_is_named_in_that_record():
    specs = silos(40, 60, 25, 30, held_out=12)
    cohort = Failing(specs, SyntheticTask(), phase=MASKED_METRICS, silo="silo-3", server_round=2)
    records = run(3, cohort)
    said = "secure aggregation: it sent no part of the evaluation"
    assert [record.failures for record in records] == [(), (), (("silo-3", said),), ()]
    assert all(record.participants == NAMES for record in records[1:])


def test_a_silo_whose_rows_are_not_in_the_scaler_is_named():
    cohort = Failing(SPECS, SyntheticTask(), phase=MASKED_MOMENTS, silo="silo-3", server_round=1)
    agreement = Coordinator(cohort, SyntheticTask(), NAMES).agree(2)
    assert agreement.outside_scaler == {"silo-3": "secure aggregation: it sent no part of the moments"}
    others = [name for name in NAMES if name != "silo-3"]
    assert (
        agreement.standardizer.mean.tobytes()
        == Coordinator(LocalCohort(SPECS, SyntheticTask()), SyntheticTask(), others).agree().standardizer.mean.tobytes()
    )


def test_moments_are_added_up_once_with_the_same_silos():
    cohort = LocalCohort(SPECS, SyntheticTask())
    cohort.open()
    moments, outside = masked_moments(cohort, NAMES, 3, ())
    assert outside == {}
    rows = np.vstack([cohort.silos[name].rows.features for name in NAMES])
    assert np.array_equal(moments.digits, ColumnMoments.of(rows).digits)
    assert moments.num_examples == len(rows)
    assert np.array_equal(masked_moments(cohort, NAMES, 3, ())[0].digits, moments.digits)
    with pytest.raises(QuorumLost, match="signed whose updates are in the sum"):
        masked_moments(cohort, NAMES[:3], 2, ())


def test_a_silo_whose_owner_requires_masks_tells_no_metrics_and_no_moments_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_FED_SITE", str(tmp_path))
    (tmp_path / "site.yaml").write_text(f"perimeter: {{masks: required}}\npartners: {{silo-2: '{'0' * 64}'}}\n")
    (tmp_path / "site.yaml").chmod(0o600)
    spec = SPECS[0]
    silo = GuardedSilo(spec, lambda: make_silo(spec, SyntheticTask()))
    silo.open(), silo.prepare(None)
    silo.open_session(SessionSpec("s", PLAN, 0, Layout.of(SyntheticTask().model(0)).digest, secure_threshold=2))
    with pytest.raises(PerimeterRefused, match=r"masks: required .* and they would leave in clear"):
        silo.evaluate("s", {"m": initial_vector(SyntheticTask().model(0))})
    with pytest.raises(PerimeterRefused, match=r"masks: required .* and they would leave in clear"):
        silo.moments()


def run(threshold=0, cohort=None, task=None, observers=(), agrees_under_masks=False, **changes):
    task = task or SyntheticTask()
    ours = Coordinator(cohort or LocalCohort(SPECS, task), task, NAMES, observers)
    ours.agree(threshold if agrees_under_masks else 0)
    settings = {"evaluate_silos": False, "secure_threshold": threshold, "plans": dict.fromkeys(NAMES, PLAN)}
    settings |= changes
    return list(ours.run(Job("federated", NAMES, model_seed=0, **settings)))


def bits(records):
    return [record.state["federated"].tobytes() for record in records]


@pytest.mark.parametrize("strategy", ["fed_avg", "fed_avg_m", "fed_prox", "fed_adagrad", "fed_adam", "fed_yogi"])
def test_masked_rounds_have_the_bits_of_plain_rounds(strategy):
    made = make_strategy(strategy)
    assert bits(run(3, strategy=made)) == bits(run(strategy=made))


def test_adams_moments_are_summed_to_the_last_bit():
    """Second moments of 1e-12 are what a coarser ring would lose."""
    plans = dict.fromkeys(NAMES, replace(PLAN, optimizer_state="average"))
    assert bits(run(3, plans=plans)) == bits(run(plans=plans))


@pytest.mark.parametrize("phase", PHASES[:4])
def test_a_silo_that_drops_out_before_the_sum_is_missing_from_it_and_from_nothing_else(phase):
    secure = Failing(SPECS, SyntheticTask(), phase=phase, silo="silo-2")
    plain = Failing(SPECS, SyntheticTask(), phase="fit", silo="silo-2")
    records = run(3, secure)
    assert bits(records) == bits(run(0, plain))
    assert records[2].participants == ("silo-1", "silo-3", "silo-4")
    assert [name for name, _ in records[2].failures] == ["silo-2"]
    assert records[3].participants == NAMES


@pytest.mark.parametrize("phase", PHASES[4:])
def test_a_silo_that_drops_out_after_its_masked_update_is_in_the_sum(phase):
    records = run(3, Failing(SPECS, SyntheticTask(), phase=phase, silo="silo-2"))
    assert bits(records) == bits(run())
    assert records[2].participants == NAMES


@pytest.mark.parametrize(
    ("phase", "reason"),
    [
        ("secure_keys", "3 silos gave keys, secure aggregation needs 4"),
        ("secure_shares", "3 silos gave shares of their keys, secure aggregation needs 4"),
        ("fit", "3 silos sent masked updates, secure aggregation needs 4"),
        ("secure_agree", "3 silos signed whose updates are in the sum, secure aggregation needs 4"),
        ("secure_unmask", "3 silos helped to unmask the sum, secure aggregation needs 4"),
    ],
)
def test_a_round_with_too_few_silos_shows_no_sum(phase, reason):
    with pytest.raises(QuorumLost, match=f"round 2: quorum lost: .*{reason}"):
        run(4, Failing(SPECS, SyntheticTask(), phase=phase, silo="silo-1"))


def test_a_silo_whose_process_was_started_again_takes_part_from_the_next_round_on():
    class Restarting(Failing):
        def query(self, question, given):
            answers = super().query(question, given)
            if question == "secure_deliver" and {parts[1] for parts in given.values()} == {2}:
                self.restart("silo-4")
                self._back.clear()
            return answers

    records = run(3, Restarting(SPECS, SyntheticTask()))
    assert [len(record.participants) for record in records] == [0, 4, 3, 4]
    assert "it has no keys of this round" in dict(records[2].failures)["silo-4"]


@pytest.mark.parametrize("name", sorted(set(STRATEGIES) - {"fed_bn"}))
def test_strategies_that_need_single_updates_are_refused_by_name_and_others_are_not(name):
    sums = {"fed_avg", "fed_avg_m", "fed_prox", "fed_adagrad", "fed_adam", "fed_yogi", "scaffold_adam"}
    if name in sums:
        assert len(run(3, strategy=make_strategy(name))) == 4
        return
    kind = STRATEGIES[name].__name__
    with pytest.raises(ConfigError, match=f"the sum of the updates alone, {kind} needs each of them"):
        run(3, strategy=make_strategy(name))


def test_a_bound_on_single_updates_is_refused_with_a_remedy():
    with pytest.raises(ConfigError, match=r"max_norm=1.0 .*max_update_norm"):
        run(3, max_norm=1.0)


def test_losses_of_single_silos_stay_under_the_masks():
    secure, plain = run(3), run()
    assert [name for name in secure[1].metrics if "loss" in name] == ["train_loss"]
    assert secure[1].metrics["train_loss"] == pytest.approx(plain[1].metrics["train_loss"], rel=1e-6)


def test_a_silo_in_a_secure_session_lets_no_plain_update_out():
    seen = []

    class Watched(LocalCohort):
        def next_event(self, timeout=None):
            answer = super().next_event(timeout)
            seen.append(answer.update)
            return answer

    run(3, Watched(SPECS, SyntheticTask()))
    assert {type(update) for update in seen} == {MaskedUpdate}


class KeptRecord(CoordinatorRecord):
    """Keeps all notes of a run."""

    notes = ()

    def take(self):
        taken = super().take()
        self.notes += taken
        return taken


def test_behind_boundaries_the_same_bits_come_out_and_every_message_is_noted():
    task = SyntheticTask()
    guarded = LocalCohort(SPECS, task)
    guarded.silos = {spec.name: GuardedSilo(spec, lambda spec=spec: make_silo(spec, task)) for spec in SPECS}
    record = KeptRecord(task)
    assert bits(run(3, guarded, observers=[record])) == bits(run())
    kinds = [note["message"]["kind"] for note in record.notes if note["kind"] == "received"]
    assert kinds.count("masked") == 3 * len(NAMES)
    # Keys, shares, delivery, names, shares to unmask: for each round, and with the numbers for each evaluation.
    assert kinds.count("artifact") == (3 * 5 + 4 * 6) * len(NAMES)
    assert "metrics" not in kinds
    assert "update" not in kinds


class Lying(LocalCohort):
    """A silo whose answer to one question of round 2 is another one."""

    def __init__(self, *args, question, change):
        super().__init__(*args)
        self.lie = question, change

    def query(self, question, given):
        answers = super().query(question, given)
        if self.lie[0] == question and {parts[1] for parts in given.values()} == {2}:
            said = self.lie[1](of_bytes(answers["silo-2"].data))
            answers["silo-2"] = replace(answers["silo-2"], data=as_bytes(said))
        return answers


@pytest.mark.parametrize(
    "change", [lambda said: said | {"signature": b"1" * 64}, lambda said: said | {"mask": b"1" * 32}, lambda _: {}]
)
def test_a_silo_whose_keys_are_not_its_own_is_left_out_of_the_round(change):
    records = run(3, Lying(SPECS, SyntheticTask(), question="secure_keys", change=change))
    assert records[2].participants == ("silo-1", "silo-3", "silo-4")
    assert records[3].participants == NAMES


@pytest.mark.parametrize("change", [lambda _: {"signature": b"1" * 64}, lambda _: {"signature": b""}, lambda _: {}])
def test_a_silo_that_signs_something_else_does_not_spoil_the_sum(change):
    records = run(3, Lying(SPECS, SyntheticTask(), question="secure_agree", change=change))
    assert bits(records) == bits(run())


def test_a_coordinator_that_tells_silos_different_names_gets_no_sum():
    class Divided(LocalCohort):
        def query(self, question, given):
            if question == "secure_agree":
                fewer = as_bytes({name: b"" for name in of_bytes(given["silo-1"][2]) if name != "silo-4"})
                given = {name: (*parts[:2], fewer if name == "silo-1" else parts[2]) for name, parts in given.items()}
            return super().query(question, given)

    records = run(3, Divided(SPECS, SyntheticTask()))
    assert bits(records) == bits(run())  # three silos were told the truth: the one that was not helps nobody
    with pytest.raises(QuorumLost, match="3 silos signed whose updates are in the sum"):
        run(4, Divided(SPECS, SyntheticTask()))


def guarded_with_partners(tmp_path, monkeypatch, partners):
    monkeypatch.setenv("RAY_FED_SITE", str(tmp_path))
    named = "".join(f"\n  {name}: '{key}'" for name, key in partners.items())
    (tmp_path / "site.yaml").write_text(f"ledger: {tmp_path}/ledgers\n" + (f"partners:{named}\n" if named else ""))
    (tmp_path / "ledgers").mkdir(exist_ok=True)
    task = SyntheticTask()
    cohort = LocalCohort(SPECS, task)
    cohort.silos = {spec.name: GuardedSilo(spec, lambda spec=spec: make_silo(spec, task)) for spec in SPECS}
    return cohort


def test_owners_who_name_each_others_keys_get_the_same_bits(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RAY_FED_SITE", str(tmp_path))
    (tmp_path / "site.yaml").write_text(f"ledger: {tmp_path}/ledgers\n")
    keys = {}
    for name in NAMES:
        assert cli.main(["ledger", "key", name]) == 0
        keys[name] = capsys.readouterr().out.strip()
    assert bits(run(3, guarded_with_partners(tmp_path, monkeypatch, keys))) == bits(run())


def test_a_coordinators_key_among_the_partners_is_no_silos(tmp_path, monkeypatch):
    partners = {"coordinator": "0" * 64}
    assert bits(run(3, guarded_with_partners(tmp_path, monkeypatch, partners))) == bits(run())


def test_a_silo_whose_owner_is_no_partner_ends_the_round(tmp_path, monkeypatch):
    partners = dict.fromkeys(NAMES, "0" * 64)
    with pytest.raises(QuorumLost, match="0 silos gave shares of their keys, secure aggregation needs 3"):
        run(3, guarded_with_partners(tmp_path, monkeypatch, partners))


def test_a_threshold_of_the_coordinator_cannot_be_below_two():
    specs = SPECS[:2]
    cohort = LocalCohort(specs, SyntheticTask())
    ours = Coordinator(cohort, SyntheticTask(), [spec.name for spec in specs])
    ours.agree()
    silo = cohort.silos["silo-1"]
    silo.open_session(SessionSpec("s", PLAN, 0, ours.layout.digest, secure_threshold=1))
    with pytest.raises(SiloFailed, match="would show single updates"):
        silo.query("secure_keys", "s", 1)


def test_keys_are_made_once_a_round_so_that_one_round_has_one_sum():
    cohort = LocalCohort(SPECS, SyntheticTask())
    ours = Coordinator(cohort, SyntheticTask(), NAMES)
    ours.agree()
    silo = cohort.silos["silo-1"]
    silo.open_session(SessionSpec("s", PLAN, 0, ours.layout.digest, secure_threshold=3))
    silo.query("secure_keys", "s", 2)
    for server_round in (1, 2):
        with pytest.raises(SiloFailed, match="keys are made once a round"):
            silo.query("secure_keys", "s", server_round)
    with pytest.raises(SiloFailed, match="was not opened for it"):
        silo.query("secure_keys", "another", 1)


def test_bytes_of_keys_and_shares_are_counted():
    """Masked updates are 16 bytes a value, and three values longer; the rest is the protocol's."""
    secure, num_values = run(3)[1], len(run()[0].state["federated"])
    parameters = len(NAMES) * (4 * num_values + 16 * (num_values + 3))
    assert parameters < secure.bytes_sent < parameters + len(NAMES) * 9000


def test_two_thirds_of_the_silos_are_the_threshold():
    assert [default_threshold(count) for count in (2, 3, 4, 6, 64)] == [2, 2, 3, 4, 43]


def test_a_round_of_some_of_the_silos_is_the_plain_round_of_the_same_silos():
    rules = RoundRules(fraction_fit=0.75)
    assert bits(run(2, rules=rules)) == bits(run(rules=rules))
