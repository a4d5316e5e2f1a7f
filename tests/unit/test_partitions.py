"""Splits and partitions: who gets which row, and the laws that hold for every frame, seed and size."""

import hashlib
import subprocess
import sys
from itertools import combinations, pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ray_fed.errors import ConfigError
from ray_fed.materials.chemical_groups import anion_classes, chemical_systems, composition_keys
from ray_fed.materials.partitions import (
    choose_groups,
    grouped_fold,
    grouped_folds,
    hash_split,
    matbench_fold,
    partition_rows,
    select_rows,
    split_rows,
    usable_rows,
)
from ray_fed.materials.study import StudyPlan
from ray_fed.randomness import generator

FORMULAS = ("NaCl", "KCl", "MgO", "CaO", "SrTiO3", "ZnS", "GaAs", "GaN", "Ni3Al", "LaOF", "Fe2O3", "CaF2")
EXACT = ("size", "sorted_target", "dirichlet", "dirichlet:anion")


def frame_of(formulas, unusable=(), **columns) -> pd.DataFrame:
    """Return the columns of a crystal frame that matter here; targets are drawn."""
    targets = generator(0, "test targets").normal(size=len(formulas))
    reasons = ["target is missing" if row in set(unusable) else "" for row in range(len(formulas))]
    return pd.DataFrame({"formula": list(formulas), "target": targets, "reason": reasons, **columns})


FRAMES = st.builds(
    lambda formulas, unusable: frame_of(formulas, unusable),
    st.lists(st.sampled_from(FORMULAS), min_size=12, max_size=80),
    st.lists(st.integers(0, 79), max_size=6),
)
SEEDS = st.integers(0, 2**31)


# Groups of compositions


def test_one_composition_has_one_key_however_it_is_written():
    same = ["SrTiO3", "TiSrO3", "Sr2Ti2O6", "Sr0.5Ti0.5O1.5", "SrTi(O)3", "Sr1Ti1O3", "Sr0.2 Ti0.2 O0.6"]
    assert set(composition_keys(same)) == {"8:3,22:1,38:1"}
    assert composition_keys(["Sr2TiO4", "Ca(OH)2", "O2", "La0.7Sr0.3MnO3"]) == [
        "8:4,22:1,38:2", "1:2,8:2,20:1", "8:1", "8:30,25:10,38:3,57:7",
    ]  # fmt: skip
    assert composition_keys(["Qq2", "", "Qq3"]) == ["?Qq2", "?", "?Qq3"]


def test_a_chemical_system_is_the_set_of_elements():
    assert chemical_systems(["SrTiO3", "Sr2TiO4", "O2Ti", "?"]) == ["8-22-38", "8-22-38", "8-22", "??"]


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        ("NaCl", "halide"), ("LaOF", "halide"), ("MgO", "oxide"), ("KClO4", "oxide"), ("CaSO4", "oxide"),
        ("ZnS", "chalcogenide"), ("Bi2Te3", "chalcogenide"), ("GaAs", "pnictide"), ("InSb", "pnictide"),
        ("AuP2", "pnictide"), ("Ni3Al", "other"), ("WC", "other"), ("LiH", "other"), ("Si", "other"), ("Qq", "other"),
    ],
)  # fmt: skip
def test_the_most_electronegative_anion_names_the_class(formula, expected):
    assert anion_classes([formula]) == [expected]


# Selection


@given(FRAMES, SEEDS, st.data())
def test_a_selection_has_the_number_of_usable_rows_asked_for(frame, seed, data):
    usable = usable_rows(frame)
    assume(len(usable))
    num_rows = data.draw(st.integers(1, len(usable)))
    chosen = select_rows(frame, num_rows, seed)
    assert len(chosen) == num_rows
    assert (np.diff(chosen) > 0).all()
    assert set(chosen) <= set(usable)


def test_different_seeds_select_different_rows_and_all_are_equally_likely():
    frame = frame_of(["NaCl"] * 20)
    counts = np.bincount(np.concatenate([select_rows(frame, 5, seed) for seed in range(800)]), minlength=20)
    assert counts.sum() == 4000
    # 200 expected; five standard deviations of a binomial with p = 1/4 are 61.
    assert (np.abs(counts - 200) < 61).all()


def test_more_rows_than_there_are_cannot_be_selected():
    with pytest.raises(ConfigError, match=r"rows=4 must lie between 1 and 3, the number of usable rows"):
        select_rows(frame_of(["NaCl"] * 4, unusable=[0]), 4, 0)


# Splits


