"""`ray-fed train` and its preset: from options, or from a run that was broken off, to a finished run directory."""

import contextlib
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from pipelines.fingerprints import check_data
from pipelines.ledger.coordinator_ledger import CoordinatorLedger, discard_unused, name_of_run, silos_folder
from pipelines.training.checkpoint import Checkpoint
from pipelines.training.config import CONFIGS, TrainConfig
from pipelines.training.experiment import TrainingExperiment, launched
from pipelines.training.folds import all_folds
from pipelines.training.membership import founded, rejoined, with_founders
from pipelines.training.outcome import TrainingOutcome
from pipelines.training.recorder import TrainingRecorder, Watched
from pipelines.training.setup import Setup, jobs, resolve, with_ledgers, with_personal_folder, with_state_folder
from pipelines.update_options import require_own_code
from ray_fed.config import at_home
from ray_fed.errors import DataError, FedError
from ray_fed.federation.coordinator import Agreement
from ray_fed.federation.diversity import DIVERSITY, UNLIKE
from ray_fed.materials.databases.kinds import whole_path
from ray_fed.materials.personal_file import FOLDER
from ray_fed.materials.property_task import LABELS_OF
from ray_fed.perimeter.own_words import words_of
from ray_fed.reporting.environment import software_versions
from ray_fed.reporting.run_directory import RunDirectory
from ray_fed.reporting.terminal import aligned, paths_table, results_table

BEFORE_TRAIN = "formation-energy"
"""The command of a run whose configuration does not say which: there was one."""
NOT_OPTIONS = ("command", "set", "pipeline", "out")
"""What config.yaml holds besides options."""


@dataclass(frozen=True)
class RunRequest:
    """One run to do: what, where it is kept, and whether it was begun before."""

    setup: Setup
    directory: RunDirectory
    command: tuple[str, ...]
    site_overrides: tuple[str, ...]
    checkpoint: Checkpoint
    is_resumed: bool


def run(options: dict[str, object], command: Sequence[str]) -> int:
    """Run `ray-fed formation-energy`; prints progress to stderr and the results to stdout, returns the exit code."""
    return _run(options, command, "formation-energy")


def train(options: dict[str, object], command: Sequence[str]) -> int:
    """Run `ray-fed train`, likewise."""
    return _run(options, command, "train")


def _run(options: dict[str, object], command: Sequence[str], pipeline: str) -> int:
    given = options.pop("site_overrides", [])
    assert isinstance(given, list)
    options = with_whole_paths(options)
    if options.get("folds") and options.get("fold") is None:
        return _run_folds(CONFIGS[pipeline](**options), options, command)  # type: ignore[arg-type]
    setup = resolve(options, given, pipeline)
    out = setup.config.out
    directory = RunDirectory.create(at_home(out) if out else None, pipeline)
    checkpoint = Checkpoint(directory)
    setup = with_state_folder(setup, checkpoint.silo_state, directory.path.resolve().name)
    setup = with_personal_folder(setup, directory.path / FOLDER)
    setup = with_ledgers(setup, silos_folder(directory), name_of_run(directory))
    try:
        with directory.held(), _keeping(directory):
            return _carry_out(RunRequest(setup, directory, tuple(command), tuple(given), checkpoint, False))
    finally:
        discard_unused(directory)
        directory.discard_if_empty()


def _run_folds(config: TrainConfig, options: Mapping[str, object], command: Sequence[str]) -> int:
    """Run each fold of a new run, and write what they come to."""
    resolve({**options, "fold": 1}, (), config.PIPELINE)  # whatever is wrong is said before a folder is made
    directory = RunDirectory.create(at_home(config.out) if config.out else None, config.PIPELINE)
    try:
        with directory.held(), _keeping(directory):
            told = {"command": shlex.join(command), "set": [], "pipeline": config.PIPELINE}
            directory.write_config({**told, **asdict(config)})
            return _go_on_with_folds(config, directory, command, None)
    finally:
        directory.discard_if_empty()


def _go_on_with_folds(config: TrainConfig, directory: RunDirectory, command: Sequence[str], strategy: object) -> int:
    options = {key: value for key, value in asdict(config).items() if key != "out"}

    def run_fold(fold: int, place: Path) -> None:
        if (place / "config.yaml").is_file():
            resume({"run_directory": str(place), "strategy": strategy, "model": config.model}, ())
        else:
            _run({**options, "fold": fold, "out": str(place)}, command, config.PIPELINE)

    return all_folds(config, directory, command, run_fold)


