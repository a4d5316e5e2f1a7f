"""A silo whose site has no machine when a run begins: what the run does without it, and when it comes."""

from dataclasses import replace

import pytest

from actors.packing import NodeOffer
from actors.placement import divided, unseen
from pipelines.fingerprints import check_data, fingerprints
from pipelines.training.config import FormationEnergyConfig
from pipelines.training.membership import admitted, founded, rejoined, start_rules, with_founders
from pipelines.training.setup import Setup
from ray_fed.errors import ConfigError, DataError, QuorumLost
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.messages import Arrived, Died, JoinRefused, Restarted
from ray_fed.federation.rounds.job import Job, RoundRecord
from ray_fed.federation.rounds.machine import Opened, Restart, RoundMachine, RoundRules, StartRules, Submit
from ray_fed.federation.silo import make_silo
from ray_fed.federation.strategies import FedBuff
from ray_fed.federation.task import SiloSpec
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.materials.property_task import PropertyTask
from ray_fed.reporting.run_directory import RunDirectory
from tests.synthetic import SyntheticTask, silos

PLAN = TrainingPlan(seed=0, epochs=6, steps_per_epoch=4, num_rounds=6, learning_rate=0.01)
NAMES = ("silo-1", "silo-2", "silo-3")
WHY = "no machine yet"


class LateCohort(LocalCohort):
    """The last silo is away until the first answer to round `comes_in`."""

    def __init__(self, specs, task, comes_in, is_unfit=False):
        super().__init__(specs, task)
        self.comes_in, self.is_unfit = comes_in, is_unfit
        self.late, self.away = specs[-1].name, {specs[-1].name: WHY}

    def absent(self):
        return dict(self.away)

    def open(self):
        return {name: silo.open() for name, silo in self.silos.items() if name not in self.away}

    def prepare(self, standardizer):
        self._standardizer = standardizer
        for name, silo in self.silos.items():
            if name not in self.away:
                silo.prepare(standardizer)

    def open_session(self, specs):
        super().open_session({name: spec for name, spec in specs.items() if name not in self.away})
        self.waiting = [spec for name, spec in specs.items() if name in self.away]

    def next_event(self, timeout=None):
        if self.away.get(self.late) == WHY and self._asked and self._asked[0][1] == self.comes_in:
            return self._comes()
        return super().next_event(timeout)

    def _comes(self):
        if self.is_unfit:
            self.away[self.late] = "it cannot join"
            return JoinRefused(self.late, "it cannot join")
        del self.away[self.late]
        silo = self.silos[self.late]
        description = silo.open()
        silo.prepare(self._standardizer)
        for spec in self.waiting:
            silo.open_session(spec)
        return Restarted(self.late, description)


def run(cohort, **changes):
    coordinator = Coordinator(cohort, SyntheticTask(), NAMES)
    agreement = coordinator.agree()
    the_job = Job("federated", NAMES, dict.fromkeys(NAMES, PLAN), model_seed=0, **changes)
    return agreement, list(coordinator.run(the_job))


def test_a_late_silo_takes_part_from_the_round_after_it_came_and_the_records_say_so():
    agreement, records = run(LateCohort(silos(30, 40, 50), SyntheticTask(), comes_in=3))
    assert list(agreement.silos) == ["silo-1", "silo-2"]
    assert [record.participants for record in records[1:4]] == [NAMES[:2]] * 3
    assert [record.participants for record in records[4:]] == [NAMES] * 3
    assert [dict(record.failures) for record in records[1:]] == [{"silo-3": WHY}] * 3 + [{}] * 3
    assert [[silo.num_examples for silo in record.joined] for record in records] == [[], [], [], [50], [], [], []]


def test_until_it_comes_the_bits_are_those_of_a_federation_without_it():
    _, late = run(LateCohort(silos(30, 40, 50), SyntheticTask(), comes_in=3))
    two = Coordinator(LocalCohort(silos(30, 40), SyntheticTask()), SyntheticTask(), NAMES[:2])
    two.agree()
    alone = list(two.run(Job("federated", NAMES[:2], dict.fromkeys(NAMES[:2], PLAN), model_seed=0)))

    def vectors(record):
        return {name: value.tobytes() for name, value in record.state.items()}

    assert [vectors(record) for record in late[:4]] == [vectors(record) for record in alone[:4]]
    assert vectors(late[4]) != vectors(alone[4])


def test_a_silo_that_does_not_fit_never_takes_part_in_this_job_or_the_next():
    cohort = LateCohort(silos(30, 40, 50), SyntheticTask(), comes_in=2, is_unfit=True)
    _, records = run(cohort)
    assert all(record.participants == NAMES[:2] and not record.joined for record in records[1:])
    assert [dict(record.failures)["silo-3"] for record in records[1:]] == [WHY] * 2 + ["it cannot join"] * 4


def test_secure_sums_take_a_late_silo_in():
    _, records = run(LateCohort(silos(30, 40, 50), SyntheticTask(), comes_in=3), secure_threshold=2)
    assert [len(record.participants) for record in records[1:]] == [2, 2, 2, 3, 3, 3]


def test_without_a_quorum_the_rounds_do_not_begin():
    rules = RoundRules(min_fit_clients=3, min_available_clients=3)
    with pytest.raises(QuorumLost, match="2 of 3 silos are available"):
        run(LateCohort(silos(30, 40, 50), SyntheticTask(), comes_in=3), rules=rules)


def test_asynchronous_rounds_refuse_to_begin_without_a_silo():
    with pytest.raises(ConfigError, match=r"silos \['silo-3'\] are not there yet"):
        run(LateCohort(silos(30, 40, 50), SyntheticTask(), comes_in=3), strategy=FedBuff(buffer_size=2))


