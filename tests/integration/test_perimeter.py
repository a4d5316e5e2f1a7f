"""Ways out of a silo's process that only a real actor has: Ray itself, output, logs; and the ledgers of a run."""

import contextlib
import gc
import json
import shutil
import sys
import threading
import time
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import ray

from actors.cohort import RayCohort, value_of
from actors.federation import federation
from actors.silo import EvaluatorActor, SiloActor
from pipelines import cli
from ray_fed.errors import ConfigError, DataError, FedError, PerimeterRefused
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.messages import SessionSpec
from ray_fed.federation.rounds.job import Job
from ray_fed.federation.silo import Silo
from ray_fed.federation.task import SiloSpec
from ray_fed.learning.layout import Layout, initial_vector
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.perimeter.own_words import words_of
from tests.synthetic import DrawnRows, SyntheticTask

pytestmark = pytest.mark.usefixtures("ray_session")

PLAN = TrainingPlan(seed=0, epochs=4, steps_per_epoch=4, num_rounds=4, learning_rate=0.01)
MARKER = "row-3.14159-2.71828"
"""Stands for a row in texts."""


@dataclass(frozen=True)
class HostileTask(SyntheticTask):
    """A task whose silo does something else in `fit` before it answers."""

    way: str = ""
    folder: str = ""
    kept: list = field(default_factory=list, compare=False)

    def silo(self, spec, device="cpu"):
        return HostileSilo(spec, self, device)


class HostileSilo(Silo):
    def fit(self, session, server_round, vector):
        WAYS[self.task.way](self)
        return super().fit(session, server_round, vector)


@pytest.fixture(scope="module", autouse=True)
def by_value(ray_session):  # noqa: ARG001
    """Workers cannot import the tests package; its classes travel by value."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def put(silo):
    silo.task.kept.append(ray.put(silo.rows.features))


def put_and_hide(silo):
    try:
        put(silo)
    except Exception:  # the silo tries not to be noticed
        silo.tried = True


def start_task(silo):
    ray.remote(lambda rows: rows).remote(silo.rows.features)


def start_actor(silo):
    class Box:
        pass

    silo.task.kept.append(ray.remote(Box).remote())


def call_an_actor(silo):
    box = ray.get_actor("letterbox", namespace="perimeter")
    box.take.remote(silo.rows.features)


def key_value_store(silo):
    from ray.experimental import internal_kv

    internal_kv._internal_kv_put(b"rows", silo.rows.features.tobytes())


def inner_worker(silo):
    from ray._private import worker

    closed = worker.global_worker.__class__
    worker.global_worker.__class__ = worker.Worker
    silo.task.kept.append(ray.put(silo.rows.features))
    worker.global_worker.__class__ = closed


def later_in_a_thread(silo):
    """Works on when the call has ended, and the next one has not begun."""
    rows = silo.rows.features

    def work():
        time.sleep(0.3)
        with contextlib.suppress(Exception):
            ray.put(rows)
        from ray.experimental import internal_kv

        internal_kv._internal_kv_put(b"stolen", rows.tobytes(), overwrite=True)

    threading.Thread(target=work, daemon=True).start()


def thread_of_ray_alone(silo):
    """No line of the task's own runs in the thread."""
    threading.Timer(0.1, ray.put, [silo.rows.features]).start()


class Sends:
    """Sends rows when it is thrown away, shown, compared, or looked into."""

    def __init__(self, rows):
        self.rows = rows

    def send(self, *_):
        from ray.experimental import internal_kv

        internal_kv._internal_kv_put(b"stolen", self.rows.tobytes(), overwrite=True)
        return 0

    __del__ = __repr__ = __str__ = __eq__ = __index__ = __float__ = __iter__ = __len__ = send
    __hash__ = None


def finalizer(silo):
    """A circle, so that it is thrown away some time after its call."""
    gc.collect()
    thing = Sends(silo.rows.features)
    thing.itself = thing


def tensorboard(silo):
    from ray_fed.reporting.tensorboard_log import EventLog

    with EventLog(silo.task.folder) as log:
        log.text("notes", MARKER, 1)


