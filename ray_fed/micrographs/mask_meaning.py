"""Which numbers of a mask file mean boundary. Said by the owner or beyond doubt; never guessed."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ray_fed.errors import DataError
from ray_fed.micrographs.polycrystals import boundary_mask

PLAIN_PAIRS = ((0, 1), (0, 255), (0, 65535))
JPEG_HINT = "a JPEG smears masks: save PNG, or give threshold=127 (--masks NAME=threshold:127)"


@dataclass(frozen=True)
class MaskMeaning:
    """How the numbers of a silo's masks become boundary (1) and grain (0)."""

    boundary: tuple[int, ...] = ()
    """Numbers that mean boundary. Empty: masks of 0 and 1, or of 0 and 255, in which the greater one is the boundary;
    everything else must be said."""
    between_classes: bool = False
    """The boundaries are where the class changes: lines 3 pixels wide are drawn there. For masks of phases."""
    threshold: int | None = None
    """For masks smeared by JPEG: numbers above this are boundary."""

    def apply(self, masks: Mapping[str, np.ndarray], who: str) -> dict[str, np.ndarray]:
        """Return file -> uint8 mask [H, W] of file -> numbers; DataError names the silo, the file and the numbers."""
        if self.between_classes:
            found = {file: boundary_mask(mask) for file, mask in masks.items()}
        elif self.threshold is not None:
            found = {file: (mask > self.threshold).astype(np.uint8) for file, mask in masks.items()}
        else:
            boundary = self.boundary or (_greater_of_pair(masks, who),)
            found = {file: np.isin(mask, boundary).astype(np.uint8) for file, mask in masks.items()}
        for file, mask in found.items():
            _refuse_uniform(mask, file, who)
        if not (self.boundary or self.between_classes):
            _refuse_inverted(found, who)
        return found


def _greater_of_pair(masks: Mapping[str, np.ndarray], who: str) -> int:
    seen: set[int] = set()
    for file, mask in masks.items():
        here = set(np.unique(mask).tolist())
        if not any((seen | here) <= set(pair) for pair in PLAIN_PAIRS):
            shown = ", ".join(map(str, sorted(here)[:6])) + (", ..." if len(here) > 6 else "")
            smeared = len(here) > 16 or file.lower().endswith((".jpg", ".jpeg"))
            hint = JPEG_HINT if smeared else _classes_hint(here)
            raise DataError(f"{who}: mask {file} holds {shown}, not just 0 and 1 or 0 and 255; {hint}")
        seen |= here
    return max(max(seen), 1)


def _classes_hint(values: set[int]) -> str:
    number = max(values)
    return f"say which are boundary, e.g. boundary={number} (--masks NAME=boundary:{number}), or between_classes"


def _refuse_uniform(mask: np.ndarray, file: str, who: str) -> None:
    if not mask.any():
        raise DataError(f"{who}: mask {file} is empty: no pixel of it is a boundary; remove the image or label it")
    if mask.all():
        raise DataError(
            f"{who}: mask {file} has no grain: every pixel of it is a boundary; remove the image or label it"
        )


def _refuse_inverted(masks: Mapping[str, np.ndarray], who: str) -> None:
    share = sum(int(mask.sum()) for mask in masks.values()) / sum(mask.size for mask in masks.values())
    if share > 0.5:
        raise DataError(
            f"{who}: {share:.0%} of the mask pixels would be boundary; if 0 marks the boundaries say boundary=0 "
            "(--masks NAME=boundary:0), if this is right name the boundary's number"
        )
