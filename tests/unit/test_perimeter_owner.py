"""What an owner decides of a silo's gate: errors, budgets, the site file; and how rows are recognised."""

from dataclasses import replace

import numpy as np
import pytest

from ray_fed.errors import ConfigError, DataError, FedError, PerimeterRefused, SiloFailed
from ray_fed.federation.silo import Silo
from ray_fed.perimeter.error_policy import reduced_error
from ray_fed.perimeter.gate import RowMatcher
from ray_fed.perimeter.guarded_silo import GuardedSilo
from ray_fed.perimeter.policy import Policy, read_site
from ray_fed.randomness import generator
from tests.boundaries import guarded, hostile, open_session, refusal, spec, vector_of, write_site
from tests.synthetic import DrawnRows, SyntheticTask


@pytest.fixture(autouse=True)
def site(tmp_path, monkeypatch):
    """An owner's folder without a file."""
    monkeypatch.setenv("RAY_FED_SITE", str(tmp_path / "site"))
    return tmp_path / "site"


# ---- partners


def test_partners_are_public_keys_by_silo(site):
    write_site(site, f"partners: {{south: '{'ab' * 32}'}}")
    assert read_site("north").partners == {"south": "ab" * 32}


@pytest.mark.parametrize("key", ["'abc'", f"'{'AB' * 32}'", "7", "null"])
def test_a_partner_without_a_public_key_is_refused_by_name(site, key):
    write_site(site, f"partners: {{south: {key}}}")
    with pytest.raises(ConfigError, match=r"partners: south=.* must be a public key"):
        read_site("north")


# ---- errors


def raising(error):
    class Raises(Silo):
        def fit(self, session, server_round, vector):  # noqa: ARG002
            raise error(self.rows)

    return Raises


def named_after_a_row(rows):
    return type(f"Row{rows.features[0, 0]}".replace(".", "_").replace("-", "m"), (ValueError,), {})("x")


ERRORS = {
    "a foreign error": (lambda rows: RuntimeError(f"rows: {rows.features[0].tolist()}"), "RuntimeError"),
    "an error of ours raised by the task": (lambda rows: DataError(f"{rows.features[0].tolist()}"), "DataError"),
    "a refusal raised by the task": (
        lambda rows: PerimeterRefused("north", str(rows.features[0, 0]), "x"), "PerimeterRefused",
    ),
    "a class named after a row": (named_after_a_row, "ValueError"),
    "an exit with words": (lambda rows: SystemExit(f"{rows.features[0].tolist()}"), "SystemExit"),
    "a group of errors": (lambda rows: ExceptionGroup(f"{rows.features[0, 0]}", [ValueError("x")]), "ExceptionGroup"),
}  # fmt: skip


@pytest.mark.parametrize("way", ERRORS)
def test_the_words_of_a_tasks_error_stay_in_the_silos_log(tmp_path, way):
    make, kind = ERRORS[way]
    error = refusal(tmp_path, raising(make))
    assert f"{kind} at line" in str(error)
    rows = SyntheticTask(num_features=20, hidden=(64,)).load(spec(tmp_path)).features
    crossed = str(error) + repr(error.__cause__) + repr(error.__context__) + repr(vars(error))
    assert str(rows[0, 0])[:8].replace("-", "") not in crossed.replace("-", "")
    log = (tmp_path / "ledgers" / "north" / "silo.log").read_text()
    assert str(rows[0, 0])[:8] in log or kind == "ValueError"
    assert (tmp_path / "ledgers" / "north" / "silo.log").stat().st_mode & 0o077 == 0


def test_words_of_our_own_code_cross(tmp_path):
    boundary = guarded(tmp_path)
    with pytest.raises(SiloFailed, match=r"no session 'x'; open: \[\]"):
        boundary.fit("x", 1, vector_of(boundary))


@pytest.mark.parametrize(("whose", "crosses"), [("all", True), ("own", False), ("none", False)])
def test_the_owner_says_whose_words_cross(whose, crosses):
    try:
        raise ValueError("volume of row 7")
    except ValueError as error:
        crossed = reduced_error(error, "north", "training", Policy(error_texts=whose), "")
    assert ("volume of row 7" in str(crossed)) is crosses
    assert "ValueError" in str(crossed)


