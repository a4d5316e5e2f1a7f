"""Moments: nothing of what a few rows alone have, and no row between two versions of a data set."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from torch import nn
from torch.nn import functional

from ray_fed.errors import DataError, PerimeterRefused
from ray_fed.federation.silo import Silo
from ray_fed.federation.task import SiloSpec
from ray_fed.federation.torch_task import TorchTask
from ray_fed.learning.standardisation import ColumnMoments
from ray_fed.perimeter.guarded_silo import GuardedSilo
from ray_fed.perimeter.told import ToldMoments, num_different
from tests.boundaries import write_site

RANDOM = np.random.default_rng(3)
ROWS = RANDOM.normal(size=(1000, 3))
ROWS[:, 1] = 0.0
ROWS[417, 1] = 0.3137
NEW = RANDOM.normal(size=(5, 3))


@pytest.fixture(autouse=True)
def site(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_FED_SITE", str(tmp_path / "site"))
    return tmp_path / "site"


def moments(rows, **spec):
    """What a silo that was just started tells of these rows."""
    task = TorchTask(lambda: nn.Linear(3, 1), functional.mse_loss, lambda _: (rows, rows[:, 0]), standardises=True)
    made = SiloSpec("a", 1, **spec)
    boundary = GuardedSilo(made, lambda: Silo(made, task))
    boundary.open()
    return boundary.moments()


def test_a_value_that_one_row_alone_has_is_not_told():
    told = moments(ROWS)
    assert told.mean[1] == told.m2[1] == 0.0
    assert told.mean[0] == pytest.approx(ROWS[:, 0].mean())


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("kept", [True, False])
def test_with_a_book_two_runs_do_not_tell_the_rows_between_them(site, count, kept):
    if kept:
        write_site(site, f"ledger: {site}/kept")
    first = moments(ROWS, run="1")
    for other in (np.vstack([ROWS, NEW[:count]]), ROWS[count:], np.vstack([NEW[:count], ROWS])):
        second = moments(other, run="2")
        told = second.num_examples * second.mean - first.num_examples * first.mean
        assert (second.num_examples == first.num_examples) == kept
        assert np.allclose(told, 0.0) == kept
    assert moments(ROWS, run="3").digits.tolist() == first.digits.tolist()


def test_as_many_rows_more_as_a_statistic_needs_are_told(site):
    write_site(site, f"ledger: {site}/kept")
    assert moments(ROWS).num_examples == 1000
    assert moments(np.vstack([ROWS, NEW])).num_examples == 1005
    assert moments(np.vstack([ROWS, NEW[:3]])).num_examples == 1000  # near the first version
    assert moments(np.vstack([ROWS, NEW]) + 1.0, dataset="shifted").num_examples == 1005


@pytest.mark.parametrize("columns", [[0], [2, 0], [0, 2, 0, 1]])
def test_other_columns_beside_those_of_before_do_not_tell_the_row_either(site, columns):
    write_site(site, f"ledger: {site}/kept")
    moments(ROWS)
    with pytest.raises(PerimeterRefused, match="of its columns differ in fewer than 5 rows from columns told before"):
        moments(np.vstack([ROWS, NEW[:1]])[:, columns])
    moments(ROWS[:, columns])  # of the very same rows


def test_what_was_told_is_in_the_owners_folder_and_nobody_elses(site):
    write_site(site, f"ledger: {site}/kept")
    moments(ROWS)
    files = list((site / "kept" / "told").rglob("*.npz"))
    assert [file.stat().st_mode & 0o777 for file in files] == [0o600]
    files[0].write_bytes(b"PK")
    with pytest.raises(DataError, match="is damaged; put back a copy"):
        ToldMoments(files[0].parent).answer(ROWS, ColumnMoments.of(ROWS), 5)


def test_values_are_compared_as_often_as_they_are_there():
    old, new = np.array([1, 1, 2, 3], np.uint64), np.array([1, 2, 2, 3, 4], np.uint64)
    assert num_different(old, old) == 0
    assert num_different(old, new) == 3


def test_silos_of_one_data_set_know_what_each_other_has_told_whatever_they_have_read_before(tmp_path):
    """A coordinator may ask two silos of one data set in turn, or both at once."""
    here, there = ToldMoments(tmp_path / "told"), ToldMoments(tmp_path / "told")
    one, other = RANDOM.normal(size=(200, 3)), RANDOM.normal(size=(200, 3))
    here.answer(one, ColumnMoments.of(one), 5)
    first = there.answer(other, ColumnMoments.of(other), 5)
    again = here.answer(other[1:], ColumnMoments.of(other[1:]), 5)
    assert again.num_examples == first.num_examples
    assert np.array_equal(again.digits, first.digits)
    with ThreadPoolExecutor(8) as threads:
        rows = [np.vstack([NEW[:count], one + 5.0]) for count in range(4)] * 2
        told = list(threads.map(lambda x: ToldMoments(tmp_path / "told").answer(x, ColumnMoments.of(x), 5), rows))
    assert len({moments.digits.tobytes() for moments in told}) == 1