@given(FRAMES, SEEDS, st.sampled_from(["grouped", "random"]), st.data())
def test_a_split_deals_every_usable_row_to_one_side(frame, seed, how, data):
    usable = usable_rows(frame)
    assume(len(usable) > 1 and frame["formula"].iloc[usable].nunique() > 1)
    train, test = split_rows(frame, test_rows=data.draw(st.integers(1, len(usable) - 1)), how=how, seed=seed)
    assert sorted([*train, *test]) == usable.tolist()
    assert len(train)
    assert len(test)
    assert (np.diff(train) > 0).all()
    assert (np.diff(test) > 0).all()


@given(FRAMES, SEEDS, st.data())
def test_two_polymorphs_never_straddle_the_grouped_split(frame, seed, data):
    usable = usable_rows(frame)
    assume(frame["formula"].iloc[usable].nunique() > 1)
    train, test = split_rows(frame, test_rows=data.draw(st.integers(1, len(usable) - 1)), seed=seed)
    assert set(frame["formula"].iloc[train]).isdisjoint(frame["formula"].iloc[test])


def test_a_formula_written_in_two_ways_does_not_straddle_the_grouped_split():
    frame = frame_of(["SrTiO3", "TiSrO3", "Sr2Ti2O6", "NaCl"] * 5)
    for seed in range(10):
        _, test = split_rows(frame, test_rows=5, seed=seed)
        assert frame["formula"].iloc[test].tolist() == ["NaCl"] * 5


@given(FRAMES, SEEDS, st.data())
def test_a_random_split_is_exact(frame, seed, data):
    usable = usable_rows(frame)
    assume(len(usable) > 1)
    test_rows = data.draw(st.integers(1, len(usable) - 1))
    assert len(split_rows(frame, test_rows=test_rows, how="random", seed=seed)[1]) == test_rows


@given(st.lists(st.integers(1, 9), min_size=2, max_size=9), SEEDS, st.data())
def test_groups_come_as_near_to_the_size_asked_for_as_any_choice_of_groups(sizes, seed, data):
    wanted = data.draw(st.integers(1, sum(sizes) - 1))
    chosen = choose_groups(np.array(sizes), wanted, generator(seed, "test"))
    possible = {sum(some) for count in range(1, len(sizes)) for some in combinations(sizes, count)}
    nearest = min(possible, key=lambda size: (abs(size - wanted), size))
    assert np.array(sizes)[chosen].sum() == nearest


def test_with_single_formulas_the_grouped_split_is_exact():
    polymorphs = [f"Na{1 + at}Cl" for at in range(30) for _ in range(3)]
    single = [f"K{1 + at}Br" for at in range(30)]
    for seed in range(20):
        assert len(split_rows(frame_of(polymorphs + single), test_rows=40, seed=seed)[1]) == 40


def test_large_groups_are_in_the_test_set_as_often_as_their_share():
    sizes = np.array([30] + [1] * 70)
    large = sum(choose_groups(sizes, 40, generator(seed, "test"))[0] for seed in range(500))
    # 200 expected, standard deviation 11.
    assert 150 < large < 250


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_rows": 0}, "test_rows=0 leaves no row for one side; there are 3 usable rows"),
        ({"test_rows": 3}, "test_rows=3 leaves no row"),
        ({"test_rows": 1, "how": "fair"}, "split='fair' must be grouped or random"),
        ({"test_rows": 1}, "at least two different formulas; use split=random"),
    ],
)
def test_an_impossible_split_is_a_config_error(options, message):
    with pytest.raises(ConfigError) as caught:
        split_rows(frame_of(["NaCl", "KCl", "NaCl", "Na2Cl2"], unusable=[1]), **options)
    assert message in str(caught.value)


# Splits of sites that do not talk


@given(st.lists(st.sampled_from(FORMULAS)), st.lists(st.sampled_from(FORMULAS)), SEEDS)
def test_separate_sites_hold_out_the_same_formulas(here, there, seed):
    ours = dict(zip(here, hash_split(here, 0.4, seed), strict=True))
    theirs = dict(zip(there, hash_split(there, 0.4, seed), strict=True))
    assert all(ours[formula] == theirs[formula] for formula in ours.keys() & theirs.keys())


def test_the_hash_split_is_what_its_documentation_says():
    digest = hashlib.sha256(b"ray-fed split\x1f7\x1f11:1,17:1").digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    assert hash_split(["NaCl", "Cl2Na2"], share + 1e-9, 7).tolist() == [True, True]
    assert hash_split(["NaCl", "Cl2Na2"], share - 1e-9, 7).tolist() == [False, False]


