"""What the numbers in mask files mean: stated by their owner, or beyond doubt; proposed where they are not, never
guessed."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ray_fed.config import require
from ray_fed.errors import DataError
from ray_fed.micrographs.polycrystals import boundary_mask

PLAIN_PAIRS = ((0, 1), (0, 255), (0, 65535))
MANY_VALUES = 16
"""Masks of more different numbers are smeared pictures, or number their grains."""


@dataclass(frozen=True)
class MaskMeaning:
    """How the numbers of a silo's masks become boundary (1) and grain (0)."""

    boundary: tuple[int, ...] = ()
    """Numbers that mean boundary. Empty: masks of 0 and 1, or of 0 and 255, in which the greater one is the boundary;
    anything else must be stated."""
    between_classes: bool = False
    """The boundaries are where the class changes: lines 3 pixels wide are drawn there. For masks of phases."""
    instances: bool = False
    """Every grain has a number of its own, 0 is between grains: 0 is boundary, and lines 3 pixels wide are drawn where
    two grains touch."""
    threshold: int | None = None
    """For masks smeared by JPEG: numbers above this are boundary."""
    threshold_below: int | None = None
    """For masks smeared by JPEG in which boundaries are dark: numbers up to this are boundary."""

    def __post_init__(self) -> None:
        said = [
            name for name in ("boundary", "between_classes", "instances", "threshold", "threshold_below")
            if getattr(self, name) not in ((), False, None)
        ]  # fmt: skip
        require(len(said) <= 1, f"{' and '.join(said)}: say one of them")

    def apply(self, masks: Mapping[str, np.ndarray], who: str) -> dict[str, np.ndarray]:
        """Return file -> uint8 mask [H, W] of file -> numbers; DataError names the silo, the file and the numbers."""
        found = self._meant(masks, who)
        for file, mask in found.items():
            _refuse_uniform(mask, file, who)
        if not (self.boundary or self.between_classes or self.instances):
            self._refuse_inverted(found, who)
        return found

    def _meant(self, masks: Mapping[str, np.ndarray], who: str) -> dict[str, np.ndarray]:
        if self.threshold is not None:
            return {file: (mask > self.threshold).astype(np.uint8) for file, mask in masks.items()}
        if self.threshold_below is not None:
            return {file: (mask <= self.threshold_below).astype(np.uint8) for file, mask in masks.items()}
        for file, mask in masks.items():
            _refuse_smeared(mask, file, who)
        if self.between_classes:
            return {file: boundary_mask(mask) for file, mask in masks.items()}
        if self.instances:
            return {file: between_instances(mask) for file, mask in masks.items()}
        boundary = self.boundary or (_greater_of_pair(masks, who),)
        return {file: np.isin(mask, boundary).astype(np.uint8) for file, mask in masks.items()}

    def _refuse_inverted(self, masks: Mapping[str, np.ndarray], who: str) -> None:
        share = sum(int(mask.sum()) for mask in masks.values()) / sum(mask.size for mask in masks.values())
        if share <= 0.5:
            return
        remedy = "if 0 marks the boundaries say boundary=0 (--masks NAME=boundary:0), if this is right name the number"
        if self.threshold is not None:
            remedy = f"if the dark pixels are the boundaries say --masks NAME=threshold-below:{self.threshold}"
        elif self.threshold_below is not None:
            remedy = f"if the bright pixels are the boundaries say --masks NAME=threshold:{self.threshold_below}"
        raise DataError(f"{who}: {share:.0%} of the mask pixels would be boundary; {remedy}")


def between_instances(numbers: np.ndarray) -> np.ndarray:
    """Return the boundaries uint8 [H, W] of a map of grain numbers [H, W] in which 0 is between grains."""
    gap = numbers == 0
    touching = np.zeros(numbers.shape, bool)
    for here, there in ((np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])):
        first, second = numbers[here], numbers[there]
        touching[here] |= (first != second) & (first != 0) & (second != 0)
    wide = np.pad(touching, 1)
    rows = wide[:-2] | wide[1:-1] | wide[2:]
    return (gap | rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]).astype(np.uint8)


def proposal(mask: np.ndarray) -> str:
    """Return, in words, how a mask of many levels falls into two parts, and what to say for either meaning."""
    from skimage.filters import threshold_otsu

    is_dark = mask <= threshold_otsu(mask)
    level = int((mask[is_dark].mean() + mask[~is_dark].mean()) / 2)
    dark = float((mask <= level).mean())
    thin = "dark" if dark < 0.5 else "bright"
    said = f"threshold-below:{level}" if thin == "dark" else f"threshold:{level}"
    return (
        f"{dark:.0%} of it is dark (up to {level}), {1 - dark:.0%} bright; if the {thin} part, the smaller one, is the "
        f"boundary, say --masks NAME={said}"
    )


def _refuse_smeared(mask: np.ndarray, file: str, who: str) -> None:
    """A smeared mask has most of its levels in single pixels along edges; grain numbers and classes fill areas."""
    if len(np.unique(mask)) <= MANY_VALUES:
        if file.lower().endswith((".jpg", ".jpeg")) and len(np.unique(mask)) > 2:
            raise DataError(f"{who}: mask {file} is smeared, as JPEG does: {proposal(mask)}")
        return
    between = (mask > mask.min()) & (mask < mask.max())
    same = mask[:, 1:] == mask[:, :-1]
    if (same & between[:, 1:]).sum() < 0.5 * between[:, 1:].sum():
        raise DataError(f"{who}: mask {file} is smeared, as JPEG does: {proposal(mask)}")


def _greater_of_pair(masks: Mapping[str, np.ndarray], who: str) -> int:
    seen: set[int] = set()
    for file, mask in masks.items():
        here = set(np.unique(mask).tolist())
        if not any((seen | here) <= set(pair) for pair in PLAIN_PAIRS):
            shown = ", ".join(map(str, sorted(here)[:6])) + (", ..." if len(here) > 6 else "")
            raise DataError(f"{who}: mask {file} holds {shown}, not just 0 and 1 or 0 and 255; {_classes_hint(here)}")
        seen |= here
    return max(max(seen), 1)


def _classes_hint(values: set[int]) -> str:
    if len(values) > MANY_VALUES:
        return "if every grain has a number of its own say --masks NAME=instances"
    number = max(values)
    return (
        f"say which are boundary, e.g. boundary={number} (--masks NAME=boundary:{number}), or between_classes, or "
        "instances"
    )


def _refuse_uniform(mask: np.ndarray, file: str, who: str) -> None:
    if not mask.any():
        raise DataError(f"{who}: mask {file} is empty: no pixel of it is a boundary; remove the image or label it")
    if mask.all():
        raise DataError(
            f"{who}: mask {file} has no grain: every pixel of it is a boundary; remove the image or label it"
        )
