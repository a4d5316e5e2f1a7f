"""The audit for people: what leaks per silo, what stops it, what that costs."""

import shlex
from collections.abc import Sequence

from pipelines.leakage.audit_findings import NOTHING, Findings, LeakLimit, total, worst_per_silo
from ray_fed.leakage.audit import MessageAudit
from ray_fed.reporting.report import Block, Paragraph, Section, Table, write_report
from ray_fed.reporting.run_directory import RunDirectory

SHOWN_FEATURES = 12

THREAT = (
    "Honest-but-curious coordinator: sees every message of a silo and the parameters it sent; knows network, loss and "
    "scaler; sees no record, target or local statistics. Replayed inside the silos: only the counts and errors on this "
    "page left them. The attacks are algebra on the first layer's part of a message: ratios of weight and bias "
    "updates, the best single row, and the exact factors of small batches. What they do not find, an attack that "
    "optimises or knows more may."
)
FOUND = (
    "A record is found if every feature comes back within 10 % of a standard deviation (root mean square), and the "
    "guess is nearer to it than the nearest other record of the silo is. Counts are summed over the silos. The error: "
    "after the same number of passes over the rows. silo_dp: (epsilon, 1e-5) for all rows of a silo over the whole "
    "run, noise added in the silo itself; dp: DP-SGD, (epsilon, 1e-5) for one record."
)
AS_SET_UP = (
    "Records of the silo that the worst of its replayed messages gives away exactly, nearly, not at all. In the "
    "sum: records found where only the sum over the silos is seen. "
    "Stopped by: the defence that stops it at the least cost in error."
)
SMALLER = (
    "Gradients of fewer records at the first parameters, which this federation does not send. Target: median error of "
    "the target read from the gradient of one record. Cost: of the whole training under that defence."
)
TRIED = "Records found / records behind the message, over all silos, at the first parameters and in the first round."


def write_audit(
    directory: RunDirectory, findings: Findings, gate: LeakLimit, seconds: float, command: Sequence[str]
) -> None:
    """Write summary.json and report.html."""
    summary = _summary(findings, gate, seconds)
    sections = [
        Section("Verdict", [Paragraph(f"{gate.words}. {findings.verified_words}")]),
        Section("Threat model", [Paragraph(THREAT)]),
        Section("What leaves as the federation is set up", [_lines(silo_table(findings), AS_SET_UP)]),
        Section("What smaller messages would give away", [_lines(smaller_table(findings), SMALLER)]),
        Section("Defences", [_lines(defence_table(findings), TRIED), Paragraph(FOUND)]),
        Section("Batches, local steps, private steps", [_lines(change_table(findings))]),
        *_feature_sections(findings),
    ]
    write_report(directory, "Leakage audit", summary, sections, command=shlex.join(command))
    directory.write_summary(summary)  # type: ignore[arg-type]


def _summary(findings: Findings, gate: LeakLimit, seconds: float) -> dict[str, object]:
    summary: dict[str, object] = {
        "status": "completed", "seconds.total": seconds, "leak.largest_share": gate.worst.share,
        "leak.silo": gate.worst.silo, "leak.allowed": gate.limit, "leak.passed": not gate.is_broken,
    }  # fmt: skip
    if findings.verified:
        summary["replay.same_as_received"], summary["replay.received"] = findings.verified
    for one in worst_per_silo(findings.of_rounds):
        summary |= {f"{one.silo}.found": one.found, f"{one.silo}.records": one.records}
    for one in findings.of_kinds:
        key = f"{one.silo}.{one.kind}.{one.defence}"
        summary |= {f"{key}.exact": one.exact, f"{key}.near": one.near, f"{key}.records": one.records}
        if one.defence == NOTHING:
            summary[f"{one.silo}.{one.kind}.cheapest_defence"] = findings.cheapest(one)
    for change, audits in findings.of_changes.items():
        key = f"training.{change or 'as set up'}"
        summary[f"{key}.found"], summary[f"{key}.records"] = total(audits)
    return summary | {f"{findings.metric.name}.{name or NOTHING}": value for name, value in findings.costs.items()}