def test_the_hash_split_holds_out_the_fraction_and_other_formulas_with_another_seed():
    formulas = [f"Na{1 + at}Cl" for at in range(0, 4000)]
    first, second = hash_split(formulas, 0.2, 0), hash_split(formulas, 0.2, 1)
    # 0.2 expected, standard deviation 0.0063.
    assert first.mean() == pytest.approx(0.2, abs=0.03)
    assert (first & second).mean() == pytest.approx(0.04, abs=0.015)
    assert not hash_split(formulas, 0.0, 0).any()
    assert hash_split(formulas, 1.0, 0).all()
    with pytest.raises(ConfigError, match=r"test_fraction=1.5 must lie between 0 and 1"):
        hash_split(formulas, 1.5, 0)


# Partitions


@st.composite
def deals(draw):
    """Return (frame, train rows, sizes): sizes sum to the training rows or fewer."""
    frame = draw(FRAMES)
    usable = usable_rows(frame)
    train = np.array(sorted(draw(st.sets(st.sampled_from(usable.tolist()), min_size=6))))
    cuts = sorted(draw(st.sets(st.integers(1, len(train)), min_size=1, max_size=4)))
    return frame, train, tuple(np.diff([0, *cuts]).tolist())


@given(deals(), st.sampled_from(EXACT), SEEDS, st.sampled_from([1e-3, 0.5, 100.0]))
def test_parts_are_disjoint_and_have_the_sizes_asked_for(deal, how, seed, alpha):
    frame, train, sizes = deal
    parts = partition_rows(frame, train, how, sizes=sizes, seed=seed, alpha=alpha)
    assert list(parts) == [f"silo-{number}" for number in range(1, len(sizes) + 1)]
    assert tuple(len(part) for part in parts.values()) == sizes
    dealt = np.concatenate(list(parts.values()))
    assert len(set(dealt)) == len(dealt)
    assert set(dealt) <= set(train)