def resume(options: Mapping[str, Any], _command_line: Sequence[str]) -> int:
    """Go on with a run that was broken off, from its last complete round; the result is that of an unbroken run."""
    path = options["run_directory"]
    directory = RunDirectory(path)
    if not directory.config_path.is_file():
        raise DataError(f"{path} is not a run directory: it has no config.yaml; give the folder that a run printed")
    with directory.held(), _keeping(directory):
        if _is_complete(directory):
            print(f"{path} is complete; nothing to resume")
            return 0
        told = directory.read_config()
        if told.get("folds") and told.get("fold") is None:
            require_own_code(told.get("model"), options.get("model"), directory.config_path, "model")
            config = CONFIGS[pipeline_of(told)](**options_of(told))  # type: ignore[arg-type]
            return _go_on_with_folds(config, directory, shlex.split(str(told["command"])), options["strategy"])
        return _carry_out(_begun(directory, options["strategy"], options.get("model")))


def _is_complete(directory: RunDirectory) -> bool:
    if not directory.summary_path.is_file():
        return False
    summary = directory.read_summary()
    return isinstance(summary, dict) and summary.get("status") == "completed"


def _begun(directory: RunDirectory, strategy: object, model: object) -> RunRequest:
    """Read what a broken-off run was to do and how far it came; DataError when that cannot be made out. strategy,
    model: as the user has named them again."""
    try:
        config = directory.read_config()
        options = options_of(config)
        require_own_code(options.get("strategy"), strategy, directory.config_path)
        require_own_code(options.get("model"), model, directory.config_path, "model")
        overrides = tuple(str(text) for text in config["set"])  # type: ignore[union-attr]
        checkpoint = Checkpoint(directory)
        is_resumed = checkpoint.load()
        setup = resolve(options, overrides, pipeline_of(config))
        setup = with_founders(setup, directory) if is_resumed else setup
        setup = with_state_folder(setup, checkpoint.silo_state, directory.path.resolve().name)
        setup = with_personal_folder(setup, directory.path / FOLDER)
        setup = with_ledgers(setup, silos_folder(directory), name_of_run(directory))
        command = tuple(shlex.split(str(config["command"])))
    except FedError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OSError, SafetensorError) as error:
        said = " ".join(str(error).split())
        raise DataError(
            f"{directory.path} cannot be resumed ({type(error).__name__}: {said}); start a new run"
        ) from error
    return RunRequest(setup, directory, command, overrides, checkpoint, is_resumed)


def options_of(config: Mapping[str, Any]) -> dict[str, object]:
    """Return the options in a run's config.yaml; of a run of before there was a decay, none."""
    options = {key: _as_option(value) for key, value in config.items() if key not in NOT_OPTIONS}
    return {"decay": "none", **options}


def pipeline_of(config: Mapping[str, Any]) -> str:
    """Return the command that a run's config.yaml is of."""
    return str(config.get("pipeline", BEFORE_TRAIN))


@contextlib.contextmanager
def _keeping(directory: RunDirectory) -> Iterator[None]:
    """Say of a file that cannot be written, most likely on a full disk, how the run goes on: FedError. An interrupt
    while results are written leaves a run that can be gone on with, too."""
    try:
        yield
    except KeyboardInterrupt:
        if directory.summary_path.is_file() and directory.read_summary().get("status") == "running":
            print(_way_on("interrupted", directory), file=sys.stderr)
            directory.write_summary({**directory.read_summary(), "status": "interrupted"})
        raise
    except BrokenPipeError:
        raise
    except OSError as error:
        said = f"{error.strerror or error}: {error.filename}" if error.filename else str(error)
        path = directory.path
        remedy = f"go on with: ray-fed resume {path}" if directory.config_path.is_file() else "start the run again"
        raise FedError(f"{said}; make room or set the permissions right, then {remedy}") from error


def _carry_out(request: RunRequest) -> int:
    outcome = _train(request)
    for line in _missed(outcome.experiment):
        print(f"note: {line}", file=sys.stderr)
    results_table(outcome.results)
    print()
    if own := outcome.own_table():
        print(aligned(own, right=range(1, len(own[0])), rule=True))
    for gain in outcome.gains():
        print(gain.sentence())
    if limits := outcome.limits_table():
        print("rows in neither training nor calibration, and where the federated model's intervals hold them:")
        print(aligned(limits, right=range(1, len(limits[0])), rule=True))
    if why := outcome.why_no_intervals():
        print(f"note: predictions have no intervals: {why}", file=sys.stderr)
    paths_table(outcome.paths())
    return 0


