"""`ray-fed library transfer`: one target, many sources, every rule side by side over many draws; and a model."""

import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from actors.session import session
from pipelines.model_library.build import note, tables_of
from pipelines.model_library.config import TransferConfig
from pipelines.model_library.figures import parity_figure, scatter_figure
from ray_fed.errors import DataError
from ray_fed.model_library.members import Effort
from ray_fed.model_library.property_catalogue import shared_tables
from ray_fed.model_library.property_tables import PropertyTable, find_table
from ray_fed.model_library.relations import Relation, SourceFacts, SourceRules, is_known, relation, told
from ray_fed.model_library.selection import Draw, Protocol
from ray_fed.model_library.silo_search import SiloErrors
from ray_fed.model_library.store import Library
from ray_fed.model_library.transfer import Model, Prepared, source_table, target_and_sources
from ray_fed.model_library.transfer_model import fit_transfer_model
from ray_fed.reporting.figure_style import save_figure
from ray_fed.reporting.model_files import save_model
from ray_fed.reporting.run_directory import RunDirectory
from ray_fed.reporting.tensorboard_log import EventLog, model_tag

WORDS = {
    "direct": "no transfer: mean of four learners",
    "stack": "stack of all, no transfer included",
    "ensemble": "mean of the best k by CV",
    "paper": "best source by CV (the paper)",
    "ranked": "best source by its own error",
    "median": "median source",
    "oracle": "oracle (not to be had)",
}
"""Rule -> what a table calls it."""
FEW_MATERIALS = 13
"""A study learns from 8 and holds out 5."""


def run(options: Mapping[str, Any], command_line: Sequence[str]) -> int:
    """Carry out a study, save a model where asked; prints the tables and writes a run directory."""
    config = TransferConfig(**options)
    target, tables = _target(config)
    note(target.account() or f"{target.key}: {len(target.frame):,} rows, all of them read")
    prepared, relations = prepared_sources(config, target, tables)
    print("\n".join(told(relations)), end="\n\n")
    count = len(np.unique(prepared.target.groups))
    if config.draws and count >= FEW_MATERIALS:
        _study(config, command_line, target, prepared, relations)
    elif config.draws:
        note(f"{count} different materials are too few to hold any out; no study")
    if config.save:
        _save(config, target, prepared)
    return 0


def _study(
    config: TransferConfig, command: Sequence[str], target: PropertyTable, prepared: Prepared,
    relations: Sequence[Relation],
) -> None:  # fmt: skip
    directory = RunDirectory.create(config.out, "library-transfer")
    try:
        started = time.monotonic()
        found = study(config, prepared)
        summary = summarise(found)
        _write(directory, config, command, target, prepared.models, relations, found, summary)
        print(table(found, target.unit, _protocol(config, prepared).rows))
        print(f"{len(prepared.models)} sources, {config.draws} draws, {time.monotonic() - started:.0f} s; "
              f"{directory.path}")  # fmt: skip
    finally:
        directory.discard_if_empty()


def study(config: TransferConfig, prepared: Prepared) -> list[Draw]:
    """Return the draws of a study, computed as Ray tasks."""
    with session(config.address):
        from actors.library import draws

        return draws(prepared.target, prepared.sources, config.head, _protocol(config, prepared), config.draws)


def _protocol(config: TransferConfig, prepared: Prepared) -> Protocol:
    return config.protocol(len(np.unique(prepared.target.groups)))


def _save(config: TransferConfig, target: PropertyTable, prepared: Prepared) -> None:
    """Learn from all rows and write the model; say what it can be expected to do, by rows it had not seen."""
    assert config.save is not None
    effort = Effort(config.folds, config.ensemble, config.num_trees, config.seed)
    stack, arrays, card = fit_transfer_model(target, prepared, effort, config.layers)
    card = save_model(config.save, arrays, card)
    size = Path(f"{config.save.removesuffix('.safetensors')}.safetensors").stat().st_size / 1e6
    weights = ", ".join(f"{name} {weight:.2f}" for name, weight in stack.weights.items())
    print(f"\n{card.name}: {config.save} ({size:.0f} MB), id {card.id[:12]}\nweights: {weights}")
    mine, without = stack.error("stack"), stack.error("direct")
    print(f"by cross-validation on its {len(stack.targets)} rows: MAE {mine:.4g} {target.unit}, "
          f"{_percent(100 * (mine / without - 1))} no transfer ({without:.4g})")  # fmt: skip
    if "warning" in card.limits:
        print(f"warning: {card.limits['warning']}")
    print(f"predict: ray-fed predict {config.save} TABLE   publish: ray-fed library add {config.save}\n"
          f"note: {card.limits['secrecy']}")  # fmt: skip


def _target(config: TransferConfig) -> tuple[PropertyTable, dict[str, PropertyTable]]:
    """Return the target, and all tables whose rows are at hand."""
    tables = tables_of(
        config.source, config.target, config.unit, config.property_name, config.transform, config.material_column
    )
    is_own = Path(config.source).is_file()
    target = next(iter(tables.values())) if is_own else find_table(tables, config.target)
    if is_own and not is_known(target.property_name):
        note(f"{target.property_name!r} is no quantity that is known by other names: sources of it under other names "
             "are found by their values alone; say what it is with --property-name")  # fmt: skip
    return target, {**(shared_tables(config.tables) if config.tables else {}), **tables}


