"""Boosted trees through the runtime: the rounds, faults, masks, gate, ledger and resume that networks have."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipelines import Training, federate
from ray_fed import LocalRows, SiloSpec, Task
from ray_fed.errors import QuorumLost, UpdateRejected
from ray_fed.federation.boosted_task import BoostedTask
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.messages import Died, Guard, Raised, Update, answer_size
from ray_fed.federation.rounds.job import Job
from ray_fed.federation.rounds.machine import RoundRules
from ray_fed.federation.silo import Silo
from ray_fed.federation.strategies.boosting import BoostedTrees
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.perimeter.guarded_silo import GuardedSilo
from ray_fed.privacy.compression import Compression, decode_whole, encode_whole, rebuilt
from ray_fed.privacy.secure_sum.masks import add_mask
from ray_fed.privacy.secure_sum.packed import PackedForm, PackedPart, PackedSum, form_of
from ray_fed.randomness import generator
from ray_fed.trees.growth import Grower, Growth
from ray_fed.trees.member import Member
from ray_fed.trees.question import Step, TreeQuestion
from ray_fed.trees.settings import TreeSettings
from ray_fed.trees.together import grown
from tests.boundaries import write_site

SETTINGS = TreeSettings(trees=4, depth=3, leaves=6, bins=8, min_rows=5, learning_rate=0.3)
COLUMNS, ROWS = 4, 150


def table():
    random = generator(0, "boosted")
    x = random.normal(size=(ROWS, COLUMNS))
    return x, x[:, 0] ** 2 + x[:, 1] + 0.1 * random.normal(size=ROWS)


@dataclass(frozen=True)
class Table(Task):
    """Rows first to last of one table: (first, last)."""

    loss = staticmethod(nn.functional.mse_loss)

    def load(self, spec: SiloSpec) -> LocalRows:
        x, y = table()
        rows = slice(*spec.source)  # type: ignore[misc]
        return LocalRows(x[rows], y[rows], x[:0], y[:0], {}, {"rows": len(x[rows])}, {})

    def model(self, seed):  # noqa: ARG002
        return nn.Linear(COLUMNS, 1)

    def agreement(self):
        return {}


@dataclass(frozen=True)
class Forest(BoostedTask, Table):
    """The same rows, learned by trees."""


TASK = Forest(SETTINGS)
STRATEGY = BoostedTrees(SETTINGS, COLUMNS)
SILOS = [SiloSpec("east", (0, 30)), SiloSpec("north", (30, 80)), SiloSpec("west", (80, 120))]
TEST = SiloSpec("test", (120, ROWS))


def pooled() -> np.ndarray:
    x, y = table()
    grower = Grower(SETTINGS, COLUMNS)
    return grower.forest(grown(grower, [Member(x[:120], y[:120], SETTINGS)])).vector


def job(**changes) -> Job:
    rounds = STRATEGY.num_rounds
    names = tuple(spec.name for spec in SILOS)
    plan = TrainingPlan(0, rounds, 1, rounds, compression=changes.pop("compression", None))
    return replace(Job("federated", names, dict.fromkeys(names, plan), 0, STRATEGY), **changes)


def coordinator(cohort=None, secure=0, observers=()):
    found = Coordinator(cohort or LocalCohort(SILOS, TASK, TEST), TASK, [spec.name for spec in SILOS], observers)
    found.agree(secure)
    return found


def models_of(records):
    return records[-1].models["federated"]


def test_a_federation_of_trees_has_the_bits_of_pooled_training():
    records = list(coordinator().run(job()))
    assert models_of(records).tobytes() == pooled().tobytes()
    last = records[-1]
    assert last.server_round == last.num_rounds <= Grower(SETTINGS, COLUMNS).most_rounds()
    assert last.metrics["federated.r2"] > 0.3
    assert last.metrics["train_loss"] < records[12].metrics["train_loss"]


def test_one_call_federates_trees():
    training = Training(rounds=STRATEGY.num_rounds, epochs=STRATEGY.num_rounds, batch_size=200)
    result = federate(TASK, SILOS, training, test=TEST, strategy=STRATEGY, cohort="local")
    vector = np.concatenate([parameter.detach().numpy().ravel() for parameter in result.module.parameters()])
    assert vector.tobytes() == pooled().tobytes()


def test_sums_of_trees_come_under_masks_with_the_same_bits():
    records = list(coordinator(secure=2).run(job(secure_threshold=2)))
    assert models_of(records).tobytes() == pooled().tobytes()


def test_a_silo_whose_rows_all_go_the_same_ways_changes_no_bit():
    """Of such a silo all rows are asked for in several places at once; rows of one feature value are."""
    x, y = table()
    alike = np.argsort(x[:, 0], kind="stable")
    settings_ = replace(SETTINGS, min_rows=1, depth=5, leaves=20)
    grower = Grower(settings_, COLUMNS)
    alone = grower.forest(grown(grower, [Member(x, y, settings_)])).vector
    members = [Member(x[[row]], y[[row]], settings_) for row in alike[:40]] + [
        Member(x[alike[40:]], y[alike[40:]], settings_)
    ]
    pairs = [Member(x[alike[[place, -1 - place]]], y[alike[[place, -1 - place]]], settings_) for place in range(60)]
    rest = Member(x[alike[60:-60]], y[alike[60:-60]], settings_)
    for silos in (members, [*pairs, rest]):
        assert grower.forest(grown(grower, silos)).vector.tobytes() == alone.tobytes()


LOSSES = st.sampled_from([("squared",), ("log",), ("softmax:3",), ("squared", "log"), ("quantile:0.2", "quantile:0.8")])


@settings(max_examples=12, deadline=None)
@given(
    losses=LOSSES, seed=st.integers(0, 2**20), cuts=st.lists(st.integers(1, 89), min_size=1, max_size=4, unique=True),
    bins=st.integers(2, 9), levels=st.sampled_from([1, 64, 1024]), fraction=st.sampled_from([1.0, 0.6]),
)  # fmt: skip
def test_masked_silos_grow_the_bytes_of_the_pooled_forest(losses, seed, cuts, bins, levels, fraction):
    """Numbers, classes and quantiles; missing values, missing labels; any number of silos, any rows in each."""
    chosen = TreeSettings(
        trees=2, depth=3, leaves=6, bins=bins, levels=levels, min_rows=5, losses=losses, feature_fraction=fraction,
    )  # fmt: skip
    x, y = drawn_rows(90, seed, losses)
    alone = grown(Grower(chosen, x.shape[1]), [Member(x, y, chosen)])
    parts = np.split(generator(seed, "order").permutation(len(x)), sorted(cuts))
    members = [Member(x[part], y[part], chosen) for part in parts]
    grower, growth, number = Grower(chosen, x.shape[1]), Growth.begin(x.shape[1]), 0
    while growth.at is not Step.DONE:
        vector = grower.question(growth).vector()
        form, number = form_of(vector), number + 1
        total = PackedSum(form, 0)
        for member in members:  # each pair of neighbours shares a mask
            one = PackedSum.of(form, member.answer(TreeQuestion.of(vector)), np.zeros((0, 2), np.uint64))
            place = members.index(member)
            add_mask(one, bytes([place]) + number.to_bytes(31, "little"), is_added=True)
            add_mask(one, bytes([(place + 1) % len(members)]) + number.to_bytes(31, "little"), is_added=False)
            total.add(one.content())
        growth = grower.after(growth, total.values())
    assert grower.forest(growth).vector.tobytes() == grower.forest(alone).vector.tobytes()


def drawn_rows(rows: int, seed: int, losses: tuple[str, ...]):
    random = generator(seed, "rows")
    x = random.normal(size=(rows, 4))
    x[random.random(x.shape) < 0.15] = np.nan
    signal = np.nan_to_num(x[:, 0]) + 0.3 * random.normal(size=rows)
    classes = {"log": [0.0], "softmax": [-0.4, 0.4]}
    y = np.stack(
        [np.digitize(signal, classes[kind]) if (kind := each.split(":")[0]) in classes else signal for each in losses],
        1,
    ).astype(float)
    y[random.random(y.shape) < 0.05] = np.nan
    return x, y


def test_masked_sums_take_few_bytes():
    """Random numbers of as many bytes as the bounds of the sum, not of 16; keys and shares come on top."""
    plain, masked = list(coordinator().run(job())), list(coordinator(secure=2).run(job(secure_threshold=2)))
    in_clear, under_masks = (sum(record.bytes_sent for record in records) for records in (plain, masked))
    keys = 4_500 * 3 * len(masked)
    assert under_masks < 1.2 * in_clear + keys


def boundary_of(tmp_path, monkeypatch, policy: str):
    monkeypatch.setenv("RAY_FED_SITE", str(tmp_path))
    write_site(tmp_path, f"perimeter:\n  {policy}\n")
    cohort = LocalCohort(SILOS, TASK, TEST)
    cohort.silos = {
        each.name: GuardedSilo(replace(each, ledger_folder=str(tmp_path)), lambda each=each: Silo(each, TASK))
        for each in SILOS
    }
    return cohort


def test_a_bin_of_fewer_rows_than_an_owner_allows_does_not_leave_in_clear(tmp_path, monkeypatch):
    cohort = boundary_of(tmp_path, monkeypatch, "min_rows_per_bin: 4")
    with pytest.raises(QuorumLost, match="min_rows_per_bin=4"):
        list(coordinator(cohort).run(job()))
    masked = list(coordinator(boundary_of(tmp_path, monkeypatch, "min_rows_per_bin: 4"), secure=2).run(
        job(secure_threshold=2, name="masked")
    ))  # fmt: skip
    assert models_of(masked).tobytes() == pooled().tobytes()


def test_what_an_owner_allows_leaves_and_what_the_coordinator_calls_the_counts_does_not_matter(tmp_path, monkeypatch):
    records = list(coordinator(boundary_of(tmp_path, monkeypatch, "min_rows_per_bin: 1")).run(job()))
    assert models_of(records).tobytes() == pooled().tobytes()
    x, y = table()
    member, grower = Member(x, y, SETTINGS), Grower(SETTINGS, COLUMNS)
    growth = Growth.begin(COLUMNS)
    while growth.at is not Step.ROOT:
        growth = grower.after(growth, member.answer(grower.question(growth)))
    question = grower.question(growth)
    parts = [part for part in question.form.parts if not part.count_bits]
    hidden = [PackedPart(part.length, 24) for part in question.form.parts if part.count_bits for _ in range(2)]
    with pytest.raises(ValueError, match="another form"):
        member.answer(replace(question, form=PackedForm((*parts, *hidden))))


def test_codes_save_bytes_and_no_digit():
    plain, coded = (list(coordinator().run(job(compression=how))) for how in (None, Compression()))
    assert models_of(plain).tobytes() == models_of(coded).tobytes()
    sent = [sum(record.bytes_sent for record in records) for records in (plain, coded)]
    assert sent[1] < 0.6 * sent[0]


class FaultyCohort(LocalCohort):
    """In the rounds given a silo dies and is started again, or fails."""

    deaths: tuple[tuple[int, str], ...] = ()
    errors: tuple[tuple[int, str], ...] = ()

    def __init__(self, *given, **more):
        super().__init__(*given, **more)
        self.happened: set[tuple[int, str]] = set()

    def next_event(self, timeout=None):
        if self._asked:
            _, server_round, name, _ = self._asked[0]
            if (server_round, name) in {*self.deaths, *self.errors} - self.happened:
                self.happened.add((server_round, name))
                self._asked.popleft()
                if (server_round, name) in self.deaths:
                    return Died(name, "killed")
                return Raised(name, server_round, "it failed")
        return super().next_event(timeout)


def test_a_silo_that_is_started_again_at_any_round_changes_no_bit():
    class Cohort(FaultyCohort):
        deaths = ((1, "east"), (5, "north"), (8, "west"), (11, "east"), (14, "north"), (17, "west"))

    cohort = Cohort(SILOS, TASK, TEST)
    records = list(coordinator(cohort).run(job()))
    assert len(cohort.happened) == 6
    assert models_of(records).tobytes() == pooled().tobytes()


def test_a_silo_that_fails_in_some_rounds_takes_part_in_every_iteration_again():
    class Cohort(FaultyCohort):
        errors = ((2, "east"), (9, "north"), (10, "north"), (15, "west"))

    cohort = Cohort(SILOS, TASK, TEST)
    records = list(coordinator(cohort).run(job(rules=RoundRules())))
    assert len(cohort.happened) == 4
    assert records[-1].server_round == records[-1].num_rounds
    vector = models_of(records)
    assert vector.shape == pooled().shape
    assert records[-1].metrics["federated.r2"] > 0.3


def test_a_forest_that_is_not_whole_after_all_rounds_is_no_result():
    with pytest.raises(QuorumLost, match="not whole"):
        list(coordinator().run(job(last_round=9)))


@pytest.mark.parametrize("after", [1, 4, 7, 9, 12])
def test_a_run_that_is_resumed_after_any_round_has_the_same_bits(after):
    whole = list(coordinator().run(job()))
    rest = list(coordinator().run(job(), after, whole[after].state))
    assert models_of(rest).tobytes() == models_of(whole).tobytes()
    losses = [[record.metrics["train_loss"] for record in records] for records in (rest, whole[after + 1 :])]
    assert losses[0] == losses[1]


def test_a_guard_of_sums_wants_the_length_that_was_asked_for_and_whole_numbers():
    guard, asked = Guard(sums=10), np.array([3, 0], np.float32)
    update = Update("east", "s", 1, np.array([1, -2, 3], np.float32), 5, 1, 0.0)
    guard.check(update, asked, 1, "s")
    with pytest.raises(UpdateRejected, match="instead of"):
        guard.check(replace(update, vector=update.vector[:2]), asked, 1, "s")
    with pytest.raises(UpdateRejected, match="whole numbers"):
        guard.check(replace(update, vector=update.vector + np.float32(0.5)), asked, 1, "s")
    with pytest.raises(UpdateRejected, match="whole numbers"):
        guard.check(replace(update, vector=np.array([2**24, 0, 0], np.float32)), asked, 1, "s")
    with pytest.raises(UpdateRejected):
        guard.check(replace(update, vector=np.zeros(11, np.float32)), np.array([11], np.float32), 1, "s")
    assert answer_size(asked, 0) == 2


def test_the_code_of_whole_numbers_leaves_nothing_out():
    random = generator(0, "code")
    numbers = np.concatenate([
        np.zeros(500), random.integers(-300, 300, 500), random.integers(-(2**24) + 1, 2**24, 9),
    ]).astype(np.float32)  # fmt: skip
    code = encode_whole(numbers)
    assert rebuilt(np.zeros(1, np.float32), code).tobytes() == numbers.tobytes()
    assert code.nbytes < numbers.nbytes / 2
    for broken in (code[:-1], code[:4], np.append(code, np.uint8(0)), np.concatenate([code[:5], code[9:]])):
        with pytest.raises(ValueError, match="code"):
            decode_whole(broken)
