"""What a run leaves behind: rows, summary, figures, TensorBoard, report."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from pipelines.leakage.config import LeakageConfig
from pipelines.leakage.figures import curves_figure, final_figure, grid_figure, phase_figure, rates_figure
from pipelines.leakage.jobs import BATCH, COMPARE, DEFENCE, NETWORKS, RATES, rates_data, snapshots
from pipelines.leakage.label_study import LabelResult, table_1
from pipelines.leakage.label_study import as_rows as label_rows
from pipelines.leakage.margins import HEADER as MARGIN_HEADER
from pipelines.leakage.margins import Margin, margins
from pipelines.leakage.margins import as_row as margin_row
from pipelines.leakage.results import HEADER, HEADER_SAYS, MethodResult, Row, number, select, summarise, table_cells
from pipelines.leakage.verdicts import ClaimVerdict, verdicts
from ray_fed.leakage.fidelity import wilson_interval
from ray_fed.leakage.listed_records import Named
from ray_fed.leakage.observation import AttackObservation, Knowledge
from ray_fed.leakage.study import drawn_images
from ray_fed.leakage.tabular_study import TabularLeak
from ray_fed.leakage.targets import make_target
from ray_fed.reporting.figure_style import save_figure
from ray_fed.reporting.report import Figure, Note, Paragraph, Section, Table, write_report
from ray_fed.reporting.run_directory import RunDirectory
from ray_fed.reporting.tensorboard_log import EventLog, model_tag

FINALS = (".below_1e-3", ".median_mse")
"""Ends of the keys of the summary that TensorBoard's table of runs shows."""
CITATION = "WDLG: Int. J. Intell. Syst. (2022), 5510329; the readings of it that were tried are in decisions/0005."


