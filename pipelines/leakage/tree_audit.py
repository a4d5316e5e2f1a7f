"""`ray-fed audit` of a run of boosted trees: which rows the silos' sums, and the sum of all, show."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace

from pipelines.leakage.audit_config import AuditConfig
from pipelines.training.setup import Setup
from ray_fed.config import require
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Coordinator
from ray_fed.leakage.tree_sums import Exposure, exposures
from ray_fed.materials.boosted_property_task import BoostedPropertyTask
from ray_fed.reporting.run_directory import RunDirectory
from ray_fed.reporting.terminal import aligned, paths_table
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
    """Grow the first `config.rounds` trees again, inside the silos, and print what their sums show."""
    task = setup.task
    assert isinstance(task, BoostedPropertyTask)
    limits = f"max_leak={', '.join(config.max_leak)} bounds what attacks on networks find; leave it out for trees"
    require(not config.max_leak, limits)
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
    found = exposures(members, Grower(settings, task.num_features))
    directory.write_config({"command": shlex.join(command), "target": target, **asdict(config)})
    directory.write_environment({})
    path = directory.write_summary(_summary(found))
    print(aligned([HEADER, *(_row(each, task.unit) for each in found)], right=(2, 3, 4, 5), rule=True))
    print(f"\n{MASKED if setup.config.secure_aggregation else CLEAR}", file=sys.stderr)
    paths_table({"summary": path})
    return 0


HEADER = ("silo", "seen in", "rows", "alone in a bin", "alone in a leaf", "target read to within (median)")


def _row(each: Exposure, unit: str) -> tuple[str, ...]:
    error = f"{each.error:.3g} {unit}" if each.errors else "-"
    return (
        each.silo,
        each.seen_in,
        f"{each.num_rows:,}",
        f"{each.share_in_bins:.0%}",
        f"{each.share_in_leaves:.0%}",
        error,
    )


def _summary(found: Sequence[Exposure]) -> dict[str, float | int]:
    numbers = {}
    for each in found:
        name = f"{each.silo}.{'sum' if each.seen_in.startswith('sum') else 'own'}"
        numbers |= {f"{name}.alone_in_a_bin": each.share_in_bins, f"{name}.alone_in_a_leaf": each.share_in_leaves}
        numbers |= {f"{name}.target_error": each.error} if each.errors else {}
    return numbers
