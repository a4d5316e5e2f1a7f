"""Featurizers: the feature sets of feature_sets.py as scikit-learn transformers, with matminer's names as well.

    >>> featurizer = make_featurizer("guo65")
    >>> X, reasons = featurizer.transform_with_reasons(["Fe2O3", "Xx2O3"])
    >>> X.shape, reasons[1]
    ((2, 65), "unknown element 'Xx' in 'Xx2O3'")

`fit` only checks the options.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, TransformerMixin

from ray_fed.errors import DataError
from ray_fed.materials.features.feature_sets import FEATURE_SETS, FeatureSet, GuoFeatures, RichFeatures, checked

logger = logging.getLogger(__name__)


class CrystalFeaturizer(TransformerMixin, BaseEstimator, FeatureSet):
    """What scikit-learn and matminer users expect of a feature set."""

    def fit(self, X: object = None, y: object = None) -> "CrystalFeaturizer":  # noqa: ARG002
        """Check the options; nothing is learned from X."""
        self.check_options()
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit, tags.no_validation, tags.input_tags.string = False, True, True
        return tags

    def transform(self, X: Any) -> np.ndarray:
        """Return the features, float64 [num_rows, num_features]; rows that cannot be read are NaN.

        X  a table with a column `formula` (and the cell columns where `needs_structure`), or formulas, {symbol: amount}
           dicts, pymatgen Compositions or Structures in any mixture
        """
        return self.transform_with_reasons(X)[0]

    def featurize_dataframe(
        self,
        df: pd.DataFrame,
        col_id: str = "formula",
        ignore_errors: bool = True,
        return_errors: bool = True,
        pbar: bool = False,  # noqa: ARG002
    ) -> pd.DataFrame:
        """Return a copy of `df` with the feature columns after its own: matminer's idiom in one line.

        col_id         column of formulas, Compositions or Structures
        ignore_errors  keep rows that cannot be read, with NaN; otherwise DataError names the first of them
        return_errors  add a column `reason`, "" where the row was read; a reason already there stays
        pbar           taken for compatibility: the work is one array operation, there is nothing to show
        """
        if col_id not in df:
            raise DataError(f"the table has no column '{col_id}'; it has: {', '.join(map(str, df.columns))}")
        items = df[col_id].tolist()
        of_structures = any(hasattr(item, "lattice") for item in items)
        features, reasons = self._features(items, items if of_structures else df)
        _report(reasons, df.index, ignore_errors)
        names = self.feature_labels()
        table = pd.DataFrame(features, index=df.index, columns=pd.Index(names))
        if return_errors:
            given = df["reason"] if "reason" in df else [""] * len(df)
            table["reason"] = [before or now for before, now in zip(given, reasons, strict=True)]
        return pd.concat([df.drop(columns=[name for name in table if name in df]), table], axis=1)


class GuoFeaturizer(CrystalFeaturizer, GuoFeatures):
    __doc__ = GuoFeatures.__doc__


class RichFeaturizer(CrystalFeaturizer, RichFeatures):
    __doc__ = RichFeatures.__doc__


FEATURIZERS: Mapping[str, tuple[type[CrystalFeaturizer], Mapping[str, object]]] = {
    name: (GuoFeaturizer if kind is GuoFeatures else RichFeaturizer, implied)
    for name, (kind, implied) in FEATURE_SETS.items()
}
"""Featurizers by name, with the options that the name implies."""


def make_featurizer(name: str, **options: Any) -> CrystalFeaturizer:
    """Return the featurizer `name`; ConfigError when the name, an option or its value does not exist."""
    return checked(FEATURIZERS, name, options)


def _report(reasons: list[str], index: Iterable, ignore_errors: bool) -> None:
    """Log how many rows could not be read and why, or raise for the first of them."""
    failed = [(label, reason) for label, reason in zip(index, reasons, strict=True) if reason]
    if not failed:
        return
    label, reason = failed[0]
    if not ignore_errors:
        raise DataError(f"row {label}: {reason}; repair it, or pass ignore_errors=True to keep such rows as NaN")
    kinds = Counter(re.sub(r"(?: in)?\s*'[^']*'", "", reason) for _, reason in failed)
    counts = ", ".join(f"{count} x {kind}" for kind, count in kinds.most_common())
    logger.warning("%d of %d rows are NaN: %s; first: row %s, %s", len(failed), len(reasons), counts, label, reason)
