"""What a run leaves behind: summary, model, figures and report."""

import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from torch.nn.functional import l1_loss, mse_loss

from pipelines.fingerprints import fingerprints
from pipelines.launching import CoordinatorLike
from pipelines.round_notes import missed
from pipelines.training.alone import summary_of
from pipelines.training.analysis_report import figure_of, sections
from pipelines.training.class_pages import class_sections
from pipelines.training.experiment import TrainingExperiment
from pipelines.training.measured_limits import FEDERATED, coverage_table, summarised
from pipelines.training.members import Gain, gains, gains_table
from pipelines.training.members import summarised as summarised_gains
from pipelines.training.per_silo_errors import own_errors, own_table
from pipelines.update_options import privacy_statement
from ray_fed.federation.diversity import DIVERSITY
from ray_fed.federation.rounds.job import EPSILON
from ray_fed.federation.rounds.kept_back import KEPT_ROUND
from ray_fed.materials.boosted_property_task import BoostedPropertyTask
from ray_fed.materials.card_entries import card_entries, forest_entries, network_entries, scaler_arrays, tree_entries
from ray_fed.materials.limits import PROMISE, ModelLimits, told
from ray_fed.materials.personal_file import FOLDER
from ray_fed.materials.targets import Target, values_by_target
from ray_fed.metrics import Metric, regression_metrics
from ray_fed.reporting.figures import ParityPanel, bars_figure, learning_curves_figure, parity_figure
from ray_fed.reporting.model_files import ModelCard, model_paths, save_model
from ray_fed.reporting.report import Figure, Section, Table, write_report
from ray_fed.reporting.results import BEST, ResultRow, Results, results_from_summary, words
from ray_fed.reporting.run_directory import RunDirectory
from ray_fed.reporting.tensorboard_log import EventLog

MAX_PARITY_SILOS = 4
LOSSES: Mapping[object, str] = {mse_loss: "mse", l1_loss: regression_metrics("")[0].name}
CITATION = "Guo et al., Sci Rep 12 (2022), doi:10.1038/s41598-022-19426-8"
NOT_COVERED = "numbers of rows, the feature scaler (means and variances of columns), held-out errors"
"""What the account of noise says nothing of."""
NOT_COVERED_OF_TREES = "numbers of rows, held-out errors"