def equal_sizes(num_rows: int, num_silos: int) -> list[int]:
    return [num_rows // num_silos + (silo < num_rows % num_silos) for silo in range(num_silos)]


@given(deals(), st.sampled_from((*EXACT, "anion", "chemical_system", "column:formula")), SEEDS, st.integers(1, 3))
def test_parts_of_a_number_of_silos_cover_all_training_rows(deal, how, seed, num_silos):
    frame, train, _ = deal
    message, parts = "", {}
    try:
        parts = partition_rows(frame, train, how, equal_sizes(len(train), num_silos), seed=seed)
    except ConfigError as error:
        message = str(error)
    if message:
        # Fewer classes than silos, or a system so large that another silo stays empty.
        assert how in ("anion", "chemical_system", "column:formula")
        assert "use at most" in message or "leaves no row" in message
    else:
        assert sorted(np.concatenate(list(parts.values()))) == train.tolist()


@given(deals(), st.sampled_from((*EXACT, "chemical_system")), SEEDS)
@settings(max_examples=30)
def test_a_partition_depends_on_values_and_seed_and_not_on_the_order_of_the_index(deal, how, seed):
    frame, train, sizes = deal
    try:
        first = partition_rows(frame, train, how, sizes=sizes, seed=seed)
    except ConfigError:
        assume(False)
        return
    second = partition_rows(frame.copy(), train[::-1], how, sizes=sizes, seed=seed)
    assert {name: part.tolist() for name, part in first.items()} == {
        name: part.tolist() for name, part in second.items()
    }


@given(deals(), SEEDS)
def test_a_sorted_partition_is_a_ladder_of_targets(deal, seed):
    frame, train, sizes = deal
    parts = partition_rows(frame, train, "sorted_target", sizes=sizes, seed=seed)
    targets = [frame["target"].iloc[part] for part in parts.values()]
    assert all(low.max() <= high.min() for low, high in pairwise(targets))


@given(deals(), SEEDS)
def test_a_chemical_system_is_never_divided(deal, seed):
    frame, train, sizes = deal
    try:
        parts = partition_rows(frame, train, "chemical_system", sizes=sizes, seed=seed)
    except ConfigError:
        assume(False)
        return
    systems = [set(chemical_systems(frame["formula"].iloc[part].tolist())) for part in parts.values()]
    assert all(one.isdisjoint(other) for one, other in combinations(systems, 2))


def test_many_small_chemical_systems_meet_the_sizes_exactly():
    metals = ("Li", "Na", "K", "Rb", "Cs", "Mg", "Ca", "Sr", "Ba", "Zn")
    formulas = [f"{one}{other}{x}" for one, other in combinations(metals, 2) for x in ("O", "S", "Cl", "Br")]
    parts = partition_rows(frame_of(formulas * 2), np.arange(360), "chemical_system", sizes=(20, 100, 200))
    assert [len(part) for part in parts.values()] == [20, 100, 200]


def test_a_large_chemical_system_is_placed_before_small_ones_fill_the_silos():
    small = [f"{metal}{x}" for metal in ("Na", "K", "Rb") for x in ("Cl", "Br", "I", "F")]
    frame = frame_of(["MgO"] * 12 + small)
    for seed in range(5):
        parts = partition_rows(frame, np.arange(24), "chemical_system", sizes=(12, 12), seed=seed)
        assert sorted(len(set(frame["formula"].iloc[part])) for part in parts.values()) == [1, 12]


def test_anion_classes_go_to_silos_by_size_and_the_smallest_are_joined():
    formulas = ["MgO"] * 5 + ["NaCl"] * 4 + ["ZnS"] * 3 + ["GaN"] * 2 + ["Ni3Al"]
    frame, rows = frame_of(formulas), np.arange(15)
    five = partition_rows(frame, rows, "anion", [3] * 5)
    assert [sorted(set(frame["formula"].iloc[part])) for part in five.values()] == [
        ["MgO"], ["NaCl"], ["ZnS"], ["GaN"], ["Ni3Al"],
    ]  # fmt: skip
    three = partition_rows(frame, rows, "anion", [5] * 3)
    # other (1) joins pnictide (2), then both join chalcogenide (3).
    assert [sorted(set(frame["formula"].iloc[part])) for part in three.values()] == [
        ["GaN", "Ni3Al", "ZnS"], ["MgO"], ["NaCl"],
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"finds 5 groups \(chalcogenide \(3\), .* for 6 silos; use at most 5 silos"):
        partition_rows(frame, rows, "anion", equal_sizes(15, 6))


def test_a_column_of_the_source_deals_by_database():
    frame = frame_of(["NaCl"] * 6, source=["MP", "OQMD", "OQMD", "EXPT", "OQMD", "MP"])
    parts = partition_rows(frame, np.arange(6), "column:source", sizes=(1, 1, 1))
    assert {name: part.tolist() for name, part in parts.items()} == {
        "silo-1": [1, 2, 4],
        "silo-2": [0, 5],
        "silo-3": [3],
    }
    with pytest.raises(ConfigError, match=r"the frame has no column 'db'; it has: formula, target, reason, source"):
        partition_rows(frame, np.arange(6), "column:db", [3, 3])


def shares_of_bins(frame: pd.DataFrame, parts: dict[str, np.ndarray]) -> np.ndarray:
    """Return for each silo the share of its commonest tenth of the targets."""
    tenth = frame["target"].rank(method="first").sub(1).floordiv(len(frame) / 10).astype(int)
    return np.array([np.bincount(tenth.iloc[part]).max() / len(part) for part in parts.values()])


def test_a_small_alpha_gives_each_silo_few_kinds_of_rows_and_a_large_one_gives_all():
    frame = frame_of(["NaCl"] * 4000)
    shares = {
        alpha: shares_of_bins(frame, partition_rows(frame, np.arange(4000), "dirichlet", [1000] * 4, alpha=alpha))
        for alpha in (0.05, 0.5, 1000.0)
    }
    assert shares[0.05].mean() > 0.35 > shares[0.5].mean() > 0.15 > shares[1000.0].mean()


def test_sizes_of_the_paper_are_dealt_at_random():
    frame = frame_of(["NaCl"] * 10_000)
    parts = partition_rows(frame, np.arange(10_000), "size", (1000, 2000, 3000, 4000))
    assert [len(part) for part in parts.values()] == [1000, 2000, 3000, 4000]
    # Means of 1,000 to 4,000 standard normal targets: within five standard errors of 0.
    assert all(abs(frame["target"].iloc[part].mean()) < 5 / np.sqrt(len(part)) for part in parts.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": (3, 4)}, "sizes=3, 4 sum to 7 rows, but only 6 training rows are available"),
        ({"sizes": ()}, "sizes=none: every silo needs 1 row or more"),
        ({"sizes": (3, 0)}, "sizes=3, 0: every silo needs 1 row or more"),
        ({"sizes": (3, 3), "how": "taste"}, "partition='taste' must be one of size, anion, chemical_system"),
        ({"sizes": (3, 3), "how": "dirichlet", "alpha": 0.0}, "alpha=0.0 must be positive"),
        ({"sizes": (3, 3), "how": "chemical_system"}, "leaves no row for silo-2; use fewer silos"),
    ],
)
def test_an_impossible_partition_is_a_config_error(options, message):
    with pytest.raises(ConfigError) as caught:
        partition_rows(frame_of(["NaCl"] * 6), np.arange(6), **({"how": "size"} | options))
    assert message in str(caught.value)


