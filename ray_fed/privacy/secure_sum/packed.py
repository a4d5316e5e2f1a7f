"""Sums of whole numbers under masks in as few bytes as their bounds allow.

A part of a sum is `length` numbers with a sign, below 2^(bits - 1), and then as many counts below 2^count_bits; either
may have no bits. Number and count of one place make one field, number * 2^count_bits + count, and some neighbouring
fields one word, a whole number modulo 2^(8 * word_bytes): words add up, and so do their masks, which are random words.
The bounds are those of the whole sum, so nothing is lost as long as whoever asks for it knows them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ray_fed.exact_sum import ExactWeightedSum
from ray_fed.privacy.secure_sum import ring

WORD_BITS = 64
MOST_FIELDS = 16
MOST_PARTS = 1 << 12
UNIT_BITS = 16
"""Whole numbers in an `ExactWeightedSum` have units of 2^-16."""


@dataclass(frozen=True)
class PackedPart:
    """Neighbouring numbers with the same bounds. ValueError for bounds that no word holds."""

    length: int
    """Places, each with a number, a count or both."""
    bits: int
    """Of a number, its sign among them; 0: no numbers."""
    count_bits: int = 0
    """Of a count, which has no sign; 0: no counts."""

    def __post_init__(self) -> None:
        if self.length < 0 or min(self.bits, self.count_bits) < 0 or not 0 < self.field_bits <= WORD_BITS - 1:
            raise ValueError("a part of a sum must have fields of 1 to 63 bits")

    @property
    def num_values(self) -> int:
        return self.length * ((self.bits > 0) + (self.count_bits > 0))

    @property
    def kinds(self) -> tuple[tuple[int, bool], tuple[int, bool]]:
        """Bits of its numbers and of its counts, and whether they are counts."""
        return (self.bits, False), (self.count_bits, True)

    @property
    def field_bits(self) -> int:
        return self.bits + self.count_bits

    @cached_property
    def fields_per_word(self) -> int:
        """As many as waste the fewest bits."""
        most = min(MOST_FIELDS, WORD_BITS // self.field_bits)
        return min(range(1, most + 1), key=lambda fields: -(-fields * self.field_bits // 8) / fields)

    @property
    def word_bytes(self) -> int:
        return -(-self.fields_per_word * self.field_bits // 8)

    @property
    def num_words(self) -> int:
        return -(-self.length // self.fields_per_word)

    @property
    def num_bytes(self) -> int:
        return self.num_words * self.word_bytes

    def words(self, values: np.ndarray) -> np.ndarray:
        """Return whole numbers, int64 [num_values], as words, uint64 [num_words]; ValueError beyond the bounds."""
        numbers = values[: self.length] if self.bits else np.zeros(self.length, np.int64)
        counts = values[-self.length :] if self.count_bits and self.length else np.zeros(self.length, np.int64)
        limit = 1 << max(self.bits - 1, 0)
        within = bool((np.abs(numbers) < limit).all()) and not bool((counts >> self.count_bits).any())
        if not within:
            raise ValueError("a number is larger than the sum that it is to be part of")
        fields = np.zeros((self.num_words, self.fields_per_word), np.int64)
        fields.reshape(-1)[: self.length] = (numbers << self.count_bits) + counts
        words = np.zeros(self.num_words, np.uint64)
        for place in range(self.fields_per_word):
            words += fields[:, place].view(np.uint64) << np.uint64(place * self.field_bits)
        return words

    def values(self, words: np.ndarray) -> np.ndarray:
        """Return the whole numbers behind a sum of words, int64 [num_values]."""
        rest, fields = words.copy(), np.empty((self.num_words, self.fields_per_word), np.int64)
        unused, gap = np.uint64((1 << self.field_bits) - 1), np.int64(WORD_BITS - self.field_bits)
        for place in range(self.fields_per_word):
            field = (rest & unused).view(np.int64)
            if self.bits:
                field = (field << gap) >> gap  # its own upper bit is the sign
            fields[:, place] = field
            rest = (rest - field.view(np.uint64)) >> np.uint64(self.field_bits)
        flat = fields.reshape(-1)[: self.length]
        counts = flat & ((1 << self.count_bits) - 1)
        found = [(flat - counts) >> self.count_bits] if self.bits else []
        return np.concatenate([*found, *([counts] if self.count_bits else []), np.zeros(0, np.int64)])

    def packed(self, words: np.ndarray) -> np.ndarray:
        """Return words as they travel, uint8 [num_bytes]; what is above their modulus falls away."""
        octets = np.ascontiguousarray(words, "<u8").view(np.uint8).reshape(-1, 8)
        return np.ascontiguousarray(octets[:, : self.word_bytes]).reshape(-1)

    def unpacked(self, content: np.ndarray) -> np.ndarray:
        octets = np.zeros((self.num_words, 8), np.uint8)
        octets[:, : self.word_bytes] = content.reshape(-1, self.word_bytes)
        return octets.reshape(-1).view("<u8")


@dataclass(frozen=True)
class PackedForm:
    """The parts of a sum, in the order of its numbers."""

    parts: tuple[PackedPart, ...]

    def numbers(self) -> list[int]:
        return [number for part in self.parts for number in (part.length, part.bits, part.count_bits)]

    @classmethod
    def joined(cls, parts: Iterable[PackedPart]) -> "PackedForm":
        """Return the form of parts one after the other; those without any value are left out."""
        return cls(tuple(part for part in parts if part.length))

    @cached_property
    def shape(self) -> list[tuple[int, bool]]:
        """Which values are counts, run by run: (length, whether they are); all but the bounds."""
        runs = ((part.length, bits, are_counts) for part in self.parts for bits, are_counts in part.kinds)
        return [(length, are_counts) for length, bits, are_counts in runs if bits]

    @cached_property
    def num_values(self) -> int:
        return sum(part.num_values for part in self.parts)

    @cached_property
    def num_bytes(self) -> int:
        return sum(part.num_bytes for part in self.parts)

    def counts(self, values: np.ndarray) -> np.ndarray:
        """Return those of the values that are counts, [number of counts]."""
        found, first = [np.zeros(0, values.dtype)], 0
        for part in self.parts:
            end = first + part.num_values
            found += [values[end - part.length : end]] if part.count_bits else []
            first = end
        return np.concatenate(found)


def form_of(vector: np.ndarray) -> PackedForm:
    """Return the form of the answer to a vector that begins with: number of values, length of the form, form.
    ValueError where it does not begin so."""
    count = int(vector[1]) if len(vector) > 1 and 0 < vector[1] <= 3 * MOST_PARTS else 0
    numbers = [int(number) for number in vector[2 : 2 + count].tolist()]
    if count % 3 or not count or len(numbers) < count:
        raise ValueError("it asks for sums of no form")
    form = PackedForm(tuple(PackedPart(*numbers[at : at + 3]) for at in range(0, count, 3)))
    if form.num_values != vector[0]:
        raise ValueError("it asks for sums of no form: its parts have other numbers of values than it says")
    return form


class PackedSum:
    """A sum of one form, with some ring elements (ring.py) beside it: the loss, the steps, the weight."""

    def __init__(self, form: PackedForm, num_beside: int):
        self.form = form
        self.words = [np.zeros(part.num_words, np.uint64) for part in form.parts]
        self.beside = np.zeros((num_beside, ring.WORDS), np.uint64)

    @classmethod
    def of(cls, form: PackedForm, values: np.ndarray, beside: np.ndarray) -> "PackedSum":
        """Return whole numbers, int64 [num_values], and ring elements as a sum of one summand."""
        found, first = cls(form, len(beside)), 0
        for number, part in enumerate(form.parts):
            found.words[number] = part.words(values[first : first + part.num_values])
            first += part.num_values
        found.beside[:] = beside
        return found

    @property
    def num_bytes(self) -> int:
        return self.form.num_bytes + self.beside.nbytes

    def content(self) -> np.ndarray:
        """Return what travels, uint8 [num_bytes]."""
        packed = [part.packed(words) for part, words in zip(self.form.parts, self.words, strict=True)]
        return np.concatenate([*packed, np.ascontiguousarray(self.beside, "<u8").reshape(-1).view(np.uint8)])

    def add(self, content: np.ndarray, is_added: bool = True) -> None:
        """Add what another sum's `content` holds, or take it away."""
        first = 0
        for part, words in zip(self.form.parts, self.words, strict=True):
            theirs = part.unpacked(content[first : first + part.num_bytes])
            (np.add if is_added else np.subtract)(words, theirs, out=words)
            first += part.num_bytes
        beside = np.ascontiguousarray(content[first:]).view("<u8").reshape(-1, ring.WORDS)
        (ring.add if is_added else ring.subtract)(self.beside, beside)

    def values(self) -> np.ndarray:
        """Return the whole numbers, int64 [num_values]."""
        pairs = zip(self.form.parts, self.words, strict=True)
        found = [part.values(part.unpacked(part.packed(words))) for part, words in pairs]
        return np.concatenate([np.zeros(0, np.int64), *found])

    def decoded(self, total_weight: int, num_summands: int) -> ExactWeightedSum:
        """Return the exact sum of the values and, after them, of what is beside them but for its last element."""
        high, low = ring.decoded(self.beside[:-1], total_weight, num_summands).parts()
        values = self.values()
        both = np.concatenate([values << UNIT_BITS, high]), np.concatenate([np.zeros(len(values), np.int64), low])
        return ExactWeightedSum.of_parts(*both, total_weight, num_summands)