RAY_WAYS = {
    "put": put,
    "put and hide": put_and_hide,
    "task": start_task,
    "actor": start_actor,
    "call": call_an_actor,
    "kv": key_value_store,
    "inner worker": inner_worker,
}
LATER_WAYS = {"thread": later_in_a_thread, "thread of Ray's": thread_of_ray_alone, "finalizer": finalizer}
WAYS = RAY_WAYS | LATER_WAYS | {"tensorboard": tensorboard}


@ray.remote
class Letterbox:
    def __init__(self):
        self.letters = []

    def take(self, letter):
        self.letters.append(letter)

    def count(self):
        return len(self.letters)


def standing(task, tmp_path, name="north"):
    """A silo actor with a session, and the vector to start from."""
    spec = SiloSpec(name, DrawnRows(60, 10), ledger_folder=str(tmp_path), run="run-1")
    actor = SiloActor.options(num_cpus=0.1).remote(spec, task)
    ray.get([actor.open.remote(), actor.prepare.remote(None)])
    vector = initial_vector(task.model(0))
    ray.get(actor.open_session.remote(SessionSpec("s", PLAN, 0, Layout.of(task.model(0)).digest)))
    return actor, vector


@pytest.fixture(scope="module")
def letterbox(by_value):  # noqa: ARG001
    """An actor that somebody left in the cluster to collect rows."""
    actor = Letterbox.options(num_cpus=0.01, name="letterbox", namespace="perimeter").remote()
    assert ray.get(actor.count.remote()) == 0
    yield actor
    ray.kill(actor)