def _train(request: RunRequest) -> TrainingOutcome:
    """Train, and write the run directory whatever happens once the silos have agreed."""
    started, setup = time.perf_counter(), request.setup
    here = "in this process" if setup.config.cohort == "local" else f"as Ray actors (address {setup.config.address})"
    if setup.sites:
        there = f"{len(setup.sites)} of them at sites of their owners"
        here = f"{there}, the others {here}" if setup.silos else "at sites of their owners"
    print(f"opening {len(setup.training)} silos {here}", file=sys.stderr)
    with launched(setup) as (coordinator, notices):
        agreement = coordinator.agree(setup.config.threshold(len(setup.training)))
        changed = _changed_versions(request.directory) if request.is_resumed else []
        notices = [*setup.notes, *notices, *_untold(agreement), *_labelled(agreement), *_outside_scaler(agreement)]
        for line in [*notices, *said_of_rows(agreement), *changed]:
            print(f"note: {line}", file=sys.stderr)
        check_sizes(agreement)
        setup = founded(setup, agreement)
        jobs(
            setup, dict(agreement.silos), setup.config.seed
        )  # whatever is wrong with them is said before a file is made
        if request.is_resumed:
            check_data(agreement, setup.founders if setup.config.late_silos else (), request.directory)
            agreement = rejoined(agreement, setup, request.directory)
            _check_silo_states(request)
        ledger = CoordinatorLedger.of_run(request.directory, setup.run, request.checkpoint.folder)
        with TrainingRecorder(_watched(setup), request.directory, ledger) as recorder:
            records = request.checkpoint.records() if request.is_resumed else []
            experiment = TrainingExperiment(setup, agreement, recorder, request.checkpoint, records, started=started)
            outcome = TrainingOutcome(experiment, request.directory, request.command, notices, request.site_overrides)
            outcome.begin()
            try:
                experiment.train(coordinator)
                if setup.config.share_model:
                    outcome.share_model(coordinator)
                outcome.notice([*recorder.collect(coordinator), *_unlike(experiment)])
            except KeyboardInterrupt:
                _broken_off(outcome, "interrupted", "")
                raise
            except FedError as error:
                outcome.notice(recorder.collect(coordinator))
                _broken_off(outcome, "failed", str(error))
                raise
            except OSError as error:
                _broken_off(outcome, "failed", str(error))
                raise
    outcome.finish("completed", seal=ledger.end_run if ledger else None)
    shutil.rmtree(request.checkpoint.folder, ignore_errors=True)
    return outcome


def _watched(setup: Setup) -> Watched:
    config = setup.config
    told = {"pipeline": config.PIPELINE, **asdict(config)}
    return Watched(
        setup.task.metrics, setup.training, told, config.seed, setup.models, config.repeats, config.dp_delta
    )  # fmt: skip


def _broken_off(outcome: TrainingOutcome, status: str, reason: str) -> None:
    print(_way_on(status, outcome.directory), file=sys.stderr)
    try:
        outcome.finish(status, reason)
    except OSError as error:  # must not hide why the run ended
        print(f"note: its summary and report are not up to date: {error}", file=sys.stderr)


def _way_on(status: str, directory: RunDirectory) -> str:
    return f"{status}; what was done so far is in {directory.path}; go on with: ray-fed resume {directory.path}"


def said_of_rows(agreement: Agreement) -> list[str]:
    """Say per silo how many rows could not be used, and why, and of how many something is odd."""
    lines = []
    for name, silo in agreement.silos.items():
        if silo.unreadable:
            reasons = "; ".join(f"{count} x {reason}" for reason, count in sorted(silo.unreadable.items()))
            lines.append(f"silo '{name}': {sum(silo.unreadable.values())} rows not usable: {reasons}")
        if silo.notes:
            notes = "; ".join(f"{count} x {note}" for note, count in sorted(silo.notes.items()))
            lines.append(f"silo '{name}': noted: {notes}")
    return lines


def _untold(agreement: Agreement) -> list[str]:
    """Say whose owner keeps its metrics, and what is then not known of the models."""
    kept = [name for name, silo in agreement.silos.items() if not silo.metrics]
    lines = [f"silo '{name}': its owner keeps its metrics; errors on its rows are not known" for name in kept]
    if len(kept) == len(agreement.silos) and agreement.test is None:
        lines += ["no silo tells metrics and there is no common test set: the models are trained, their errors unknown"]
    return lines


def _outside_scaler(agreement: Agreement) -> list[str]:
    """Say whose rows are not in the means and variances by which all features are scaled."""
    return [f"silo '{name}', the scaler: {reason}" for name, reason in sorted(agreement.outside_scaler.items())]


