"""What a report tells of targets that are classes: tables and figures of the counts behind the metrics."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ray_fed.materials.targets import Target
from ray_fed.metrics import ClassificationSums, Scores, SeveralScores
from ray_fed.reporting.class_figures import confusion_figure, reliability_figure, roc_figure
from ray_fed.reporting.report import Block, Figure, Paragraph, Section, Table

if TYPE_CHECKING:
    import matplotlib.figure

Save = Callable[[str, "matplotlib.figure.Figure", str], Figure]
"""(name of the file, picture, caption) -> the figure of a report."""
MOST_MODELS = 6
"""Models with a curve: more cannot be told apart."""
IN_GROUPS = (
    "Counts left the silos in groups of rows, never of single ones, so they are right within a group of each silo."
)


def sums_of(scores: Mapping[str, Scores], target: Target) -> dict[str, ClassificationSums]:
    """Return model -> counts of one target, of the models that have them."""
    parts = {
        model: found.parts.get(target.key) if isinstance(found, SeveralScores) else found
        for model, found in scores.items()
    }
    return {model: part for model, part in parts.items() if isinstance(part, ClassificationSums)}


def class_sections(
    targets: Sequence[Target], scores: Mapping[str, Scores], are_groups: bool, where: str, save: Save
) -> list[Section]:
    """Return a section for each target that is a class: of the first model each class's numbers, what is not defined
    and why, confusion matrix, reliability and ROC curves.

    scores: model -> what was told of it, the federation's first. are_groups: whether the counts are not exact. where:
    on which rows.
    """
    sections = []
    for target in targets:
        sums = sums_of(scores, target) if target.classes else {}
        if sums:
            sections.append(_section(target, sums, are_groups, where, save, len(targets) > 1))
    return sections


def _section(
    target: Target, sums: Mapping[str, ClassificationSums], are_groups: bool, where: str, save: Save, several: bool
) -> Section:
    (name, first), shown = next(iter(sums.items())), dict(list(sums.items())[:MOST_MODELS])
    ending = f"-{target.key}" if several else ""
    said = [*([IN_GROUPS] if are_groups else []), *(f"{what}: {why}." for what, why in _undefined(sums).items())]
    blocks: list[Block] = [Paragraph(text) for text in said]
    caption = (
        f"{name}, {where}. Precision: the share of rows predicted as the class that are of it; recall: the reverse."
    )
    return Section(
        f"Classes of {target.words}",
        [
            *blocks,
            Table(
                ["class", "rows", "predicted", "precision", "recall", "F1", "ROC AUC"], _rows(first, target), caption
            ),
            save(
                f"confusion{ending}",
                confusion_figure(first, target.classes, name),
                f"{name}: true against predicted {target.words}, {where}. Shade: share of the true class's rows.",
            ),
            save(
                f"reliability{ending}",
                reliability_figure(shown),
                f"Observed share against predicted probability, {where}; on the dotted line a probability is what it "
                "says. Below: how often each is predicted.",
            ),
            save(
                f"roc{ending}",
                roc_figure(shown, target.classes),
                f"Share of the class found against share of the others taken for it, {where}, over all thresholds.",
            ),
        ],
    )


def _undefined(sums: Mapping[str, ClassificationSums]) -> dict[str, str]:
    return {
        f"{metric} of {model} is not defined": reason
        for model, found in sums.items()
        for metric, reason in found.undefined().items()
    }


def _rows(sums: ClassificationSums, target: Target) -> list[list[str]]:
    """Return a line per class; a dash where a number is not defined."""
    matrix, areas = sums.matrix, sums.class_aucs
    hits, true, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    areas = np.repeat(areas, 2) if len(target.classes) == 2 else areas
    shares = [_share(hits, predicted), _share(hits, true), _share(2 * hits, true + predicted), areas]
    return [
        [label, f"{true[at]:,}", f"{predicted[at]:,}", *(_shown(column[at]) for column in shares)]
        for at, label in enumerate(target.classes)
    ]


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def _shown(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else "–"