@pytest.mark.parametrize("way", RAY_WAYS)
def test_rows_do_not_leave_through_ray(tmp_path, way, letterbox):
    actor, vector = standing(HostileTask(way=way), tmp_path)
    with pytest.raises(FedError) as raised:
        value_of(actor.fit.remote("s", 1, vector), "north", "training")
    assert "a way around the gate" in str(raised.value)
    assert ray.get(letterbox.count.remote()) == 0
    lines = [json.loads(line) for line in (tmp_path / "north" / "run-1.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines if line["kind"] == "refused"] == ["refused"]
    ray.kill(actor)


def refused_in_some_call(actor, vector):
    """Call until one is refused for what went on after the one before: on a busy machine threads come late."""
    end = time.monotonic() + 60
    for server_round in count(2):
        time.sleep(0.6)
        assert time.monotonic() < end
        value_of(actor.fit.remote("s", server_round, vector), "north", "training")


@pytest.mark.parametrize("way", LATER_WAYS)
def test_what_a_task_leaves_behind_finds_the_ways_out_closed_after_its_call(tmp_path, way):
    """A thread and a finalizer try after the answer has left: nothing is sent, and the next call says so."""
    from ray.experimental import internal_kv

    actor, vector = standing(HostileTask(way=way), tmp_path)
    with contextlib.suppress(FedError):
        value_of(actor.fit.remote("s", 1, vector), "north", "training")
    with pytest.raises(FedError, match="a way around the gate"):
        refused_in_some_call(actor, vector)
    assert internal_kv._internal_kv_get(b"stolen") is None
    ray.kill(actor)


@dataclass(frozen=True)
class OddTask(SyntheticTask):
    """A task whose answers hold objects that run code when they are looked at."""

    name: str = "num_examples"

    def silo(self, spec, device="cpu"):
        return OddSilo(spec, self, device)


class OddSilo(Silo):
    def fit(self, session, server_round, vector):
        answer = super().fit(session, server_round, vector)
        return replace(answer, **{self.task.name: Sends(self.rows.features)})


@pytest.mark.parametrize("name", ["num_examples", "num_steps", "loss", "seconds", "vector", "session", "silo"])
def test_an_object_in_a_message_runs_its_code_inside_the_boundary_or_not_at_all(tmp_path, name):
    from ray.experimental import internal_kv

    actor, vector = standing(OddTask(name=name), tmp_path)
    with pytest.raises(FedError, match="refused by the silo's own perimeter"):
        value_of(actor.fit.remote("s", 1, vector), "north", "training")
    assert internal_kv._internal_kv_get(b"stolen") is None
    ray.kill(actor)


def test_whoever_has_a_silos_handle_cannot_run_a_function_in_it(tmp_path):
    actor, _ = standing(SyntheticTask(), tmp_path)
    evaluator = EvaluatorActor.options(num_cpus=0.1).remote(SiloSpec("test", DrawnRows(60)), SyntheticTask())
    for handle in (actor, evaluator):
        with pytest.raises(PerimeterRefused, match="runs no function"):
            value_of(handle.__ray_call__.remote(lambda self: self.silo.silo.rows.features), "north", "being called")
        ray.kill(handle)


def test_a_test_set_gives_scores_and_no_single_value(tmp_path, owners_file):
    task, models = SyntheticTask(), {"m": initial_vector(SyntheticTask().model(0))}
    spec = SiloSpec("test", DrawnRows(60), ledger_folder=str(tmp_path), run="run-1")
    for policy, is_public in (("{}", False), ("silos: {test: {test_set: public}}", True)):
        owners_file.write_text(policy)
        actor = EvaluatorActor.options(num_cpus=0.1).remote(spec, task)
        assert ray.get(actor.open.remote()) == {"num_rows": 60, "num_examples": 60}
        ray.get(actor.prepare.remote(None))
        assert ray.get(actor.evaluate.remote(models))["m"].num_examples == 60
        if is_public:
            true, predicted = ray.get(actor.predict.remote(models))
            assert true.shape == predicted["m"].shape == (60,)
        else:
            with pytest.raises(PerimeterRefused, match="only scores leave this test set"):
                value_of(actor.predict.remote(models), "test", "predicting")
        ray.kill(actor)
    lines = [json.loads(line) for line in (tmp_path / "test" / "run-1.jsonl").read_text().splitlines()]
    told = [line["kind"] for line in lines if line["kind"] in ("description", "metrics", "predictions", "refused")]
    assert told == ["description", "metrics", "refused", "description", "metrics", "predictions"]


def test_a_driver_does_not_move_the_owners_file_with_an_environment_variable(tmp_path, owners_file):
    owners_file.write_text("silos: {north: {kinds: [description]}}")
    for environment in ({}, {"env_vars": {"RAY_FED_SITE": str(tmp_path), "HOME": str(tmp_path)}}):
        actor = SiloActor.options(num_cpus=0.1, runtime_env=environment or None).remote(
            SiloSpec("north", DrawnRows(60)), SyntheticTask()
        )
        ray.get(actor.open.remote())
        with pytest.raises(PerimeterRefused, match="its owner allows description only"):
            value_of(actor.moments.remote(), "north", "computing moments")
        ray.kill(actor)


def talking_task():
    class TalkingTask(SyntheticTask):
        def loss(self, prediction, target):
            import logging
            import os

            print(MARKER)
            print(MARKER, file=sys.__stderr__)
            logging.getLogger("ray").error(MARKER)
            logging.getLogger("task").warning(MARKER)
            os.write(1, MARKER.encode())
            os.write(2, MARKER.encode())
            return super().loss(prediction, target)

    return TalkingTask()


def test_what_a_task_prints_or_logs_stays_in_the_silos_own_log(tmp_path):
    actor, vector = standing(talking_task(), tmp_path)
    ray.get(actor.fit.remote("s", 1, vector))
    ray.kill(actor)
    assert (tmp_path / "north" / "silo.log").read_text().count(MARKER) >= 5
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())
    told = [path.name for path in logs.rglob("*") if path.is_file() and MARKER.encode() in path.read_bytes()]
    assert told == []


def raising_task():
    class RaisingTask(SyntheticTask):
        def loss(self, prediction, target):
            if len(prediction) == 15:
                raise ValueError(MARKER)
            return super().loss(prediction, target)

    return RaisingTask()


def test_a_row_in_an_exception_reaches_neither_records_nor_rays_error(tmp_path):
    specs = [SiloSpec(f"silo-{n}", DrawnRows(rows), ledger_folder=str(tmp_path)) for n, rows in [(1, 60), (2, 40)]]
    names = ("silo-1", "silo-2")
    with federation(specs, raising_task(), None, names) as placed:
        placed.coordinator.agree()
        records = list(placed.coordinator.run(Job("federated", names, dict.fromkeys(names, PLAN), 0)))
        _, reason = records[1].failures[0]
        assert "a value cannot be used (ValueError); reference" in reason
        assert MARKER not in repr([vars(record) for record in records])
        vector = records[-1].models["federated"]
        digest = Layout.of(SyntheticTask().model(0)).digest
        ray.get(placed.silos["silo-1"].open_session.remote(SessionSpec("again", PLAN, 0, digest)))
        with pytest.raises(ray.exceptions.RayTaskError) as raised:
            ray.get(placed.silos["silo-1"].fit.remote("again", 1, vector))
        assert MARKER not in str(raised.value)  # Ray carries the traceback as text
        assert MARKER not in repr(raised.value.cause)
    assert MARKER in (tmp_path / "silo-1" / "silo.log").read_text()


def test_a_site_file_with_a_mistake_stops_the_federation_and_its_words_stand_in_the_silos_log(tmp_path, owners_file):
    owners_file.write_text("perimeter: {min_example: 3}")
    spec = SiloSpec("north", DrawnRows(60), log_folder=str(tmp_path))
    actor = SiloActor.options(num_cpus=0.1).remote(spec, SyntheticTask())
    with pytest.raises(ConfigError, match="its owner's site file is wrong") as raised:
        value_of(actor.open.remote(), "north", "opening its data")
    assert "did you mean 'min_examples'" in words_of(str(raised.value), [spec])[0]
    ray.kill(actor)


def test_a_silos_policy_is_read_where_the_silo_is(owners_file):
    owners_file.write_text("silos: {north: {min_examples: 61}}")
    actor = SiloActor.options(num_cpus=0.1).remote(SiloSpec("north", DrawnRows(60)), SyntheticTask())
    cohort = RayCohort({"north": actor})
    with pytest.raises(DataError, match="fewer than its owner's min_examples"):
        Coordinator(cohort, SyntheticTask(), ["north"]).agree()
    ray.kill(actor)


# ---- a run and its ledgers


@pytest.fixture(scope="module")
def finished(tmp_path_factory, ray_session):  # noqa: ARG001
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert cli.main(["formation-energy", "--silos", "60,40", "--epochs", "8", "--out", str(folder)]) == 0
    return folder


def pins(run):
    """The keys of a private run's writers, as if their owners had told them: they are gone with the run."""
    paths = [run / "ledger" / "coordinator.jsonl", *run.glob("ledger/silos/*/*.jsonl")]
    openings = [json.loads(path.read_bytes().splitlines()[0]) for path in paths]
    return [f"--key={opening['writer']}={opening['public_key']}" for opening in openings]


def test_the_ledgers_of_a_run_are_verified(finished, capsys):
    assert cli.main(["ledger", "verify", str(finished)]) == 3
    assert "signed by a key that nobody vouched for" in capsys.readouterr().out
    assert cli.main(["ledger", "verify", str(finished), *pins(finished)]) == 0
    said = capsys.readouterr().out
    assert "verified: " in said
    assert "NOT" not in said
    assert {path.parent.name for path in finished.glob("ledger/silos/*/*.jsonl")} == {"silo-1", "silo-2", "pooled"}
    assert not list(finished.rglob("*.key"))


def test_a_published_model_is_traced_to_the_updates_that_made_it(finished, capsys):
    model = finished / "models" / "federated.safetensors"
    assert cli.main(["ledger", "trace", str(finished), str(model), *pins(finished)]) == 0
    said = capsys.readouterr().out
    assert "is 'federated' of job 'federated-0', round 2, made by FedAvg" in said
    assert "from 4 updates (silo-1 2, silo-2 2); 4 of them stand in their silos' ledgers" in said


@pytest.mark.parametrize(
    ("option", "kind"), [(["--secure-aggregation", "true"], "masked"), (["--compression", "int8"], "update")]
)
def test_ledgers_hold_what_leaves_under_masks_and_in_fewer_bytes(tmp_path, capsys, option, kind):
    folder = tmp_path / "run"
    sizes = ["--silos", "60,50,40", "--epochs", "8", "--baselines", "false"]
    assert cli.main(["formation-energy", *sizes, *option, "--out", str(folder)]) == 0
    assert cli.main(["ledger", "verify", str(folder), *pins(folder)]) == 0
    model = folder / "models" / "federated.safetensors"
    assert cli.main(["ledger", "trace", str(folder), str(model), *pins(folder)]) == 0
    assert "from 6 updates (silo-1 2, silo-2 2, silo-3 2); 6 of them stand" in capsys.readouterr().out
    [path] = folder.glob("ledger/silos/silo-1/*.jsonl")
    assert [json.loads(line)["kind"] for line in path.read_text().splitlines()].count(kind) == 2


def test_a_changed_line_of_a_run_is_found(finished, tmp_path, capsys):
    copies = tmp_path / "silos"
    for path in finished.glob("ledger/silos/*/*.jsonl"):
        (copies / path.parent.name).mkdir(parents=True)
        (copies / path.parent.name / path.name).write_bytes(path.read_bytes())
    assert cli.main(["ledger", "verify", str(finished), *pins(finished), "--silo-ledgers", str(copies)]) == 0
    [path] = copies.glob("silo-2/*.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    changed = [line.replace(b'"kind":"update"', b'"kind":"metrics"') for line in lines]
    path.write_bytes(b"".join(changed))
    assert changed != lines
    assert cli.main(["ledger", "verify", str(finished), "--silo-ledgers", str(copies)]) == 1
    assert "never left the silo" in capsys.readouterr().out


def test_a_tensorboard_text_that_a_task_writes_into_the_run_is_found(finished, tmp_path, capsys):
    """Ray cannot prevent it where silo and run share a disk: the file itself is the trace."""
    run = tmp_path / "copy"
    shutil.copytree(finished, run)
    assert cli.main(["ledger", "verify", str(run), *pins(run)]) == 0
    folder = run / "tensorboard"
    actor, vector = standing(HostileTask(way="tensorboard", folder=str(folder)), tmp_path)
    ray.get(actor.fit.remote("s", 1, vector))
    ray.kill(actor)
    assert MARKER.encode() in b"".join(path.read_bytes() for path in folder.iterdir())
    capsys.readouterr()
    assert cli.main(["ledger", "verify", str(run)]) == 1
    assert "not written by the run's own process; a task's code may have put rows there" in capsys.readouterr().out


def test_a_tensorboard_text_without_a_folder_of_the_run_stays_with_the_silo(tmp_path, finished):
    actor, vector = standing(HostileTask(way="tensorboard", folder=str(tmp_path / "own")), tmp_path)
    ray.get(actor.fit.remote("s", 1, vector))
    ray.kill(actor)
    assert MARKER.encode() in b"".join(path.read_bytes() for path in (tmp_path / "own").iterdir())
    assert not [path for path in finished.rglob("*") if path.is_file() and MARKER.encode() in path.read_bytes()]


def test_a_run_that_never_began_leaves_no_ledger(tmp_path):
    broken = tmp_path / "rows.csv"
    broken.write_text("formula,formation_energy_per_atom\nFe2O3,\n")
    file = tmp_path / "federation.yaml"
    file.write_text(f"silos:\n  - {{name: north, data: {broken}}}\n  - {{name: south, data: embedded}}\n")
    out = tmp_path / "run"
    assert cli.main(["formation-energy", "--federation", str(file), "--out", str(out)]) == DataError.exit_code
    assert not out.exists()


def test_a_run_in_one_process_has_no_ledger_and_verify_says_so(tmp_path, capsys):
    out = tmp_path / "run"
    arguments = ["--silos", "60,40", "--epochs", "4", "--cohort", "local", "--baselines", "false", "--out", str(out)]
    assert cli.main(["formation-energy", *arguments]) == 0
    assert cli.main(["ledger", "verify", str(out)]) == 2
    assert "has no ledger; silos that are actors keep one" in capsys.readouterr().err
    assert np.isfinite(json.loads((out / "summary.json").read_text())["federated.mae"])


def test_an_owner_who_keeps_the_ledger_is_named(tmp_path, owners_file):
    owners_file.write_text("perimeter: {hand_over_ledger: false}")
    spec = SiloSpec("north", DrawnRows(60), ledger_folder=str(tmp_path / "l"), run="r")
    actor = SiloActor.options(num_cpus=0.1).remote(spec, SyntheticTask())
    ray.get(actor.open.remote())
    assert ray.get(actor.collect_ledger.remote()) is None
    assert replace(spec, run="") != spec
    ray.kill(actor)
