"""`ray-fed library transfer`: one target, many sources, every rule of choosing side by side, over many draws."""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from actors.session import session
from pipelines.model_library.build import note, tables_of
from pipelines.model_library.config import TransferConfig
from pipelines.model_library.figures import parity_figure, scatter_figure
from ray_fed.errors import DataError
from ray_fed.model_library.property_tables import PropertyTable, find_table
from ray_fed.model_library.selection import Draw
from ray_fed.model_library.silo_search import SiloErrors
from ray_fed.model_library.store import Library
from ray_fed.model_library.transfer import Model, target_and_sources, without_target_materials
from ray_fed.reporting.figure_style import save_figure
from ray_fed.reporting.run_directory import RunDirectory
from ray_fed.reporting.tensorboard_log import EventLog, model_tag

WORDS = {
    "direct forest": "no transfer: random forest",
    "direct ridge": "no transfer: ridge",
    "paper": "best source by CV (the paper)",
    "ensemble": "mean of the best k by CV",
    "ranked": "best source by its own error",
    "median": "median source",
    "oracle": "oracle (not to be had)",
}
"""Rule -> what a table calls it."""


def run(options: Mapping[str, Any], command_line: Sequence[str]) -> int:
    """Carry out a study; prints the table and writes a run directory."""
    config = TransferConfig(**options)
    target = _target(config)
    models = _sources(config, target)
    directory = RunDirectory.create(config.out, "library-transfer")
    try:
        started = time.monotonic()
        found = study(config, target, models)
        summary = summarise(found)
        _write(directory, config, command_line, target, models, found, summary)
        print(table(found, target.unit, config))
        print(f"{len(models)} sources, {config.draws} draws, {time.monotonic() - started:.0f} s; {directory.path}")
    finally:
        directory.discard_if_empty()
    return 0


def study(config: TransferConfig, table: PropertyTable, models: Sequence[Model]) -> list[Draw]:
    """Return the draws of a study, computed as Ray tasks."""
    target, sources = target_and_sources(table, models, config.layers, config.element_table)
    with session(config.address):
        from actors.library import draws

        return draws(target, sources, config.head, config.protocol, config.draws)


def _target(config: TransferConfig) -> PropertyTable:
    tables = tables_of(config.source, config.target, config.unit, None)
    return find_table(tables, config.target)


def _sources(config: TransferConfig, target: PropertyTable) -> list[Model]:
    library = Library.open(config.library)
    ids = library.query(config.sources, ["id"])["id"].tolist()
    loaded = [library.load(model_id) for model_id in ids]
    barred = [] if config.same_dataset else [target.modelset]
    models = without_target_materials(loaded, barred)
    if not config.same_property:
        models = [(arrays, card) for arrays, card in models if card.property != target.property_name]
    if len(models) < len(loaded):
        note(f"{len(loaded) - len(models)} sources know the target's data set or property and are left out")
    if not models:
        raise DataError(f"no sources are left for {target.key}; widen --sources {config.sources!r}")
    return models


def summarise(draws: Sequence[Draw | SiloErrors]) -> dict[str, Any]:
    """Return flat means and standard deviations over the draws."""
    summary: dict[str, Any] = {}
    for rule in (*WORDS, "nested"):
        for side, values in (("cv", [d.cv[rule] for d in draws]), ("held_out", [d.held_out[rule] for d in draws])):
            summary[f"{rule}.{side}_mae"] = float(np.mean(values))
            summary[f"{rule}.{side}_mae_std"] = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    permuted = [value for draw in draws for value in draw.permuted]
    if permuted:
        summary["permuted.best_cv_over_mean_predictor"] = float(np.mean(permuted))
    reference = direct_reference(summary)
    summary["direct_reference"] = reference
    for rule in ("paper", "ensemble"):
        wins = [draw.held_out[rule] < draw.held_out[reference] for draw in draws]
        summary[f"wins_over_direct.{rule}"] = float(np.mean(wins))
    return summary


def direct_reference(summary: dict[str, Any]) -> str:
    """Return the better of the two models without transfer, by the only errors a user would know: those of CV."""
    return min(("direct forest", "direct ridge"), key=lambda rule: summary[f"{rule}.cv_mae"])


