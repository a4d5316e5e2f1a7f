"""The audit for people: what leaks per silo, what stops it, what that costs."""

import shlex
from collections.abc import Sequence

from pipelines.leakage.audit_findings import NOTHING, Findings, LeakLimit, named_in_all, share, total, worst_per_silo
from ray_fed.leakage.audit import MessageAudit
from ray_fed.leakage.listed_records import Named
from ray_fed.reporting.report import Block, Paragraph, Section, Table, write_report
from ray_fed.reporting.run_directory import RunDirectory

SHOWN_FEATURES = 12

THREAT = (
    "Honest-but-curious coordinator: sees every message of a silo and the parameters it sent; knows network, loss and "
    "scaler; sees no record, target or local statistics. Replayed inside the silos: only the counts and errors on this "
    "page left them. Two threat models. Nothing known of the records: algebra on the first layer's part of a message, "
    "ratios of weight and bias updates, the best single row, and the exact factors of small batches. A list of "
    "suspects: the silo's records stand among public ones, as for anybody who has the databases that they are from; "
    "tried are the span of the first layer's rows, and least squares on the gradients of the network's outputs. "
    "Nothing found means not found by these attacks. One that optimises, sees many rounds at once or knows more may."
)
FOUND = (
    "A record is found if every feature comes back within 10 % of a standard deviation (root mean square), and the "
    "guess is nearer to it than the nearest other record of the silo is. Counts are summed over the silos. The error: "
    "after the same number of passes over the rows. silo_dp: (epsilon, 1e-5) for all rows of a silo over the whole "
    "run, noise added in the silo itself; dp: DP-SGD, (epsilon, 1e-5) for one record. Named: of the listed records "
    "behind the message (as many are named), those named rightly, by the attack that does best; ~ and the number: "
    "what naming at random gives. It counts as a leak where chance gives as many with a probability below 0.001. "
    "Changes with sgd, dp or compression average by FedAvg, whatever the federation's strategy."
)
AS_SET_UP = (
    "Records of the silo that the worst of its replayed messages gives away exactly, nearly, not at all. In the "
    "sum: records reconstructed, and named from the list, where only the sum over the silos is seen. Withstood by: the "
    "defence under which these attacks find nothing, at the least cost in error."
)
SMALLER = (
    "Gradients of fewer records at the first parameters, which this federation does not send. Target: median error of "
    "the target read from the gradient of one record. Cost: of the whole training under that defence."
)
MEMBERS = (
    "The attacker has candidate records with their targets, and asks which a model was trained on: members have "
    "smaller losses. AUC: probability that a member's loss is the smaller one; interval of 95 % (Hanley & McNeil "
    "1982). An attacker with shadow models does better."
)
TRIED = (
    "Records reconstructed / behind the message, records named from the list / listed behind the message, over all "
    "silos, at the first parameters and in the first round."
)


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
        Section("Who was trained on", [_lines(membership_table(findings), MEMBERS)]),
        *_feature_sections(findings),
    ]
    write_report(directory, "Leakage audit", summary, sections, command=shlex.join(command))
    directory.write_summary(summary)  # type: ignore[arg-type]


def _summary(findings: Findings, gate: LeakLimit, seconds: float) -> dict[str, object]:
    summary: dict[str, object] = {
        "status": "completed", "seconds.total": seconds, "leak.passed": not gate.broken,
    }  # fmt: skip
    for model, one in gate.worst.items():
        summary |= {f"leak.{model}.largest_share": share(one, model), f"leak.{model}.silo": one.silo}
        summary[f"leak.{model}.allowed"] = gate.limits.get(model)
    if findings.verified:
        summary["replay.same_as_received"], summary["replay.received"] = findings.verified
    for one in worst_per_silo(findings.of_rounds):
        summary |= {f"{one.silo}.found": one.found, f"{one.silo}.records": one.records}
        summary |= _named_numbers(one.silo, one.named_most)
    for one in findings.memberships:
        key, (low, high) = f"{one.silo}.membership.{one.of}", one.interval
        summary |= {f"{key}.auc": one.auc, f"{key}.auc_low": low, f"{key}.auc_high": high}
    for one in findings.of_kinds:
        key = f"{one.silo}.{one.kind}.{one.defence}"
        summary |= {f"{key}.exact": one.exact, f"{key}.near": one.near, f"{key}.records": one.records}
        for attack, counted in one.named.items():
            summary |= _named_numbers(f"{key}.{attack}", counted)
        if one.listed_target_error is not None:
            summary[f"{key}.listed_target_error"] = one.listed_target_error
        if one.defence == NOTHING:
            summary[f"{one.silo}.{one.kind}.cheapest_defence"] = findings.cheapest(one)
    for change, audits in findings.of_changes.items():
        key = f"training.{change or 'as set up'}"
        summary[f"{key}.found"], summary[f"{key}.records"] = total(audits)
        summary |= _named_numbers(key, named_in_all(audits))
        if sums := findings.of_changed_sums.get(change):
            summary |= {f"{key}.in_sum": total(sums)[0]} | _named_numbers(f"{key}.in_sum", named_in_all(sums))
    return summary | {f"{findings.metric.name}.{name or NOTHING}": value for name, value in findings.costs.items()}


