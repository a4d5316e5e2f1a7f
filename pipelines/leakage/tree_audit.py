"""`ray-fed audit` of a run of boosted trees: which rows the silos' sums, and the sum of all, show."""

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np

from pipelines.leakage.audit_config import AuditConfig
from pipelines.leakage.audit_report import log_audit
from pipelines.leakage.threats import LISTED, NOTHING_KNOWN, WITH
from pipelines.training.setup import Setup
from ray_fed.config import require
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Coordinator
from ray_fed.leakage.tree_sums import SUM, Exposure, exposures
from ray_fed.materials.boosted_property_task import BoostedPropertyTask
from ray_fed.materials.databases.database import open_database
from ray_fed.materials.databases.source import Source
from ray_fed.reporting.run_directory import RunDirectory
from ray_fed.reporting.terminal import aligned, paths_table
from ray_fed.trees.bins import as_float32
from ray_fed.trees.growth import Grower
from ray_fed.trees.member import Member

MASKED = "the run had masks: of a single silo's sums nobody saw anything, only the lines of the sum count"
CLEAR = "in clear the coordinator saw each silo's own sums; --secure-aggregation yes leaves it the sum"


def audit_trees(
    target: str,
    config: AuditConfig,
    setup: Setup,
    chosen: Sequence[str],
    directory: RunDirectory,
    command: Sequence[str],
) -> int:
    """Grow trees of the run again, `config.rounds` of them, inside the silos, and print what their sums show."""
    task = setup.task
    assert isinstance(task, BoostedPropertyTask)
    limits = _limits(config)
    noise = "the run had noise in every sum, so no bin shows a row as it is; its epsilon says what they tell"
    require(not setup.config.is_private, noise)
    settings = replace(task.trees, trees=min(config.rounds, task.trees.trees), seed=setup.config.seed, patience=0)
    specs = [replace(spec, state_folder="", ledger_folder="") for spec in setup.silos if spec.name in chosen]
    cohort = LocalCohort(specs, task)
    Coordinator(cohort, task, chosen).agree()
    samples = {name: silo.samples for name, silo in cohort.silos.items()}
    members = {
        name: Member(each.features, each.targets, settings, each.rows.groups)  # type: ignore[arg-type]  (arrays, of trees)
        for name, each in samples.items()
    }
    suspects, said = _suspects(task, members, config)
    print(said, file=sys.stderr)
    found = exposures(members, Grower(settings, task.num_features), suspects)
    directory.write_config({"command": shlex.join(command), "target": target, **asdict(config)})
    directory.write_environment({})
    worst = _worst(found, setup.config.secure_aggregation)
    told = {f"leak.{model}.largest_share": SHARES[model](one) for model, one in worst.items()}
    path = directory.write_summary({"status": "completed", **told, **_summary(found)})
    log_audit(directory, config)
    print(aligned([HEADER, *(_row(each, task.unit) for each in found)], right=(2, 3, 4, 5, 6), rule=True))
    print(f"\n{MASKED if setup.config.secure_aggregation else CLEAR}", file=sys.stderr)
    paths_table({"summary": path})
    return _verdict(limits, worst)


def _limits(config: AuditConfig) -> dict[str, float]:
    """Return the limits of the threat models that are tried on trees; ConfigError for one of another."""
    asked = [text.rpartition(":")[0] for text in config.max_leak]
    others = [model for model in asked if model and model not in (NOTHING_KNOWN, LISTED)]
    tried = f"{NOTHING_KNOWN} (rows alone in a bin) and {LISTED} (rows named) are tried on trees"
    require(not others, f"max_leak={', '.join(config.max_leak)}: {tried}; leave out {', '.join(others)}")
    return {model: share for model, share in config.limits().items() if model in (NOTHING_KNOWN, LISTED)}


def _suspects(
    task: BoostedPropertyTask, members: Mapping[str, Member], config: AuditConfig
) -> tuple[np.ndarray | None, str]:
    """Return the rows of the silos among public ones, at most `config.list_length`, and a line that says how many."""
    if not config.has_list:
        return None, "no list of suspects: candidates is 'no'"
    share = config.list_length // 2 // len(members)
    own = [each.features[:share] for each in members.values()]
    wanted = config.list_length - sum(map(len, own))
    features, reasons = task.featurizer().transform_with_reasons(
        open_database(Source(config.candidates, target=None)).frame[:wanted]
    )
    usable = np.array([not reason for reason in reasons])
    said = f"list of suspects: {sum(map(len, own)):,} records of the audited silos among {usable.sum():,} public ones"
    return np.concatenate([*own, as_float32(features[usable])]), said


SHARES: Mapping[str, Callable[[Exposure], float]] = {
    NOTHING_KNOWN: lambda one: one.share_in_bins,
    LISTED: lambda one: one.named.share if one.named else 0.0,
}
"""Threat model -> share of a silo's rows that its attacker gets."""


def _worst(found: Sequence[Exposure], is_summed: bool) -> dict[str, Exposure]:
    """Return threat model -> where most is shown of what is really sent."""
    shown = [one for one in found if (one.seen_in == SUM) is is_summed]
    return {model: max(shown, key=share) for model, share in SHARES.items()} if shown else {}


def _verdict(limits: Mapping[str, float], worst: Mapping[str, Exposure]) -> int:
    """Say whether more than allowed is shown in what is really sent; 1 if so, else 0."""
    shares = {model: SHARES[model](worst[model]) for model in limits if model in worst}
    broken = [
        f"{WITH[model]}, silo '{worst[model].silo}': {share:.1%} of its rows in {worst[model].seen_in}"
        for model, share in shares.items() if share > limits[model]
    ]  # fmt: skip
    if broken:
        said = ", ".join(f"{model}:{limit:g}" for model, limit in limits.items())
        print(f"ray-fed audit: failed: max_leak={said} is exceeded; {'; '.join(broken)}", file=sys.stderr)
    return 1 if broken else 0


HEADER = (
    "silo", "seen in", "rows", "alone in a bin", "alone in a leaf", "target read to within (median)",
    "named from a list",
)  # fmt: skip


def _row(each: Exposure, unit: str) -> tuple[str, ...]:
    error = f"{each.error:.3g} {unit}" if each.errors else "-"
    return (
        each.silo,
        each.seen_in,
        f"{each.num_rows:,}",
        f"{each.share_in_bins:.0%}",
        f"{each.share_in_leaves:.0%}",
        error,
        f"{each.named.right:,} / {each.named.named:,} (~{each.named.by_chance:.0f})" if each.named else "-",
    )


def _summary(found: Sequence[Exposure]) -> dict[str, float | int]:
    numbers = {}
    for each in found:
        name = f"{each.silo}.{'sum' if each.seen_in.startswith('sum') else 'own'}"
        numbers |= {f"{name}.alone_in_a_bin": each.share_in_bins, f"{name}.alone_in_a_leaf": each.share_in_leaves}
        numbers |= {f"{name}.target_error": each.error} if each.errors else {}
        if each.named:
            numbers |= {f"{name}.named": each.named.right, f"{name}.listed": each.named.named}
    return numbers