def _labelled(agreement: Agreement) -> list[str]:
    """Say per silo how many training rows have a label of each of several targets."""
    lines = []
    for name, silo in agreement.silos.items():
        counts = {key.removeprefix(LABELS_OF): n for key, n in silo.fingerprint.items() if key.startswith(LABELS_OF)}
        if counts:
            told = ", ".join(f"{target} {count:,}" for target, count in counts.items())
            lines.append(f"silo '{name}': labels among its {silo.num_examples:,} training rows: {told}")
    return lines


def _changed_versions(directory: RunDirectory) -> list[str]:
    """Say which packages are not those that the run began with: the same bytes can then not be promised."""
    packages = directory.read_environment().get("packages") if directory.environment_path.is_file() else None
    then = packages if isinstance(packages, dict) else {}
    return [
        f"the run began with {name} {then[name]} and goes on with {version}; the last digits may differ"
        for name, version in software_versions().items()
        if then.get(name, version) != version
    ]


def _missed(experiment: TrainingExperiment) -> list[str]:
    """Say of each silo that failed in how many federated rounds it took part, in how many evaluations it is missing,
    and why it first was."""
    rounds = experiment.federated_records()
    reasons: dict[str, str] = {}
    unevaluated: dict[str, str] = {}
    for record in rounds:
        reasons = {silo: why for silo, why in record.failures if (silo, why) not in record.unevaluated} | reasons
        unevaluated = dict(record.unevaluated) | unevaluated
    took_part = {silo: sum(silo in record.participants for record in rounds) for silo in reasons}
    missing = {silo: sum(silo in dict(record.unevaluated) for record in rounds) for silo in unevaluated}
    said = [
        (f"silo '{silo}' took part in {took_part[silo]} of {len(rounds)} rounds", reasons[silo]) for silo in reasons
    ]
    said += [(f"silo '{silo}' is missing in {missing[silo]} evaluations", unevaluated[silo]) for silo in unevaluated]
    specs = experiment.setup.members
    return [f"{line}: " + "; ".join([reason, *words_of(reason, specs)]) for line, reason in said]


def _unlike(experiment: TrainingExperiment) -> list[str]:
    """Say where silos are unlike, and the strategy is one that is known to lose by it; and what to do."""
    config = experiment.setup.config
    keeps = config.model == "mlp" and config.optimizer == "adam" and config.chosen_strategy() != "scaffold_adam"
    found = [record.metrics[DIVERSITY] for record in experiment.federated_records() if DIVERSITY in record.metrics]
    if not keeps or max(found, default=0.0) <= UNLIKE:
        return []
    measured = f"the silos' rows are unlike (diversity of first moves {max(found):.2f}, below {UNLIKE:g} if alike)"
    lost = f"with strategy={config.chosen_strategy()} and Adam's moments in each silo the model is worse by that"
    return [f"{measured}; {lost}; use --strategy scaffold_adam --decay cosine"]


def check_sizes(agreement: Agreement) -> None:
    """DataError for a silo with too few rows to train on."""
    for name, silo in agreement.silos.items():
        if silo.num_examples < 2:
            raise DataError(
                f"silo '{name}' has {silo.num_examples} usable training rows; it needs 2: give it more or leave it out"
            )


def _check_silo_states(request: RunRequest) -> None:
    """Say when silos cannot go on exactly: DataError where their optimiser states were removed, a note on a cluster."""
    config, checkpoint = request.setup.config, request.checkpoint
    job = checkpoint.progress["job"]
    if job is not None and config.strategy == "fed_buff":
        print(
            "note: fed_buff depends on who answers first; work that was under way is asked for again", file=sys.stderr
        )
    if job is None or config.model == "boosted_trees" or config.optimizer != "adam" or config.optimizer_state != "keep":
        return
    if config.address != "local":
        for spec in request.setup.silos:
            if not spec.state_folder:
                print(f"note: silo '{spec.name}' has no folder 'state'; it goes on with fresh moments", file=sys.stderr)
        return
    took_part = {silo for _, record in checkpoint.records() if record.job == job for silo in record.participants}
    took_part &= {spec.name for spec in request.setup.silos}  # sites of their owners keep their own
    missing = sorted(silo for silo in took_part if not (checkpoint.silo_state / silo / f"{job}.states").exists())
    if missing:
        raise DataError(
            f"silo '{missing[0]}': its optimiser state in {checkpoint.silo_state} is missing, so the run cannot go on "
            "exactly; restore the folder or start a new run"
        )


def with_whole_paths(options: Mapping[str, object]) -> dict[str, object]:
    """Make paths independent of the current folder, so that a run can be resumed from anywhere."""
    whole = dict(options)
    for name in ("data", "federation"):
        value = whole.get(name)
        if isinstance(value, str):
            whole[name] = whole_path(str(at_home(value)) if value.startswith("~") else value, Path.cwd())
    return whole


def _as_option(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value
