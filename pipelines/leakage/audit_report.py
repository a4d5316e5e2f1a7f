"""The audit for people: what leaks to whom, under which defences these attacks find nothing, what that costs."""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from pipelines.leakage.audit_config import AuditConfig
from pipelines.leakage.audit_findings import (
    NOTHING,
    Findings,
    LeakLimit,
    named_in_all,
    said_of,
    share,
    total,
    worst_per_silo,
)
from pipelines.leakage.threats import EXPLAINED, MARGINALS
from ray_fed.leakage.audit import MessageAudit
from ray_fed.leakage.listed_records import Named
from ray_fed.leakage.membership import FALSE_ALARMS, SHADOWS, Membership
from ray_fed.reporting.report import Block, Paragraph, Section, Table, write_report
from ray_fed.reporting.run_directory import RunDirectory
from ray_fed.reporting.tensorboard_log import EventLog

SHOWN_FEATURES = 12

THREAT = (
    "Attackers know network, loss and scaler, and see no record, target or local statistics. Replayed inside the "
    "silos: only the counts and errors on this page left them. Tried where nothing is known: algebra on the first "
    "layer's part of a message, ratios of weight and bias updates, the best single row, and the exact factors of small "
    "batches. With the list: the span of the first layer's rows, least squares on the gradients of the network's "
    "outputs, the same of the entries that a sparse message has left, and sums over rounds. Nothing found means not "
    "found by these attacks. One that optimises or knows more may."
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
    "smaller losses; with shadow models each loss is compared with those of models with and without that record "
    "(Carlini et al. 2022). AUC: probability that a member's loss is the smaller one; interval of 95 % (Hanley & "
    "McNeil 1982; for all attacked rounds together). Exposed: members of whom the attacker is so sure that at most 1 % "
    "of the others are named with them; by chance 1 %. Evaluation answers: a silo's mean errors as equations for who "
    "is there; they mostly say that members have the smaller errors, which losses say as well."
)
ROLES = (
    "The worst over silos. Reconstructed, with marginals: records of one silo behind one message. Named: listed "
    "records behind it, beside what chance names. AUC: of losses or shadow models. Means: variance of the mean target "
    "or of a feature among shadow silos that is explained. An outsider is one who gets the model."
)
CRAFTED_SAYS = (
    "What comes back if the coordinator sends, once, models in which rows stand alone (Fowl et al. 2022; Boenisch et "
    "al. 2023; Wen et al. 2022), in the gradient of a whole batch and in the update of a round. Sent to the audit's "
    "own silos alone."
)
PROPERTIES_SAY = (
    "Read from a silo's first update by one who trains shadow silos on records of the own (Ganju et al. 2018). Error: "
    "of the attack on shadow silos of other records; without the update: of guessing their mean."
)
WHOSE_SAYS = (
    "Of the records rightly named in the sum over all silos, those given to the silo that has them, by one who knows "
    "20 records of each silo and takes the nearest. ~: all given to the silo with the most of them. All others "
    "together need not guess: they take their own parts off the sum."
)
UNGUIDED = "As many are named as are behind a message; by one who is not told how many: right / named."
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
        Section("Verdict", [Paragraph(f"{gate.words}. {findings.rounds_words}. {findings.verified_words}")]),
        Section("Threat models", [Paragraph(THREAT), _lines([["name", "attacker"], *map(list, EXPLAINED.items())])]),
        *(Section(title, [_lines(table, CAPTIONS.get(title, ""))]) for title, table in tables(findings, gate)),
        Section("How to read the counts", [Paragraph(FOUND)]),
        *_feature_sections(findings),
    ]
    write_report(directory, "Leakage audit", summary, sections, command=shlex.join(command))
    directory.write_summary(summary)  # type: ignore[arg-type]


def log_audit(directory: RunDirectory, config: AuditConfig) -> None:
    """Show in TensorBoard what was asked, and what the attacks of each threat model found at most."""
    worst = {key: value for key, value in directory.read_summary().items() if key.startswith("leak.")}
    with EventLog(directory.tensorboard) as log:
        log.hyperparameters({"pipeline": "audit", **asdict(config)}, directory.path.name)
        log.outcome(worst)


