"""What a sweep leaves for readers: results.csv, summary.json, figures and the report."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipelines.sweep import figures as draw
from pipelines.sweep import results_file
from pipelines.sweep.advice import recommendation
from pipelines.sweep.outcomes import PointSummary, TrialOutcome, best_of, pareto_front, summaries, table
from pipelines.sweep.points import Trial, shown, swept_fields
from pipelines.sweep.privacy import SweepPrivacy
from pipelines.training.outcome import CITATION
from ray_fed.metrics import Metric
from ray_fed.reporting.figures import save_figure
from ray_fed.reporting.report import Block, Figure, Paragraph, Section, Table, write_report
from ray_fed.reporting.run_directory import RunDirectory

MAX_BOXES = 16
OWN_WORK = ("epochs", "batch_size")
"""Fields that change how many local steps a trial takes."""


def write_results(
    directory: RunDirectory, trials: Sequence[Trial], outcomes: Sequence[TrialOutcome], status: str, seconds: float,
    *, command: str, num_silos: int, metrics: Sequence[Metric], objective: Metric,
    private: Sequence[SweepPrivacy] = (),
) -> list[PointSummary]:  # fmt: skip
    """Write everything from the outcomes known so far; return the points."""
    points = summaries(outcomes, objective)
    directory.write_csv("results.csv", results_file.columns(outcomes))
    summary = _summary(trials, outcomes, points, status, seconds, objective)
    for one in private:
        summary |= one.summary()
    directory.write_summary(summary)
    header, *cells = table(points, metrics)
    blocks: list[Block] = [Table(header, cells), *(Paragraph(text) for text in _notes(trials, metrics))]
    blocks += [Paragraph(one.words) for one in private]
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    write_report(
        directory, "Sweep of the formation-energy network", summary,
        [Section("Recommendation", [Paragraph(text) for text in recommendation(points)]), Section("Points", blocks),
         Section("Figures", _figures(directory, trials, points))],
        subtitle=f"{len(outcomes)} of {len(trials)} trials on the same {num_silos} silos", command=command,
        warnings=[f"trial {o.number} ({o.label}, seed {o.seed}) failed: {o.reason}" for o in failed],
        provenance=f"Method: {CITATION}, Fig. 5 and 6.",
    )  # fmt: skip
    return points


def _summary(
    trials: Sequence[Trial],
    outcomes: Sequence[TrialOutcome],
    points: Sequence[PointSummary],
    status: str,
    seconds: float,
    objective: Metric,
) -> dict[str, Any]:
    best = best_of(points)
    counts = {
        f"trials.{fate}": sum(outcome.status == fate for outcome in outcomes)
        for fate in ("completed", "stopped", "failed")
    }
    each: dict[str, Any] = {}
    for point in points:
        key = f"point.{point.label}"
        each |= {f"{key}.{objective.name}": point.mean, f"{key}.{objective.name}_std": point.std}
        each[f"{key}.bytes_sent"] = point.spent["bytes_sent"]
    return {
        "status": status,
        "trials": len(trials),
        **counts,
        **each,
        "best.point": best.label if best else None,
        f"best.{objective.name}": best.mean if best else None,
        "recommendation": " ".join(recommendation(points)),
        "bytes_sent": sum(outcome.bytes_sent for outcome in outcomes),
        "seconds.total": seconds,
    }


def _notes(trials: Sequence[Trial], metrics: Sequence[Metric]) -> list[str]:
    said = ["Only trials that ran to their end count; ± is the standard deviation over seeds."]
    if not set(OWN_WORK) & set(swept_fields(trials)):
        said.append("Every trial takes the same local steps; what differs is how often parameters are exchanged.")
    else:
        said.append("Trials differ in their local steps: compare at equal steps, not at equal rounds.")
    titles = " and ".join(metric.title for metric in metrics)
    said.append(
        f"{titles}: on the common test set, on which the point is also chosen, so that of the chosen point is a "
        "little too good. For an unbiased figure run it once with `ray-fed formation-energy` and another --seed, which "
        "draws another test set."
    )
    return said


# ---- figures


def _figures(directory: RunDirectory, trials: Sequence[Trial], points: Sequence[PointSummary]) -> list[Figure]:
    known = [point for point in points if point.reached]
    if not known:
        return []
    varied, title = swept_fields(trials), known[0].objective.title
    made = _comparisons(known, varied) if len(known) <= MAX_BOXES else []
    made.append(("pareto", _pareto(known), f"{title} against bytes sent; no point beats those joined by the line."))
    if len(varied) == 2:
        made.append(("heat", _heat(trials, known, varied), f"Mean {title} over both fields."))
    return [Figure(save_figure(drawn, directory.figures / f"{name}.png"), caption) for name, drawn, caption in made]


def _comparisons(points: Sequence[PointSummary], varied: Sequence[str]) -> list[tuple[str, Any, str]]:
    names, objective = _names(points), points[0].objective
    x_label = ", ".join(map(_words, varied)).capitalize()
    said = "Guo et al. 2022, Fig. 5): box of quartiles, every run a dot"
    reached = {names[point.label]: list(point.reached.values()) for point in points}
    boxes = draw.boxes_figure(reached, objective, x_label)
    times = draw.times_figure(
        {names[point.label]: point.spent["seconds_compute"] for point in points},
        {names[point.label]: point.spent["seconds_communicate"] for point in points},
        x_label,
    )
    return [
        ("boxes", boxes, f"{objective.title} of every run at each point ({said}."),
        ("times", times, "Mean seconds of a run, computing and communicating (Guo et al. 2022, Fig. 6)."),
    ]


def _pareto(points: Sequence[PointSummary]) -> Any:
    names = _names(points)
    return draw.pareto_figure(
        [names[point.label] for point in points], [point.megabytes for point in points],
        [point.mean for point in points], [point.std for point in points], points[0].objective,
        [names[label] for label in pareto_front(points)],
    )  # fmt: skip


def _heat(trials: Sequence[Trial], points: Sequence[PointSummary], varied: Sequence[str]) -> Any:
    places = {trial.label(): dict(trial.point) for trial in trials}
    ours = [(places[point.label], point) for point in points]
    rows, columns = (
        sorted({place[field] for place, _ in ours}, key=lambda one: (isinstance(one, str), one))
        for field in (varied[1], varied[0])
    )
    values = np.full((len(rows), len(columns)), np.nan)
    for place, point in ours:
        values[rows.index(place[varied[1]]), columns.index(place[varied[0]])] = point.mean
    labels = (_words(varied[0]), _words(varied[1]), f"mean {points[0].objective.title}")
    return draw.heat_figure([shown(row) for row in rows], [shown(column) for column in columns], values, labels)


def _names(points: Sequence[PointSummary]) -> dict[str, str]:
    """Return what each point is called in a figure: its values, in the order in which the axis names their fields."""
    return {p.label: ", ".join(part.partition("=")[2] for part in p.label.split(", ")) for p in points}


def _words(field: str) -> str:
    return field.replace("_", " ")