def test_every_choice_is_the_same_in_a_process_with_another_hash_seed():
    code = """
import numpy as np, pandas as pd
from ray_fed.materials.partitions import *
formulas = [f"{a}{n}{b}" for a in ("Na", "K", "Ca", "Ti") for b in ("Cl", "O", "S", "N") for n in (1, 2, 3)] * 3
frame = pd.DataFrame({"formula": formulas, "target": np.arange(144.0) % 7, "reason": "", "source": formulas})
train, test = split_rows(frame, test_rows=30, seed=3)
print(select_rows(frame, 5, 1), test, hash_split(formulas, 0.2, 0).nonzero())
for how in ("size", "anion", "chemical_system", "sorted_target", "dirichlet", "dirichlet:anion", "column:source"):
    print(how, partition_rows(frame, train, how, [38] * 3, seed=4))
"""

    def printed(hash_seed: str) -> str:
        environment = {"PYTHONHASHSEED": hash_seed, "PATH": ""}
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        ).stdout

    assert printed("1") == printed("2")


def test_folds_hold_every_usable_row_once_and_cut_no_group():
    frame = frame_of([formula for formula in FORMULAS for _ in range(3)])
    frame.loc[4, "reason"] = "cannot be read"
    for group, keys in (("formula", composition_keys), ("chemical_system", chemical_systems)):
        tests = [grouped_fold(frame, 3, fold, group)[1] for fold in (1, 2, 3)]
        assert np.sort(np.concatenate(tests)).tolist() == usable_rows(frame).tolist()
        for fold in (1, 2, 3):
            train, test = grouped_fold(frame, 3, fold, group)
            assert not set(keys(frame["formula"][train].tolist())) & set(keys(frame["formula"][test].tolist()))
    with pytest.raises(ConfigError, match="folds=99 need as many groups"):
        grouped_fold(frame, 99, 1)


def test_folds_of_one_size_come_out_even():
    assert sorted(len(fold) for fold in grouped_folds([f"{n % 30}" for n in range(90)], 5, seed=1)) == [18] * 5
    assert [len(fold) for fold in grouped_folds(["a", "a", "b"], 3, seed=0)] == [2, 1]


@pytest.mark.parametrize("is_stratified", [False, True])
def test_matbench_folds_are_scikit_learns_without_unusable_rows(is_stratified):
    from sklearn.model_selection import KFold, StratifiedKFold

    frame = frame_of(["NaCl", "KCl", "MgO", "CaO"] * 10)
    frame["target"] = np.arange(40) % 2.0
    frame.loc[7, "reason"] = "cannot be read"
    kind = StratifiedKFold if is_stratified else KFold
    expected = list(kind(5, shuffle=True, random_state=18012019).split(frame, frame["target"]))
    for fold in range(1, 6):
        train, test = matbench_fold(frame, fold, is_stratified)
        assert test.tolist() == [row for row in expected[fold - 1][1] if row != 7]
        assert train.tolist() == [row for row in expected[fold - 1][0] if row != 7]


def test_a_plan_with_folds_deals_all_other_rows_to_the_silos():
    frame = frame_of([formula for formula in FORMULAS for _ in range(4)])
    for folds in (4, "matbench"):
        parts = [StudyPlan((1, 2), folds=folds, fold=fold).assign(frame) for fold in (1, 2, 3, 4)]
        for part in parts:
            assert len(part["test"]) + len(part["pooled"]) == len(frame)
            assert len(part["silo-1"]) + len(part["silo-2"]) == len(part["pooled"])
        assert len({tuple(part["test"]) for part in parts}) == 4


def test_a_split_and_a_partition_stay_the_same_from_version_to_version():
    frame = frame_of([formula for formula in FORMULAS for _ in range(2)])
    train, test = split_rows(frame, test_rows=6, seed=0)
    parts = partition_rows(frame, train, "size", (6, 12), seed=0)
    assert test.tolist() == [2, 3, 10, 11, 12, 13]
    assert parts["silo-1"].tolist() == [6, 8, 14, 15, 18, 23]
