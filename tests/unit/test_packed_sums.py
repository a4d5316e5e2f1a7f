"""Whole numbers under masks in few bytes: sums of words are sums of numbers, whatever their bounds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_fed.privacy.secure_sum import ring
from ray_fed.privacy.secure_sum.masks import add_mask
from ray_fed.privacy.secure_sum.packed import PackedForm, PackedPart, PackedSum, form_of
from ray_fed.randomness import generator

PARTS = st.builds(PackedPart, st.integers(1, 9), st.integers(2, 40), st.integers(0, 23))
BESIDE = np.concatenate([ring.encoded(np.array([0.25, 2.0], np.float32), 1), ring.whole(1)])


def drawn(part: PackedPart, seed: int, share: int) -> np.ndarray:
    """Numbers of which `share` add up within the bounds of the part."""
    random, most = generator(seed, "numbers"), ((1 << (part.bits - 1)) - 1) // share
    numbers = random.integers(-most, most + 1, part.length)
    counts = random.integers(0, ((1 << part.count_bits) - 1) // share + 1, part.length if part.count_bits else 0)
    return np.concatenate([numbers, counts])


@given(st.lists(PARTS, min_size=1, max_size=4), st.integers(1, 5), st.integers(0, 2**20))
def test_the_sum_of_packed_numbers_is_that_of_the_numbers_under_masks_too(parts, num_silos, seed):
    form = PackedForm(tuple(parts))
    summands = [np.concatenate([drawn(part, seed + silo, num_silos) for part in parts]) for silo in range(num_silos)]
    total = PackedSum(form, len(BESIDE))
    for number, values in enumerate(summands):
        one = PackedSum.of(form, values, BESIDE)
        add_mask(one, bytes([number]) * 32, is_added=True)
        content = one.content()
        assert content.nbytes == total.num_bytes
        total.add(content)
        add_mask(total, bytes([number]) * 32, is_added=False)
    wanted = np.sum(summands, axis=0)
    assert np.array_equal(total.values(), wanted)
    decoded = total.decoded(num_silos, num_silos)
    assert np.array_equal(decoded.parts()[0][: len(wanted)] >> 16, wanted)
    assert decoded.mean()[len(wanted) :] == pytest.approx([0.25, 2.0])


@given(PARTS)
def test_a_part_wastes_less_than_a_byte_of_a_word(part):
    assert 8 * part.word_bytes - part.fields_per_word * part.field_bits < 8
    assert part.num_bytes <= -(-part.length * part.field_bits // 8) + 8 * part.word_bytes


def test_a_histogram_takes_a_fifth_of_what_it_took():
    part = PackedPart(1600, (64 * 300).bit_length() + 1, (300).bit_length())
    assert part.num_bytes < 16 * part.num_values / 8


@pytest.mark.parametrize(
    ("part", "values"),
    [(PackedPart(1, 4), [8]), (PackedPart(1, 4), [-9]), (PackedPart(1, 4, 2), [0, 4]), (PackedPart(1, 0, 2), [-1])],
)
def test_a_number_beyond_its_bounds_is_refused_and_does_not_wrap(part, values):
    with pytest.raises(ValueError, match="larger than the sum"):
        part.words(np.array(values))


@pytest.mark.parametrize("bits", [(0, 0), (64, 0), (40, 24), (-1, 5)])
def test_a_part_that_no_word_holds_is_none(bits):
    with pytest.raises(ValueError, match="1 to 63 bits"):
        PackedPart(1, *bits)


@pytest.mark.parametrize(
    "vector", [[], [3.0], [3.0, 3.0], [3.0, 3.0, 3.0, 0.0, 0.0], [2.0, 3.0, 3.0, 5.0, 0.0], [3.0, 2.0, 3.0, 5.0, 0.0]]
)
def test_a_vector_that_asks_for_no_form_is_refused(vector):
    with pytest.raises(ValueError, match=r"form|bits"):
        form_of(np.array(vector, np.float32))
    assert form_of(np.array([3, 3, 3, 5, 0, 7], np.float32)) == PackedForm((PackedPart(3, 5),))