VERDICTS, WHO, AS_IS = "A verdict per threat model", "Who could learn what", "As the federation is set up, per silo"
SMALLER_ONES, BY_DEFENCE = "What smaller messages would give away", "What each defence leaves, and what it costs"
OTHERWISE, TRAINED_ON = "The same training, done in other ways", "Who was trained on"
MEANS, BY_CRAFTED, WHOSE = (
    "Means over a silo's rows",
    "Answers to crafted models",
    "Whose rows, of those named in a sum",
)
CAPTIONS = {
    WHO: ROLES, AS_IS: f"{AS_SET_UP} {UNGUIDED}", SMALLER_ONES: SMALLER, BY_DEFENCE: TRIED, TRAINED_ON: MEMBERS,
    MEANS: PROPERTIES_SAY, BY_CRAFTED: CRAFTED_SAYS, WHOSE: WHOSE_SAYS,
}  # fmt: skip


def tables(findings: Findings, gate: LeakLimit) -> list[tuple[str, list[list[str]]]]:
    """Return title and lines, the header first, of every table that has lines."""
    all_of_them = [
        (VERDICTS, verdict_table(gate)), (WHO, role_table(findings)), (AS_IS, silo_table(findings)),
        (SMALLER_ONES, smaller_table(findings)), (BY_DEFENCE, defence_table(findings)),
        (OTHERWISE, change_table(findings)), (TRAINED_ON, membership_table(findings)),
        (MEANS, property_table(findings)), (BY_CRAFTED, crafted_table(findings)), (WHOSE, whose_table(findings)),
    ]  # fmt: skip
    return [(title, table) for title, table in all_of_them if len(table) > 1]


def verdict_table(gate: LeakLimit) -> list[list[str]]:
    """Return a header and, per threat model, the worst that was found and whether it is allowed, or why it was not
    tried."""
    lines = [["threat model", "allowed", "found", "verdict", "worst"]]
    for model, worst in gate.worst.items():
        allowed = f"{gate.limits[model]:g}" if model in gate.limits else "–"
        found = share(worst, model)
        verdict = "above what is allowed" if model in gate.broken else "found" if found else NOT_FOUND
        lines.append([model, allowed, f"{found:.1%}", verdict, said_of(worst, model)])
    return lines + [[model, "–", "–", "not tried", why] for model, why in gate.findings.untried.items()]


NOT_FOUND = "not found by these attacks"


def role_table(findings: Findings) -> list[list[str]]:
    """Return a header and, per role, what it sees and the worst that it could learn of any silo."""
    whole = [one for one in findings.memberships if not one.is_in_update]
    updates = [one for one in findings.memberships if one.is_in_update]
    in_clear = not findings.is_summed
    seen = "each update" if in_clear else "the sum of a round"
    header = ["who", "sees", "reconstructed", "with marginals", "named from a list", "trained on (AUC)", "means (R²)"]
    return [
        header,
        ["an outsider", "the final model", "–", "–", "–", _worst_auc(whole), "–"],
        ["another silo", "the global models", *_worst_counts(findings.of_models), _worst_auc(whole), "–"],
        ["the coordinator", seen, *_worst_counts(findings.shown), _worst_auc([*whole, *(updates if in_clear else ())]),
         _worst_mean(findings) if in_clear else "–"],
        ["all others together", "each update", *_worst_counts(findings.of_rounds), _worst_auc([*whole, *updates]),
         _worst_mean(findings)],
    ]  # fmt: skip


def _worst_counts(audits: Sequence[MessageAudit]) -> list[str]:
    if not audits:
        return ["–"] * 3
    plain, refined, listed = (max(audits, key=lambda one: (key(one), one.records)) for key in (
        lambda one: one.share, lambda one: one.share_with_marginals, lambda one: one.named_most.share))  # fmt: skip
    return [
        f"{plain.found:,} / {plain.records:,}",
        f"{max(refined.found, refined.with_marginals):,} / {refined.records:,}",
        _named_words(listed.named_most),
    ]


