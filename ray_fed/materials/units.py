"""Units of properties: checked, compared and converted, in the silo that has the values.

A unit stays the text that its owner wrote; pint reads it where two texts differ. Atoms, formula units and cells are
dimensions of their own: an energy per atom is none per formula unit, and kJ/mol, which counts neither, is no eV/atom.
`log10(GPa)` and `ln(GPa)` are the units of columns that hold logarithms.
"""

import math
import re
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from ray_fed.errors import ConfigError

if TYPE_CHECKING:
    from pint import Unit

UNKNOWN_UNIT = "unknown unit"
"""Stands for the unit of a column of which nobody has said one."""
PURE_NUMBERS = ("", "1", "-", "none", "dimensionless")
LOGARITHMS: dict[str, Callable[[float], float]] = {"log10": math.log10, "ln": math.log}
_OF_LOGARITHM = re.compile(r"(log10|ln)\((.+)\)")
_OWN_UNITS = ("atom = [atom]", "formula_unit = [formula_unit] = f_u", "unit_cell = [unit_cell]")
_WRITTEN = {"f.u.": "formula_unit", "cell": "unit_cell", "cells": "unit_cell", "atoms": "atom", "μB": "bohr_magneton",
            "µB": "bohr_magneton", "·": "*", "⋅": "*", "−": "-"}  # fmt: skip
"""How people write what pint calls otherwise."""
_WORD = re.compile("|".join(rf"(?<!\w){re.escape(text)}(?!\w)" if text[0].isalpha() else re.escape(text)
                            for text in _WRITTEN))  # fmt: skip
FAMILIAR = frozenset({"eV/atom", "eV", "GPa", "K"})
"""Units as pint reads them, too; most runs need no other one, and do not wait for its import."""
LONGEST = 60
_POWERS = re.compile(r"(?:\*\*|\^)(?!\s*[-+]?\d{1,2}(?:\.\d)?(?![\d.])(?!\s*(?:\*\*|\^)))|[⁰¹²³⁴⁵⁶⁷⁸⁹]{3}")
"""A power that is not a small number: who sends `m**9**9**9` from elsewhere must not keep this machine busy."""


def checked_unit(text: str) -> str:
    """Return a unit as it is shown; ConfigError for what is none."""
    text = " ".join(text.split())
    if text in PURE_NUMBERS:
        return "dimensionless"
    if text not in FAMILIAR and text != UNKNOWN_UNIT:
        _parsed(text)
    return text


def can_convert(unit: str, wanted: str) -> bool:
    """Whether values in one unit can be said in the other; ConfigError for what is no unit."""
    if unit == wanted:
        return True
    if UNKNOWN_UNIT in (unit, wanted):
        return False
    (logarithm, first), (other, second) = _parsed(unit), _parsed(wanted)
    return logarithm == other and first.dimensionality == second.dimensionality


def converted(values: np.ndarray, unit: str, wanted: str) -> np.ndarray:
    """Return values [n] of `unit` in `wanted`; equal texts change nothing. ConfigError names both where that cannot be
    done."""
    if unit == wanted:
        return values
    if not can_convert(unit, wanted):
        raise ConfigError(f"a value in '{unit}' cannot be said in '{wanted}'")
    (logarithm, first), (_, second) = _parsed(unit), _parsed(wanted)
    if logarithm:
        return values + LOGARITHMS[logarithm](_quantity(1.0, first).to(second).magnitude)
    return np.asarray(_quantity(values, first).to(second).magnitude, np.float64)


def _quantity(value: Any, unit: "Unit") -> Any:
    return _registry().Quantity(value, unit)


@cache
def _registry() -> Any:
    import pint  # half a second, for those who need it

    registry = pint.UnitRegistry()
    for definition in _OWN_UNITS:
        registry.define(definition)
    return registry


@cache
def _parsed(text: str) -> tuple[str, "Unit"]:
    """Return (name of the logarithm or "", unit); ConfigError for what pint cannot read."""
    logarithm = _OF_LOGARITHM.fullmatch(text)
    written = logarithm.group(2) if logarithm else text
    try:
        fits = len(text) <= LONGEST and not _POWERS.search(written)
        unit = _registry().parse_units(_WORD.sub(lambda found: _WRITTEN[found.group()], written) if fits else "?")
    except Exception as error:  # pint raises errors of many classes for texts that are no unit, assertions among them
        hint = "write it as eV/atom, W/(m K), log10(GPa), or dimensionless"
        raise ConfigError(f"unit={text[:LONGEST]!r} is no unit that can be read; {hint}") from error
    return (logarithm.group(1) if logarithm else ""), unit
