"""What leaves a silo that searches a model library."""

from dataclasses import replace

import numpy as np
import pytest

from ray_fed.errors import DataError, PerimeterRefused, SiloFailed, Trouble
from ray_fed.model_library.guarded_search import GuardedSearch
from ray_fed.model_library.selection import Protocol, SourceFeatures, TransferTarget
from ray_fed.model_library.silo_search import SearchingSilo, SiloErrors, SiloTarget
from ray_fed.randomness import generator
from tests.boundaries import lines_of, write_site

DRAW = SiloErrors(
    {"paper": 0.25, "oracle": float("nan")}, {"paper": 0.375}, (0.9, 1.1), "model-1", np.empty(0), np.empty(0)
)
PROTOCOL = Protocol(20)


@pytest.fixture(autouse=True)
def site(tmp_path, monkeypatch):
    folder = tmp_path / "site"
    monkeypatch.setenv("RAY_FED_SITE", str(folder))
    write_site(folder, f"ledger: {tmp_path}/ledgers")
    (tmp_path / "ledgers").mkdir()
    return folder


def small_target(num_rows=60):
    random = generator(0, "search")
    return TransferTarget(
        {"rich": random.normal(size=(num_rows, 6))}, random.normal(size=num_rows), np.arange(num_rows)
    )


@pytest.fixture
def boundary(monkeypatch):
    """A silo with its own rows that has taken two models; the asker wants the errors of single sources."""
    prepared = (
        small_target(),
        SourceFeatures((np.zeros((2, 60, 3)),), ("model-1", "model-2"), np.ones(2), np.zeros((60, 1)), ("set/gap",)),
    )
    monkeypatch.setattr(SiloTarget, "open", lambda _: None)
    monkeypatch.setattr(SearchingSilo, "take", lambda self, *_: setattr(self, "_prepared", prepared))
    boundary = GuardedSearch("north", SiloTarget("gap", "/rows.csv", "eV", share_source_errors=True))
    models = [type("Model", (), {"id": name})() for name in ("model-1", "model-2")]
    assert boundary.take(models) == 2
    return boundary


def answering(*draws):
    return lambda _, __: draws


def test_errors_of_a_search_pass_and_are_a_line_of_the_ledger(boundary):
    [found] = boundary.search(PROTOCOL, answering(DRAW))
    assert (found.chosen, found.held_out, found.permuted) == ("model-1", {"paper": 0.375}, (0.9, 1.1))
    assert (lines_of(boundary)[-1]["kind"], lines_of(boundary)[-1]["num_examples"]) == ("search", 20)


def rows(boundary):
    return boundary.silo.prepared[0].values


HOSTILE = {
    "rows as errors of sources": (lambda v: replace(DRAW, source_cv=v[:2]), "one float64 per source, or none"),
    "a longer array": (lambda v: replace(DRAW, source_held_out=v), "one float64 per source, or none"),
    "rows as shuffled errors": (lambda v: replace(DRAW, permuted=tuple(v.tolist())), "repeats values"),
    "a row in the name of a rule": (lambda v: replace(DRAW, cv={str(v[0]): 1.0}), "errors must be named"),
    "a row in the id of the chosen model": (lambda v: replace(DRAW, chosen=str(v[0])), "none of those that were sent"),
    "an array as an error": (lambda v: replace(DRAW, cv={"paper": v}), "not a number"),
    "the rows themselves": (lambda v: v, "must be of class SiloErrors"),
}


@pytest.mark.parametrize("way", HOSTILE)
def test_rows_in_the_place_of_errors_are_refused(boundary, way):
    make, reason = HOSTILE[way]
    with pytest.raises(PerimeterRefused, match=reason):
        boundary.search(PROTOCOL, answering(DRAW, make(rows(boundary)), make(rows(boundary))))
    assert lines_of(boundary)[-1]["kind"] == "refused"


def test_an_error_over_one_row_that_the_asker_wants_is_refused(boundary):
    with pytest.raises(PerimeterRefused, match="fewer rows stand behind an error than its owner's min_examples=5"):
        boundary.search(replace(PROTOCOL, max_held_out=1), answering(DRAW))


@pytest.mark.parametrize(("policy", "gives_them"), [("", False), ("perimeter: {source_errors: true}", True)])
def test_the_owner_and_not_the_asker_decides_on_errors_of_single_sources(boundary, site, policy, gives_them):
    write_site(site, policy)
    again = GuardedSearch("north", boundary._target)
    again.take([])
    asked = []
    again.search(PROTOCOL, lambda _, per_source: asked.append(per_source) or ())
    assert asked == [gives_them]


def test_of_an_error_only_its_kind_leaves(boundary):
    told = DataError("the target has 7 different materials; lower --rows", failure=Trouble.TOO_FEW_ROWS)
    with pytest.raises(DataError, match="no usable rows, or fewer than") as raised:
        boundary.search(PROTOCOL, answering(DRAW, told))
    assert "7 different" not in str(raised.value)
    assert "7 different materials; lower --rows" in boundary.log.path.read_text()

    def fails(*_):
        raise ValueError(f"{rows(boundary)[0]}")

    with pytest.raises(SiloFailed, match=r"a value cannot be used \(ValueError\)") as raised:
        boundary.search(PROTOCOL, fails)
    assert str(rows(boundary)[0])[:6] not in str(raised.value)


def test_errors_on_data_that_come_with_the_package_are_no_secret(boundary):
    public = GuardedSearch("north", SiloTarget("gap", share_source_errors=True))
    public.take([type("Model", (), {"id": name})() for name in ("model-1", "model-2")])
    with_sources = replace(DRAW, source_cv=np.array([0.25, 0.5]))
    [found] = public.search(PROTOCOL, lambda _, per_source: [with_sources] if per_source else [DRAW])
    assert found.source_cv.tolist() == [0.25, 0.5]
    [own] = boundary.search(PROTOCOL, lambda _, per_source: [with_sources] if per_source else [DRAW])
    assert own.source_cv.size == 0
