"""What an owner decides of a silo's gate: errors, budgets, the site file; and how rows are recognised."""

import io
import itertools
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from ray_fed.errors import ConfigError, DataError, FedError, PerimeterRefused, SiloFailed, Trouble
from ray_fed.federation.silo import Silo
from ray_fed.materials.databases.database import open_database
from ray_fed.materials.databases.source import Source
from ray_fed.materials.property_task import CrystalRows, PropertyTask
from ray_fed.perimeter.book import Book
from ray_fed.perimeter.error_policy import REFERENCE, reduced_error
from ray_fed.perimeter.gate import RowMatcher
from ray_fed.perimeter.guarded_silo import GuardedSilo
from ray_fed.perimeter.own_words import words_of
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
    "an error that shows itself": (
        lambda rows: type("Shown", (ValueError,), {"__str__": lambda _: str(rows.features[0, 0])})(), "ValueError",
    ),
    "a failure of the task's own": (
        lambda rows: type("Own", (DataError,), {"failure": str(rows.features[0, 0])})("x"), "DataError",
    ),
    "a class named after a row": (named_after_a_row, "ValueError"),
    "an exit with words": (lambda rows: SystemExit(f"{rows.features[0].tolist()}"), "SystemExit"),
    "a group of errors": (lambda rows: ExceptionGroup(f"{rows.features[0, 0]}", [ValueError("x")]), "ExceptionGroup"),
}  # fmt: skip


@pytest.mark.parametrize("way", ERRORS)
def test_the_words_of_a_tasks_error_stay_in_the_silos_log(tmp_path, way):
    make, kind = ERRORS[way]
    error = refusal(tmp_path, raising(make))
    assert re.search(rf"failed while training round 1: [a-z' ]+ \({kind}\); reference", str(error))
    rows = SyntheticTask(num_features=20, hidden=(64,)).load(spec(tmp_path)).features
    crossed = str(error) + repr(error.__cause__) + repr(error.__context__) + repr(vars(error))
    assert str(rows[0, 0])[:8].replace("-", "") not in crossed.replace("-", "")
    log = (tmp_path / "ledgers" / "north" / "silo.log").read_text()
    assert str(rows[0, 0])[:8] in log or way in ("a class named after a row", "a failure of the task's own")
    [(reference, silo)] = REFERENCE.findall(str(error))
    assert silo == "north"
    assert f"reference {reference} while training round 1" in log
    assert (tmp_path / "ledgers" / "north" / "silo.log").stat().st_mode & 0o077 == 0


def test_of_an_error_of_our_own_a_fixed_phrase_crosses_and_its_words_are_found_by_whoever_has_the_log(tmp_path):
    boundary = guarded(tmp_path)
    with pytest.raises(SiloFailed, match="it has no session of that name") as raised:
        boundary.fit("x", 1, vector_of(boundary))
    assert raised.value.failure is Trouble.NO_SESSION
    assert "open: []" not in str(raised.value)
    assert words_of(str(raised.value), [boundary.spec]) == [
        "while training round 1: SiloFailed: silo 'north' failed while answering: no session 'x'; open: []"
    ]
    assert words_of(str(raised.value), [replace(boundary.spec, ledger_folder="")]) == []


@pytest.mark.parametrize("failure", Trouble)
def test_what_crosses_of_a_failure_holds_no_place_for_a_value(failure):
    assert re.fullmatch(r"[a-zA-Z ,;'_-]+", failure.value)


TEXTS = {
    "full": ("volume of row 7", "ValueError"),
    "kind": ("a value cannot be used (ValueError)", "reference 0123456789ab in the log of silo 'north'"),
    "none": ("failed while training: it failed; reference 0123456789ab in the log of silo 'north'",),
}


@pytest.mark.parametrize("which", TEXTS)
@pytest.mark.parametrize("cls", [ValueError, DataError, ConfigError])
def test_the_owner_says_what_of_an_error_crosses(which, cls):
    crossed = reduced_error(cls("volume of row 7"), "north", "training", Policy(error_texts=which), "0123456789ab")
    assert ("volume of row 7" in str(crossed)) is (which == "full")
    if which == "none":
        assert cls.__name__ not in str(crossed)
        assert type(crossed) is SiloFailed
    if cls is ValueError:
        assert all(text in str(crossed) for text in TEXTS[which])


def test_with_no_texts_at_all_a_refusal_says_only_that_it_is_one(tmp_path, site):
    write_site(site, "perimeter: {error_texts: none, kinds: [description]}")
    with pytest.raises(SiloFailed, match="failed while computing moments: it failed; reference") as raised:
        guarded(tmp_path).moments()
    assert "kinds" not in str(raised.value)


class Paths(SyntheticTask):
    """A task whose data are a file, read as users read files."""

    def load(self, spec):
        return SAMPLES[spec.source]()


def stray_cell():
    return np.loadtxt(io.StringIO("1.0,2.0,3.5\n0.3,Os3Ir1B5 SECRET alloy,2.0\n"), delimiter=",")


def stray_column():
    return pd.read_csv(io.StringIO("x,y\n1,2\npatient-John-Doe-1971,3\n")).x.astype(float)