def _worst_auc(asked: Iterable[Membership]) -> str:
    worst = max(asked, key=lambda one: (one.share, one.auc), default=None)
    return "–" if worst is None else f"{worst.auc:.2f} ({worst.interval[0]:.2f} to {worst.interval[1]:.2f})"


def _worst_mean(findings: Findings) -> str:
    worst = max(findings.properties, key=lambda one: one.share, default=None)
    return "–" if worst is None else f"{worst.explained:.2f} ({worst.interval[0]:.2f} to {worst.interval[1]:.2f})"


def property_table(findings: Findings) -> list[list[str]]:
    """Return a header and, per silo and property, what is read of it."""
    lines = [["silo", "property", "true", "read", "error", "without the update", "unit"]]
    for one in findings.properties:
        numbers = (one.true, one.read, one.error, one.guess_error)
        lines.append([one.silo, one.name, *(f"{number:.3g}" for number in numbers), one.unit])
    return lines


def whose_table(findings: Findings) -> list[list[str]]:
    """Return a header and, per kind of message, how many named records are given to the right silo."""
    lines = [["in the sum of", "silos", "given rightly"]]
    return lines + [
        [_short(one.kind), f"{one.summed}", _named_words(one.counted)]
        for one in findings.attributed
        if one.counted.named
    ]


def crafted_table(findings: Findings) -> list[list[str]]:
    """Return a header and, per silo and crafted model, the records that come back."""
    lines = [["silo", "model, message", "records", "exact", "near"]]
    for one in (*findings.of_crafted_batches, *findings.of_crafted):
        of_sum = f" in a sum of {one.summed}" if one.summed > 1 else ""
        lines.append(
            [one.silo, one.kind.split(" (")[0] + of_sum, f"{one.records:,}", f"{one.exact:,}", f"{one.near:,}"]
        )
    return lines


def _summary(findings: Findings, gate: LeakLimit, seconds: float) -> dict[str, object]:
    summary: dict[str, object] = {
        "status": "completed", "seconds.total": seconds, "leak.passed": not gate.has_failed,
    }  # fmt: skip
    for model, one in gate.worst.items():
        summary |= {f"leak.{model}.largest_share": share(one, model), f"leak.{model}.silo": one.silo}
        summary[f"leak.{model}.allowed"] = gate.limits.get(model)
    summary |= {f"leak.{model}.not_tried": why for model, why in gate.findings.untried.items()}
    if findings.verified:
        summary["replay.same_as_received"], summary["replay.received"] = findings.verified
    for one in worst_per_silo(findings.of_rounds):
        summary |= {f"{one.silo}.found": one.found, f"{one.silo}.records": one.records}
        summary |= _named_numbers(one.silo, one.named_most)
    summary["rounds.attacked"], summary["rounds.replayed"], summary["rounds.of_the_run"] = findings.rounds
    for one in findings.memberships:
        suffix = f" by {SHADOWS}" if one.attack == SHADOWS else ""
        key, (low, high) = f"{one.silo}.membership.{one.of}{suffix}", one.interval
        summary |= {f"{key}.auc": one.auc, f"{key}.auc_low": low, f"{key}.auc_high": high}
        summary |= {f"{key}.exposed": one.exposed, f"{key}.members": one.members}
    for one in findings.properties:
        key = f"{one.silo}.{one.name}"
        summary |= {f"{key}.read": one.read, f"{key}.error": one.error, f"{key}.explained": one.explained}
    for one in findings.attributed:
        summary |= {f"whose.{one.kind}.right": one.counted.right, f"whose.{one.kind}.named": one.counted.named}
    for one in (*findings.of_crafted_batches, *findings.of_crafted):
        summary |= {f"{one.silo}.{one.kind}.found": one.found, f"{one.silo}.{one.kind}.records": one.records}
    for one in findings.of_kinds:
        key = f"{one.silo}.{one.kind}.{one.defence}"
        summary |= {f"{key}.exact": one.exact, f"{key}.near": one.near, f"{key}.records": one.records}
        summary |= {f"{key}.with_{MARGINALS}": max(one.found, one.with_marginals)}
        if one.labels[1]:
            summary |= {f"{key}.classes_right": one.labels[0], f"{key}.classes_read": one.labels[1]}
        if one.unguided.listed:
            told = one.unguided
            summary |= {f"{key}.unguided.right": told.right, f"{key}.unguided.named": told.named}
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
    """Return a header and, per silo and model, how well losses tell who was trained on; of models that many rounds
    have, the one that tells most."""
    lines = [["silo", "model", "attack", "members", "others", "AUC", "95 %", "exposed"]]
    shown: dict[tuple[str, str, bool], Membership] = {}
    for one in findings.memberships:
        key = (one.silo, one.attack, one.is_in_update)
        if key not in shown or one.auc > shown[key].auc:
            shown[key] = one
    for one in shown.values():
        low, high = one.interval
        counts = [f"{one.members:,}", f"{one.others:,}"]
        exposed = f"{one.exposed:,} (~{FALSE_ALARMS * one.members:.0f})"
        lines.append([one.silo, one.of, one.attack, *counts, f"{one.auc:.3f}", f"{low:.3f} to {high:.3f}", exposed])
    return lines


