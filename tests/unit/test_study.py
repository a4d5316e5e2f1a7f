"""Who gets which row of one source, and what a property task makes of it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ray_fed.errors import ConfigError, DataError
from ray_fed.federation.task import SiloSpec
from ray_fed.materials.databases.source import Source
from ray_fed.materials.model_crystals.crystals import make_model_crystals
from ray_fed.materials.property_task import CrystalRows, PropertyTask
from ray_fed.materials.study import StudyPart, StudyPlan

PLAN = StudyPlan(silos=(1, 2, 3), rows=None, seed=0)
MP = Path(__file__).parents[3] / "shared" / "datasets" / "mp_structures"


@pytest.fixture(scope="module")
def frame():
    return make_model_crystals(900)


@pytest.mark.parametrize("split", ["grouped", "random"])
@pytest.mark.parametrize("partition", ["size", "anion", "chemical_system", "sorted_target", "dirichlet"])
def test_parts_are_disjoint_and_silos_add_up_to_the_pooled_rows(frame, split, partition):
    parts = replace(PLAN, split=split, partition=partition).assign(frame)
    silos = [parts[name] for name in ("silo-1", "silo-2", "silo-3")]
    assert sorted(np.concatenate(silos)) == sorted(parts["pooled"])
    assert sorted([*parts["pooled"], *parts["test"]]) == list(range(900))


def test_the_grouped_split_keeps_polymorphs_of_a_formula_on_one_side(frame):
    parts = PLAN.assign(frame)
    train, test = (set(frame["formula"].iloc[parts[name]]) for name in ("pooled", "test"))
    assert frame["formula"].nunique() < len(frame)
    assert not train & test


def test_sizes_are_scaled_to_the_rows_there_are(frame):
    parts = PLAN.assign(frame)
    sizes = [len(parts[f"silo-{number}"]) for number in (1, 2, 3)]
    assert sum(sizes) == len(parts["pooled"])
    assert sizes == [
        round(sum(sizes) / 6),
        round(sum(sizes) / 2) - round(sum(sizes) / 6),
        sum(sizes) - round(sum(sizes) / 2),
    ]


def test_the_papers_numbers_come_out_of_its_12897_rows():
    assert StudyPlan(rows=12_897)._test_rows(12_897) == 2_897
    assert StudyPlan()._sizes(10_000) == (1000, 2000, 3000, 4000)


@pytest.mark.skipif(not MP.exists(), reason=f"needs the shared data set {MP.name}")
def test_materials_project_gives_the_papers_parts_exactly():
    from ray_fed.materials.databases.database import open_database

    parts = StudyPlan(rows=12_897, split="random").assign(open_database(Source(str(MP))).frame)
    assert {name: len(rows) for name, rows in parts.items()} == {
        "test": 2897, "pooled": 10_000, "silo-1": 1000, "silo-2": 2000, "silo-3": 3000, "silo-4": 4000,
    }  # fmt: skip


def test_unusable_rows_are_in_no_part(frame):
    broken = frame.copy()
    broken.loc[5:50, "reason"] = "target is missing"
    parts = PLAN.assign(broken)
    assert not set(range(5, 51)) & {row for rows in parts.values() for row in rows}


def test_an_impossible_test_set_is_refused(frame):
    with pytest.raises(ConfigError, match="test_rows=900"):
        replace(PLAN, test_rows=900).assign(frame)


def test_an_unknown_part_is_refused(frame):
    with pytest.raises(ConfigError, match="silo-9"):
        StudyPart(PLAN, "silo-9").take(frame)


def spec(**changes):
    return SiloSpec("mit", CrystalRows(**changes))


def test_a_silo_loads_its_part_and_nothing_else():
    plan = replace(PLAN, rows=300)
    loaded = PropertyTask().load(spec(source=Source(rows=300), part=StudyPart(plan, "silo-2")))
    frame = make_model_crystals(300)
    assert loaded.features.shape == (len(plan.assign(frame)["silo-2"]), 73)
    assert sorted(loaded.targets) == sorted(frame["target"].iloc[plan.assign(frame)["silo-2"]])
    assert np.isfinite(loaded.features).all()


def test_sites_hold_out_the_same_formulas_without_talking():
    one, other = (
        PropertyTask().load(spec(source=Source(rows=rows), test_fraction=0.3, split_seed=1)) for rows in (300, 500)
    )
    smaller, larger = set(one.held_out_targets), set(other.held_out_targets)
    assert 0.15 < len(smaller) / 300 < 0.45
    assert smaller <= larger


def test_rows_that_cannot_be_featurised_are_counted_by_kind_without_their_values(tmp_path):
    table = pd.DataFrame(
        {"formula": ["NaCl", "Xx2O3", "MgO", "Qq", ""], "e_form": [-2.1, -1.0, float("nan"), 0.0, 1.0]}
    )
    table.to_csv(tmp_path / "rows.csv", index=False)
    loaded = PropertyTask("guo65").load(spec(source=Source(str(tmp_path / "rows.csv"), target="e_form")))
    assert len(loaded.targets) == 1
    assert sum(loaded.unreadable.values()) == 4
    assert not any("Xx" in reason or "Qq" in reason for reason in loaded.unreadable)


def test_a_silo_without_a_usable_row_is_refused_by_name(tmp_path):
    (tmp_path / "rows.csv").write_text("formula,e_form\nNaCl,-2\n")
    with pytest.raises(DataError, match=r"silo 'mit': no usable row of 1: .*features=guo65"):
        PropertyTask().load(spec(source=Source(str(tmp_path / "rows.csv"), target="e_form")))


def test_agreement_names_features_table_and_unit():
    ours = PropertyTask().agreement()
    assert ours["target"] == "formation_energy_per_atom [eV/atom]"
    assert ours != PropertyTask(feature_options=(("modulus", "youngs"),)).agreement()


def energies(tmp_path, unit):
    (tmp_path / "rows.csv").write_text("formula,energy\nNaCl,-200\nMgO,-300\n")
    rows = CrystalRows(
        Source(str(tmp_path / "rows.csv"), target="energy", unit=unit), target_is=("formation_energy_per_atom",)
    )
    return PropertyTask("guo65").load(SiloSpec("mit", rows))


def test_a_site_with_another_unit_is_converted_or_refused_with_both_units(tmp_path):
    loaded = energies(tmp_path, "meV/atom")
    assert loaded.agreement["target"] == "formation_energy_per_atom [eV/atom]"
    assert loaded.targets.tolist() == pytest.approx([-0.2, -0.3], rel=1e-12)
    with pytest.raises(DataError, match=r"silo 'mit': its target .* 'kJ/mol', the federation's in 'eV/atom'"):
        energies(tmp_path, "kJ/mol")


def test_feature_tables_are_cached_by_content(tmp_path, monkeypatch):
    from ray_fed.materials.features.feature_sets import GuoFeatures

    monkeypatch.setenv("RAY_FED_CACHE", str(tmp_path / "cache"))
    calls = []
    transform = GuoFeatures.transform_with_reasons
    monkeypatch.setattr(
        GuoFeatures, "transform_with_reasons", lambda self, rows: calls.append(1) or transform(self, rows)
    )
    make_model_crystals(50).rename(columns={"target": "e_form"}).to_csv(tmp_path / "rows.csv", index=False)
    silo = spec(source=Source(str(tmp_path / "rows.csv"), target="e_form"))
    first, again = PropertyTask().load(silo), PropertyTask().load(silo)
    assert len(calls) == 1
    assert first.features.tobytes() == again.features.tobytes()
    PropertyTask(feature_options=(("modulus", "youngs"),)).load(silo)
    assert len(calls) == 2


def test_unusable_rows_of_a_study_are_counted_once_over_the_silos_and_trained_on_by_none(tmp_path):
    frame = make_model_crystals(200).rename(columns={"target": "formation_energy_per_atom"})
    frame.loc[5:17, "formation_energy_per_atom"] = np.nan
    frame.drop(columns="reason").to_csv(tmp_path / "rows.csv", index=False)
    source = Source(str(tmp_path / "rows.csv"))
    parts = {name: StudyPart(PLAN, name) for name in (*(f"silo-{n + 1}" for n in range(len(PLAN.silos))), "pooled")}
    loaded = {name: PropertyTask().load(spec(source=source, part=part)) for name, part in parts.items()}
    counts = [rows.unreadable.get("target is missing", 0) for name, rows in loaded.items() if name != "pooled"]
    assert sum(counts) == 13
    assert max(counts) - min(counts) <= 1
    assert loaded["pooled"].unreadable == {}
    trained = [len(rows.targets) for name, rows in loaded.items() if name != "pooled"]
    assert sum(trained) == len(loaded["pooled"].targets)


def test_formation_energies_in_another_unit_are_refused_by_the_silos_name(tmp_path):
    frame = make_model_crystals(50).rename(columns={"target": "formation_energy_per_atom"}).drop(columns="reason")
    frame["formation_energy_per_atom"] *= 96.485  # kJ/mol
    frame.to_csv(tmp_path / "rows.csv", index=False)
    with pytest.raises(DataError, match=r"silo 'mit': most of its .* are beyond 20 eV/atom.*convert the column"):
        PropertyTask().load(spec(source=Source(str(tmp_path / "rows.csv"))))


def test_too_few_rows_for_the_silos_are_refused_with_a_remedy(frame):
    with pytest.raises(ConfigError, match=r"5 usable rows, too few for .* silos.*use fewer silos or more data"):
        replace(PLAN, test_rows=None).assign(frame.iloc[:5].reset_index(drop=True))