def membership_table(findings: Findings) -> list[list[str]]:
    """Return a header and, per silo and model, how well losses tell who was trained on."""
    lines = [["silo", "model", "members", "others", "AUC", "95 %"]]
    for one in findings.memberships:
        low, high = one.interval
        counts = [f"{one.members:,}", f"{one.others:,}"]
        lines.append([one.silo, one.of, *counts, f"{one.auc:.3f}", f"{low:.3f} to {high:.3f}"])
    return lines


def _named_numbers(key: str, counted: Named) -> dict[str, object]:
    return {
        f"{key}.named": counted.right, f"{key}.listed": counted.named, f"{key}.by_chance": counted.by_chance,
        f"{key}.beyond_chance": counted.share,
    }  # fmt: skip


def silo_table(findings: Findings) -> list[list[str]]:
    """Return a header and, per silo, what the worst message of the replayed rounds gives away."""
    sums = {one.silo: one for one in worst_per_silo(findings.of_sums)}
    header = ["silo", "message", "records", "exact", "near", "named", "in the sum", "withstood by (cost)"]
    lines = [header]
    for one in worst_per_silo(findings.of_rounds):
        summed = _in_sum([sums[one.silo]] if one.silo in sums else [])
        lines.append([one.silo, one.kind.removeprefix("update of ").replace(" local ", " "), *_counts(one), summed,
                      _cheapest(findings, one)])  # fmt: skip
    return lines


def smaller_table(findings: Findings) -> list[list[str]]:
    """Return a header and, per silo and kind of smaller message, what that would give away, and what stops it."""
    header = ["silo", "gradient of", "records", "exact", "near", "named", f"target ({findings.unit})",
              "withstood by (cost)"]  # fmt: skip
    lines = [header]
    for kind in (kind for kind in findings.kinds if kind != findings.of_rounds[0].kind):
        for one in findings.select(kind, NOTHING):
            errors = [error for error in (one.target_error, one.listed_target_error) if error is not None]
            target = f"±{min(errors):.1e}" if errors else "–"
            lines.append([one.silo, _short(kind), *_counts(one), target, _cheapest(findings, one)])
    return lines


def _counts(one: MessageAudit) -> list[str]:
    return [f"{one.records:,}", f"{one.exact:,}", f"{one.near:,}", _named_words(one.named_most)]


def _named_words(counted: Named) -> str:
    """Return `right / listed (~by chance)`."""
    return f"{counted.right:,} / {counted.named:,} (~{counted.by_chance:.0f})" if counted.named else "–"


def _in_sum(sums: Sequence[MessageAudit]) -> str:
    """Return what is reconstructed and named where only the sum is seen."""
    if not sums:
        return "–"
    counted = named_in_all(sums)
    return f"{total(sums)[0]:,}, {_named_words(counted)}" if counted.named else f"{total(sums)[0]:,}"


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
    header = ["training", "message", "records", "exact", "near", "named", "in the sum", findings.metric.heading, "cost"]
    lines = [header]
    for change, audits in findings.of_changes.items():
        counts = [total(audits)[1], sum(one.exact for one in audits), sum(one.near for one in audits)]
        sums = _in_sum(findings.of_changed_sums.get(change, []))
        numbers = [*(f"{value:,}" for value in counts), _named_words(named_in_all(audits)), sums]
        lines.append([change or "as set up", audits[0].kind, *numbers, *_cost(findings, change or NOTHING)])
    return lines


def _cells(findings: Findings, defence: str) -> list[str]:
    """Return per kind what is reconstructed and named, of how many."""
    cells = []
    for kind in findings.kinds:
        (found, records), counted = total(chosen := findings.select(kind, defence)), named_in_all(chosen)
        cells.append(f"{found:,} / {records:,}" + (f", {counted.right:,} / {counted.named:,}" if counted.named else ""))
    return cells


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