class TrainingOutcome:
    """Turns an experiment, finished or broken off, into files of a run directory."""

    def __init__(
        self,
        experiment: TrainingExperiment,
        directory: RunDirectory,
        command: Sequence[str],
        notices: Sequence[str],
        site_overrides: Sequence[str] = (),
    ):
        self.experiment, self.directory = experiment, directory
        self.site_overrides = tuple(site_overrides)
        self.command, self.notices = shlex.join(command), tuple(notices)
        self.has_model: dict[str, bool] = {}
        """Silo -> whether its owner has taken the final model, where it was handed over."""
        self.summary: dict[str, object] = {}
        self.pictures: list[Path] = []
        """Figures that were saved, in their order."""

    def begin(self) -> None:
        """Write what is known before training: configuration, versions, data fingerprints, status "running"."""
        agreement = self.experiment.agreement
        self.directory.write_metrics(self.experiment.setup.task.metrics)
        self.directory.write_config(
            {
                "command": self.command,
                "set": list(self.site_overrides),
                "pipeline": self.experiment.setup.config.PIPELINE,
                **asdict(self.experiment.setup.config),
            }
        )
        self.directory.write_environment({name: silo.device for name, silo in agreement.silos.items()})
        self.directory.write_data(fingerprints(agreement))
        self._summarise("running", "")
        self.directory.write_summary(self.summary)  # type: ignore[arg-type]

    def finish(self, status: str, reason: str = "", seal: Callable[[], None] | None = None) -> None:
        """Write everything that the experiment has got so far. `seal` is called when all files but the summary are
        there."""
        self._summarise(status, reason)
        if status != "completed":  # the smallest file first: the disk may be full
            self.directory.write_summary(self.summary)  # type: ignore[arg-type]
        self._save_models()
        figures, classes = self._figures(), self._classes()
        self._report(figures, classes)
        self._log()
        if seal:
            seal()
        # Last: a run whose summary says "completed" has everything else.
        self._summarise(status, reason)
        self.directory.write_summary(self.summary)  # type: ignore[arg-type]

    def notice(self, lines: Sequence[str]) -> None:
        """Say what the user should know, now and in the summary and the report."""
        self.notices += tuple(lines)
        for line in lines:
            print(f"note: {line}", file=sys.stderr)

    def share_model(self, coordinator: CoordinatorLike) -> None:
        """Hand the model to the silos' owners; name those who did not take it. Who did is in the summary."""
        self._summarise("running", "")
        self._save_models()
        weights, card = (np.fromfile(path, np.uint8) for path in model_paths(self.directory.models / "federated"))
        reasons = coordinator.hand_over_model(weights, card)
        self.has_model = {silo: not reason for silo, reason in reasons.items()}
        self.notice([f"silo '{silo}' did not take the model: {why}" for silo, why in reasons.items() if why])

    def paths(self) -> dict[str, Path]:
        """Label -> path, for the terminal."""
        run = self.directory
        return {
            "report": run.report_path,
            "summary": run.summary_path,
            "model": run.models / "federated.safetensors",
            "history": run.history_path,
            "TensorBoard": run.tensorboard,
        }

    # ---- summary

    def _summarise(self, status: str, reason: str) -> None:
        self.summary = {
            **self._metrics(),
            **self._alone(),
            **own_errors(self.experiment),
            **summarised_gains(self.gains(), self.experiment.members),
            **self._costs(),
            **self._counts(),
            **missed(self.experiment.federated_records()),
            **self._privacy(),
            **summarised(self.experiment.limits, self.experiment.setup.task.targets),
            **{f"silo.{silo}.has_model": has for silo, has in self.has_model.items()},
            "status": status,
            **({"reason": reason} if reason else {}),
        }

    def _metrics(self) -> dict[str, object]:
        """`federated.<metric>`, `silo.<name>.<metric>`, ...: mean over the seeds, with `_std` of several."""
        flat: dict[str, object] = {}
        for metric in self.experiment.metrics:
            for model, values in self.experiment.finals(metric).items():
                key = model if model in ("federated", "pooled") else f"silo.{model}"
                flat[f"{key}.{metric.name}"] = mean(values)
                if len(values) > 1:
                    flat[f"{key}.{metric.name}_std"] = stdev(values)
        return flat

    def _alone(self) -> dict[str, object]:
        """`best.<silo>.<metric>` and `.learner`, where there is a common test set: what each could do alone."""
        experiment = self.experiment
        if experiment.agreement.test is None or not experiment.alone:
            return {}
        networks = {metric.name: experiment.finals(metric) for metric in experiment.metrics}
        rows = {
            f"{BEST}.{silo}.num_examples": experiment.agreement.silos[silo].num_examples
            for silo in experiment.alone[0].results
        }
        return summary_of(experiment.alone, networks, experiment.metrics, BEST) | rows

    def _costs(self) -> dict[str, object]:
        """Rounds, bytes, seconds of one federated run, and how unlike its silos are, averaged over the seeds."""
        rounds = self.experiment.federated_records()
        runs = max(1, len({record.job for record in rounds}))
        unlike = [record.metrics[DIVERSITY] for record in rounds if DIVERSITY in record.metrics]
        seconds = {
            f"seconds.{name}": sum(record.seconds[name] for record in rounds) / runs
            for name in ("compute", "communicate", "evaluate")
        }
        best = [record.metrics[KEPT_ROUND] for record in rounds if KEPT_ROUND in record.metrics]
        return {
            "rounds": len(rounds) // runs,
            **({KEPT_ROUND: mean(best)} if best else {}),
            "bytes_sent": sum(record.bytes_sent for record in rounds) // runs,
            **({"silo_diversity": mean(unlike)} if unlike else {}),
            **seconds,
            "seconds.total": time.perf_counter() - self.experiment.started,
        }

    def _counts(self) -> dict[str, object]:
        setup, agreement = self.experiment.setup, self.experiment.agreement
        silos = {name: agreement.silos[name] for name in setup.training if name in agreement.silos}
        total = sum(silo.num_examples for silo in silos.values())
        counts = {f"silo.{name}.num_examples": silo.num_examples for name, silo in silos.items()}
        held_out = sum(silo.num_held_out for silo in silos.values() if silo.metrics)
        test = agreement.test["num_examples"] if agreement.test else held_out
        return {
            **counts,
            "federated.num_examples": total,
            **({"pooled.num_examples": agreement.silos["pooled"].num_examples} if setup.pooled else {}),
            "test.num_examples": test,
            "unusable_rows": sum(sum(silo.unreadable.values()) for silo in silos.values()),
            "num_parameters": agreement.layout.num_parameters,
            "seed": setup.config.seed,
            "repeats": setup.config.repeats,
            "cohort": setup.config.cohort,
            "unit": ", ".join(target.shown_unit or "1" for target in setup.task.targets),
            "target": ", ".join(target.name for target in setup.task.targets),
        }

    def _privacy(self) -> dict[str, object]:
        """`privacy.level`, `.epsilon`, `.delta` and what they do not cover; nothing where no noise was asked for."""
        spent = [record.metrics[EPSILON] for record in self.experiment.federated_records() if EPSILON in record.metrics]
        account = self.experiment.setup.config.account(1)
        left_out = NOT_COVERED if self.experiment.setup.task.standardises else NOT_COVERED_OF_TREES
        return {} if account is None else privacy_statement(account, spent[-1] if spent else 0.0, left_out)

    # ---- model

    def _save_models(self) -> None:
        """Write the models there are: the federated one, and of the baselines each silo's own and the pooled one."""
        agreement, layout = self.experiment.agreement, self.experiment.agreement.layout
        for name, vector in self.experiment.models.items():
            arrays = layout.unflatten(vector[: layout.size])
            arrays |= scaler_arrays(self.experiment.setup.task, agreement.standardizer)
            save_model(self.directory.models / name, arrays, self._card(name))

    def _card(self, model: str) -> ModelCard:
        setup, config = self.experiment.setup, self.experiment.setup.config
        featurizer = setup.task.featurizer()
        finals = {metric.name: self.experiment.finals(metric) for metric in self.experiment.metrics}
        first = {name: values[model][0] for name, values in finals.items() if model in values}
        return ModelCard(
            name=model,
            **card_entries(setup.task),
            descriptor={
                "name": setup.task.features,
                "table_hash": featurizer.fingerprint(),
                "options": dict(setup.task.feature_options),  # type: ignore[arg-type]
            },
            feature_names=tuple(str(name) for name in featurizer.get_feature_names_out()),
            **self._method(),
            seed=config.seed,
            data=tuple(fingerprints(self.experiment.agreement)),  # type: ignore[arg-type]
            split={"how": config.split, "test_rows": self.summary["test.num_examples"], "seed": config.seed},  # type: ignore[dict-item]
            metrics={
                "train": {"n": self._num_examples(model)},
                "test": {**first, "n": self.summary["test.num_examples"]},  # type: ignore[dict-item]
            },
            federation=self._federation_record(model),  # type: ignore[arg-type]
            limits=told(self.experiment.limits[model]) if model in self.experiment.limits else {},
            training_history="../history.jsonl",
            citation=CITATION,
        )

    def _method(self) -> dict[str, Any]:
        """Return what kind of model it is and how it was trained, as arguments of ModelCard."""
        config, task = self.experiment.setup.config, self.experiment.setup.task
        if isinstance(task, BoostedPropertyTask):
            return {"architecture": forest_entries(task.trees), "hyperparameters": tree_entries(task.trees)}
        return {
            "architecture": network_entries(task),
            "hyperparameters": {
                "optimizer": config.optimizer,
                "learning_rate": config.learning_rate,
                "batch_size": config.batch_size,
                "epochs": config.epochs,
                "optimizer_state": config.optimizer_state,
                "decay": config.decay,
                "loss": LOSSES.get(task.loss, "mse and cross-entropy over the labels there are"),
            },
        }

    def _num_examples(self, model: str) -> int:
        """Return the training rows of a model."""
        silos = self.experiment.agreement.silos
        rows = {name: silos[name].num_examples for name in self.experiment.setup.training if name in silos}
        return sum(rows.values()) if model == FEDERATED else silos[model].num_examples

    def _federation_record(self, model: str) -> dict[str, object]:
        """Return who trained it: all silos together, or one alone."""
        setup = self.experiment.setup
        agreement = self.experiment.agreement
        if model != FEDERATED:
            return {"silos": [model], "weights": {model: 1.0}, "privacy": "none"}
        counts = {name: agreement.silos[name].num_examples for name in setup.training if name in agreement.silos}
        return {
            **({"joined": dict(agreement.joined)} if agreement.joined else {}),
            "silos": list(counts),
            "weights": {name: count / sum(counts.values()) for name, count in counts.items()},
            "rounds": self.summary["rounds"],
            "strategy": setup.config.strategy if setup.config.model == "mlp" else setup.config.model,
            "strategy_options": list(setup.config.strategy_options),
            "privacy": self._privacy() or "none",
        }

    # ---- figures and report

    def _figures(self) -> list[Figure]:
        made = [self._bars(), self._curves()]
        return [*self._parities(), *(figure for figure in made if figure)]

    def _classes(self) -> list[Section]:
        """Return a section for each target that is a class."""
        experiment, scores = self.experiment, self.experiment.scores
        rows = sorted(self.results.rows, key=lambda row: row.kind != "federated")
        in_order = {row.label: scores[row.name] for row in rows if row.name in scores}
        is_hidden = experiment.true is None
        where = (
            "on all silos' held-out rows together" if experiment.agreement.test is None else "on the common test set"
        )
        return class_sections(experiment.setup.task.targets, in_order, is_hidden, where, self._save)

    def _log(self) -> None:
        """Show in TensorBoard what the federated model came to, and the pictures."""
        finals = {metric.name: self.summary.get(f"federated.{metric.name}") for metric in self.experiment.metrics}
        with EventLog(self.directory.tensorboard) as log:
            log.outcome(finals, self.pictures)

    @property
    def results(self) -> Results:
        """The models so far."""
        return results_from_summary(self.summary, self.experiment.metrics)

    def _parities(self) -> list[Figure]:
        """Return a parity plot of each target that is a number."""
        experiment, targets = self.experiment, self.experiment.setup.task.targets
        if experiment.true is None or not experiment.predicted:
            return []
        shape = len(experiment.true), -1
        true = experiment.true.reshape(shape)
        predicted = {
            name: values_by_target(values.reshape(shape), targets) for name, values in experiment.predicted.items()
        }
        columns = [{name: parts[at][:, 0] for name, parts in predicted.items()} for at in range(len(targets))]
        return [
            self._parity(target, true[:, at], columns[at]) for at, target in enumerate(targets) if not target.classes
        ]

    def _parity(self, target: Target, true: np.ndarray, predicted: Mapping[str, np.ndarray]) -> Figure:
        rows, there = self.results.shown, ~np.isnan(true)
        silos = sorted((row for row in rows if row.kind == "silo"), key=lambda row: -(row.num_examples or 0))
        left_out = silos[MAX_PARITY_SILOS:]
        metrics = self.experiment.setup.task.metrics_of(target)
        panels = [
            ParityPanel(self._name(row), true[there], predicted[row.name][there], self._scores(row, metrics))
            for row in rows
            if row not in left_out and row.name in predicted
        ]
        figure = parity_figure(panels, target.shown_unit, target.words, self._reference(), target.transform)
        caption = (
            f"Predicted against true {target.heading} on the common test set, "
            f"seed {self.experiment.setup.config.seed}. Colour: density of points."
        )
        several = len(self.experiment.setup.task.targets) > 1
        return self._save(f"parity-{target.key}" if several else "parity", figure, caption)

    @staticmethod
    def _name(row: ResultRow) -> str:
        return row.label + (f" ({row.num_examples:,} rows)" if row.num_examples else "")

    def _scores(self, row: ResultRow, metrics: Sequence[Metric]) -> dict[Metric, float]:
        shown = [metric for metric in metrics if metric in self.experiment.metrics]
        return {metric: self.experiment.finals(metric)[row.name][0] for metric in shown}

    def _bars(self) -> Figure | None:
        headline, repeats = self.experiment.metrics[0], self.experiment.setup.config.repeats
        rows = [row for row in self.results.shown if row.values[headline.name] is not None]
        if not rows:
            return None
        panels = {metric: _means(rows, metric, repeats > 1) for metric in self.results.metrics}
        figure = bars_figure([row.label for row in rows], panels, repeats=repeats)
        titles = " and ".join(metric.title for metric in panels)
        return self._save("bars", figure, f"{titles} of every model on the common test set.")

    def _curves(self) -> Figure | None:
        names = ["federated", *self.experiment.setup.models]
        headline = self.experiment.metrics[0]
        curves = {name: self.experiment.curve(name, headline) for name in names}
        curves = {name: points for name, points in curves.items() if points[0]}
        if not curves:
            return None
        labels = {name: name if name in ("federated", "pooled") else f"{name} alone" for name in curves}
        named = {labels[name]: points for name, points in curves.items()}
        figure = learning_curves_figure(named, headline, x_label=self._pass)
        return self._save("learning_curves", figure, f"Test {headline.title} during training, first seed.")

    def _save(self, name: str, figure, caption: str) -> Figure:
        from ray_fed.reporting.figures import save_figure

        path = self.directory.figures / f"{name}.png"
        save_figure(figure, path)
        self.pictures.append(path)
        return Figure(path, caption)

    @property
    def _pass(self) -> str:
        return "Iteration" if isinstance(self.experiment.setup.task, BoostedPropertyTask) else "Epoch"

    def _reference(self) -> str:
        return "model data" if self.experiment.setup.config.data == "embedded" else "reference"

    def _report(self, figures: list[Figure], classes: list[Section]) -> None:
        setup, agreement = self.experiment.setup, self.experiment.agreement
        write_report(
            self.directory,
            f"Multi-source training: {_listed([target.words for target in setup.task.targets])}",
            self.summary,
            [
                *self._members_section(),
                *self._own_section(),
                *self._limits_section(),
                *classes,
                *self._analysis(),
                *([Section("Figures", figures)] if figures else []),
            ],
            subtitle=f"{len(setup.training)} silos, {self.summary['rounds']} communications",
            command=self.command,
            results=self.results,
            unreadable={name: silo.unreadable for name, silo in agreement.silos.items() if silo.unreadable},
            notes={name: silo.notes for name, silo in agreement.silos.items() if silo.notes},
            warnings=self.notices,
            provenance=self._provenance(),
        )

    def _analysis(self) -> list[Section]:
        """Write analysis.json; return its part of the report."""
        analysis = self.experiment.analysis
        if analysis is None:
            return []
        self.directory.write_json("analysis.json", analysis.as_json())  # type: ignore[arg-type]
        has_bars = bool(analysis.groups or analysis.importances)
        caption = f"Errors on {analysis.where} by anion class and element; what the model rests on."
        return sections(analysis, [self._save("analysis", figure_of(analysis), caption)] if has_bars else [])

    def own_table(self) -> list[list[str]]:
        """Return what each silo's own held-out rows say, header first; empty with a common test set."""
        return own_table(self.summary, self.experiment.setup.training, self.experiment.metrics[0])

    def gains(self) -> list[Gain]:
        """Return what joining comes to for each member; none where no personal models were made."""
        metric = self.experiment.metrics[0]
        return gains(self.experiment.members, self._best_single(metric), metric)

    def _best_single(self, metric: Metric) -> dict[str, tuple[float, str]]:
        """Return silo -> (value, learner) of the best single learner that each silo has chosen for itself."""
        told = {**self._alone(), **own_errors(self.experiment)}
        found = {}
        for silo in self.experiment.setup.training:
            for key in (f"{BEST}.{silo}", f"own.{silo}"):
                value = told.get(f"{key}.{metric.name}" if key.startswith(BEST) else f"{key}.{BEST}_{metric.name}")
                if isinstance(value, float):
                    found[silo] = (value, words(str(told.get(f"{key}.learner", ""))))
        return found

    def gains_table(self) -> list[list[str]]:
        """Return what joining comes to for each member, header first; empty where that was not asked."""
        return gains_table(self.gains(), self.summary)

    def _members_section(self) -> list[Section]:
        header, *rows = self.gains_table() or [[]]
        if not rows:
            return []
        said = [*(f"{one.sentence()}." for one in self.gains()), self._where_personal()]
        return [Section("What joining comes to for each member", [Table(header, rows, " ".join(said))])]

    def _where_personal(self) -> str:
        if self.experiment.setup.config.address == "local" and not self.experiment.setup.sites:
            return f"Personal models are in {FOLDER}/ of this folder: whoever has the folder has them all."
        return "Each personal model is with its silo, in the folder of its states; its log names the file."

    def _own_section(self) -> list[Section]:
        header, *rows = self.own_table() or [[]]
        return [Section("On each silo's own held-out rows", [Table(header, rows)])] if rows else []

    @property
    def _limits(self) -> ModelLimits:
        """Those of the federated model."""
        return self.experiment.limits.get(FEDERATED, ModelLimits())

    def limits_table(self) -> list[list[str]]:
        """Return what the federated model's intervals cover, header first; empty where that was not measured."""
        return coverage_table(self._limits, self.experiment.setup.task.targets)

    def why_no_intervals(self) -> str:
        """Return why predictions will have no intervals, "" where they have."""
        return self._limits.why_none

    def _limits_section(self) -> list[Section]:
        header, *rows = self.limits_table() or [[]]
        return [Section("What the intervals of predictions cover", [Table(header, rows, PROMISE)])] if rows else []

    def _provenance(self) -> str:
        if self.experiment.setup.config.data != "embedded" or self.experiment.setup.config.federation:
            return f"Method: {CITATION}."
        from ray_fed.materials.model_crystals.crystals import PROVENANCE

        return f"{PROVENANCE}. Method: {CITATION}."


def _listed(words: Sequence[str], most: int = 4) -> str:
    shown = ", ".join(words[:most])
    return f"{shown} and {len(words) - most} more" if len(words) > most else shown


def _means(rows: Sequence[ResultRow], metric: Metric, several: bool) -> tuple[list[float], list[float] | None]:
    """Return values of a metric, NaN where there is none, and with several seeds their spread."""
    values = [row.values[metric.name] for row in rows]
    means = [float("nan") if value is None else value for value in values]
    return means, [row.spreads.get(metric.name) or 0.0 for row in rows] if several else None
