"""The audit for people: what leaks per silo, what stops it, what that costs."""

import shlex
from collections.abc import Mapping, Sequence

from ray_fed.leakage.audit import MessageAudit
from ray_fed.reporting.report import Block, Paragraph, Section, Table, write_report
from ray_fed.reporting.run_directory import RunDirectory

Costs = Mapping[str, float]
"""Defence -> error after training with it, in the target's unit; '' without one."""
SHOWN_FEATURES = 12

THREAT = (
    "Honest-but-curious coordinator: sees every message of a silo and the parameters it sent; knows network, loss and "
    "scaler; sees no record, target or local statistics. Replayed inside the silos: only the counts and errors on this "
    "page left them. The attack is the ratio of the first layer's weight and bias updates: what it does not find, a "
    "stronger attack may."
)


def write_audit(
    directory: RunDirectory,
    audits: Sequence[MessageAudit],
    costs: Costs,
    units: Mapping[str, str],
    target_unit: str,
    seconds: float,
    command: Sequence[str],
) -> None:
    """Write summary.json and report.html."""
    plain = [one for one in audits if one.defence == "none"]
    summary: dict[str, object] = {"status": "completed", "seconds.total": seconds}
    for one in plain:
        key = f"{one.silo}.{one.kind}"
        summary |= {f"{key}.exact": one.exact, f"{key}.near": one.near, f"{key}.records": one.records}
        summary[f"{key}.cheapest_defence"] = cheapest(audits, one, costs)
    summary |= {f"mae.{name or 'none'}": value for name, value in costs.items()}
    sections = [
        Section("Threat model", [Paragraph(THREAT)]),
        Section("What leaks, and what stops it", [_table(audit_table(audits, costs, target_unit))]),
        *_feature_sections(plain, units),
        Section("Every defence", [_defence_table(audits, costs, target_unit)]),
    ]
    write_report(directory, "Leakage audit", summary, sections, command=shlex.join(command), results=[])
    directory.write_summary(summary)  # type: ignore[arg-type]


def cheapest(audits: Sequence[MessageAudit], plain: MessageAudit, costs: Costs) -> str:
    """Return the defence under which nothing of this kind of message is found and the error is smallest."""
    if plain.found == 0:
        return "not needed"
    stopping = [
        one.defence
        for one in audits
        if (one.silo, one.kind) == (plain.silo, plain.kind) and one.defence != "none" and one.found == 0
    ]
    return min(stopping, key=lambda name: costs.get(name, 0.0), default="none tried")


def audit_table(audits: Sequence[MessageAudit], costs: Costs, target_unit: str) -> list[list[str]]:
    """Return a header and one line per silo and kind of message, without defences."""
    header = ["silo", "message", "records", "exact", "near", "none", f"target error ({target_unit})",
              f"cost in MAE ({target_unit})", "cheapest defence"]  # fmt: skip
    lines = []
    for one in (one for one in audits if one.defence == "none"):
        chosen = cheapest(audits, one, costs)
        cost = f"{costs[chosen] - costs['']:+.4f}" if chosen in costs and "" in costs else "–"
        target = "–" if one.target_error is None else f"{one.target_error:.1e}"
        missed = one.records - one.found
        counts = [f"{value:,}" for value in (one.records, one.exact, one.near, missed)]
        lines.append([one.silo, one.kind, *counts, target, cost, chosen])
    return [header, *lines]


def _table(lines: Sequence[Sequence[str]]) -> Table:
    said = (
        "exact: every feature within 1 % of a standard deviation (root mean square); near: within 10 %; a match counts "
        "only if it is nearer to its own record than the nearest other record of the silo is."
    )
    return Table(lines[0], lines[1:], said)


def _defence_table(audits: Sequence[MessageAudit], costs: Costs, target_unit: str) -> Table:
    rows = [
        [one.silo, one.kind, one.defence, f"{one.exact:,}", f"{one.near:,}",
         f"{costs[key]:.4f}" if (key := "" if one.defence == "none" else one.defence) in costs else "–"]
        for one in audits
    ]  # fmt: skip
    return Table(["silo", "message", "defence", "exact", "near", f"MAE after training ({target_unit})"], rows)


def _feature_sections(plain: Sequence[MessageAudit], units: Mapping[str, str]) -> list[Section]:
    blocks: list[Block] = []
    for one in plain:
        if one.feature_errors:
            worst = sorted(one.feature_errors, key=lambda name: -one.feature_errors[name])[:SHOWN_FEATURES]
            rows = [[name, f"{one.feature_errors[name]:.2e}", units.get(name, "1")] for name in worst]
            blocks.append(Table(["feature", "median error", "unit"], rows, f"{one.silo}, {one.kind}"))
    said = Paragraph("Median absolute error over the records found; the features with the largest error.")
    return [Section("Reconstructed features in physical units", [said, *blocks])] if blocks else []
