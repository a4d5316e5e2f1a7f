"""What a run leaves behind: rows, summary, figures, TensorBoard, report."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from pipelines.leakage.config import LeakageConfig
from pipelines.leakage.figures import curves_figure, final_figure, grid_figure, phase_figure, rates_figure
from pipelines.leakage.frequency import FrequencyLeak
from pipelines.leakage.frequency import as_rows as frequency_rows
from pipelines.leakage.jobs import BATCH, COMPARE, DEFENCE, NETWORKS, RATES, TRAINED, rates_data, snapshots, study_jobs
from pipelines.leakage.label_study import LabelResult, table_1
from pipelines.leakage.label_study import as_rows as label_rows
from pipelines.leakage.margins import HEADER as MARGIN_HEADER
from pipelines.leakage.margins import Margin, margins
from pipelines.leakage.margins import as_row as margin_row
from pipelines.leakage.results import (
    HEADER,
    HEADER_SAYS,
    MethodResult,
    Row,
    best_reading,
    number,
    select,
    summarise,
    table_cells,
)  # fmt: skip
from pipelines.leakage.verdicts import ClaimVerdict, verdicts
from ray_fed.leakage.attacks import attack_named
from ray_fed.leakage.fidelity import wilson_interval
from ray_fed.leakage.listed_records import Named
from ray_fed.leakage.study import drawn_images, observations_of
from ray_fed.leakage.tabular_study import TabularLeak
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
        self.frequency: list[FrequencyLeak] = []

    def begin(self) -> None:
        """Write what is known before the first attack."""
        self.directory.write_config({"command": self.command, **asdict(self.config)})
        self.directory.write_environment({})
        self.directory.write_data([self._fingerprint(data) for data in self.config.data])

    def compared(self, budget: int | None = None) -> dict[str, dict[str, MethodResult]]:
        """Return short name of the data -> attack -> result of the main comparison at a budget, by default the first.
        What is algebra alone counts at every one."""
        found = {}
        for short in self.data:
            picked = {name: self._compared_rows(short, name, budget) for name in self.config.wanted_attacks}
            found[short] = {name: summarise(rows, self.seconds) for name, rows in picked.items() if rows}
        return {short: methods for short, methods in found.items() if methods}

    def _compared_rows(self, short: str, name: str, budget: int | None = None) -> list[Row]:
        first = self.config.wanted_budgets[0]
        wanted = first if budget is None or attack_named(name).is_algebra else budget
        return select(self.rows, group=COMPARE, data=self.data[short], attack=name, budget=wanted)

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

    def blocks(self, data: str, budget: int | None = None) -> dict[str, list[MethodResult]]:
        """Return algebraic | iterative -> results on a set of images at a budget, in the order of `ATTACKS`."""
        found: dict[str, list[MethodResult]] = {"algebraic": [], "iterative": []}
        for name, result in self.compared(budget).get(data, {}).items():
            found[attack_named(name).family].append(result)
        return {family: results for family, results in found.items() if results}

    def margins(self) -> list[Margin]:
        """Return how far ours is ahead of each other attack of the main comparison."""
        found: list[Margin] = []
        for data, methods in self.compared().items():
            rows = {name: self._compared_rows(data, name) for name in methods}
            found += margins(data, methods, rows, self.config.budget * self.config.restarts)
        return found

    def finish(self, status: str, seconds: float) -> None:
        """Write figures, TensorBoard, report and, last, the summary."""
        figures = self._figures()
        summary = self._summary(status, seconds)
        self._tensorboard(figures, summary)
        write_report(
            self.directory, "Gradient leakage", summary, self._sections(figures),
            subtitle="What one training message gives away, attack by attack",
            command=self.command, provenance=CITATION,
        )  # fmt: skip
        self.directory.write_summary(summary)  # type: ignore[arg-type]

    def endings(self) -> dict[str, str]:
        """Return attack -> how its attacks on the user's own network ended, each way with its count."""
        said: dict[str, dict[str, int]] = {}
        for row in select(self.rows, group=COMPARE):
            words = str(row.get("failed") or row["outcome"])
            kind = words.split(" up to ")[0].split(": its best point")[0].split(": what it ends")[0]
            counts = said.setdefault(str(row["attack"]), {})
            counts[kind] = counts.get(kind, 0) + 1
        return {
            attack: "; ".join(f"{count} of {sum(counts.values())} {kind}" for kind, count in counts.items())
            for attack, counts in said.items()
        }

    # ---- parts

    def threat_model(self) -> str:
        """Return the named threat model of the main comparison."""
        first = next(iter(study_jobs(self.config)), None)
        if first is None:
            return "honest-but-curious coordinator: sees updates of table rows and the parameters it sent"
        job = next((job for job in study_jobs(self.config) if job.group == COMPARE), first)
        return observations_of(replace(job, problems=job.problems[:1]))[0][0].threat_model

    def _fingerprint(self, data: str) -> dict[str, object]:
        images = drawn_images(data, self.config.wanted_images, self.config.seed)
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
            summary[f"{data}.best_wdlg"] = best_reading(methods)
        for budget in self.config.wanted_budgets[1:]:
            for data, methods in self.compared(budget).items():
                summary |= {f"{data}.{name}.below_1e-3.at_{budget}": one.exact for name, one in methods.items()}
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
        first_budget = self.config.wanted_budgets[0]
        for data, methods in self.compared().items():
            shown = {}
            for name in methods:
                wanted = {"group": COMPARE, "data": self.data[data], "attack": name, "budget": first_budget}
                arrays = {key: self._stacked(key, **wanted) for key in ("truth", "found", "snapshots", "mse")}
                if arrays["truth"] is not None:
                    shown[name] = {key: value for key, value in arrays.items() if value is not None}
            if shown and len(next(iter(shown.values()))["truth"].shape) == 5:
                slug, order = _slug(data), _by_difficulty(shown)
                steps = snapshots(first_budget)
                made[f"grid-{slug}"] = self._save(
                    f"grid-{slug}", grid_figure(data, steps, shown, order[len(order) // 2])
                )
                made[f"final-{slug}"] = self._save(f"final-{slug}", final_figure(data, _spread(shown, order)))
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
        budget = self.config.wanted_budgets[0]
        return {
            data: self._both(methods, group=COMPARE, data=self.data[data], budget=budget) for data, methods in known
        }

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
        for data in self.compared():
            tables = [
                Table(HEADER, [table_cells(one) for one in results], self._caption(data, family, budget))
                for budget in self.config.wanted_budgets
                for family, results in self.blocks(data, budget).items()
                if family == "iterative" or budget == self.config.wanted_budgets[0]
            ]
            sections.append(Section(f"Attacks on {data}", [*tables, *self._pictures(figures, data)]))
        if self.config.is_own:
            sections.append(self._own_section())
        return [*sections, *self._margin_sections(), *self._curve_sections(figures), *self._side_sections()]

    def _caption(self, data: str, family: str, budget: int) -> str:
        stops = "DLG and iDLG stop where the published loops do, iDLG below an objective of 1e-6. "
        kind = (
            "Algebraic attacks: linear systems; of analytic, rgap and layers the evaluation says how well they fit. "
            if family == "algebraic" else f"Iterative attacks, {budget:,} gradient evaluations each. {stops}"
        )  # fmt: skip
        return (
            f"{kind}{self.config.wanted_images} images of {data}, the same networks and starts for each. {HEADER_SAYS}."
        )

    def _own_section(self) -> Section:
        """Say for each message of the user's own network how each attack ended, as far as an attacker sees."""
        lines = [
            [str(row["data"]), str(row["attack"]), str(row["problem"]), str(row.get("outcome") or row.get("failed"))]
            for row in select(self.rows, group=COMPARE)
        ]  # fmt: skip
        said = "What an attacker sees of its own success; an attack that could not run says why."
        return Section("Message by message", [Table(["data", "attack", "message", "outcome"], lines, said)])

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
            f"grid-{_slug(data)}": "The image of median difficulty (mean over the attacks of the error's logarithm) "
            "over the budget: the best point so far (the paper's Figs. 2-3).",
            f"final-{_slug(data)}": "Four images from the easier to the harder eighths, after the whole budget.",
        }
        return [Figure(figures[name], said) for name, said in captions.items() if name in figures]

    def _curve_sections(self, figures: Mapping[str, Path]) -> list[Section]:
        captions = {
            "mse": "Mean squared error of the best point so far, median over images (Fig. 4).",
            "loss": "Each attack's own objective, relative to its start; different objectives are not comparable.",
            "phase": "Error against objective, from the first evaluation (right) to the last (dot; Fig. 4 g-i): an "
            "objective that falls while the error does not has another minimum.",
            "rates": f"Objective and error on {rates_data(self.config)} at different step sizes without a line search, "
            "by L-BFGS and by plain descent, median over images (Fig. 5).",
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
            (TRAINED, "A network that has learned", ("trained",)),
            (BATCH, "Batches and local steps", ("batch_size", "local_steps")),
            (DEFENCE, "Defences", ("defence",)),
        ):
            rows = self._condition_rows(group, fields)
            if rows:
                header = [name.replace("_", " ") for name in fields]
                sections.append(Section(title, [Table([*header, *HEADER], rows, f"{HEADER_SAYS}.")]))
        if self.frequency:
            lines = frequency_rows(self.frequency)
            said = (
                "One pass of SGD over a silo's records in batches of 4, told in one message or in up to 32; what all "
                "messages together give away. In brackets what naming at random gives."
            )
            sections.append(Section("Fewer, larger exchanges", [Table(lines[0], lines[1:], said)]))
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


def _by_difficulty(methods: Mapping[str, Mapping[str, np.ndarray]]) -> list[int]:
    """Return the images whose pictures are kept, from those that the attacks find most easily to the hardest."""
    kept = min(len(arrays["truth"]) for arrays in methods.values())
    errors = [
        np.log10(np.nan_to_num(arrays["mse"][:kept, -1], nan=1e6).clip(1e-12, 1e6)) for arrays in methods.values()
    ]
    return [int(place) for place in np.argsort(np.mean(errors, axis=0), kind="stable")]


def _spread(methods: Mapping[str, Mapping[str, np.ndarray]], order: Sequence[int]) -> dict[str, dict[str, np.ndarray]]:
    """Return truth and found of four images from all parts of an order."""
    places = list(dict.fromkeys(order[len(order) * eighth // 8] for eighth in (1, 3, 5, 7)))
    return {name: {key: arrays[key][places] for key in ("truth", "found")} for name, arrays in methods.items()}


def _slug(data: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in Path(data).name)
