"""`run_flower_app`: a Flower ServerApp and its ClientApp, unchanged, on silos in this process or on Ray."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipelines.flower.app_folder import USUAL_SUPERNODES, AppFolder, read_app_folder
from pipelines.flower.recorder import FlowerRecorder
from pipelines.round_notes import missed
from ray_fed.config import at_home, require
from ray_fed.errors import ConfigError
from ray_fed.federation.rounds.job import RoundRecord
from ray_fed.federation.silo import make_silo
from ray_fed.federation.task import SiloSpec
from ray_fed.flower.app_task import FlowerAppTask, seed_all
from ray_fed.flower.grid import RUN_ID, LocalMessenger, Messenger, SiloGrid, as_grid
from ray_fed.flower.kept_replies import KeptReplies
from ray_fed.flower.package import flower
from ray_fed.flower.server import Outcomes, watched_loops
from ray_fed.randomness import derived_seed
from ray_fed.reporting.model_files import serialised
from ray_fed.reporting.run_directory import RunDirectory
from ray_fed.reporting.writing import to_plain

if TYPE_CHECKING:
    import pandas as pd

PIPELINE, MODEL, UNFINISHED = "flower", "models/flower.safetensors", "unfinished"
Silos = Sequence[SiloSpec] | int | None


@dataclass(frozen=True)
class FlowerRun:
    """What a Flower app came to."""

    records: tuple[RoundRecord, ...]
    """One per round; round 0 is what the server computed before the first."""
    result: Any = None
    """What Flower's own loop returned: a `Result` of its strategies, or a `History`; None of a loop of the app's own,
    and of a run that was read from its folder."""
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    """Name -> values of the final model, where one of Flower's loops made it."""

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of the last round."""
        return dict(self.records[-1].metrics) if self.records else {}

    def history(self) -> "pd.DataFrame":
        """Return one row per round: metrics, participants, failures, bytes sent."""
        import pandas as pd

        rows = [
            {
                "round": record.server_round,
                "num_participants": len(record.participants),
                "failures": "; ".join(f"{silo}: {reason}" for silo, reason in record.failures),
                "bytes_sent": record.bytes_sent,
                **record.metrics,
            }
            for record in self.records
        ]
        return pd.DataFrame(rows).set_index("round") if rows else pd.DataFrame()


def run_flower_app(
    app: Path | str | None = None,
    *,
    server_app: Any = None,
    client_app: Any = None,
    num_rounds: int | None = None,
    run_config: Mapping[str, Any] | None = None,
    silos: Silos = None,
    cohort: Literal["ray", "local"] = "ray",
    address: str = "local",
    seed: int = 0,
    round_timeout: float | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    tensorboard: bool = True,
) -> FlowerRun:
    """Run a Flower app, as it is.

    app: the folder that `flwr run` takes; its pyproject.toml names the apps and their run config. In its place
    server_app: a `ServerApp`, or a strategy of either generation's `flwr.server` with num_rounds; and client_app: a
    `ClientApp`, or a `client_fn(context)` that makes clients.
    run_config: values in place of the folder's own, by flat names ("params.eta").
    silos: how many, or a SiloSpec each, whose `source` is what the client finds in `context.node_config`; of a number,
    {"partition-id": 0, "num-partitions": n} and so on. Default: as many as the folder's federation says, or 10.
    cohort, address: as in `federate`.
    seed: of the global generators (random, NumPy, torch), of the server once and of each client before each message.
    round_timeout: most seconds that an answer may take; a shorter limit of the app's own counts.
    out: folder of the run: history, curves, model, the silos' ledgers. resume: go on with the run in it; the ServerApp
    runs from its start and is told what it was told, so no silo computes anything again.

    Raises ConfigError, QuorumLost where no silo answers a kind of message, DataError where a resumed ServerApp sends
    other messages than before, and whatever the ServerApp itself raises.
    """
    asked = _asked(app, server_app, client_app, num_rounds, run_config, silos, seed)
    require(out is not None or not resume, "resume=True goes on with the run in a folder; give it as out=")
    require(round_timeout is None or round_timeout > 0, f"round_timeout={round_timeout} must be positive")
    launch = _Launch(asked, cohort, address, round_timeout)
    if out is None:
        with tempfile.TemporaryDirectory(prefix="ray-fed-flower-") as folder:
            return launch.run(Path(folder), FlowerRecorder(asked.names, None, False), None)
    return _in_folder(launch, Path(at_home(str(out))), resume, tensorboard)


@dataclass(frozen=True)
class _AskedApp:
    """The arguments of `run_flower_app`, settled."""

    server_app: Any
    client_app: Any
    run_config: Mapping[str, Any]
    silos: tuple[SiloSpec, ...]
    seed: int
    app: str

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self.silos)

    def as_config(self) -> dict[str, Any]:
        return {
            "pipeline": PIPELINE, "app": self.app, "silos": list(self.names), "seed": self.seed,
            "run_config": dict(self.run_config),
        }  # fmt: skip


def _asked(
    app: Path | str | None, server_app: Any, client_app: Any, num_rounds: int | None,
    run_config: Mapping[str, Any] | None, silos: Silos, seed: int,
) -> _AskedApp:  # fmt: skip
    flower("app")
    if app is not None:
        require(server_app is None and client_app is None, "give the folder of an app, or its two apps, not both")
        found = read_app_folder(app, run_config)
        require(num_rounds is None, "num_rounds belongs to a strategy; an app's own are in its run_config")
    else:
        require(server_app is not None and client_app is not None, "give an app's folder, or server_app and client_app")
        found = AppFolder(Path(), server_app, client_app, dict(run_config or {}), None)
    specs = _specs(silos if silos is not None else found.num_supernodes or USUAL_SUPERNODES)
    name = found.path.name if app is not None else type(server_app).__name__
    return _AskedApp(
        _server(found.server_app, num_rounds), _client(found.client_app), found.run_config, specs, seed, name
    )


def _specs(silos: Sequence[SiloSpec] | int) -> tuple[SiloSpec, ...]:
    if isinstance(silos, int):
        require(silos > 0, f"silos={silos} must be positive")
        sources = [{"partition-id": number, "num-partitions": silos} for number in range(silos)]
        return tuple(SiloSpec(f"silo-{number}", source) for number, source in enumerate(sources))
    names = [spec.name for spec in silos]
    require(len(names) > 0, "silos is empty; give at least one SiloSpec")
    require(len(set(names)) == len(names), f"silo names {names} must differ")
    return tuple(silos)


def _server(given: Any, num_rounds: int | None) -> Any:
    """Return a ServerApp; ConfigError for what is neither one nor a strategy."""
    if isinstance(given, flower("serverapp").ServerApp):
        require(num_rounds is None, "num_rounds belongs to a strategy; a ServerApp says itself how many")
        return given
    server = flower("server")
    if not isinstance(given, flower("server.strategy").Strategy):
        raise ConfigError(f"server_app is a {type(given).__name__}; give a ServerApp, or a strategy of flwr.server")
    require(num_rounds is not None, "give num_rounds with a strategy")
    config = server.ServerConfig(num_rounds=num_rounds)
    components = server.ServerAppComponents(strategy=given, config=config)
    return flower("serverapp").ServerApp(server_fn=lambda _: components)


def _client(given: Any) -> Any:
    app = flower("clientapp").ClientApp
    if isinstance(given, app):
        return given
    require(callable(given), f"client_app is a {type(given).__name__}; give a ClientApp, or a client_fn(context)")
    return app(client_fn=given)


@dataclass(frozen=True)
class _Launch:
    """Where the silos of a run stand."""

    asked: _AskedApp
    cohort: str
    address: str
    round_timeout: float | None

    def run(
        self, folder: Path, recorder: FlowerRecorder, kept: KeptReplies | None, ledgers: Path | None = None
    ) -> FlowerRun:
        """Run the ServerApp to its end. folder: for the clients' states."""
        asked = self.asked
        specs = [self._placed(spec, folder / "state", ledgers) for spec in asked.silos]
        task = FlowerAppTask(asked.client_app, dict(asked.run_config), asked.seed)
        with self._messenger(specs, task) as messenger, contextlib.closing(recorder):
            grid = as_grid(SiloGrid(messenger, recorder, kept, self.round_timeout))
            outcomes = _served(asked, grid, recorder)
        return FlowerRun(tuple(recorder.records), outcomes.result, outcomes.arrays or {})

    def _placed(self, spec: SiloSpec, state: Path, ledgers: Path | None) -> SiloSpec:
        """Return a silo with a place for its client's state: below the run's folder where silos are on this machine,
        else in the folder that it names itself."""
        if self.address != "local":
            return spec
        spec = replace(spec, state_folder=spec.state_folder or str(state.resolve()))
        return spec if ledgers is None else replace(spec, run="flower", ledger_folder=str(ledgers.resolve()))

    @contextlib.contextmanager
    def _messenger(self, specs: Sequence[SiloSpec], task: FlowerAppTask) -> Iterator[Messenger]:
        if self.cohort == "local":
            yield LocalMessenger({spec.name: make_silo(spec, task) for spec in specs})
            return
        from actors.session import session

        with session(self.address, sum(spec.num_cpus for spec in specs) + 1):
            from actors.federation import silo_actors
            from actors.flower_silos import RayMessenger

            with silo_actors(specs, task) as actors:
                yield RayMessenger(actors)


