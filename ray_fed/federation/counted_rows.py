"""Counts of the rows of several silos together, made from what each tells (`Counts`)."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ray_fed.federation.messages import MAX_EXAMPLES, Counts, Raised, is_count


@dataclass(frozen=True)
class CountedRows:
    """Counts of the rows of several silos together."""

    num_examples: int
    counts: np.ndarray = field(repr=False)
    """int64 [n]"""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Silo that is not in them -> why: its owner forbids it, it is not there."""


def counted_together(question: str, told: Mapping[str, "Counts | Raised"]) -> CountedRows:
    """Return the sum of what silos told, silos in the order of their names; of an answer that is none, why."""
    total, num_examples, missing = np.zeros(0, np.int64), 0, {}
    for silo, answer in sorted(told.items()):
        why = _why_no_counts(silo, question, answer, len(total))
        if why:
            missing[silo] = why
        elif isinstance(answer, Counts):
            total = total + answer.counts if len(total) else answer.counts
            num_examples += answer.num_examples
    return CountedRows(num_examples, total, missing)


def _why_no_counts(silo: str, question: str, answer: object, length: int) -> str:
    """Return why an answer cannot be added to others of a length, 0 where it is the first; "" where it can."""
    if isinstance(answer, Raised):
        return answer.reason
    if type(answer) is not Counts or (answer.silo, answer.what) != (silo, question):
        return "its answer is no answer to this question"
    counts, rows = answer.counts, answer.num_examples
    fits = type(counts) is np.ndarray and counts.dtype == np.int64 and counts.ndim == 1 and is_count(rows, MAX_EXAMPLES)
    if not fits or (len(counts) and not 0 <= int(counts.min()) <= int(counts.max()) <= rows):
        return "its counts are not whole numbers from 0 to the number of its rows"
    return "its counts are of another length than the others'" if length and len(counts) != length else ""