class Trap:
    """Says a row to whoever looks at it."""

    def __getattribute__(self, name):
        raise ValueError("row 1.5 2.5")

    def __eq__(self, other):
        raise ValueError("row 1.5 2.5")

    __hash__ = None


TRAPS = {"fit": ("s", 1, np.zeros(1, np.float32)), "query": ("spectra",), "evaluate": ("s", {}), "moments": ()}


@pytest.mark.parametrize("method", TRAPS)
def test_an_answer_that_raises_when_it_is_looked_at_does_not_go_around_the_gate(tmp_path, method):
    boundary = guarded(tmp_path, type("Sends", (Silo,), {method: lambda *_: Trap()}))
    open_session(boundary)
    with pytest.raises(FedError) as raised:
        getattr(boundary, method)(*TRAPS[method])
    assert "row 1.5" not in str(raised.value)


def test_a_digest_or_rows_that_raise_when_they_are_looked_at_do_not_go_around_the_gate(tmp_path):
    answers = {"open_session": lambda *_: Trap(), "prepare": lambda *_: None}
    boundary = guarded(tmp_path, type("Sends", (Silo,), answers))
    with pytest.raises(FedError, match="layout refused"):
        open_session(boundary)
    boundary.silo._rows = Trap()
    with pytest.raises(SiloFailed, match="ValueError at line") as raised:
        boundary.prepare(None)
    assert "row 1.5" not in str(raised.value)


def test_a_silo_that_cannot_be_built_says_so_at_the_first_question(tmp_path):
    def broken():
        raise RuntimeError("row 1.5 2.5")

    boundary = GuardedSilo(spec(tmp_path), broken)
    with pytest.raises(SiloFailed, match="failed while starting: RuntimeError at line"):
        boundary.open()


# ---- budgets and limits


def test_more_bytes_in_a_round_than_allowed_are_refused(tmp_path, site):
    boundary = guarded(tmp_path)
    size = vector_of(boundary).nbytes
    write_site(site, f"perimeter: {{max_bytes_per_round: {2 * size}}}")
    boundary = guarded(tmp_path / "again")
    vector = open_session(boundary)
    for _ in range(2):
        boundary.fit("s", 1, vector)
    with pytest.raises(PerimeterRefused, match="in one round are more than"):
        boundary.fit("s", 1, vector)
    boundary.fit("s", 2, vector)


def test_a_round_asked_for_without_end_is_refused_by_default(tmp_path):
    boundary = guarded(tmp_path, task=SyntheticTask(num_features=20, hidden=(2000,)))
    vector = open_session(boundary)
    assert vector.nbytes > 1 << 16
    for _ in range(4):
        boundary.fit("s", 1, vector)
    with pytest.raises(PerimeterRefused, match="in one round"):
        boundary.fit("s", 1, vector)


def test_a_session_that_would_break_the_budget_of_the_run_does_not_begin(tmp_path, site):
    write_site(site, "perimeter: {max_bytes_per_run: 10000}")
    boundary = guarded(tmp_path)
    with pytest.raises(PerimeterRefused, match=r"its 3 updates have \d+ bytes, \d+ are left of max_bytes_per_run"):
        open_session(boundary)


def test_the_budget_of_a_run_outlives_the_process(tmp_path, site):
    write_site(site, "perimeter: {max_bytes_per_run: 25000}")
    first = guarded(tmp_path)
    vector = open_session(first)
    for number in (1, 2):
        first.fit("s", number, vector)
    second = guarded(tmp_path)
    assert second.gate.sent > 2 * vector.nbytes
    with pytest.raises(PerimeterRefused, match="max_bytes_per_run"):
        open_session(second)


def test_an_update_that_moves_too_far_is_refused(tmp_path, site):
    write_site(site, "perimeter: {max_update_norm: 0.5}")
    far = hostile("fit", lambda _, update: replace(update, vector=update.vector + np.float32(1)))
    boundary = guarded(tmp_path, far)
    with pytest.raises(PerimeterRefused, match=r"max_update_norm=0\.5"):
        boundary.fit("s", 1, open_session(boundary))


def test_an_update_over_too_few_rows_is_refused(tmp_path, site):
    write_site(site, "perimeter: {min_examples_per_update: 1000}")
    boundary = guarded(tmp_path)
    with pytest.raises(PerimeterRefused, match="min_examples_per_update=1000"):
        boundary.fit("s", 1, open_session(boundary))