def _served(asked: _AskedApp, grid: Any, recorder: FlowerRecorder) -> Outcomes:
    """Run the ServerApp in this process, with its global generators seeded."""
    app, identity = flower("app"), flower("supercore.task_identity").TaskIdentity
    server_node = flower("common.constant").SUPERLINK_NODE_ID
    identity.task_id, identity.run_id, identity.node_id = 1, RUN_ID, server_node
    seed_all(derived_seed(asked.seed, "flower server"))
    context = app.Context(RUN_ID, server_node, {}, app.RecordDict(), dict(asked.run_config))
    with watched_loops(recorder.on_central) as outcomes:
        asked.server_app(grid, context)
    grid.settle()
    recorder.finish()
    return outcomes


# ---- in a folder


def _in_folder(launch: _Launch, path: Path, resume: bool, tensorboard: bool) -> FlowerRun:
    config, is_there = to_plain(launch.asked.as_config()), (path / "config.yaml").is_file()
    if is_there and not resume:
        raise ConfigError(f"out={path} holds a run; resume=True goes on with it, another folder begins a new one")
    directory = RunDirectory(path) if is_there else RunDirectory.create(path, PIPELINE)
    with directory.held():
        if is_there:
            _require_same(directory.read_config(), config, path)  # type: ignore[arg-type]
            if _is_complete(directory):
                return _read(directory)
        directory.write_config(config)
        directory.write_environment()
        return _recorded(launch, directory, tensorboard)


