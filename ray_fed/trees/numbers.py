"""Whole numbers as they are added up, and the arithmetic that has the same bits on every machine.

A sum of whole numbers travels as float32, which holds them exactly below 2^24: larger ones in digits to the base 2^20,
of which the first has the sign. The sum over silos of each digit is exact, too.
"""

import numpy as np

DIGIT_BITS = 20
BASE = 1 << DIGIT_BITS
EXACT = 1 << 24
"""Whole numbers below it are float32 values."""
SUM_DIGITS = 3
"""Digits of an exact sum: 60 bits and the sign."""
NUM_EXPONENTS = 128
LEAST_EXPONENT = -64
FRACTION_BITS = 30
"""Binary places of a residual, below its scale, that count in an exact sum."""
MOST_FRACTION = 1 << 40
"""A residual beyond 2^10 times the scale counts as that."""
LN2_HIGH, LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
TERMS = 14


def digits_of(numbers: np.ndarray, count: int) -> np.ndarray:
    """Return whole numbers [...] as digits, int64 [..., count], the most significant last; it has the sign."""
    numbers = np.asarray(numbers, np.int64)
    if count == 1:
        return numbers[..., None]
    low = [(numbers >> (DIGIT_BITS * place)) & (BASE - 1) for place in range(count - 1)]
    return np.stack([*low, numbers >> (DIGIT_BITS * (count - 1))], -1)


def of_digits(digits: np.ndarray) -> np.ndarray:
    """Return the whole numbers behind digits, or behind sums of digits, [..., count]."""
    if digits.shape[-1] == 1:
        return digits[..., 0]
    places = [digits[..., place].astype(np.int64) << (DIGIT_BITS * place) for place in range(digits.shape[-1])]
    return np.asarray(sum(places), np.int64)


def planes_of(numbers: np.ndarray, count: int) -> np.ndarray:
    """Return whole numbers [...] as digits, int64 [count, ...]: `digits_of`, place by place."""
    return np.moveaxis(digits_of(numbers, count), -1, 0)


def of_planes(planes: np.ndarray) -> np.ndarray:
    """Return the whole numbers behind digits [..., count, n], or behind sums of digits, int64 [..., n]."""
    return of_digits(np.moveaxis(planes, -2, -1))


def exponents(values: np.ndarray) -> np.ndarray:
    """Return the smallest whole e with |value| <= 2^e, counted from `LEAST_EXPONENT`, within 0..NUM_EXPONENTS - 1."""
    fraction, exponent = np.frexp(np.abs(values))
    exponent = np.where(fraction == 0.5, exponent - 1, exponent)
    exponent = np.where(fraction == 0, LEAST_EXPONENT, exponent)
    return np.clip(exponent - LEAST_EXPONENT, 0, NUM_EXPONENTS - 1)


def agreed_exponent(counts: np.ndarray, fewest: int | np.ndarray) -> int:
    """Return the smallest e such that fewer than `fewest` values are larger than 2^e; `counts` as `exponents` has them,
    `fewest` for each of them or for all.

    So no scale tells the size of a single row's value."""
    beyond = counts[::-1].cumsum()[::-1]
    place = int(np.flatnonzero(beyond >= fewest).max(initial=0))
    return place + LEAST_EXPONENT


def fixed_point(values: np.ndarray, exponent: int) -> np.ndarray:
    """Return values in units of 2^(exponent - FRACTION_BITS), whole, int64; those beyond 2^10 scales are cut there."""
    scaled = np.rint(np.ldexp(values, FRACTION_BITS - exponent))
    return np.clip(scaled, -MOST_FRACTION, MOST_FRACTION).astype(np.int64)


def exponential(values: np.ndarray) -> np.ndarray:
    """Return e^value by sums and products alone: libraries differ in the last bit from machine to machine, float64."""
    values = np.clip(values, -700.0, 700.0)
    power = np.rint(values * (1 / (LN2_HIGH + LN2_LOW)))
    rest = (values - power * LN2_HIGH) - power * LN2_LOW
    result = np.ones_like(rest)
    for term in range(TERMS, 0, -1):
        result = 1.0 + result * rest / term
    return np.ldexp(result, power.astype(np.int32))


def logarithm(values: np.ndarray) -> np.ndarray:
    """Return the natural logarithm of positive numbers by sums, products and quotients alone, float64."""
    fraction, power = np.frexp(values)
    is_small = fraction < np.sqrt(0.5)
    fraction, power = np.where(is_small, 2 * fraction, fraction), power - is_small
    ratio = (fraction - 1) / (fraction + 1)
    square, result = ratio * ratio, np.zeros_like(ratio)
    for term in range(2 * TERMS + 1, 0, -2):
        result = result * square + 1.0 / term
    return power * LN2_HIGH + (power * LN2_LOW + 2 * ratio * result)


def sigmoid(values: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + e^-value)."""
    return 1.0 / (1.0 + exponential(-values))


def softmax(values: np.ndarray) -> np.ndarray:
    """Return class shares [outputs, rows], added up class by class."""
    powers = exponential(values - values.max(axis=0))
    total = np.zeros(values.shape[1])
    for power in powers:
        total = total + power
    return powers / total
