"""`ray-fed fedtransfer`: from options to a run directory; an interrupted run is resumed."""

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pipelines.fedtransfer.config import FedTransferConfig, resolved, same_results
from pipelines.fedtransfer.experiment import FedTransferExperiment, Line
from pipelines.fedtransfer.outcome import FedTransferOutcome
from pipelines.fedtransfer.results import GLOBAL, header, table_rows, verdicts
from pipelines.fedtransfer.setup import at_one_scale, check_methods, is_embedded, session_names, specs_of, task_of
from pipelines.fedtransfer.stage_logs import StageLogs
from ray_fed.errors import ConfigError
from ray_fed.federation.messages import Vector
from ray_fed.federation.rounds.job import RoundRecord
from ray_fed.metrics import TRAIN_LOSS
from ray_fed.micrographs.model_file import SegmenterCard, save_segmenter
from ray_fed.reporting.run_directory import RunDirectory
from ray_fed.reporting.terminal import RoundProgress, aligned, paths_table
from ray_fed.reporting.writing import to_plain
from ray_fed.style_transfer.exchange import LocalStyleFederation, StyleFederation
from ray_fed.style_transfer.task import SESSION_MARK, FedTransferTask

PIPELINE = "fedtransfer"
FILE_NAMES = {"transfer_int8": "fedtransfer"}
"""The model that `ray-fed segment` takes if none is named."""


def run(options: Mapping[str, Any], command: Sequence[str]) -> int:
    """Run all stages; prints progress to stderr and tables to stdout, returns the exit code."""
    config = resolved(options)
    if not is_embedded(config):
        # Of real micrographs there is no true renderer.
        config = replace(config, methods=tuple(name for name in config.methods if name != "oracle"))
    # What is wrong with the options is said before anything starts.
    check_methods(config)
    config = at_one_scale(config)
    for fold in range(config.num_folds):
        specs_of(config, fold, Path())
    directory, begun = _directory(config)
    try:
        outcome = FedTransferOutcome(config, directory, command)
        return _carry_out(config, outcome, begun)
    finally:
        directory.discard_if_empty()


def _carry_out(config: FedTransferConfig, outcome: FedTransferOutcome, begun: bool) -> int:
    started, status = time.perf_counter(), "interrupted"
    if begun:
        outcome.lines.extend(dict(line) for line in outcome.directory.read_history())
    try:
        with RoundProgress() as progress:
            listener = FedTransferRecorder(outcome, progress)
            with contextlib.closing(listener.logs):
                for fold in range(config.num_folds):
                    _run_fold(config, fold, outcome, listener)
        status = "completed"
    finally:
        if outcome.lines or status == "completed":
            outcome.finish(status, time.perf_counter() - started)
    _print(outcome)
    return 0


def _run_fold(
    config: FedTransferConfig, fold: int, outcome: FedTransferOutcome, listener: "FedTransferRecorder"
) -> None:
    task = task_of(config, fold)
    finished = frozenset(str(line["stage"]) for line in outcome.lines)
    with _silos(config, fold, outcome) as federation:
        outcome.begin()  # not before all silos have opened their micrographs: a wrong folder leaves nothing behind
        outcome.notices = list(dict.fromkeys([*outcome.notices, *federation.notices]))
        FedTransferExperiment(config, fold, task, federation, listener, finished).run()


@contextlib.contextmanager
def _silos(config: FedTransferConfig, fold: int, outcome: FedTransferOutcome) -> Iterator[StyleFederation]:
    """Yield the silos, in this process or as actors."""
    specs, task = specs_of(config, fold, outcome.silo_folder), task_of(config, fold)
    if config.cohort == "local":
        yield LocalStyleFederation(specs, task)
        return
    from actors.session import session

    with session(config.address, sum(spec.num_cpus for spec in specs) + 1):
        from actors.federation import silo_actors

        with silo_actors(specs, task, answer_timeout=config.round_timeout) as silos:
            silos.open()
            yield silos


