"""Does a message hold the silo's own rows? The gate stands inside the silo, so it can compare.

It finds rows that are sent as they are. It does not find rows that were scaled, encrypted or spread thin: no gate can;
what honest updates give away is measured by `ray-fed audit`.
"""

import re
import secrets
from collections.abc import Iterable, Sequence

import numpy as np

MAX_WATCHED = 1 << 17
MAX_PROBED = 512
NUMBER = re.compile(r"[-+]?\d*\.\d+(?:[eE][-+]?\d+)?|[-+]?\d+[eE][-+]?\d+")


class Echo:
    """Remembers values that stand in one place of the rows only, and counts how many of them a message repeats."""

    def __init__(self) -> None:
        self._watched: dict[str, np.ndarray] = {}
        self._random = np.random.Generator(np.random.PCG64(secrets.randbits(128)))  # a sender must not foresee it

    def watch(self, name: str, values: np.ndarray) -> None:
        """Watch an array of the rows, whole or a random sample; whole numbers and repeated values tell nothing."""
        if not np.issubdtype(values.dtype, np.floating):
            return
        flat = values.reshape(-1)
        if flat.size > MAX_WATCHED:
            flat = flat[self._random.integers(0, flat.size, MAX_WATCHED)]
        distinct, counts = np.unique(np.asarray(flat, np.float32), return_counts=True)
        telling = np.isfinite(distinct) & (distinct != np.rint(distinct)) & (counts <= _repeats(values.size, flat.size))
        self._watched[name] = distinct[telling]

    def hits(self, values: np.ndarray) -> tuple[int, int]:
        """Return (values that repeat one of the rows', values looked at), of a random sample of a long message."""
        probe = np.asarray(values, np.float32).reshape(-1)
        if probe.size > MAX_PROBED:
            probe = probe[self._random.integers(0, probe.size, MAX_PROBED)]
        found = np.zeros(probe.shape, bool)
        for watched in self._watched.values():
            if len(watched):
                at = np.minimum(np.searchsorted(watched, probe), len(watched) - 1)
                found |= watched[at] == probe
        return int(found.sum()), probe.size

    def is_echo(self, values: np.ndarray) -> bool:
        """Tell whether a message of numbers is made of the rows' own values.

        Among 512 honest float32 numbers about one is in the watched set by chance; 16 are not once in 10^10 messages.
        """
        found, looked = self.hits(values)
        return found >= 16 or (8 <= looked < 64 and found >= looked // 2)

    def in_texts(self, texts: Iterable[str]) -> int:
        """Return how many numbers written in the texts are the rows' own."""
        numbers = [float(number) for text in texts for number in NUMBER.findall(text)]
        return self.hits(np.array(numbers, np.float64))[0] if numbers else 0


def _repeats(size: int, taken: int) -> int:
    """A sample with replacement draws a value that stands in one place more than once."""
    return 1 if size == taken else 2 + 4 * taken // size


def words(texts: Sequence[str]) -> list[str]:
    """Return the runs of characters between spaces and punctuation."""
    return [word for text in texts for word in re.split(r"[\s,;:()\[\]/|=]+", text) if word]