def stray_class():
    return {"cat": 0}["secret-label"]


def stray_path():
    return open("/home/ada/SECRET/alloys.csv")  # noqa: PTH123


def our_reader():
    return open_database(Source("/home/ada/SECRET/alloys.csv"), "north")


SAMPLES = {"cell": stray_cell, "column": stray_column, "class": stray_class, "path": stray_path, "reader": our_reader}


@pytest.mark.parametrize("source", SAMPLES)
@pytest.mark.parametrize("which", ["kind", "none"])
def test_no_cell_column_or_path_of_an_owner_crosses_in_an_error_of_a_reader(tmp_path, site, source, which):
    write_site(site, f"perimeter: {{error_texts: {which}}}")
    named = replace(spec(tmp_path), source=source)
    boundary = GuardedSilo(named, lambda: Silo(named, Paths()))
    with pytest.raises(FedError) as raised:
        boundary.open()
    crossed = str(raised.value) + repr(vars(raised.value)) + repr(raised.value.__context__)
    assert not [text for text in ("SECRET", "Os3", "John", "secret", "ada") if text in crossed]
    assert len(crossed) < 300
    assert [text for text in ("SECRET", "John", "secret") if text in words_of(crossed, [named])[0]]


def test_one_row_that_fits_a_question_looks_like_none(tmp_path):
    """A coordinator that chooses the filter must not learn whether an owner has a material."""
    table = tmp_path / "alloys.csv"
    lines = [f"Fe{n}O1,{-0.1 * n:.2f}" for n in range(1, 9)]
    table.write_text("\n".join(["formula,formation_energy_per_atom", *lines, "Os3Ir1B5,-0.4", "Ir1B5,900.0"]))
    said = []
    for formula in ("Os3Ir1B5", "Ir1B5", "Os2Ir2B5"):
        rows = CrystalRows(Source(str(table), target="formation_energy_per_atom", where=(("formula", formula),)))
        asked = replace(spec(tmp_path), source=rows)
        boundary = GuardedSilo(asked, lambda asked=asked: Silo(asked, PropertyTask("guo65")))
        with pytest.raises(DataError) as raised:
            boundary.open()
        said.append(re.sub("[0-9a-f]{12}", "", str(raised.value)))
    assert len(set(said)) == 1
    assert "no usable rows, or fewer than its owner's min_examples" in said[0]


def test_a_column_of_another_name_is_told_by_its_reference_alone(tmp_path):
    class Other(Silo):
        def open(self):
            return replace(super().open(), agreement={"task": "band gap of ada's lab"})

    class Asks(SyntheticTask):
        def agreement(self):
            return {"task": "formation energy"}

    said = GuardedSilo(spec(tmp_path), lambda: Other(spec(tmp_path), Asks())).open()
    [(reference, _)] = REFERENCE.findall(said.agreement["task"])
    assert "lab" not in repr(said)
    log = (tmp_path / "ledgers" / "north" / "silo.log").read_text()
    assert f"reference {reference} task: band gap of ada's lab" in log


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
    with pytest.raises(FedError, match="while opening a session: a value cannot be used"):
        open_session(boundary)
    boundary.silo._rows = Trap()
    with pytest.raises(SiloFailed, match=r"\(ValueError\)") as raised:
        boundary.prepare(None)
    assert "row 1.5" not in str(raised.value)


def test_a_silo_that_cannot_be_built_says_so_at_the_first_question(tmp_path):
    def broken():
        raise RuntimeError("row 1.5 2.5")

    boundary = GuardedSilo(spec(tmp_path), broken)
    with pytest.raises(SiloFailed, match=r"failed while starting: its code failed \(RuntimeError\)"):
        boundary.open()


# ---- budgets and limits


def test_more_bytes_in_a_round_than_allowed_are_refused(tmp_path, site):
    boundary = guarded(tmp_path)
    size = vector_of(boundary).nbytes
    write_site(site, f"perimeter: {{max_bytes_per_round: {2 * size + 200}}}")
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


def consume(call, times):
    for _ in range(times):
        call()


def test_the_bytes_of_all_runs_on_a_data_set_are_bounded_together_whatever_they_are_called(tmp_path, site):
    content = "ledger: {}\nperimeter: {{max_bytes_per_dataset: {}}}"
    write_site(site, content.format(tmp_path / "kept", 60_000))
    sent, run = [], itertools.count()

    def one_more_run():
        boundary = guarded(tmp_path / f"run-{next(run)}")
        sent.append(boundary.fit("s", 1, open_session(boundary)).num_bytes)

    with pytest.raises(PerimeterRefused, match=r"than max_bytes_per_dataset=60000, over all runs"):
        consume(one_more_run, 100)
    assert 1 < len(sent) < 60_000 / sent[0]
    with Book(tmp_path / "kept").page(spec(tmp_path).dataset) as page:
        assert sum(sent) < page["num_bytes"] <= 60_000


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
    with pytest.raises(ConfigError, match="its owner's site file is wrong") as raised:
        boundary.open()
    assert not re.search(said, str(raised.value)), "the file is the owner's"
    assert re.search(said, words_of(str(raised.value), [boundary.spec])[0])


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
