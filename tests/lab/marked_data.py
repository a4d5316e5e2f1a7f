"""Records of a site with values that are found nowhere else: texts and numbers to search all other places for."""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ray_fed.materials.model_crystals.crystals import make_model_crystals

TARGET = "formation_energy_per_atom"


@dataclass(frozen=True)
class Markers:
    """What must not leave a site."""

    texts: tuple[str, ...]
    numbers: tuple[float, ...]

    def patterns(self) -> Iterator[tuple[str, bytes]]:
        """Yield (what it is, bytes to search for): numbers as text and in every binary form a program may send."""
        for text in self.texts:
            yield f"text {text}", text.encode()
            yield f"UTF-16 text {text}", text.encode("utf-16-le")
        for number in self.numbers:
            yield f"number {number}", repr(number)[:9].encode()
            for form in ("<d", ">d", "<f", ">f"):
                yield f"number {number} as {form}", struct.pack(form, number)

    def found_in(self, content: bytes, shortest: int = 1) -> list[str]:
        """Return what of it is in the content; patterns shorter than `shortest` bytes are left out: in megabytes of
        random bytes, as ciphers are, some of four are found by chance."""
        return [what for what, pattern in self.patterns() if len(pattern) >= shortest and pattern in content]


def marked_rows(site: str, num_rows: int, seed: int) -> tuple[pd.DataFrame, Markers]:
    """Return a site's rows and its markers: in the ids, in a column nobody asked for, in a row that cannot be read, and
    in numbers, among them the extremes, which minima and maxima would tell."""
    rows = make_model_crystals(num_rows, seed).reset_index(drop=True).drop(columns="reason")
    rows = rows.rename(columns={"target": TARGET})
    word = f"{site}Qz{seed}Xk"
    texts = (f"id{word}", f"remark{word}", f"broken{word}")
    rows["id"] = [f"{texts[0]}{number}" for number in range(len(rows))]
    rows["remark"] = f"{texts[1]} confidential"
    numbers = _marker_numbers(seed)
    rows.loc[0, TARGET], rows.loc[1, TARGET], rows.loc[2, TARGET] = (
        numbers["highest"],
        numbers["lowest"],
        numbers["any"],
    )
    rows.loc[3, "a"] = numbers["cell"]
    rows.loc[4, "formula"] = texts[2]
    return rows, Markers(texts, tuple(numbers.values()))


def _marker_numbers(seed: int) -> Mapping[str, float]:
    """Numbers with many digits, different at each site."""
    digits = np.random.default_rng(seed).uniform(0.1, 0.9, 4).round(11)
    middle = {"highest": 4.0, "lowest": -7.0, "any": -1.0, "cell": 17.0}
    return {name: float(base + digit) for (name, base), digit in zip(middle.items(), digits, strict=True)}
