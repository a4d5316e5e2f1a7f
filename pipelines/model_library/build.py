"""`ray-fed library build`: jobs over properties, descriptors and methods as Ray tasks, into one library."""

import importlib.util
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.session import session
from pipelines.model_library.config import BuildConfig
from ray_fed.config import unknown_name
from ray_fed.errors import ConfigError
from ray_fed.model_library.building import BuildJob, BuildResult, plan
from ray_fed.model_library.property_catalogue import embedded_tables, shared_tables
from ray_fed.model_library.property_tables import SMILES, PropertyTable, user_table
from ray_fed.model_library.store import Library
from ray_fed.reporting.tensorboard_log import EventLog, global_tag
from ray_fed.reporting.writing import to_json, write_atomically

TOLD_EVERY_SECONDS = 10.0


@dataclass(frozen=True)
class BuildOutcome:
    """What a build did."""

    library: Library
    models: int
    failures: int
    seconds: float
    skipped_jobs: int


def build(options: Mapping[str, Any], _command_line: Sequence[str]) -> int:
    """Build and say what came of it; returns the exit code."""
    outcome = carry_out(BuildConfig(**options))
    rate = 60 * outcome.models / outcome.seconds if outcome.seconds else 0
    print(
        f"{outcome.models:,} models and {outcome.failures} failures in {outcome.seconds:.0f} s ({rate:,.0f} a minute)"
    )
    print(f"{outcome.library.path} holds {len(outcome.library):,} models; ask with: ray-fed library query --library "
          f"{outcome.library.path}")  # fmt: skip
    return 0 if outcome.models or outcome.skipped_jobs else 1


def write_summary(outcome: BuildOutcome) -> None:
    """Write summary.json beside the models: their number, and the best R² on unseen rows of each property."""
    numbers = {"models": len(outcome.library), "failures": outcome.failures, "seconds.total": outcome.seconds}
    for model in outcome.library.query("", ["modelset", "property", "r2"]).dropna().to_dict("records"):
        key = f"best.{model['modelset']}/{model['property']}.r2"
        numbers[key] = max(float(model["r2"]), numbers.get(key, -math.inf))
    write_atomically(outcome.library.path / "summary.json", to_json({"status": "completed", **numbers}))


def carry_out(config: BuildConfig) -> BuildOutcome:
    """Train what the library does not have yet. ConfigError for unknown names, before anything is written."""
    started = time.monotonic()
    tables = chosen_tables(
        tables_of(
            config.source, config.target, config.unit, config.property_name, config.transform, config.material_column
        ),
        config.properties,
    )
    for table in tables.values():
        if said := table.account():
            note(said)
    tables = _readable(tables)
    jobs = _jobs(config, tables)
    library = Library.create(config.library)
    left = [job for job in jobs if not _record(library, job).is_file()]
    note(
        f"{sum(job.count for job in left):,} models to train in {len(left)} jobs; {len(jobs) - len(left)} jobs are done"
    )
    models = failures = 0
    if left:
        try:
            with EventLog(library.path / "tensorboard") as log:
                log.hyperparameters({"pipeline": "library-build", **vars(config)}, library.path.name)
                for done, result in enumerate(_results(left, tables, config.address), 1):
                    _keep(library, result)
                    models, failures = models + len(result.models), failures + len(result.failures)
                    _tell(models, sum(job.count for job in left), started)
                    log.scalars({global_tag("models"): models, global_tag("failures"): failures}, done)
                log.outcome({"models": models, "failures": failures})
        except (KeyboardInterrupt, OSError):
            note(f"broken off; {models:,} more models are in {library.path}; the same command goes on from there")
            raise
    outcome = BuildOutcome(library, models, failures, time.monotonic() - started, len(jobs) - len(left))
    write_summary(outcome)
    return outcome


def tables_of(
    source: str, target: str | None, unit: str | None, name: str | None, transform: str = "identity",
    material_column: str | None = None,
) -> dict[str, PropertyTable]:  # fmt: skip
    """Return the properties of 'embedded', of a folder of data sets, or of a table of your own."""
    if source == "embedded":
        return embedded_tables()
    path = Path(source)
    if path.is_file():
        if not target or not unit:
            raise ConfigError(f"{source} is a table of your own: name its column and unit with --target and --unit")
        table = user_table(path, target, unit, name, transform, material_column)
        return {table.key: table}
    return shared_tables(path)


def chosen_tables(tables: Mapping[str, PropertyTable], names: Sequence[str]) -> dict[str, PropertyTable]:
    """Return the tables that are named by key, property or data set; ConfigError for a name nobody has."""
    if not names:
        return dict(tables)
    found = {}
    for name in names:
        ours = {key: table for key, table in tables.items() if name in (key, table.property_name, table.modelset)}
        if not ours:
            known = {word for table in tables.values() for word in (table.key, table.property_name, table.modelset)}
            raise unknown_name("property", name, known)
        found |= ours
    return found


def _readable(tables: dict[str, PropertyTable]) -> dict[str, PropertyTable]:
    if importlib.util.find_spec("rdkit") is not None:
        return tables
    kept = {key: table for key, table in tables.items() if table.kind != SMILES}
    if len(kept) < len(tables):
        note(f"{len(tables) - len(kept)} properties of molecules are left out: they need RDKit (ray-fed[molecules])")
    return kept


def _jobs(config: BuildConfig, tables: Mapping[str, PropertyTable]) -> list[BuildJob]:
    jobs = plan(
        list(tables.values()), config.descriptors, config.methods, config.seed, config.max_rows, config.element_table
    )
    if config.crystal_graphs:
        jobs += [
            BuildJob(key, "crystal_graph", "crystal_graph", config.crystal_graphs, config.seed, config.max_rows)
            for key, table in tables.items()
            if "numbers" in table.frame
        ]
    if not jobs:
        raise ConfigError(f"descriptors={','.join(config.descriptors)} read none of the {len(tables)} tables")
    return jobs


def _results(jobs: Sequence[BuildJob], tables: Mapping[str, PropertyTable], address: str):
    with session(address):
        from actors.library import build as build_as_tasks

        yield from build_as_tasks(jobs, tables)


def _record(library: Library, job: BuildJob) -> Path:
    return library.path / "jobs" / f"{job.key}.json"


def _keep(library: Library, result: BuildResult) -> None:
    """Put models into the library, then the record that the job is done: a crash between repeats it, no more."""
    ids = library.add(result.models, result.failures)
    record = {"table": result.job.table, "descriptor": result.job.descriptor, "method": result.job.method,
              "models": ids, "failures": [failure.digest() for failure in result.failures]}  # fmt: skip
    write_atomically(_record(library, result.job), to_json(record))


_told = {"at": 0.0}


def _tell(done: int, total: int, started: float) -> None:
    now = time.monotonic()
    if now - _told["at"] > TOLD_EVERY_SECONDS:
        _told["at"] = now
        note(f"{done:,} of {total:,} models, {now - started:.0f} s")


def note(text: str) -> None:
    """Say something on standard error."""
    print(text, file=sys.stderr, flush=True)