class FedTransferRecorder:
    """Writes every finished stage down, and tells the terminal and TensorBoard how it goes."""

    def __init__(self, outcome: FedTransferOutcome, progress: RoundProgress):
        self.outcome, self.progress = outcome, progress
        self.logs = StageLogs(outcome.directory.tensorboard)
        self._is_begun = False

    def on_stage_start(self, title: str, rounds: int) -> None:
        self._begin_logs()
        self.progress.start(rounds, title)

    def _begin_logs(self) -> None:
        """Not before the first stage: a run whose data cannot be used leaves no folder."""
        if self._is_begun:
            return
        config = self.outcome.config
        about = {"pipeline": PIPELINE, **asdict(config)}
        self.logs.begin(about, self.outcome.directory.path.name, session_names(config), self.outcome.silos)
        self._is_begun = True

    def on_round_end(self, record: RoundRecord) -> None:
        self.logs.on_round_end(record)
        if record.server_round:
            shown = {TRAIN_LOSS: record.metrics.get(TRAIN_LOSS), "bytes_sent": record.bytes_sent}
            self.progress.advance({"server_round": record.server_round, **shown})

    def trained(self, name: str, task: FedTransferTask, models: Mapping[str, Vector], line: Line) -> None:
        """Save the models of the first seed and fold for `ray-fed segment`."""
        config, silos = self.outcome.config, tuple(self.outcome.silos)
        if (line["fold"], line["seed"]) != (0, config.seed):
            return
        for model, vector in models.items():
            method = name.split(SESSION_MARK)[0]
            stem = FILE_NAMES.get(method, method) + (f"-{model}" if model in silos else "")
            owners = (model,) if model in silos else silos
            scores = {silo: dict(values) for silo, values in line["test"][model].items()}
            card = SegmenterCard(stem, task.design, config.size, config.training_pixel_size_um, owners, scores)
            save_segmenter(self.outcome.directory.models / stem, vector, card)

    def done(self, line: Line, seconds: float) -> None:
        """A line stands for the whole stage: what is not written is done again."""
        plain: Any = to_plain(dict(line))
        known = [old for old in self.outcome.lines if (old["stage"], old["fold"]) != (plain["stage"], plain["fold"])]
        if len(known) == len(self.outcome.lines):
            self.outcome.directory.append_history(plain)
            self.outcome.directory.append_timing({"stage": plain["stage"], "fold": plain["fold"], "seconds": seconds})
            self.outcome.lines.append(plain)
            self.logs.done(plain)
        self._tell(plain)

    def _tell(self, plain: Mapping[str, Any]) -> None:
        """Say what a user must not have to look for in the report."""
        if plain["stage"] == "data":
            for silo, told in plain["facts"].items():
                if told["notes"]:
                    self.progress.note(
                        f"silo '{silo}': {told['notes']:.0f} note(s) about its files, see data.txt in its folder under "
                        f"{self.outcome.silo_folder}"
                    )
        for receiver, told in plain.get("trials", {}).items():
            for name in (name for name, value in told.items() if name.endswith(".used") and not value):
                sender = name.removesuffix(".used")
                self.progress.note(
                    f"style of '{sender}' is left out at '{receiver}': painted images alone teach ARI "
                    f"{told[f'{sender}.painted.ari']:.3f} there, real ones {told[f'{sender}.real.ari']:.3f}"
                )
        if plain["stage"] == "generators":
            for silo, told in plain["facts"].items():
                verdict = "no sign of memorisation" if told["memorisation.passed"] else "MEMORISATION"
                self.progress.note(
                    f"generator of {silo}: {verdict}, held-out L1 {told['memorisation.held_out_l1']:.3f}"
                )


def _directory(config: FedTransferConfig) -> tuple[RunDirectory, bool]:
    """Return the run directory, and whether it holds a run with these options, interrupted or to be extended: methods,
    repeats and folds may be added. An option that the run's version did not have counts as its default."""
    if config.out and (Path(config.out) / "config.yaml").is_file():
        directory = RunDirectory.open(config.out)
        wanted: Any = to_plain(same_results(config))
        defaults: Any = to_plain(same_results(FedTransferConfig()))
        there = {key: directory.read_config().get(key, defaults[key]) for key in wanted}
        changed = [key for key in wanted if wanted[key] != there[key]]
        if changed:
            raise ConfigError(
                f"out={config.out} holds a run with {changed[0]}={there[changed[0]]}, not {wanted[changed[0]]}; "
                "give the same options to go on, or another --out"
            )
        done = {str(line["stage"]) for line in directory.read_history()}
        is_complete = directory.summary_path.is_file() and directory.read_summary().get("status") == "completed"
        if is_complete and done.issuperset(session_names(config)):
            raise ConfigError(f"out={config.out} holds a complete run; give another --out, or more methods or repeats")
        return directory, True
    return RunDirectory.create(config.out, PIPELINE), False


def _print(outcome: FedTransferOutcome) -> None:
    silos = outcome.silos
    for places in (silos, [GLOBAL]) if outcome.results else ():
        rows = [header(places), *table_rows(outcome.results, places)]
        print(aligned(rows, right=range(1, len(rows[0])), rule=True), end="\n\n")
    for text in verdicts(outcome.results):
        print(text)
    print()
    directory = outcome.directory
    paths_table({"report": directory.report_path, "summary": directory.summary_path, "lines": directory.history_path,
                 "TensorBoard": directory.tensorboard})  # fmt: skip
    sys.stdout.flush()