# ---- the owner's file


def test_fields_of_one_silo_count_before_those_of_the_site(site):
    write_site(site, "{ledger: /l, perimeter: {min_examples: 20}, silos: {north: {min_examples: 50, audit: true}}}")
    north, south = read_site("north"), read_site("south")
    assert (north.policy.min_examples, south.policy.min_examples) == (50, 20)
    assert north.policy.audit
    assert not south.policy.audit
    assert north.ledger_folder == "/l"
    assert north.policy.version != south.policy.version


def test_nothing_that_a_coordinator_sends_widens_the_policy(tmp_path, site):
    write_site(site, "perimeter: {min_examples: 61}")
    wide = replace(spec(tmp_path), source=DrawnRows(60, 10), site="anywhere", ledger_folder=str(tmp_path / "elsewhere"))
    boundary = GuardedSilo(wide, lambda: Silo(wide, SyntheticTask()))
    boundary.open()
    with pytest.raises(PerimeterRefused, match="min_examples=61"):
        boundary.moments()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("perimeter: {min_example: 3}", r"unknown key 'min_example'; did you mean 'min_examples'"),
        ("perimeters: {}", r"unknown key 'perimeters'; did you mean 'perimeter'"),
        ("perimeter: {min_examples: 0}", "min_examples=0 must be 1 or more"),
        ("perimeter: {min_examples: many}", "min_examples='many' must be a whole number"),
        ("silos: {north: {error_texts: some}}", "error_texts"),
        ("perimeter: [1]", "must be a mapping"),
        ("perimeter: {", "cannot be read"),
    ],
)
def test_a_site_file_with_a_mistake_lets_nothing_out_and_says_why(tmp_path, site, text, said):
    write_site(site, text)
    with pytest.raises(ConfigError, match=said):
        read_site("north")
    boundary = GuardedSilo(spec(tmp_path), lambda: Silo(spec(tmp_path), SyntheticTask()))
    with pytest.raises(ConfigError, match=said):
        boundary.open()


# ---- rows that are recognised


def with_rows(rows, seed=0):
    random, matcher = generator(seed, "matcher"), RowMatcher()
    values = random.normal(size=(rows, 73))
    matcher.add("features", values)
    return random, matcher, values


def test_honest_updates_are_never_taken_for_rows():
    random, matcher, _ = with_rows(4000)
    assert [matcher.hits(random.normal(scale=0.05, size=55_201).astype(np.float32)) for _ in range(300)] == [0] * 300


@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_and_columns_are_recognised_in_a_table_of_millions_of_values(order):
    _, matcher, rows = with_rows(40_000)
    assert matcher.repeats_rows(np.resize(rows.ravel(order), 55_201).astype(np.float32))


def test_targets_are_recognised():
    matcher, targets = RowMatcher(), generator(0, "targets").normal(size=500)
    matcher.add("targets", targets)
    assert matcher.repeats_rows(np.resize(targets, 55_201).astype(np.float32))


def test_a_row_is_told_from_a_mean():
    _, matcher, rows = with_rows(1000)
    assert matcher.is_row(rows[17])
    assert not matcher.is_row(rows.mean(axis=0))


def test_the_mean_of_constant_columns_is_no_row():
    matcher, rows = (
        RowMatcher(),
        np.column_stack([np.full(50, 0.5), np.full(50, 2.25), generator(0, "x").normal(size=50)]),
    )
    matcher.add("features", rows)
    assert not matcher.is_row(rows.mean(axis=0))


def test_numbers_of_few_digits_in_a_text_do_not_count():
    matcher = RowMatcher()
    matcher.add("features", np.array([[0.05, 0.1, 0.25, 1.2345678]]))
    assert matcher.numbers_in(["step 0.05, clip 0.1, split 0.25, 1.2345678 and 7"]) == 1


def test_repeated_and_whole_numbers_do_not_count():
    matcher = RowMatcher()
    matcher.add("counts", np.arange(1000.0))
    matcher.add("pictures", np.zeros((4, 3), np.uint8))
    assert matcher.hits(np.arange(500.0)) == 0
    assert matcher.known_numbers([3.0, 4.0]) == 0