def prepared_sources(
    config: TransferConfig, target: PropertyTable, tables: Mapping[str, PropertyTable]
) -> tuple[Prepared, list[Relation]]:
    """Return the sources that are really others than the target, ready to learn from, and what each source is to it."""
    models = _asked_models(config)
    rules = SourceRules(config.allow_related, config.same_dataset, config.exclude, config.threshold)
    by_table: dict[str, list[Model]] = defaultdict(list)
    for model in models:
        by_table[source_table(model[1])].append(model)
    cards = {key: (found[0][1], len(found)) for key, found in by_table.items()}
    relations = {
        key: relation(target, SourceFacts(key, card, count, tables.get(key), None), rules)
        for key, (card, count) in cards.items()
    }
    prepared = _prepared(config, target, by_table, relations)
    unknown = [key for key in prepared.sources.tables if key not in tables]
    for key in unknown:
        predicted = np.full(len(target.frame), np.nan)
        predicted[prepared.rows] = prepared.sources.predictions[:, prepared.sources.tables.index(key)]
        relations[key] = relation(target, SourceFacts(key, *cards[key], None, predicted), rules)
    if any(relations[key].reason for key in unknown):
        prepared = _prepared(config, target, by_table, relations)
    for reason, count in prepared.skipped.items():
        note(f"{count} models are skipped: {reason}")
    left = len(target.frame) - len(prepared.rows)
    if left:
        note(f"{left} rows of the target cannot be read by every descriptor and are left out")
    return prepared, list(relations.values())


def _prepared(
    config: TransferConfig, target: PropertyTable, by_table: Mapping[str, Sequence[Model]],
    relations: Mapping[str, Relation],
) -> Prepared:  # fmt: skip
    used = [model for key, models in by_table.items() if not relations[key].reason for model in models]
    if not used:
        why = Counter(each.reason for each in relations.values())
        said = "; ".join(f"{count} x {reason}" for reason, count in why.items()) or "the library has none"
        raise DataError(f"no sources are left for {target.key} ({said}); widen --sources, or give --allow-related")
    return target_and_sources(target, used, config.layers, config.element_table)


def _asked_models(config: TransferConfig) -> list[Model]:
    """Return the models of the query, of each kind the best on their own property."""
    library = Library.open(config.library)
    kind = ["modelset", "property", "descriptor", "method"]
    found = library.query(config.sources, ["id", *kind, "relative_error"])
    order = found.sort_values(["relative_error", "id"], na_position="last")
    kept = order.groupby(kind, dropna=False, sort=False).head(config.most_per_table)
    if len(kept) < len(found):
        note(f"{len(kept):,} of {len(found):,} models: at most {config.most_per_table} of one kind (--most-per-table)")
    chosen = set(kept["id"])
    return [library.load(model_id) for model_id in found["id"] if model_id in chosen]


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
    for rule in ("paper", "ensemble", "stack"):
        wins = [draw.held_out[rule] < draw.held_out["direct"] for draw in draws]
        summary[f"wins_over_direct.{rule}"] = float(np.mean(wins))
    return summary


def table(draws: Sequence[Draw | SiloErrors], unit: str, rows: int) -> str:
    """Return the table of all rules as text."""
    s = summarise(draws)
    lines = [f"{'MAE in ' + unit:36} {f'by CV on {rows} rows':>22}   {'held out':>18}"]
    for rule, words in WORDS.items():
        cv, held = (_spread(s[f"{rule}.{side}_mae"], s[f"{rule}.{side}_mae_std"]) for side in ("cv", "held_out"))
        lines.append(f"{words:36} {cv:>22}   {held:>18}")
        if rule == "paper":
            nested = _spread(s["nested.cv_mae"], s["nested.cv_mae_std"])
            lines.append(f"{'  the same, judged by nested CV':36} {nested:>22}")
    return "\n".join([*lines, *verdict(s, len(draws))])


def _spread(mean: float, deviation: float) -> str:
    return "-" if np.isnan(mean) else f"{mean:.4g} ± {deviation:.2g}"


def verdict(s: dict[str, Any], draws: int) -> list[str]:
    """Say in words whether transfer helped on held-out rows, and what the paper's protocol would have claimed."""
    claim = 100 * (s["paper.cv_mae"] / s["direct.cv_mae"] - 1)
    truth = {rule: 100 * (s[f"{rule}.held_out_mae"] / s["direct.held_out_mae"] - 1)
             for rule in ("paper", "ensemble", "stack")}  # fmt: skip
    lines = [
        f"Against no transfer, on held-out rows: the stack is {_percent(truth['stack'])} it and wins in "
        f"{s['wins_over_direct.stack']:.0%} of {draws} draws; the mean of k best is {_percent(truth['ensemble'])} it.",
        f"By CV the chosen source claims to be {_percent(claim)} it; on held-out rows it is {_percent(truth['paper'])} "
        "it.",
    ]
    if truth["stack"] > 0:
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
    models: Sequence[Model], relations: Sequence[Relation], draws: Sequence[Draw], summary: dict[str, Any],
) -> None:  # fmt: skip
    directory.write_config({**vars(config), "command": " ".join(command)})
    directory.write_environment()
    directory.write_data([target.fingerprint()])
    directory.write_json("sources.json", [card.id for _, card in models])
    directory.write_json("relations.json", [vars(each) for each in relations])
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
            errors = {rule: draw.held_out[rule] for rule in WORDS if np.isfinite(draw.held_out[rule])}
            log.scalars({model_tag(rule, "held_out_mae"): error for rule, error in errors.items()}, number)
        log.outcome({f"{rule}.held_out_mae": summary[f"{rule}.held_out_mae"] for rule in WORDS}, figures)
