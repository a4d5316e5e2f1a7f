"""Boosted trees over silos: the forest has the bits of pooled training, whatever the partition and the order."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_fed.errors import ConfigError
from ray_fed.randomness import generator
from ray_fed.trees.bins import Cells, as_float32, codes_of, keys_of, values_of
from ray_fed.trees.forest import Forest, ForestPredictor
from ray_fed.trees.growth import Grower, Growth
from ray_fed.trees.member import LostRounds, Member
from ray_fed.trees.numbers import agreed_exponent, digits_of, exponential, exponents, logarithm, of_digits
from ray_fed.trees.quantiles import NUM_BUCKETS, bucket_edges, buckets, quantiles
from ray_fed.trees.question import Step, TreeQuestion
from ray_fed.trees.settings import TreeSettings
from ray_fed.trees.together import grown

SMALL = {"trees": 4, "depth": 3, "leaves": 6, "bins": 8, "min_rows": 5, "learning_rate": 0.3}
LOSSES = [
    ("squared",), ("squared", "squared"), ("log",), ("softmax:3",), ("log", "squared"), ("squared", "softmax:3"),
    ("quantile:0.1", "quantile:0.9"),
]  # fmt: skip
TWO = TreeSettings(**SMALL, losses=("squared", "squared"))


def table(rows: int, seed: int, losses=("squared", "squared")):
    """Return features with ties, missing values and a constant column, and targets with missing labels."""
    random = generator(seed, "table")
    x = random.normal(size=(rows, 5))
    x[:, 1] = np.rint(2 * x[:, 1])
    x[:, 3] = 7.0
    signal = np.nan_to_num(x[:, 0] ** 2 + x[:, 1]) + 0.1 * random.normal(size=rows)
    x[random.random(x.shape) < 0.1] = np.nan
    columns = {"log": np.digitize(signal, [0.5]), "softmax": np.digitize(signal, [0.0, 1.5]), "squared": signal}
    y = np.stack([columns.get(each.split(":")[0], 100 * signal) for each in losses], 1).astype(float)
    y[random.random(y.shape) < 0.05] = np.nan
    return x, y


def forest_of(x, y, parts, chosen: TreeSettings) -> bytes:
    grower = Grower(chosen, x.shape[1])
    growth = grown(grower, [Member(x[part], y[part], chosen) for part in parts])
    return grower.forest(growth).vector.tobytes()


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**20), rows=st.integers(30, 150), cuts=st.lists(st.integers(0, 150), max_size=6),
    losses=st.sampled_from(LOSSES), patience=st.sampled_from([0, 2]), fraction=st.sampled_from([1.0, 0.6]),
)  # fmt: skip
def test_the_bytes_of_a_forest_are_those_of_pooled_training(seed, rows, cuts, losses, patience, fraction):
    x, y = table(rows, seed, losses)
    chosen = TreeSettings(**SMALL, losses=losses, patience=patience, feature_fraction=fraction, seed=seed)
    order = generator(seed, "order").permutation(rows)
    parts = np.split(order, sorted(min(cut, rows) for cut in cuts))  # some silos have no row
    assert forest_of(x, y, parts, chosen) == forest_of(x, y, [np.arange(rows)], chosen)


def test_rows_sorted_by_the_target_make_the_same_forest():
    x, y = table(200, 0)
    parts = np.array_split(np.argsort(y[:, 0]), 5)
    assert forest_of(x, y, parts, TWO) == forest_of(x, y, [np.arange(200)], TWO)


def test_sums_beyond_float32_travel_in_digits():
    random = generator(0, "many rows")
    x = random.normal(size=(17_000, 2))
    chosen = TreeSettings(trees=1, depth=2, levels=1024)
    grower, digits = Grower(chosen, 2), set()
    halves = [Member(part, part[:, 0], chosen) for part in np.split(x, 2)]
    split = grown(grower, halves, lambda question, _: digits.add(question.digits))
    assert digits == {1, 2}, "1 while the number of rows is not known"
    assert grower.forest(split).vector.tobytes() == forest_of(x, x[:, 0], [np.arange(len(x))], chosen)


def test_a_forest_learns():
    x, y = table(2000, 1)
    has = ~np.isnan(y[:, 0])
    chosen = TreeSettings(trees=60, depth=4, learning_rate=0.2)
    grower = Grower(chosen, x.shape[1])
    forest = grower.forest(grown(grower, [Member(x[:1500], y[:1500, 0], chosen)]))
    new, true = as_float32(x[1500:]), y[1500:, 0]
    predicted = ForestPredictor(chosen).scores(forest, new)[0]
    has = ~np.isnan(true)
    assert np.mean((predicted - true)[has] ** 2) < 0.35 * np.var(true[has])


def test_a_forest_of_classes_and_quantiles_learns_them():
    random = generator(0, "classes and quantiles")
    x = random.normal(size=(3000, 3))
    y = np.stack([np.digitize(x[:, 0], [-0.5, 0.5]), x[:, 1] > 0, *2 * [x[:, 2] + random.normal(size=3000)]], 1)
    losses = ("softmax:3", "log", "quantile:0.1", "quantile:0.9")
    chosen = TreeSettings(trees=80, depth=3, learning_rate=0.2, losses=losses)
    grower = Grower(chosen, 3)
    forest = grower.forest(grown(grower, [Member(x[:2000], y[:2000], chosen)]))
    scores = ForestPredictor(chosen).scores(forest, as_float32(x[2000:]))
    assert np.mean(scores[:3].argmax(axis=0) == y[2000:, 0]) > 0.97
    assert np.mean((scores[3] > 0) == y[2000:, 1]) > 0.97
    below, above = y[2000:, 2] < scores[4], y[2000:, 2] < scores[5]
    assert 0.06 < below.mean() < 0.16
    assert 0.84 < above.mean() < 0.94


def test_buckets_have_their_edges_and_quantiles_lie_between():
    values = np.sort(generator(0, "buckets").normal(size=5000))
    place = buckets(values, 2)
    edges = bucket_edges(2)
    assert (np.diff(place) >= 0).all()
    assert ((edges[place] <= values) & (values <= edges[place + 1])).all()
    counts = np.bincount(place, minlength=NUM_BUCKETS)[None]
    for share in (0.05, 0.5, 0.95):
        assert quantiles(counts, share, 2)[0] == pytest.approx(np.quantile(values, share), abs=0.05)


def test_what_silos_keep_is_what_the_forest_predicts():
    x, y = table(150, 2)
    grower, member = Grower(TWO, x.shape[1]), Member(x, y, TWO)
    growth = grown(grower, [member])
    forest = grower.forest(growth)
    before_last = replace(forest, blocks=forest.blocks[:-2])
    predicted = ForestPredictor(TWO).scores(before_last, member.features)
    assert np.array_equal(predicted, member.scores)


def test_a_predictor_that_remembers_gives_the_bits_of_one_that_does_not():
    x, y = table(150, 3)
    grower = Grower(TWO, x.shape[1])
    forest, inputs = grower.forest(grown(grower, [Member(x, y, TWO)])), as_float32(x)
    assert Forest.of(forest.vector, TWO).vector.tobytes() == forest.vector.tobytes()
    shorter = replace(forest, blocks=forest.blocks[:3])
    remembers = ForestPredictor(TWO)
    for each in (shorter, shorter.filled(), forest, shorter):
        fresh = ForestPredictor(TWO).scores(each, inputs)
        assert remembers.scores(each, inputs).tobytes() == fresh.tobytes()


def test_a_fresh_silo_takes_over_at_any_question():
    x, y = table(120, 4)
    grower = Grower(TWO, x.shape[1])
    growth, member = Growth.begin(5), Member(x, y, TWO)
    while growth.at is not Step.DONE:
        question = grower.question(growth)
        answer = member.answer(question)
        whole = grower.question(growth, whole=True)
        assert np.array_equal(Member(x, y, TWO).answer(whole), answer)
        assert np.array_equal(member.answer(whole), answer)
        if question.step in (Step.LEVEL, Step.LEAF):
            assert np.array_equal(member.answer(question), answer), "asked again"
            with pytest.raises(LostRounds):
                Member(x, y, TWO).answer(question)
        growth = grower.after(growth, answer)


def test_a_silo_that_leaves_and_comes_back_begins_the_iteration_again():
    x, y = table(120, 5)
    grower = Grower(TWO, x.shape[1])
    both = [Member(x[:60], y[:60], TWO), Member(x[60:], y[60:], TWO)]
    growth, number = Growth.begin(5), 0
    while growth.at is not Step.DONE:
        away = number in (1, 9, 15)
        question = grower.question(growth, whole=True)
        answers = [member.answer(question) for member in both[: 1 if away else 2]]
        growth, number = grower.after(growth, np.sum(answers, axis=0)), number + 1
    assert grower.forest(growth).vector.tobytes() == forest_of(x, y, [np.arange(120)], TWO)


def test_a_state_goes_on_from_its_arrays():
    x, y = table(80, 6)
    grower, member = Grower(TWO, 5), Member(x, y, TWO)
    growth = Growth.begin(5)
    while growth.at is not Step.DONE:
        growth = Growth.of(grower.after(growth, member.answer(grower.question(growth))).state())
    assert grower.forest(growth).vector.tobytes() == forest_of(x, y, [np.arange(80)], TWO)


def test_questions_travel_whole():
    x, y = table(60, 7)
    grower, member = Grower(TWO, 5), Member(x, y, TWO)
    growth = Growth.begin(5)
    while growth.at is not Step.DONE:
        question = grower.question(growth)
        assert question.vector().dtype == np.float32
        assert TreeQuestion.of(question.vector()).vector().tobytes() == question.vector().tobytes()
        answer = member.answer(TreeQuestion.of(question.vector()))
        assert len(answer) == question.form.num_values <= grower.largest_answer()
        assert np.array_equal(answer.astype(np.float32).astype(np.int64), answer), "float32 holds every sum"
        growth = grower.after(growth, answer)
    with pytest.raises(ValueError, match="no form"):
        TreeQuestion.of(np.ones(9, np.float32))


def test_early_stopping_keeps_the_best_iteration():
    random = generator(0, "noise")
    x, y = random.normal(size=(300, 4)), random.normal(size=300)
    chosen = TreeSettings(trees=50, depth=4, learning_rate=0.5, min_rows=5, patience=3, stopping_fraction=0.3)
    grower = Grower(chosen, 4)
    growth = grown(grower, [Member(x, y, chosen)])
    best = int(growth.losses.argmin())
    assert growth.iteration < 50
    assert best == growth.iteration - 3
    assert (grower.forest(growth).blocks[best:, -16:] == 0).all()


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=30))
def test_keys_are_in_the_order_of_the_values(values):
    ordered = np.sort(as_float32(np.array(values)))
    keys = keys_of(ordered)
    assert (np.diff(keys) >= 0).all()
    assert np.array_equal(values_of(keys), ordered)


def test_bins_hold_about_equally_many_rows_and_edges_are_no_row_values():
    x = generator(0, "continuous").normal(size=(4000, 1))
    chosen = TreeSettings(trees=1, bins=32)
    grower, member = Grower(chosen, 1), Member(x, x[:, 0], chosen)
    growth = Growth.begin(1)
    while growth.at is Step.COUNT:
        growth = grower.after(growth, member.answer(grower.question(growth)))
    counts = np.bincount(codes_of(member.features, [growth.edges], np.array([0]))[:, 0])
    assert len(counts) == 32
    assert counts.min() > 0.5 * 4000 / 32
    assert counts.max() < 1.5 * 4000 / 32
    assert not np.isin(growth.edges, member.features).any()


def test_no_bin_and_no_scale_stands_for_a_few_rows():
    x = np.concatenate([np.zeros(50), np.ones(50), [1e9]])[:, None]
    y = np.concatenate([np.zeros(100), [1e9]])
    chosen = TreeSettings(**SMALL)
    grower, member = Grower(chosen, 1), Member(x, y, chosen)
    growth = Growth.begin(1)
    while growth.at is Step.COUNT:
        growth = grower.after(growth, member.answer(grower.question(growth)))
        assert growth.scales.max() < 25, "2^25 tells of less than the one large target"
    assert len(growth.edges) == 1
    assert 0 <= growth.edges[0] < 1


@given(st.lists(st.integers(-(2**58), 2**58), min_size=1, max_size=20))
def test_digits_hold_whole_numbers(numbers):
    digits = digits_of(np.array(numbers), 3)
    assert np.array_equal(of_digits(digits), numbers)
    assert np.array_equal(digits.astype(np.float32).astype(np.int64), digits)


def test_sums_of_digits_are_digits_of_sums():
    random = generator(0, "digits")
    numbers = random.integers(-(2**50), 2**50, (7, 5))
    assert np.array_equal(of_digits(digits_of(numbers, 3).sum(axis=0)), numbers.sum(axis=0))


def test_exponential_and_logarithm_are_those_of_numpy():
    values = np.linspace(-50, 50, 10001)
    assert np.allclose(exponential(values), np.exp(values), rtol=1e-14)
    assert np.allclose(logarithm(np.exp(values)), values, rtol=1e-13, atol=1e-14)


def test_a_scale_is_a_power_of_two_that_few_values_exceed():
    counts = np.bincount(exponents(np.array([0.0, 0.5, 0.5, 0.7, 3.0])), minlength=128)
    assert agreed_exponent(counts, 1) == 2
    assert agreed_exponent(counts, 2) == 0
    assert agreed_exponent(counts, 3) == -1


def test_cells_are_cut_where_rows_are():
    keys = [keys_of(np.array([1.0, 1.0, 2.0]))]
    from ray_fed.trees.bins import counted

    first = Cells.first(1)
    children = first.children(counted(keys, first))
    assert children.count.sum() == 3
    assert (children.bits == 24).all()


@pytest.mark.parametrize(
    ("name", "value"),
    [("bins", 64), ("depth", 0), ("losses", ("hinge",)), ("learning_rate", 0.0), ("losses", ("softmax:2",))],
)
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(ConfigError, match="loss" if name == "losses" else name):
        TreeSettings(**{name: value})