class LeakageOutcome:
    """Turns rows and arrays of a run, finished or not, into its files."""

    def __init__(self, config: LeakageConfig, directory: RunDirectory, command: Sequence[str]):
        self.config, self.directory, self.command = config, directory, shlex.join(command)
        stems = [Path(data).stem for data in config.data]
        self.data = {
            stem if stems.count(stem) == 1 else data: data for stem, data in zip(stems, config.data, strict=True)
        }
        """Name for people -> as it was given."""
        self.rows: list[Row] = []
        self.seconds: dict[str, float] = {}
        self.arrays: dict[str, dict[str, np.ndarray]] = {}
        self.labels: list[LabelResult] = []
        self.tabular: list[TabularLeak] = []

    def begin(self) -> None:
        """Write what is known before the first attack."""
        self.directory.write_config({"command": self.command, **asdict(self.config)})
        self.directory.write_environment({})
        self.directory.write_data([self._fingerprint(data) for data in self.config.data])

    def compared(self) -> dict[str, dict[str, MethodResult]]:
        """Return short name of the data -> attack -> result of the main comparison."""
        found = {}
        for short, data in self.data.items():
            picked = {name: select(self.rows, group=COMPARE, data=data, attack=name) for name in self.config.attacks}
            found[short] = {name: summarise(rows, self.seconds) for name, rows in picked.items() if rows}
        return {short: methods for short, methods in found.items() if methods}

    def rates(self) -> dict[tuple[str, float], MethodResult]:
        """Return (attack, step size) -> result of the learning-rate study."""
        picked = select(self.rows, group=RATES)
        keys = dict.fromkeys((str(row["attack"]), number(row, "learning_rate")) for row in picked)
        return {
            (name, rate): summarise(select(self.rows, group=RATES, attack=name, learning_rate=rate), self.seconds)
            for name, rate in sorted(keys, key=lambda key: (key[0], key[1]))
        }

    def verdicts(self) -> list[ClaimVerdict]:
        return verdicts(self.compared(), self.labels, self.rates(), self.margins())

    def margins(self) -> list[Margin]:
        """Return how far ours is ahead of each other attack of the main comparison."""
        found: list[Margin] = []
        for data, methods in self.compared().items():
            rows = {name: select(self.rows, group=COMPARE, data=self.data[data], attack=name) for name in methods}
            found += margins(data, methods, rows, self.config.budget * self.config.restarts)
        return found

    def finish(self, status: str, seconds: float) -> None:
        """Write figures, TensorBoard, report and, last, the summary."""
        figures = self._figures()
        summary = self._summary(status, seconds)
        self._tensorboard(figures, summary)
        write_report(
            self.directory, "Gradient leakage", summary, self._sections(figures),
            subtitle="What one training message gives away, by eight attacks" if len(self.config.attacks) > 7
            else "What one training message gives away, attack by attack",
            command=self.command, provenance=CITATION,
        )  # fmt: skip
        self.directory.write_summary(summary)  # type: ignore[arg-type]

    # ---- parts

    def threat_model(self) -> str:
        """Return the named threat model of the main comparison."""
        images = drawn_images(self.config.data[0], self.config.images, self.config.seed)
        network = make_target(self.config.model, images.shape, images.num_classes, 0, self.config.output_bias)
        parameters = tuple(parameter.detach() for parameter in network.parameters())
        return AttackObservation(
            network, parameters, parameters, Knowledge(images.shape, images.num_classes)
        ).threat_model

    def _fingerprint(self, data: str) -> dict[str, object]:
        images = drawn_images(data, self.config.images, self.config.seed)
        size = "x".join(map(str, images.shape))
        return {
            "name": images.name,
            "rows": len(images),
            "shape": size,
            "classes": images.num_classes,
            "about": images.about,
        }

    def _summary(self, status: str, seconds: float) -> dict[str, object]:
        summary: dict[str, object] = {"status": status, "seconds.total": seconds, "attacks": len(self.rows)}
        summary["attacks.failed"] = sum("failed" in row for row in self.rows)
        for data, methods in self.compared().items():
            for name, result in methods.items():
                low, high = wilson_interval(result.exact, result.samples)
                summary |= {
                    f"{data}.{name}.below_1e-2": result.near, f"{data}.{name}.below_1e-3": result.exact,
                    f"{data}.{name}.samples": result.samples, f"{data}.{name}.below_1e-3.low": low,
                    f"{data}.{name}.below_1e-3.high": high, f"{data}.{name}.median_mse": result.median_mse,
                    f"{data}.{name}.evaluations_to_1e-2": result.to_near,
                    f"{data}.{name}.evaluations_to_1e-3": result.to_exact,
                    f"{data}.{name}.diverged": result.diverged, f"{data}.{name}.seconds_per_attack": result.seconds,
                }  # fmt: skip
        for one in self.tabular:
            key = ".".join(f"{value}" for value in asdict(one.case).values() if value != "")
            summary |= {f"tabular.{key}.found": one.exact + one.near, f"tabular.{key}.records": one.rows}
            summary |= {f"tabular.{key}.{attack}": counted.right for attack, counted in one.named.items()}
        for verdict in self.verdicts():
            summary[f"verdict.{verdict.claim}"] = verdict.verdict
        return summary

    def _stacked(self, key: str, **wanted: object) -> np.ndarray | None:
        """Return the arrays of the jobs whose rows have the `wanted` fields, problems one after another."""
        jobs = dict.fromkeys(str(row["job"]) for row in select(self.rows, **wanted))
        parts = [self.arrays[job][key] for job in sorted(jobs) if job in self.arrays]
        return np.concatenate(parts) if parts else None

    def _figures(self) -> dict[str, Path]:
        made: dict[str, Path] = {}
        for data, methods in self.compared().items():
            first = {}
            for name in methods:
                arrays = {
                    key: self._stacked(key, group=COMPARE, data=self.data[data], attack=name)
                    for key in ("truth", "found", "snapshots")
                }
                if arrays["truth"] is not None:
                    first[name] = {key: value[:4] for key, value in arrays.items() if value is not None}
            if first:
                slug = _slug(data)
                made[f"grid-{slug}"] = self._save(
                    f"grid-{slug}", grid_figure(data, snapshots(self.config.budget), first, _clearest(first))
                )
                made[f"final-{slug}"] = self._save(f"final-{slug}", final_figure(data, first))
        phases = {data: lines for data, lines in self._curves().items() if lines}
        for quantity in ("mse", "loss") if phases else ():
            curves = {
                data: {name: arrays[quantity] for name, arrays in lines.items()} for data, lines in phases.items()
            }
            made[quantity] = self._save(quantity, curves_figure(curves, quantity))
        if phases:
            made["phase"] = self._save("phase", phase_figure(phases))
        drawn = {
            (name, rate): arrays
            for name, rate in self.rates()
            for arrays in self._both([name], group=RATES, learning_rate=rate).values()
        }
        if drawn:
            made["rates"] = self._save("rates", rates_figure(drawn))
        return made

    def _both(self, names: Iterable[str], **wanted: object) -> dict[str, dict[str, np.ndarray]]:
        """Return attack -> mse and loss [images, evaluations], where there are any."""
        found = {name: {key: self._stacked(key, attack=name, **wanted) for key in ("mse", "loss")} for name in names}
        return {
            name: {key: value for key, value in arrays.items() if value is not None}
            for name, arrays in found.items()
            if arrays["mse"] is not None
        }

    def _curves(self) -> dict[str, dict[str, dict[str, np.ndarray]]]:
        """Return data -> attack -> mse and loss of the main comparison."""
        known = self.compared().items()
        return {data: self._both(methods, group=COMPARE, data=self.data[data]) for data, methods in known}

    def _save(self, name: str, figure) -> Path:
        return save_figure(figure, self.directory.figures / f"{name}.png")

    def _tensorboard(self, figures: Mapping[str, Path], summary: Mapping[str, object]) -> None:
        """Each attack is a model: its error on each kind of data by evaluation, grouped by data."""
        curves = self._curves()
        with EventLog(self.directory.tensorboard) as log:
            log.hyperparameters({"pipeline": "leakage", **asdict(self.config)}, self.directory.path.name)
            charts = {data: [model_tag(name, f"mse/{_slug(data)}") for name in names] for data, names in curves.items()}
            log.layout({"Mean squared error": charts})
            for data, methods in curves.items():
                for name, arrays in methods.items():
                    middle = np.median(np.where(np.isfinite(arrays["mse"]), arrays["mse"], 1e6), axis=0)
                    for evaluation in range(0, len(middle), max(1, len(middle) // 100)):
                        log.scalar(model_tag(name, f"mse/{_slug(data)}"), middle[evaluation], evaluation + 1)
            finals = {key: value for key, value in summary.items() if key.endswith(FINALS)}
            log.outcome(finals, list(figures.values()))

    def _sections(self, figures: Mapping[str, Path]) -> list[Section]:
        said = [[one.claim, one.verdict, one.because] for one in self.verdicts()]
        sections = [
            Section("Threat model", [Paragraph(self.threat_model() + ".")]),
            Section("Claims", [Table(["claim", "verdict", "because"], said)]),
        ]
        for data, methods in self.compared().items():
            rows = [table_cells(result) for result in methods.values()]
            caption = (
                f"{self.config.images} images of {data}; the same networks, starts and {self.config.budget} gradient "
                f"evaluations for every attack. {HEADER_SAYS}."
            )
            sections.append(
                Section(f"Attacks on {data}", [Table(HEADER, rows, caption), *self._pictures(figures, data)])
            )
        return [*sections, *self._margin_sections(), *self._curve_sections(figures), *self._side_sections()]

    def _margin_sections(self) -> list[Section]:
        found = self.margins()
        said = (
            "Difference of the shares of images below 1e-3 in percentage points, with its 95 % interval (Newcombe "
            "1998). Sooner / later: images that ours brought below 1e-3 in fewer, and in more, evaluations. Saved: the "
            "other's evaluations divided by ours, median over images; an attack that never gets there counts with its "
            "budget, so the true ratio is at least this. Ours also solves linear systems before its first evaluation: "
            "compare seconds per attack, too."
        )
        rows = [margin_row(one) for one in found]
        return [Section("How far ours is ahead", [Table(MARGIN_HEADER, rows, said)])] if found else []

    def _pictures(self, figures: Mapping[str, Path], data: str) -> list[Figure]:
        captions = {
            f"grid-{_slug(data)}": "One image over the budget: the best point so far (the paper's Figs. 2-3).",
            f"final-{_slug(data)}": "Four images after the whole budget.",
        }
        return [Figure(figures[name], said) for name, said in captions.items() if name in figures]

    def _curve_sections(self, figures: Mapping[str, Path]) -> list[Section]:
        captions = {
            "mse": "Mean squared error of the best point so far, median over images (Fig. 4).",
            "loss": "Each attack's own objective, relative to its start; different objectives are not comparable.",
            "phase": "Error against objective, from the first evaluation (right) to the last (dot; Fig. 4 g-i): an "
            "objective that falls while the error does not has another minimum.",
            "rates": f"Objective and error on {rates_data(self.config)} at different step sizes without a line search, "
            "median over images (Fig. 5).",
        }
        blocks = [Figure(figures[name], said) for name, said in captions.items() if name in figures]
        return [Section("Curves", blocks)] if blocks else []

    def _side_sections(self) -> list[Section]:
        sections = []
        if self.labels:
            optimised = {data: found["dlg"].labels_right for data, found in self.compared().items() if "dlg" in found}
            first = table_1(self.labels, {self.data[data]: right for data, right in optimised.items()})
            lines = label_rows(self.labels)
            blocks = [
                Table(first[0], first[1:], "Labels right, batch 1, and entries of the message looked at (Table 1)."),
                Table(lines[0], lines[1:], "Labels right under other conditions; the order in a batch left aside."),
            ]
            sections.append(Section("Labels in closed form", blocks))
        for group, title, fields in (
            (NETWORKS, "Other networks", ("model", "data")),
            (BATCH, "Batches and local steps", ("batch_size", "local_steps")),
            (DEFENCE, "Defences", ("defence",)),
        ):
            rows = self._condition_rows(group, fields)
            if rows:
                header = [name.replace("_", " ") for name in fields]
                sections.append(Section(title, [Table([*header, *HEADER], rows, f"{HEADER_SAYS}.")]))
        if self.tabular:
            sections.append(Section("Rows of the 73-feature regression network", tabular_blocks(self.tabular)))
        failed = sorted({str(row["failed"]) for row in self.rows if "failed" in row})
        if failed:
            sections.append(Section("Attacks that could not run", [Note(reason) for reason in failed]))
        return sections

    def _condition_rows(self, group: str, fields: Sequence[str]) -> list[list[str]]:
        rows = select(self.rows, group=group)
        keys = sorted({tuple(row[name] for name in (*fields, "attack")) for row in rows}, key=self._order)
        table = []
        for key in keys:
            picked = select(rows, **dict(zip((*fields, "attack"), key, strict=True)))
            table.append([*(str(value) or "none" for value in key[:-1]), *table_cells(summarise(picked, self.seconds))])
        return table

    def _order(self, key: tuple) -> tuple:
        place = self.config.defences.index(key[0]) + 1 if key[0] in self.config.defences else 0
        return (place, *key)


def tabular_blocks(leaks: Sequence[TabularLeak]) -> tuple[Paragraph, Table]:
    """Return what the report says of table rows."""
    attacks = list(dict.fromkeys(attack for one in leaks for attack in one.named))
    rows = [
        [
            one.case.optimizer, str(one.case.batch_size), str(one.case.local_steps), str(one.case.silos),
            one.case.defence or "none", f"{one.rows:,}",
            f"{one.exact / one.rows:.1%}", f"{one.near / one.rows:.1%}",
            *(_rate(one.named.get(attack)) for attack in attacks),
            f"{max(one.target_errors):.1e}" if one.target_errors else "–",
        ]
        for one in leaks
    ]  # fmt: skip
    said = (
        "The attacker divides each unit's weight update by its bias update, and takes messages of up to 10 records "
        "apart into their exact factors (SPEAR, Dimitrov et al. 2024). A record counts as found if a guess is within "
        "1 % (exact) or 10 % (near) of a standard deviation per feature, root mean square, and nearer than any other "
        "record of the batch is to it. An attacker whose list of 2,000 crystals holds those of the batch names them by "
        "the span of the first layer's rows, or by least squares on the gradients of the output: the share named "
        "rightly, in brackets what naming at random gives."
    )
    header = ["optimiser", "batch", "local steps", "silos in the sum", "defence", "records", "exact", "near",
              *(f"named by {attack}" for attack in attacks), "worst target error (eV/atom)"]  # fmt: skip
    return Paragraph(said), Table(header, rows)


def _rate(counted: Named | None) -> str:
    return "–" if counted is None else f"{counted.right / counted.named:.1%} ({counted.by_chance / counted.named:.1%})"


def _clearest(methods: Mapping[str, Mapping[str, np.ndarray]]) -> int:
    """Return the image with the most contrast: on an empty background nobody sees what was found."""
    truth = next(iter(methods.values()))["truth"]
    return int(truth.reshape(len(truth), -1).std(axis=1).argmax())


def _slug(data: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in Path(data).name)