def _recorded(launch: _Launch, directory: RunDirectory, tensorboard: bool) -> FlowerRun:
    for old in (directory.history_path, directory.timing_path):  # the ServerApp tells it all again
        old.unlink(missing_ok=True)
    shutil.rmtree(directory.tensorboard, ignore_errors=True)
    unfinished, status, reason = directory.path / UNFINISHED, "failed", ""
    recorder = FlowerRecorder(launch.asked.names, directory, tensorboard)
    if recorder.log:
        recorder.log.hyperparameters(launch.asked.run_config, directory.path.name)
    ledgers = directory.path / "ledger" / "silos" if launch.cohort == "ray" else None
    try:
        run = launch.run(unfinished, recorder, KeptReplies(unfinished / "replies"), ledgers)
        if run.arrays:
            directory.write_bytes(MODEL, serialised({name: np.array(value) for name, value in run.arrays.items()}))
        status = "completed"
    except BaseException as error:
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        reason = str(error) or type(error).__name__
        error.add_note(f"what was done is in {directory.path}; the same call with resume=True goes on with it")
        raise
    finally:
        directory.write_summary(_summary(recorder.records, status, reason))
    shutil.rmtree(unfinished, ignore_errors=True)
    return run


def _summary(records: Sequence[RoundRecord], status: str, reason: str) -> dict[str, Any]:
    last = records[-1] if records else None
    return {
        **(last.metrics if last else {}), **missed(records), "rounds": last.server_round if last else 0,
        "bytes_sent": sum(record.bytes_sent for record in records), "status": status,
        **({"reason": reason} if reason else {}),
    }  # fmt: skip


def _require_same(then: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    for name in dict.fromkeys([*then, *now]):
        if then.get(name) != now.get(name):
            said = f"{name}={now.get(name)!r}, the run in {path} began with {then.get(name)!r}"
            raise ConfigError(f"{said}; ask for the same, or begin a new run in another folder")


def _is_complete(directory: RunDirectory) -> bool:
    return directory.summary_path.is_file() and directory.read_summary().get("status") == "completed"


def _read(directory: RunDirectory) -> FlowerRun:
    from ray_fed.reporting.model_files import read_model_file, tensors_of

    path = directory.path / MODEL
    arrays = tensors_of(read_model_file(path), path) if path.is_file() else {}
    lines = zip(directory.read_history(), directory.read_timing(), strict=True)
    return FlowerRun(tuple(_record_of(line, timing) for line, timing in lines), None, arrays)


def _record_of(line: Mapping[str, Any], timing: Mapping[str, Any]) -> RoundRecord:
    seconds = {key: value for key, value in timing.items() if key not in ("job", "round")}
    return RoundRecord(
        line["job"], "federated", line["round"], line["num_rounds"], line["metrics"], tuple(line["participants"]),
        tuple(line["failures"].items()), line["bytes_sent"], seconds,
    )  # fmt: skip
