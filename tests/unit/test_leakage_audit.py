"""The audit and the command lines, without Ray."""

import json

import numpy as np
import pytest
import torch

from pipelines.cli import main
from pipelines.leakage.audit_report import cheapest
from pipelines.leakage.config import LeakageConfig
from pipelines.leakage.jobs import snapshots, study_jobs
from pipelines.leakage.label_study import multiset_share
from pipelines.leakage.policy import check_allowed
from pipelines.leakage.results import summarise
from pipelines.leakage.verdicts import HOLDS, NOT, verdicts
from ray_fed.errors import ConfigError
from ray_fed.federation.task import SiloSpec
from ray_fed.leakage.audit import MessageAudit, audit, check_first_layer, one_batch, single_records, summed
from ray_fed.leakage.defences import parse_defence
from ray_fed.learning.layout import initial_vector
from ray_fed.learning.standardisation import Standardizer
from ray_fed.materials.databases.source import EMBEDDED, Source
from ray_fed.materials.property_task import CrystalRows, PropertyTask


@pytest.fixture(scope="module")
def silo():
    torch.set_num_threads(1)
    task = PropertyTask()
    silo = task.silo(SiloSpec("mine", CrystalRows(Source(EMBEDDED, rows=120))))
    silo.open()
    silo.prepare(Standardizer.from_moments(silo.moments()))
    return silo


def audited(silo, replay, defence=None) -> MessageAudit:
    vector = initial_vector(silo.task.model(0))
    scale = Standardizer.from_moments(silo.moments()).scale
    chosen = parse_defence(defence) if defence else None
    return audit(silo, replay, vector, silo.task.featurizer().feature_units(), scale, chosen)


def test_gradients_of_single_records_give_every_record_away_with_its_target(silo):
    found = audited(silo, single_records(silo, initial_vector(silo.task.model(0))))
    assert found.exact == found.records == 64
    assert found.target_error is not None
    assert found.target_error < 1e-4
    assert max(found.feature_errors.values()) < 1e-2 * max(silo.rows.features.std(0))


def test_large_batches_give_nothing_away_to_the_ratio(silo):
    vector = initial_vector(silo.task.model(0))
    small, large = (audited(silo, one_batch(silo, vector, size)) for size in (4, 100))
    assert small.found > 0
    assert large.found == 0


def test_noise_as_large_as_the_message_stops_the_audit_and_clipping_does_not(silo):
    replay = single_records(silo, initial_vector(silo.task.model(0)))
    assert audited(silo, replay, "noise:1").found == 0
    assert audited(silo, replay, "clip:0.01").found == 64


def test_a_sum_over_silos_is_matched_with_each_silos_own_records(silo):
    vector = initial_vector(silo.task.model(0))
    one = one_batch(silo, vector, 1)
    doubled = summed([one, one])
    np.testing.assert_allclose(doubled[0].messages[0][0], 2 * one.messages[0][0])
    assert audited(silo, doubled[1]).exact == 1


def test_a_network_whose_first_layer_is_not_linear_is_refused():
    with pytest.raises(ConfigError, match="first layer is a Conv1d"):
        check_first_layer(torch.nn.Sequential(torch.nn.Conv1d(1, 1, 1), torch.nn.Linear(3, 1)))


def test_the_cheapest_defence_is_the_one_that_stops_the_leak_at_the_lowest_error():
    def one(defence, exact):
        return MessageAudit("a", "m", defence, 5, exact, 0, {}, None)

    audits = [one("none", 5), one("noise:1", 0), one("prune:0.9", 0), one("fp16", 5)]
    assert cheapest(audits, audits[0], {"noise:1": 0.3, "prune:0.9": 0.2, "fp16": 0.1}) == "prune:0.9"
    assert cheapest(audits[:1], audits[0], {}) == "none tried"
    assert cheapest(audits, one("none", 0), {}) == "not needed"


# ---- policy


def test_nothing_is_allowed_by_default_and_the_remedy_is_said(tmp_path):
    with pytest.raises(ConfigError, match=r"silo 'mit': its owner has not allowed an audit.*audit: \[mit\]"):
        check_allowed(str(tmp_path / "none.yaml"), ["mit"])


