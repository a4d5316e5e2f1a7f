from dataclasses import replace

import numpy as np
import pytest
import torch

from ray_fed.errors import ConfigError, DataError, SiloFailed, SiloRefused, UpdateRejected
from ray_fed.federation.cohort import LocalCohort, busy_seconds
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.messages import SessionSpec, Update
from ray_fed.federation.rounds.job import Job, Observer, local_job
from ray_fed.federation.silo import MOST_SESSIONS, Silo
from ray_fed.federation.strategies import FedAvg, fed_avg
from ray_fed.federation.task import SiloSpec
from ray_fed.learning.layout import Layout
from ray_fed.learning.trainer import TrainingPlan
from tests.synthetic import DrawnRows, SyntheticTask, silos

PLAN = TrainingPlan(seed=0, epochs=6, steps_per_epoch=4, num_rounds=3, learning_rate=0.01)


def job(names=("silo-1", "silo-2"), plan=PLAN, **changes):
    return Job("federated", tuple(names), dict.fromkeys(names, plan), model_seed=0, **changes)


def coordinator(specs=None, task=None, test=None):
    specs, task = specs or silos(40, 60), task or SyntheticTask()
    return Coordinator(LocalCohort(specs, task, test), task, [spec.name for spec in specs])


def run(specs=None, the_job=None, test=None):
    ours = coordinator(specs, test=test)
    ours.agree()
    return list(ours.run(the_job or job()))


def update(silo, vector, weight, server_round=1):
    return Update(silo, "s", server_round, np.asarray(vector, np.float32), weight, 1, 0.0)


def test_fed_avg_weighs_silos_by_their_examples():
    assert fed_avg(2, [update("a", [0, 4], 1), update("b", [4, 0], 3)]).tolist() == [3.0, 1.0]


def test_a_nan_update_is_rejected_by_name_and_round():
    with pytest.raises(UpdateRejected, match=r"silo 'b', round 7.*not finite"):
        fed_avg(1, [update("a", [1], 1), update("b", [np.nan], 1, server_round=7)])


def test_records_run_from_the_initial_evaluation_to_the_last_round():
    records = run()
    assert [record.server_round for record in records] == [0, 1, 2, 3]
    assert records[0].participants == ()
    assert records[0].bytes_sent == 0
    assert records[3].participants == ("silo-1", "silo-2")
    assert records[3].models is not None
    assert records[2].models is None


def test_bytes_sent_counts_parameters_in_both_directions():
    num_parameters = 3 * 8 + 8 + 8 + 1
    assert run()[1].bytes_sent == 2 * 2 * 4 * num_parameters


def test_training_lowers_the_error_on_the_common_test_set():
    records = run(test=SiloSpec("test", DrawnRows(200)), the_job=job(plan=replace(PLAN, epochs=60)))
    assert records[-1].metrics["federated.mae"] < 0.7 * records[0].metrics["federated.mae"]


def test_without_a_test_set_the_models_are_marked_on_all_held_out_rows_together():
    last = run(silos(40, 60, held_out=20))[-1].metrics
    assert last["federated.mae"] == pytest.approx((last["silo.silo-1.mae"] + last["silo.silo-2.mae"]) / 2)


def test_the_order_of_arrival_changes_no_bit():
    class Reversed(LocalCohort):
        def submit(self, session, server_round, vectors):
            super().submit(session, server_round, dict(reversed(list(vectors.items()))))

    task, specs = SyntheticTask(), silos(40, 60, 25, held_out=9)
    results = []
    for kind in (LocalCohort, Reversed):
        ours = Coordinator(kind(specs, task), task, ["silo-1", "silo-2", "silo-3"])
        ours.agree()
        results.append(list(ours.run(job(("silo-1", "silo-2", "silo-3")))))
    assert results[0] == results[1]
    assert results[0][-1].models["federated"].tobytes() == results[1][-1].models["federated"].tobytes()


def test_sgd_with_an_exchange_after_every_batch_equals_central_training_on_the_union_of_the_batches():
    """Eq. (1) with alpha_c = n_c / n makes the mean of the silos' SGD steps the SGD step of the union's mean loss."""
    plan = TrainingPlan(seed=0, epochs=5, steps_per_epoch=4, num_rounds=20, learning_rate=0.02, optimizer="sgd")
    task, specs = SyntheticTask(), silos(40, 80, 120)
    ours = Coordinator(LocalCohort(specs, task), task, [spec.name for spec in specs])
    ours.agree()
    names = tuple(spec.name for spec in specs)
    federated = list(ours.run(job(names, plan)))[-1].models["federated"]

    module = task.model(0)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.02)
    members = [ours.cohort.silos[name] for name in names]
    for spec_silo in members:
        spec_silo.open_session(_session(plan, ours))
    batches = [list(member.sessions["probe"]._batches(range(20))) for member in members]
    for step in range(20):
        x = torch.cat([silo_batches[step][0] for silo_batches in batches])
        y = torch.cat([silo_batches[step][1] for silo_batches in batches])
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(module(x), y).backward()
        optimizer.step()
    central = torch.cat([p.detach().reshape(-1) for p in module.parameters()]).numpy()
    np.testing.assert_allclose(federated, central, rtol=1e-4, atol=2e-6)


def _session(plan, ours):
    from ray_fed.federation.messages import SessionSpec

    return SessionSpec("probe", plan, 0, ours.layout.digest)