def table(draws: Sequence[Draw | SiloErrors], unit: str, config: TransferConfig) -> str:
    """Return the table of all rules as text."""
    s = summarise(draws)
    lines = [f"{'MAE in ' + unit:34} {'by CV on ' + str(config.rows) + ' rows':>22}   {'held out':>18}"]
    for rule, words in WORDS.items():
        cv = "-" if np.isnan(s[f"{rule}.cv_mae"]) else f"{s[f'{rule}.cv_mae']:.4g} ± {s[f'{rule}.cv_mae_std']:.2g}"
        held = f"{s[f'{rule}.held_out_mae']:.4g} ± {s[f'{rule}.held_out_mae_std']:.2g}"
        lines.append(f"{words:34} {cv:>22}   {held:>18}")
        if rule == "paper":
            nested = f"{s['nested.cv_mae']:.4g} ± {s['nested.cv_mae_std']:.2g}"
            lines.append(f"{'  the same, judged by nested CV':34} {nested:>22}")
    return "\n".join([*lines, *verdict(s, config)])


def verdict(s: dict[str, Any], config: TransferConfig) -> list[str]:
    """Say in words whether transfer helped on held-out rows, and what the protocol would have claimed."""
    reference = s["direct_reference"]
    claim = 100 * (s["paper.cv_mae"] / s[f"{reference}.cv_mae"] - 1)
    truth = {rule: 100 * (s[f"{rule}.held_out_mae"] / s[f"{reference}.held_out_mae"] - 1)
             for rule in ("paper", "ensemble")}  # fmt: skip
    name = WORDS[reference].removeprefix("no transfer: ")
    paper, ensemble = _percent(truth["paper"]), _percent(truth["ensemble"])
    won, won_together = (f"{s[f'wins_over_direct.{rule}']:.0%}" for rule in ("paper", "ensemble"))
    lines = [
        f"Without transfer, {name} is better by CV. By CV the chosen source is {_percent(claim)} it; on held-out rows "
        f"the chosen source is {paper} it, the ensemble {ensemble} it.",
        f"On held-out rows the chosen source wins in {won} of {config.draws} draws, the ensemble in {won_together}.",
    ]
    if min(truth.values()) > 0:
        lines.append("Transfer does not help here.")
    if "permuted.best_cv_over_mean_predictor" in s:
        chance = s["permuted.best_cv_over_mean_predictor"]
        lines.append(
            f"With shuffled targets the best source by CV has {chance:.2f} of the error of predicting the mean: "
            + ("choosing alone invents a gain." if chance < 1 else "choosing alone invents no gain.")
        )
    return lines


def _percent(value: float) -> str:
    return f"{abs(value):.1f} % {'worse than' if value > 0 else 'better than'}"


def _write(
    directory: RunDirectory, config: TransferConfig, command: Sequence[str], target: PropertyTable,
    models: Sequence[Model], draws: Sequence[Draw], summary: dict[str, Any],
) -> None:  # fmt: skip
    directory.write_config({**vars(config), "command": " ".join(command)})
    directory.write_environment()
    directory.write_data([target.fingerprint()])
    directory.write_json("sources.json", [card.id for _, card in models])
    columns = {"draw": list(range(len(draws))), "chosen": [draw.chosen for draw in draws]}
    columns |= {f"{rule} held out": [draw.held_out[rule] for draw in draws] for rule in WORDS}
    columns |= {f"{rule} cv": [draw.cv[rule] for draw in draws] for rule in (*WORDS, "nested")}
    directory.write_csv("draws.csv", columns)
    directory.write_summary({**summary, "sources": len(models), "target": target.key, "unit": target.unit})
    figures = directory.figures
    made = [
        save_figure(parity_figure(draws[0], target.property_name, target.unit), figures / "parity.png"),
        save_figure(scatter_figure(draws[0], target.property_name, target.unit), figures / "sources.png"),
    ]
    _log(directory, config, draws, summary, made)
    print(f"figures: {figures}", file=sys.stderr)


def _log(
    directory: RunDirectory, config: TransferConfig, draws: Sequence[Draw], summary: Mapping[str, Any],
    figures: Sequence[Path],
) -> None:  # fmt: skip
    """Show in TensorBoard the error of each rule by draw, and what they came to."""
    with EventLog(directory.tensorboard) as log:
        log.hyperparameters({"pipeline": "library-transfer", **vars(config)}, directory.path.name)
        log.layout({"Rules": {"MAE on held-out rows": [model_tag(rule, "held_out_mae") for rule in WORDS]}})
        for number, draw in enumerate(draws):
            log.scalars({model_tag(rule, "held_out_mae"): draw.held_out[rule] for rule in WORDS}, number)
        log.outcome({f"{rule}.held_out_mae": summary[f"{rule}.held_out_mae"] for rule in WORDS}, figures)