# ---- the rules of a round


def machine(**changes):
    return RoundMachine(RoundRules(**changes), ("a", "b"), absent={"b": WHY})


def test_no_round_waits_for_an_absent_silo_and_one_that_comes_is_asked_in_the_next():
    rules = machine()
    assert rules.handle(Opened(1, ("a", "b"))) == [Submit("a", 1)]
    assert rules.handle(Restarted("b")) == []
    rules.handle(Arrived("a", 1))
    assert not rules.is_open
    assert rules.handle(Opened(2, ("b", "a"))) == [Submit("b", 2), Submit("a", 2)]


def test_an_absent_silo_that_dies_while_it_joins_is_invited_again_as_often_as_rules_allow():
    rules = machine(max_restarts=1)
    rules.handle(Opened(1, ("a", "b")))
    assert rules.handle(Died("b", "out of memory")) == [Restart("b")]
    assert rules.handle(Died("b", "out of memory")) == []
    rules.handle(Arrived("a", 1))
    rules.handle(Opened(2, ("a", "b")))
    assert rules.failures == {"b": "no restart left after 1"}


def test_what_befalls_a_silo_of_another_job_changes_nothing():
    rules = RoundMachine(RoundRules(), ("a",))
    rules.handle(Opened(1, ("a",)))
    for event in (Restarted("b"), JoinRefused("b", "no"), Died("b", "gone")):
        assert rules.handle(event) == []


# ---- where it will stand


def test_only_sites_without_a_machine_are_waited_for():
    specs = [replace(spec, site=site) for spec, site in zip(silos(9, 9, 9), ("north", "mars", ""), strict=True)]
    here, elsewhere = divided(specs, [NodeOffer("box", "north", 2.0, 0.0)])
    assert [spec.name for spec in here] == ["silo-1", "silo-3"]
    assert [spec.name for spec in elsewhere] == ["silo-2"]


@pytest.mark.parametrize(("gpus", "expected"), [(1.0, [0.5, 0.5, 0.25]), (0.0, [0.0, 0.0, 0.25])])
def test_a_machine_that_cannot_be_seen_is_taken_to_have_one_gpu_where_others_have_some(gpus, expected):
    specs = [
        replace(spec, site="mars", num_gpus=wish) for spec, wish in zip(silos(9, 9, 9), (None, None, 0.25), strict=True)
    ]
    assert [spec.num_gpus for spec in unseen(specs, [NodeOffer("box", "", 2.0, gpus)])] == expected


# ---- what the run's folder keeps


@pytest.fixture
def kept(tmp_path):
    """Return setup, agreement and folder of a run that began with two silos of three."""
    specs = tuple(silos(30, 40, 50))
    config = FormationEnergyConfig(late_silos=True, start_timeout=5.0, min_fit_clients=2)
    setup = Setup(config, PropertyTask("guo73", (), (8,)), specs, None, None)
    coordinator = Coordinator(LateCohort(specs, SyntheticTask(), 3), SyntheticTask(), NAMES)
    agreement = coordinator.agree()
    directory = RunDirectory.create(str(tmp_path / "run"), "formation-energy")
    directory.write_data(fingerprints(agreement))
    return founded(setup, agreement), agreement, directory


def joining(silo="silo-3"):
    description = make_silo(SiloSpec(silo, silos(50)[0].source), SyntheticTask()).open()
    return RoundRecord("federated-0", "federated", 3, 6, {}, (), (), 0, {}, joined=(description,))


def test_a_run_waits_as_told_and_a_resumed_one_needs_those_it_began_with(kept):
    setup, _, directory = kept
    fresh = replace(setup, founders=())
    assert start_rules(fresh) == StartRules(5.0, frozenset(NAMES), 2)
    assert start_rules(with_founders(fresh, directory)) == StartRules(5.0, frozenset({"silo-3"}), 2)
    assert start_rules(replace(fresh, config=FormationEnergyConfig())) == StartRules()


def test_data_of_late_silos_are_kept_with_the_round_they_came_in(kept):
    setup, agreement, directory = kept
    later = admitted(agreement, joining())
    directory.write_data(fingerprints(later))
    assert directory.read_data()[2] == {"silo": "silo-3", "num_rows": 50, "joined": "federated-0, round 3"}
    assert with_founders(replace(setup, founders=()), directory).founders == NAMES[:2]
    again = rejoined(replace(later, joined={}), setup, directory)
    assert again.joined == {"silo-3": "federated-0, round 3"}


def test_a_resumed_run_finds_the_rows_it_began_with_late_silos_or_not(kept):
    _, agreement, directory = kept
    later = admitted(agreement, joining())
    check_data(later, NAMES[:2], directory)  # one more than then is no change
    directory.write_data(fingerprints(later))
    check_data(agreement, NAMES[:2], directory)  # nor is one that is not back yet
    with pytest.raises(DataError, match="silo 'silo-3': its data changed"):
        check_data(agreement, (), directory)
    changed = replace(
        later, silos={**later.silos, "silo-1": replace(later.silos["silo-1"], fingerprint={"num_rows": 1})}
    )
    with pytest.raises(DataError, match="silo 'silo-1': its data changed"):
        check_data(changed, NAMES[:2], directory)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"start_timeout": -1.0}, "start_timeout=-1.0 must be seconds"),
        ({"late_silos": True, "accept_failures": False}, "accept_failures=no"),
        ({"late_silos": True, "strategy": "fed_buff"}, "fed_buff counts on all silos"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        FormationEnergyConfig(**options)