def test_without_exchange_each_silo_trains_as_if_it_were_alone():
    specs = silos(40, 60)
    both = coordinator(specs)
    both.agree()
    local = local_job(job(), {"silo-1": PLAN, "silo-2": PLAN}, "local")
    models = list(both.run(local))[-1].models
    alone = list(both.run(job(("silo-2",))))[-1].models
    assert models["silo-2"].tobytes() == alone["federated"].tobytes()
    assert models["silo-1"].tobytes() != models["silo-2"].tobytes()


def test_averaging_optimiser_state_sends_three_vectors_for_one():
    kept, averaged = run()[1], run(the_job=job(plan=replace(PLAN, optimizer_state="average")))[1]
    assert averaged.bytes_sent == 3 * kept.bytes_sent


def test_a_silo_that_disagrees_is_refused_by_name():
    task = SyntheticTask()
    ours = Coordinator(LocalCohort(silos(10, 10), task), task, ["silo-1", "silo-2"])
    ours.cohort.silos["silo-2"].task = SyntheticTask(says="other tables")
    with pytest.raises(SiloRefused, match=r"silo 'silo-2' refused: its task is 'other tables'"):
        ours.agree()


def test_a_silo_that_cannot_open_its_data_says_so():
    with pytest.raises(DataError, match="silo 'bad': no such file"):
        coordinator([SiloSpec("bad", DrawnRows(fail="no such file"))]).agree()


def test_a_session_that_is_not_open_is_named():
    silo = Silo(silos(10)[0], SyntheticTask())
    silo.open()
    with pytest.raises(SiloFailed, match="no session 'x'"):
        silo.fit("x", 1, np.zeros(1, np.float32))


def test_sessions_are_closed_after_a_job_even_when_it_breaks_off():
    ours = coordinator()
    ours.agree()
    rounds = ours.run(job())
    next(rounds)
    assert ours.cohort.silos["silo-1"].sessions
    rounds.close()
    assert not ours.cohort.silos["silo-1"].sessions


class Forgetful(Observer):
    def round_ended(self, record, job):  # type: ignore[override]
        pass


class Breaking(Observer):
    def message_received(self, silo, message, session="", server_round=0):  # noqa: ARG002
        if server_round == 2:
            raise OSError(28, "no space left")


def test_an_observer_that_raises_or_keeps_the_record_stops_the_run():
    for observer, error, said in ((Forgetful(), ConfigError, "Forgetful.round_ended"), (Breaking(), OSError, "space")):
        ours = coordinator()
        ours.observers = (observer,)
        ours.agree()
        with pytest.raises(error, match=said):
            list(ours.run(job()))
        assert not ours.cohort.silos["silo-1"].sessions


def test_a_silo_holds_a_bounded_number_of_sessions_and_room_comes_with_closing():
    task = SyntheticTask()
    silo = Silo(silos(10)[0], task)
    silo.open()
    silo.prepare(None)
    digest, plan = Layout.of(task.model(0)).digest, TrainingPlan(0, 1, 1, 1)
    for number in range(MOST_SESSIONS):
        silo.open_session(SessionSpec(str(number), plan, 0, digest))
    silo.open_session(SessionSpec("0", plan, 0, digest))  # again: no further one
    with pytest.raises(SiloFailed, match=f"{MOST_SESSIONS} open already, and that is the most; close one"):
        silo.open_session(SessionSpec("one more", plan, 0, digest))
    silo.close_session("3")
    silo.open_session(SessionSpec("one more", plan, 0, digest))
    assert len(silo.sessions) == MOST_SESSIONS


def test_two_sessions_in_one_silo_do_not_disturb_each_other():
    ours = coordinator()
    ours.agree()
    undisturbed = list(ours.run(job()))[-1].models["federated"]
    first, second = ours.run(job()), ours.run(replace(job(), name="other"))
    records = [(a, b) for a, b in zip(first, second, strict=True)]
    assert records[-1][0].models["federated"].tobytes() == undisturbed.tobytes()
    assert records[-1][1].models["federated"].tobytes() == undisturbed.tobytes()


def test_no_public_method_of_a_silo_returns_its_rows():
    silo = Silo(silos(30)[0], SyntheticTask())
    answers = [silo.open(), silo.moments()]
    lengths = [len(value) for answer in answers for value in vars(answer).values() if np.ndim(value)]
    assert max(lengths) <= 3  # of columns


@pytest.mark.parametrize(
    ("arrivals", "busy"),
    [([(1.0, 1.0), (1.0, 1.0)], 1.0), ([(1.0, 0.5), (3.0, 1.0)], 1.5), ([(2.0, 9.0)], 2.0), ([], 0.0)],
)
def test_busy_seconds_is_the_union_of_the_silos_working_times(arrivals, busy):
    assert busy_seconds(0.0, arrivals) == busy


def test_evaluating_now_and_then_keeps_the_first_and_the_last():
    records = run(silos(40, 60, held_out=9), job(evaluate_every=2))
    assert ["federated.mae" in record.metrics for record in records] == [True, False, True, True]


def test_strategies_do_not_change_what_they_are_given():
    initial = np.zeros(2, np.float32)
    state = FedAvg().start(initial, ["a"])
    FedAvg().aggregate(state, [update("a", [1, 1], 1)])
    assert state["federated"].tolist() == [0, 0]
