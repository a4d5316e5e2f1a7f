"""Labels in closed form: accuracy and steps of each rule (the paper's Table 1), and where the rules end."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from pipelines.leakage.config import LeakageConfig
from pipelines.leakage.jobs import own_network
from ray_fed.errors import FedError
from ray_fed.leakage.attacks import DLG
from ray_fed.leakage.labels import infer_labels, label_steps, output_gradients
from ray_fed.leakage.study import AttackJob, observations_of

BATCHES = (1, 2, 4, 8, 16, 32)
TRAINED_BATCHES = (1, 2, 4, 8, 16)
RULES = ("bias_sign", "row_sign")
DEFENDED = ("int8", "noise:0.01", "noise:0.1", "noise:1", "noise:10", "no_output_bias")


@dataclass(frozen=True)
class LabelResult:
    """One rule under one condition."""

    data: str
    rule: str
    condition: str
    messages: int
    right: float
    """Share of the labels found, the batch's order left aside."""
    steps: int
    """Entries of the message looked at."""
    reason: str = ""
    """Why the rule could not be used."""
    whole: int = 0
    """Batches with all labels right."""


def label_results(config: LeakageConfig) -> Iterator[LabelResult]:
    """Yield single-example accuracy per data set, then batches and defences on the first."""
    for data in config.data:
        yield from _rules(_job(config, data), "batch 1")
    first = _job(config, config.data[0])
    for size in BATCHES[1:]:
        problems = config.wanted_images // size
        if problems:
            yield from _rules(replace(first, batch_size=size, problems=tuple(range(problems))), f"batch {size}")
    if config.is_own:
        return
    for size in TRAINED_BATCHES:
        problems = config.wanted_images // size
        if problems:
            trained = replace(first, batch_size=size, problems=tuple(range(problems)), trained=config.trained_steps)
            yield from _rules(trained, f"batch {size}, trained")
    for steps in (4, 16):
        yield from _rules(replace(first, local_steps=steps), f"{steps} local steps")
    for defence in DEFENDED if config.output_bias else DEFENDED[:-1]:
        yield from _rules(replace(first, defence=defence), defence)


def _job(config: LeakageConfig, data: str) -> AttackJob:
    numbers = tuple(range(config.wanted_images))
    return AttackJob(
        "labels", "labels", data, config.model, DLG, numbers, config.wanted_images, 1, config.seed,
        output_bias=config.output_bias, own=own_network(config), statistics=config.statistics,
    )  # fmt: skip


def _rules(job: AttackJob, condition: str) -> Iterator[LabelResult]:
    observations, _, labels = observations_of(job)
    try:
        rows = output_gradients(observations).rows
    except FedError as error:
        yield LabelResult(job.data, RULES[0], condition, len(observations), 0.0, 0, reason=str(error))
        return
    steps = label_steps(rows.shape[1], rows.shape[2])
    for rule in RULES:
        try:
            found = infer_labels(observations, rule)
        except FedError as error:
            yield LabelResult(job.data, rule, condition, len(observations), 0.0, steps[rule], reason=str(error))
            continue
        whole = _whole_batches(found, labels)
        right = multiset_share(found, labels)
        yield LabelResult(job.data, rule, condition, len(observations), right, steps[rule], whole=whole)


def _whole_batches(found: torch.Tensor, true: torch.Tensor) -> int:
    """Return how many batches have all their labels right."""
    return sum(multiset_share(a[None], b[None]) == 1.0 for a, b in zip(found, true, strict=True))


def multiset_share(found: torch.Tensor, true: torch.Tensor) -> float:
    """Return the share of labels found [n, samples], counted per class, whatever their order."""
    size = int(torch.cat([found, true]).max()) + 1
    shared = [
        torch.minimum(torch.bincount(a, minlength=size), torch.bincount(b, minlength=size)).sum()
        for a, b in zip(found, true, strict=True)
    ]
    return float(torch.stack(shared).sum() / true.numel())


def as_rows(results: Sequence[LabelResult]) -> list[list[str]]:
    """Return a header and a line per condition, the two rules side by side."""
    found: dict[tuple[str, str, int], dict[str, str]] = {}
    for one in results:
        said = one.reason and "not possible"
        whole = f" ({one.whole}/{one.messages})" if "batch" in one.condition and one.condition != "batch 1" else ""
        found.setdefault((one.data, one.condition, one.messages), {})[one.rule] = said or f"{one.right:.1%}{whole}"
    lines = [
        [data, condition, f"{messages}", *(rules.get(rule, "–") for rule in RULES)]
        for (data, condition, messages), rules in found.items()
    ]
    return [["data", "condition", "messages", "sign of the bias (WDLG)", "sign of the rows (iDLG)"], *lines]


def table_1(results: Sequence[LabelResult], optimised: Mapping[str, float]) -> list[list[str]]:
    """Return the paper's Table 1, a header and a line per data set: share of labels right and entries looked at.

    optimised: data -> share of labels that DLG, which optimises them, ended with.
    """
    single = {(one.data, one.rule): one for one in results if one.condition == "batch 1"}
    header = ["data", "DLG", "iDLG", "WDLG", "steps of iDLG (C x n)", "steps of WDLG (C)"]
    lines = []
    for data in dict.fromkeys(data for data, _ in single):
        bias, rows = (single[data, rule] for rule in RULES)
        lines.append([
            data, f"{optimised[data]:.0%}" if data in optimised else "–", f"{rows.right:.0%}", f"{bias.right:.0%}",
            f"{rows.steps:,}", f"{bias.steps:,}",
        ])  # fmt: skip
    return [header, *lines]
