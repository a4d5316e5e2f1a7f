"""Numbers as people write them: read, or refused with a reason that is counted."""

import numpy as np
import pandas as pd
import pytest

from ray_fed.errors import DataError
from ray_fed.model_library.property_tables import user_table
from ray_fed.model_library.target_values import (
    ABOUT,
    BOUND,
    COMMA,
    DECIMAL_COMMA,
    EMPTY,
    INFINITE,
    RANGE,
    TEXT,
    UNCERTAIN,
    read_targets,
)


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ("12.1", 12.1), ("−3", -3), ("1.2e-3", 1.2e-3), ("12.1±0.3", 12.1), ("12.1 +/- 0.3", 12.1), ("12.1(3)", 12.1),
        ("12.1 GPa", 12.1), ("3,4", 3.4), ("0,123", 0.123), ("1,234,567", 1234567), ("1,234.5", 1234.5), (True, 1),
        (" 7 ", 7), (np.float32(2), 2),
    ],
)  # fmt: skip
def test_what_can_only_mean_one_number_is_read(written, number):
    found = read_targets([written], "GPa")
    assert (found.values[0], found.reasons[0]) == (pytest.approx(number), "")


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("<5", BOUND), (">= 9", BOUND), ("≤3", BOUND), ("~3", ABOUT), ("ca. 3", ABOUT), ("3-5", RANGE), ("3–5", RANGE),
        ("1,234", COMMA), ("x", TEXT), ("1_0", TEXT), ("5 eV", TEXT), ("", EMPTY), (None, EMPTY), ("nan", EMPTY),
        ("inf", INFINITE), ("1e999", INFINITE), (float("inf"), INFINITE), (float("nan"), EMPTY), ("٣x", TEXT),
    ],
)  # fmt: skip
def test_what_could_mean_another_number_is_refused_with_its_kind(written, reason):
    found = read_targets([written], "GPa")
    assert (np.isnan(found.values[0]), found.reasons[0]) == (True, reason)


def test_a_column_of_decimal_commas_settles_what_a_comma_means():
    found = read_targets(["3,4", "1,234", "2±1"])
    assert found.values.tolist() == [3.4, 1.234, 2]
    assert found.notes == {DECIMAL_COMMA: 2, UNCERTAIN: 1}


def test_every_row_of_a_users_table_is_used_or_counted(tmp_path):
    formulas = [f"{a}{b}" for a in ("Li", "Na", "K", "Rb", "Cs") for b in ("F", "Cl", "Br", "I")]
    values = ["5.1±0.2", "<3", "", *map(str, range(17))]
    frame = pd.DataFrame({"Compound": [None, *formulas[1:18], "notaformula", "LiF"], "gap": values})
    frame.to_csv(tmp_path / "mine.tsv", sep="\t", index=False)
    with pytest.raises(DataError, match="--material-column"):
        user_table(tmp_path / "mine.tsv", "gap", "eV")
    table = user_table(tmp_path / "mine.tsv", "gap", "eV", material_column="Compound")
    assert len(table.frame) + sum(table.dropped.values()) == 20
    assert (table.dropped["no formula or SMILES"], table.dropped[BOUND], table.dropped[EMPTY]) == (1, 1, 1)
    assert table.dropped["a formula that cannot be read"] == 1
    assert "16 of 20 rows" in table.account()
    assert len(table.digest()) == 64
    assert user_table(tmp_path / "mine.tsv", "gap", "eV", None, "log10", "Compound").unit == "log10(eV)"


def test_one_material_written_twice_is_one_group(tmp_path):
    frame = pd.DataFrame({"formula": ["Fe2O3", "Fe4O6", *[f"Na{n}Cl" for n in range(1, 12)]], "gap": range(13)})
    frame.to_csv(tmp_path / "mine.csv", index=False)
    groups = user_table(tmp_path / "mine.csv", "gap", "eV").groups
    assert groups[0] == groups[1]
    assert len(set(groups)) == 12
