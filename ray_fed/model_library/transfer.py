"""From a library and a target table to frozen features of many sources."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

import numpy as np

from ray_fed.errors import DataError
from ray_fed.model_library import predictors
from ray_fed.model_library.cards import BASELINE_ERROR, HELD_OUT_ERROR
from ray_fed.model_library.descriptors import check_fingerprint, make_descriptor
from ray_fed.model_library.frozen_featurizer import FrozenFeaturizer
from ray_fed.model_library.property_tables import PropertyTable
from ray_fed.model_library.selection import SourceFeatures, Target
from ray_fed.reporting.model_files import ModelCard

Model = tuple[Mapping[str, np.ndarray], ModelCard]


def target_and_sources(
    table: PropertyTable, models: Iterable[Model], layers: str = "last", element_table: str | None = None
) -> tuple[Target, SourceFeatures]:
    """Return the target's rows that every descriptor can read, and the sources' features of them.

    Rows stay here: only models come in. DataError when a model was trained on other features than ours.
    """
    models = [model for model in models if model[1].architecture.get("type") == predictors.NETWORK]
    if not models:
        raise DataError("no networks among the sources; frozen features need models of method mlp")
    inputs, usable = _inputs(table, models, element_table)
    by_width: dict[int, list[tuple[np.ndarray, ModelCard]]] = defaultdict(list)
    for arrays, card in models:
        values = inputs[str(card.descriptor["name"])][usable]
        frozen = FrozenFeaturizer((arrays, card), "all" if layers == "all" else (-1,)).transform(values)
        by_width[frozen.shape[1]].append((frozen, card))
    groups = [by_width[width] for width in sorted(by_width)]
    cards = [card for group in groups for _, card in group]
    sources = SourceFeatures(
        tuple(np.stack([frozen for frozen, _ in group]) for group in groups),
        tuple(card.id for card in cards),
        np.array([relative_error(card) for card in cards]),
    )
    first = next(iter(inputs.values()))[usable]
    values = table.frame["value"].to_numpy(float)[usable]
    return Target(first, values, table.groups[usable]), sources


def relative_error(card: ModelCard) -> float:
    """Return a source's held-out MAE over that of the training median; NaN where the card does not say."""
    test = card.metrics.get("test", {})
    error, baseline = test.get(HELD_OUT_ERROR), test.get(BASELINE_ERROR)
    return float(error) / float(baseline) if isinstance(error, float) and isinstance(baseline, float) else float("nan")


def without_target_materials(models: Iterable[Model], modelsets: Iterable[str]) -> list[Model]:
    """Return the models that were not trained on these data sets: a source must not know the target's answers."""
    barred = set(modelsets)
    return [model for model in models if not barred & {str(source.get("name")) for source in model[1].data}]


def _inputs(
    table: PropertyTable, models: list[Model], element_table: str | None
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return raw features by descriptor name, and which rows all of them could read."""
    inputs: dict[str, np.ndarray] = {}
    for _, card in models:
        name = str(card.descriptor["name"])
        if name not in inputs:
            descriptor = make_descriptor(name, element_table)
            if not descriptor.reads(table.frame):
                raise DataError(f"sources on {name!r} read {descriptor.column!r}, {table.key} has no such column; "
                                f"choose others, e.g. --sources \"descriptor = guo65\"")  # fmt: skip
            check_fingerprint(descriptor, card.descriptor, card.id)
            inputs[name] = descriptor.transform(table.frame)[0]
    usable = np.all([np.isfinite(values).all(axis=1) for values in inputs.values()], axis=0)
    if usable.sum() < 20:
        raise DataError(f"{table.key}: {usable.sum()} rows can be read by all descriptors of the sources; need 20")
    return inputs, usable
