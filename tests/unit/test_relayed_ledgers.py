"""What `ray-fed ledger verify` says of updates that a hub between has added up: what contradicts, and what cannot be
known."""

from dataclasses import replace

import pytest

from pipelines import cli
from pipelines.ledger.coordinator_ledger import CoordinatorLedger, name_of_run
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.rounds.job import Job
from ray_fed.perimeter.coordinator_record import CoordinatorRecord, collected
from ray_fed.privacy.signing import SigningKey
from ray_fed.reporting.run_directory import RunDirectory
from ray_fed.sites.cohort import SiteCohort
from tests.ledgers import NAMES, PLAN, copied, ledger_of, owners_keys, write_anew
from tests.sites import hub_of
from tests.synthetic import SyntheticTask, silos
from tests.unit.test_site_relay import behind, region

VERIFIED, CONTRADICTED, NOT_KNOWN = 0, 1, 3
ROUNDS = PLAN.num_rounds


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two silos behind one hub, with its ledgers."""
    folder, task = tmp_path_factory.mktemp("run"), SyntheticTask()
    directory = RunDirectory(folder / "run")
    directory.path.mkdir()
    directory.write_config({"pipeline": "synthetic"})
    name = name_of_run(directory)
    specs = [replace(spec, run=name, ledger_folder=str(folder / "silos")) for spec in silos(40, 60, held_out=12)]
    with pytest.MonkeyPatch.context() as patch, hub_of(["region"]) as upper:
        patch.setenv("RAY_FED_SITE", str(folder / "no site"))
        with region("region", upper, NAMES, {spec.name: spec for spec in specs}):
            cohort = SiteCohort(upper, [behind("region", silo) for silo in NAMES], task)
            record = CoordinatorRecord(task)
            coordinator = Coordinator(cohort, task, NAMES, [record])
            ledger = CoordinatorLedger(directory, name, SigningKey.at(folder / "coordinator.key"))
            coordinator.agree()
            for each in coordinator.run(Job("federated", NAMES, dict.fromkeys(NAMES, PLAN), 0)):
                ledger.write(each.notes)
            ledger.add_silo_ledgers(collected(dict.fromkeys(NAMES, cohort), record))
            ledger.end_run()
    directory.write_summary({"status": "completed"})
    return directory


@pytest.fixture
def forged(run, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_FED_SITE", str(tmp_path / "no site"))
    return copied(run, tmp_path / "forged")


def verify(directory, keys, capsys):
    """Return exit code and lines."""
    words = [f"--key={name}={key}" for name, key in keys.items()]
    return cli.main(["ledger", "verify", str(directory.path), *words]), capsys.readouterr().out.splitlines()


def of_kind(lines, start):
    return [line for line in lines if line.startswith(start)]


def test_all_that_can_be_compared_agrees_and_the_sum_cannot_be_known(run, forged, capsys):
    code, said = verify(forged, owners_keys(run), capsys)
    assert code == NOT_KNOWN
    assert not of_kind(said, "problem: ")
    [unknown] = of_kind(said, "unknown: ")
    assert unknown.startswith(f"unknown: {2 * ROUNDS} updates of the silos 'silo-1', 'silo-2' were added up by a hub")
    assert f"{2 * ROUNDS} of them stand in their silos' ledgers" in unknown
    assert "operator's word" in unknown
    assert [line.split()[-1] for line in of_kind(said, "silo-")] == ["0", "0"], "nothing left that was not received"


def changed(directory, change):
    """Let a coordinator write its ledger anew, with its own key."""
    write_anew(ledger_of(directory, "coordinator"), change)


def parts(lines):
    return [line for line in lines if line["kind"] == "summed on the way"]


def other_rows(lines):
    parts(lines)[0]["num_examples"] += 1
    return lines


def another_round(lines):
    parts(lines)[-1]["round"] += 1
    return lines


def one_line_less(lines):
    dropped = parts(lines)[1]
    return [line for line in lines if line is not dropped]


def one_line_twice(lines):
    return [again for line in lines for again in [line] * (1 + (line is parts(lines)[0]))]


def one_took_no_part(lines):
    [line for line in lines if line["kind"] == "model"][-1]["participants"].remove("silo-2")
    return lines


@pytest.mark.parametrize(
    ("forge", "says"),
    [
        (other_rows, "its part of a sum of session 'federated', round 1, "),
        (another_round, f"round {ROUNDS + 1}, "),
        (one_line_less, "took part in round 1 of 'federated' without an update"),
        (one_line_twice, "its part of a sum of session 'federated', round 1"),
        (one_took_no_part, f"silo 'silo-2' is in a sum of round {ROUNDS}, and did not take part in it"),
    ],
)
def test_a_coordinator_that_forges_sums_contradicts_the_silos_or_itself(forged, capsys, forge, says):
    changed(forged, forge)
    code, said = verify(forged, {}, capsys)
    assert code == CONTRADICTED
    assert any(says in line for line in of_kind(said, "problem: ")), said


def test_without_a_silos_own_ledger_its_part_is_the_coordinators_word(run, forged, capsys):
    ledger_of(forged, "silo-1").unlink()
    handed_over = ("handed over", "silo-1")
    changed(forged, lambda lines: [line for line in lines if (line["kind"], line.get("silo")) != handed_over])
    keys = {name: key for name, key in owners_keys(run).items() if name == "silo-2"}
    code, said = verify(forged, keys, capsys)
    assert code == NOT_KNOWN
    assert any(f"{ROUNDS} of them stand in their silos' ledgers" in line for line in of_kind(said, "unknown: "))