def silo_table(findings: Findings) -> list[list[str]]:
    """Return a header and, per silo, what the worst message of the replayed rounds gives away."""
    sums = {one.silo: one for one in worst_per_silo(findings.of_sums)}
    header = ["silo", "message", "records", "exact", "near", "none", "in the sum", "stopped by (cost)"]
    lines = [header]
    for one in worst_per_silo(findings.of_rounds):
        summed = f"{sums[one.silo].found:,}" if one.silo in sums else "–"
        lines.append([one.silo, one.kind.removeprefix("update of ").replace(" local ", " "), *_counts(one), summed,
                      _cheapest(findings, one)])  # fmt: skip
    return lines


def smaller_table(findings: Findings) -> list[list[str]]:
    """Return a header and, per silo and kind of smaller message, what that would give away, and what stops it."""
    header = ["silo", "gradient of", "records", "exact", "near", "none", f"target ({findings.unit})",
              "stopped by (cost)"]  # fmt: skip
    lines = [header]
    for kind in (kind for kind in findings.kinds if kind != findings.of_rounds[0].kind):
        for one in findings.select(kind, NOTHING):
            target = "–" if one.target_error is None else f"±{one.target_error:.1e}"
            lines.append([one.silo, _short(kind), *_counts(one), target, _cheapest(findings, one)])
    return lines


def _counts(one: MessageAudit) -> list[str]:
    return [f"{number:,}" for number in (one.records, one.exact, one.near, one.records - one.found)]


def _short(kind: str) -> str:
    """Return the kind of a message as a heading."""
    return kind.split(" (")[0].removeprefix("gradient of ").removeprefix("update of ")


def _cheapest(findings: Findings, leak: MessageAudit) -> str:
    """Name the cheapest defence and what it costs."""
    name = findings.cheapest(leak)
    cost = findings.cost(name)
    return name if cost is None else f"{name} ({cost:+.2g})"


def defence_table(findings: Findings) -> list[list[str]]:
    """Return a header and, per defence, what each kind of message gives away and what the defence costs."""
    header = ["defence", *(_short(kind) for kind in findings.kinds), findings.metric.heading, "cost"]
    return [header, *([name, *_cells(findings, name), *_cost(findings, name)] for name in findings.defences)]


def change_table(findings: Findings) -> list[list[str]]:
    """Return a header and, per way to train, what the first round's updates give away."""
    header = ["training", "message", "records", "exact", "near", "in the sum", findings.metric.heading, "cost"]
    lines = [header]
    for change, audits in findings.of_changes.items():
        counts = [total(audits)[1], sum(one.exact for one in audits), sum(one.near for one in audits)]
        sums = findings.of_changed_sums.get(change)
        numbers = [*(f"{value:,}" for value in counts), f"{total(sums)[0]:,}" if sums else "–"]
        lines.append([change or "as set up", audits[0].kind, *numbers, *_cost(findings, change or NOTHING)])
    return lines


def _cells(findings: Findings, defence: str) -> list[str]:
    counts = [total(findings.select(kind, defence)) for kind in findings.kinds]
    return [f"{found:,} / {records:,}" for found, records in counts]


def _cost(findings: Findings, key: str) -> tuple[str, str]:
    cost = findings.cost(key)
    if cost is None:
        return "–", "–"
    return f"{findings.costs['' if key == NOTHING else key]:.4g}", f"{cost:+.2g}"


def _lines(lines: Sequence[Sequence[str]], caption: str = "") -> Table:
    return Table(lines[0], lines[1:], caption)


def _feature_sections(findings: Findings) -> list[Section]:
    blocks: list[Block] = []
    for one in (one for kind in findings.kinds for one in findings.select(kind, NOTHING)):
        if one.feature_errors:
            blocks.append(_worst_features(one, findings))
    said = Paragraph("Median absolute error over the records found; the features with the largest error.")
    return [Section("Reconstructed features in physical units", [said, *blocks])] if blocks else []


def _worst_features(one: MessageAudit, findings: Findings) -> Table:
    worst = sorted(one.feature_errors, key=lambda name: -one.feature_errors[name])[:SHOWN_FEATURES]
    rows = [[name, f"{one.feature_errors[name]:.2e}", findings.feature_units.get(name, "1")] for name in worst]
    return Table(["feature", "median error", "unit"], rows, f"{one.silo}, {one.kind}")