def test_a_policy_allows_the_silos_it_lists_and_no_others(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text("audit: [mit]\n")
    check_allowed(str(path), ["mit"])
    with pytest.raises(ConfigError, match="silo 'eth'"):
        check_allowed(str(path), ["mit", "eth"])
    for text in ("audit: yes\n", "- mit\n", "audit: [\n"):
        path.write_text(text)
        with pytest.raises(ConfigError, match="policy="):
            check_allowed(str(path), ["mit"])


# ---- command lines


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["leakage", "--restarts", "0"], "restarts=0 must be positive"),
        (["leakage", "--attacks", "wdgl"], "did you mean 'wdlg'"),
        (["leakage", "--data", "digit"], "did you mean 'digits'"),
        (["leakage", "--defences", "nois:1"], "did you mean 'noise'"),
        (["leakage", "--images", "100000"], "images=100000"),
        (["leakage", "--bugdet", "5"], "did you mean --budget"),
        (["audit", "nowhere"], "nowhere is not a run directory"),
    ],
)
def test_bad_options_are_one_line_and_exit_code_2(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(arguments)
    except SystemExit as stopped:
        code = stopped.code
    error = capsys.readouterr().err.strip()
    assert code == 2
    assert said in error
    assert "\n" not in error
    assert list(tmp_path.iterdir()) == []


def test_a_run_in_this_process_leaves_report_figures_and_summary_and_goes_on_after_a_break(tmp_path, capsys):
    out = tmp_path / "run"
    options = ["leakage", "--data", "digits", "--images", "2", "--budget", "4", "--attacks", "idlg,ours", "--cohort",
               "local", "--studies", "compare,labels", "--out", str(out)]  # fmt: skip
    assert main(options) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["digits.ours.below_1e-3"] == 2
    assert {"grid-digits.png", "final-digits.png", "mse.png"} <= {path.name for path in (out / "figures").iterdir()}
    assert "honest-but-curious coordinator" in (out / "report.html").read_text()
    capsys.readouterr()
    assert main(options) == 2
    assert "complete run" in capsys.readouterr().err
    lines = (out / "history.jsonl").read_text().splitlines()
    (out / "history.jsonl").write_text(lines[0] + "\n")
    (out / "timing.jsonl").write_text((out / "timing.jsonl").read_text().splitlines()[0] + "\n")
    (out / "summary.json").unlink()
    assert main([*options[:-2], "--out", str(out)]) == 0
    again = json.loads((out / "summary.json").read_text())
    for key, value in summary.items():
        if "second" not in key:
            assert again[key] == value, key
    assert main(["leakage", "--budget", "5", *options[3:5], "--out", str(out)]) == 2


# ---- results


def row(attack: str, exact: int, to: int) -> dict[str, object]:
    return {"job": attack, "attack": attack, "mse": 1e-4 if exact else 0.5, "exact": exact, "near": exact, "samples": 1,
            "psnr": 40.0, "ssim": 0.9, "labels_right": 1.0, "evaluations": 9, "diverged": not exact,
            "evaluations_to_0.01": to, "evaluations_to_0.001": to}  # fmt: skip


def test_evaluations_count_attacks_that_never_came_there_as_last():
    assert summarise([row("a", 1, 5), row("a", 1, 7), row("a", 0, 0)], {}).to_exact == 7
    assert summarise([row("a", 1, 5), row("a", 0, 0), row("a", 0, 0)], {}).to_exact is None


def test_verdicts_follow_the_numbers():
    good = [row("x", 1, 2)] * 4
    bad = [row("x", 0, 0)] * 4

    def results(**methods):
        return {
            "digits": {name: summarise([{**one, "attack": name} for one in rows], {}) for name, rows in methods.items()}
        }

    won = {one.claim[:20]: one.verdict for one in verdicts(results(wdlg=good, idlg=bad, ours=bad), [], {})}
    lost = {one.claim[:20]: one.verdict for one in verdicts(results(wdlg=bad, idlg=good, ours=good), [], {})}
    assert won["The Wasserstein dist"] == HOLDS
    assert lost["The Wasserstein dist"] == NOT
    assert won["Ours beats all other"] == NOT


def test_jobs_cover_every_image_once_per_attack_and_have_unique_names():
    config = LeakageConfig(data=("digits",), images=20, tasks=8)
    jobs = study_jobs(config)
    assert len({job.key for job in jobs}) == len(jobs)
    covered = [
        number for job in jobs if job.group == "compare" and job.attack.name == "ours" for number in job.problems
    ]
    assert sorted(covered) == list(range(20))
    assert snapshots(200) == (2, 5, 10, 20, 50, 100, 200)


def test_labels_of_a_batch_are_compared_without_their_order():
    assert multiset_share(torch.tensor([[1, 2, 2]]), torch.tensor([[2, 1, 3]])) == pytest.approx(2 / 3)