def _named_numbers(key: str, counted: Named) -> dict[str, object]:
    return {
        f"{key}.named": counted.right, f"{key}.listed": counted.named, f"{key}.by_chance": counted.by_chance,
        f"{key}.beyond_chance": counted.share,
    }  # fmt: skip


def silo_table(findings: Findings) -> list[list[str]]:
    """Return a header and, per silo, what the worst message of the replayed rounds gives away."""
    sums = {one.silo: one for one in worst_per_silo(findings.of_sums)}
    header = ["silo", "message", "records", "exact", "near", "marginals", "named", "not told how many", "in the sum",
              "withstood by (cost)"]  # fmt: skip
    lines = [header]
    for one in worst_per_silo(findings.of_rounds):
        summed = _in_sum([sums[one.silo]] if one.silo in sums else [])
        kind = one.kind.removeprefix("update of ").replace(" local ", " ")
        lines.append([one.silo, kind, *_counts(one), _unguided(one), summed, _cheapest(findings, one)])
    return lines


def _unguided(one: MessageAudit) -> str:
    """Return `right / named` of one who is not told how many records are behind the message."""
    return f"{one.unguided.right:,} / {one.unguided.named:,}" if one.unguided.listed else "–"


def smaller_table(findings: Findings) -> list[list[str]]:
    """Return a header and, per silo and kind of smaller message, what that would give away, and under what
    nothing is found."""
    header = ["silo", "gradient of", "records", "exact", "near", "marginals", "named", "not told how many",
              f"target ({findings.unit})", "withstood by (cost)"]  # fmt: skip
    lines = [header]
    for kind in (kind for kind in findings.kinds if kind.startswith("gradient")):
        for one in findings.select(kind, NOTHING):
            errors = [error for error in (one.target_error, one.listed_target_error) if error is not None]
            right, read = one.labels
            target = f"±{min(errors):.1e}" if errors else f"{right} of {read} classes" if read else "–"
            lines.append([one.silo, _short(kind), *_counts(one), _unguided(one), target,
                          _cheapest(findings, one)])  # fmt: skip
    return lines


def _counts(one: MessageAudit) -> list[str]:
    refined = max(one.found, one.with_marginals)
    return [f"{one.records:,}", f"{one.exact:,}", f"{one.near:,}", f"{refined:,}", _named_words(one.named_most)]


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
    """Return per kind what is reconstructed, by whom knows the marginals if that is more, and named, of how many."""
    cells = []
    for kind in findings.kinds:
        chosen = findings.select(kind, defence)
        if not chosen:
            cells.append("–")
            continue
        records, counted = total(chosen)[1], named_in_all(chosen)
        found = sum(max(one.found, one.with_marginals) for one in chosen)
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
