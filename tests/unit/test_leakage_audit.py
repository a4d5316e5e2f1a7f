"""The audit and the command lines, without Ray."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from pipelines.cli import main
from pipelines.leakage.audit_findings import Findings, LeakLimit
from pipelines.leakage.audited_federation import check_allowed, open_audited, setup_of
from pipelines.leakage.config import LeakageConfig
from pipelines.leakage.figures import _median
from pipelines.leakage.jobs import snapshots, study_jobs, work
from pipelines.leakage.label_study import LabelResult, as_rows, multiset_share, table_1
from pipelines.leakage.margins import margins
from pipelines.leakage.pipeline import _attack
from pipelines.leakage.results import summarise
from pipelines.leakage.threats import THREAT_MODELS
from pipelines.leakage.trained_models import answers
from pipelines.leakage.verdicts import HOLDS, NOT, verdicts
from ray_fed.errors import ConfigError
from ray_fed.federation.messages import Update
from ray_fed.federation.silo import Silo
from ray_fed.federation.task import SiloSpec
from ray_fed.leakage.audit import MessageAudit, TrainingChange, audit, check_first_layer, noise_for, parse_change
from ray_fed.leakage.crafted_models import crafted, why_not_crafted
from ray_fed.leakage.defences import noise_multiplier, parse_defence
from ray_fed.leakage.listed_records import Named, RecordList
from ray_fed.leakage.membership import membership
from ray_fed.leakage.replay import (
    SINGLES,
    RecordedUpdate,
    beside_parameters,
    in_sum,
    one_batch,
    replay_rounds,
    single_records,
)
from ray_fed.learning.layout import Layout, initial_vector
from ray_fed.learning.standardisation import Standardizer
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.materials.databases.source import EMBEDDED, Source
from ray_fed.materials.property_task import CrystalRows, PropertyTask
from ray_fed.metrics import regression_metrics
from ray_fed.privacy.accounting import PrivacyAccount
from tests.events import shown as events_shown

MAE = regression_metrics("eV")[0]


@pytest.fixture(scope="module")
def silo():
    torch.set_num_threads(1)
    task = PropertyTask()
    silo = Silo(SiloSpec("mine", CrystalRows(Source(EMBEDDED, rows=120))), task)
    silo.open()
    silo.prepare(Standardizer.from_moments(silo.moments()))
    return silo


def audited(silo, replay, defence=None, listed=None) -> MessageAudit:
    scale = Standardizer.from_moments(silo.moments()).scale
    chosen = parse_defence(defence) if defence else None
    return audit(silo, replay, silo.task.featurizer().feature_units(), scale, chosen, listed)


def test_gradients_of_single_records_give_every_record_away_with_its_target(silo):
    found = audited(silo, single_records(silo, initial_vector(silo.task.model(0))))
    assert found.exact == found.records == SINGLES
    assert found.target_error is not None
    assert found.target_error < 1e-4
    assert max(found.feature_errors.values()) < 1e-2 * max(silo.rows.features.std(0))


def test_small_batches_come_apart_entirely_and_large_ones_give_nothing_away(silo):
    vector = initial_vector(silo.task.model(0))
    small, large = (audited(silo, one_batch(silo, vector, size)) for size in (8, 100))
    assert small.exact == small.records == 8
    assert large.found == 0


def test_clipping_hides_nothing_and_only_noise_well_above_the_message_stops_the_audit(silo):
    replay = single_records(silo, initial_vector(silo.task.model(0)))
    assert audited(silo, replay, "clip:0.01").found == SINGLES
    assert audited(silo, replay, "noise:0.1").found > SINGLES // 2  # all units together see through it
    assert audited(silo, replay, "noise:10").found == 0
    assert audited(silo, replay, "silo_dp:8").found == 0


def test_a_sum_over_silos_is_matched_with_each_silos_own_records(silo):
    vector = initial_vector(silo.task.model(0))
    one = one_batch(silo, vector, 1)
    other = replace(one, messages=one_batch(silo, vector, 3).messages, together=3)
    both = in_sum([one, other])
    np.testing.assert_allclose(both[0].messages[0][0], one.messages[0][0] + 3 * other.messages[0][0])
    assert (both[0].together, both[0].summed) == (4, 2)
    assert audited(silo, both[1]).target_error is None


def test_a_record_that_took_no_part_is_not_found_however_much_it_resembles_a_guess(silo):
    vector = initial_vector(silo.task.model(0))
    batch = one_batch(silo, vector, 4)
    assert audited(silo, batch).found == 4
    assert audited(silo, replace(batch, took_part=np.array([0, 1, 7]), records=3)).found == 2


def test_the_control_variate_that_travels_beside_the_parameters_is_attacked_as_the_gradient_it_is(silo):
    module = silo.task.model(0)
    vector, layout = initial_vector(module), Layout.of(module)
    gradient = np.concatenate([part.ravel() for part in one_batch(silo, vector, 8).messages[0]])
    sent = np.concatenate([vector, np.zeros_like(vector), gradient])
    update = Update("mine", "s", 1, sent.astype(np.float32), 8, 1, 0.1)
    recorded = RecordedUpdate(vector, update, np.arange(8))
    plan = TrainingPlan(0, epochs=1, steps_per_epoch=1, num_rounds=1)
    scaffold = replace(plan, control_variates=True, optimizer_state="common")
    beside = beside_parameters(silo, recorded, layout, scaffold)
    assert beside is not None
    assert beside.kind == "control variate of a round (1 local adam step)"
    assert audited(silo, beside).exact == 8
    assert beside_parameters(silo, recorded, layout, plan) is None
    later = replace(recorded, update=replace(update, server_round=2))
    assert beside_parameters(silo, later, layout, scaffold) is None


def test_a_network_whose_first_layer_is_not_linear_is_refused():
    with pytest.raises(ConfigError, match="first layer is a Conv1d"):
        check_first_layer(torch.nn.Sequential(torch.nn.Conv1d(1, 1, 1), torch.nn.Linear(3, 1)))


# ---- what an audit says


def message(defence="none", exact=0, silo="a", records=5) -> MessageAudit:
    return MessageAudit(silo, "m", defence, records, exact, 0, {}, None)


def test_the_cheapest_defence_is_the_one_under_which_nothing_is_found_at_the_lowest_error():
    tried = [message("none", 5), message("noise:1"), message("prune:0.9"), message("fp16", 5)]
    costs = {"noise:1": 0.3, "prune:0.9": 0.2, "fp16": 0.1}
    findings = Findings("eV", {}, MAE, of_kinds=tried, costs=costs)
    assert findings.cheapest(tried[0]) == "prune:0.9"
    assert findings.cheapest(message("none", 0)) == "nothing found"
    assert Findings("eV", {}, MAE, of_kinds=tried[:1]).cheapest(tried[0]) == "none that was tried"


def test_a_defence_counts_as_withstood_only_where_it_was_attacked_in_what_leaks_without_it():
    def of(kind, defence="none", right=0):
        return replace(message(defence), kind=kind, named={"least squares": Named(right, 20, 1.0)})

    early, late = "update of a round", "updates of rounds together"
    leak = of(early, right=18)  # of a later round than the first, in which defences are tried
    kinds = [of(early), of(late, right=18), of(early, "fp16"), of(early, "noise:1"), of(late, "noise:1")]
    costs = {"": 0.1, "fp16": 0.1, "noise:1": 0.3, "secure sum": 0.1}
    findings = Findings("eV", {}, MAE, of_rounds=[leak], of_kinds=kinds, costs=costs)
    assert findings.cheapest(leak) == "noise:1", "fp16 was not attacked over rounds together"
    findings.of_kinds = [one for one in kinds if one.kind == early]
    assert findings.cheapest(leak) == "none that was tried"
    findings.of_kinds = [*kinds, of(early, "secure sum")]
    findings.of_sums = [of(late, right=18)]
    assert findings.cheapest(leak) == "noise:1", "the sums of later rounds leak"
    findings.of_sums = [of(late)]
    assert findings.cheapest(leak) == "secure sum"


def test_the_gate_names_the_silo_that_leaks_most_and_under_what_nothing_is_found():
    findings = Findings("eV", {}, MAE, of_rounds=[message(exact=1), message(exact=3, silo="b", records=4)])
    findings.of_kinds = [*findings.of_rounds, message("fp16", silo="b")]
    broken = LeakLimit({"nothing": 0.5, "list": 0.5}, findings)
    assert broken.broken == ["nothing"]
    assert broken.words == (
        "failed: max_leak=nothing:0.5 is exceeded; knowing nothing of the records, silo 'b': 3 of 4 records "
        "reconstructed (75.0%, 95 %: 30.1% to 95.4%) in its m; under fp16 these attacks find nothing"
    )
    assert not LeakLimit({"nothing": 0.75}, findings).broken
    assert not LeakLimit({}, findings).broken
    findings.untried = {"coordinator": "it cannot be"}
    assert not LeakLimit({"nothing": 0.75, "coordinator": 0.1}, findings).has_failed
    named = LeakLimit({"coordinator": 0.1}, findings, {"coordinator"})
    assert named.has_failed
    assert named.words.startswith("failed: max_leak=coordinator was not checked: it cannot be; most found: ")
    findings.is_summed, findings.of_sums = True, [replace(message(exact=1, records=10), summed=3)]
    assert "1 of 10 records reconstructed" in LeakLimit({"nothing": 0.05}, findings).words
    assert LeakLimit({"nothing": 0.05}, findings).words.endswith(
        "in the sum over 3 silos of its m; send after more local steps or larger batches, or train with DP-SGD"
    )


def test_the_gate_holds_each_threat_model_to_its_own_limit():
    listed = replace(message(records=20), named={"least squares": Named(18, 20, 1.0), "row space": Named(0, 20, 1.0)})
    findings = Findings("eV", {}, MAE, of_rounds=[listed])
    assert LeakLimit({"nothing": 0.0}, findings).broken == []
    findings.memberships = [membership("a", "model of the whole run", np.zeros(300), np.ones(300))]
    trained = LeakLimit({"membership": 0.5}, findings)
    assert trained.broken == ["membership"]
    assert "silo 'a': AUC 1.000 (1.000 to 1.000) in the model of the whole run" in trained.words
    both = LeakLimit({"nothing": 0.0, "list": 0.5}, findings)
    assert both.broken == ["list"]
    assert "18 of 20 listed records named (90.0%, 95 %: 69.9% to 97.2%), 1.0 by chance" in both.words
    assert findings.cheapest(listed) == "none that was tried"


def test_a_list_that_holds_a_silos_records_names_large_batches_in_which_nothing_is_reconstructed(silo):
    vector = initial_vector(silo.task.model(0))
    features = silo.samples.features.numpy()
    public = np.random.default_rng(0).permuted(features, axis=0)
    listed = RecordList(np.concatenate([features, public]))
    large = audited(silo, one_batch(silo, vector, 90), listed=listed)
    assert large.found == 0
    assert large.worst_share == large.named_most.share > 0.9
    assert large.listed_target_error is not None
    assert large.listed_target_error < 1e-2
    both = in_sum([one_batch(silo, vector, 40), replace(one_batch(silo, vector, 40), silo="other")])
    assert audited(silo, both[0], listed=listed).named_most.share > 0.9
    assert audited(silo, one_batch(silo, vector, 90), "silo_dp:8", listed).worst_share == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [("batch:0", "must be batch:NUMBER"), ("dp:-1", "must be dp:EPSILON"), ("stps:1", "did you mean 'steps'"),
     ("sgd:2", "takes no number"), ("int8:2", "takes no number"), ("dp:", "must be dp:EPSILON")],
)  # fmt: skip
def test_changes_that_do_not_exist_are_refused(text, said):
    with pytest.raises(ConfigError, match=said):
        parse_change(text)


def test_a_change_keeps_the_passes_over_the_rows_and_cuts_them_differently():
    plan = TrainingPlan(0, epochs=4, steps_per_epoch=10, num_rounds=2)
    change = parse_change("batch:8+steps:1+sgd+int8")
    changed = change.of({"a": plan, "b": plan}, {"a": 100, "b": 30})["a"]
    assert (changed.epochs, changed.steps_per_epoch, changed.num_rounds, changed.optimizer) == (4, 13, 52, "sgd")
    assert str(change) == "batch:8+steps:1+sgd+int8"
    assert TrainingChange().of({"a": plan}, {"a": 100})["a"] == plan


def test_private_steps_of_a_change_spend_the_epsilon_asked_for():
    pytest.importorskip("dp_accounting", reason="needs the extra 'privacy'")
    spent = PrivacyAccount("example", noise_for(8.0, 0.1, 40), 0.1).epsilon(40)
    assert 7.5 < spent <= 8.0


def test_noise_of_a_silo_is_that_of_the_exact_gaussian_mechanism():
    assert noise_multiplier(1.0, 1e-5, 1) == pytest.approx(3.7306, abs=1e-3)  # Balle & Wang 2018
    assert noise_multiplier(1.0, 1e-5, 9) == pytest.approx(3 * noise_multiplier(1.0, 1e-5, 1))


# ---- policy


def test_nothing_is_allowed_by_default_and_the_remedy_is_said(tmp_path):
    with pytest.raises(ConfigError, match=r"silo 'mit': its owner has not allowed an audit.*mit: \{audit: true\}"):
        check_allowed(str(tmp_path / "none.yaml"), ["mit"])


def test_a_site_file_allows_the_silos_it_lists_and_no_others(tmp_path):
    path = tmp_path / "site.yaml"
    path.write_text("silos: {mit: {audit: true}}\n")
    check_allowed(str(path), ["mit"])
    with pytest.raises(ConfigError, match="silo 'eth'"):
        check_allowed(str(path), ["mit", "eth"])
    for text in ("silos: {mit: {audit: 7}}\n", "- mit\n", "silos: [\n"):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"site\.yaml"):
            check_allowed(str(path), ["mit"])


# ---- a run, replayed


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """A federation that sends after every small batch of SGD, which leaks, and its owners' site file."""
    folder = tmp_path_factory.mktemp("audited")
    options = ["--rows", "120", "--silos", "30,60", "--epochs", "1", "--baselines", "no", "--optimizer", "sgd",
               "--batch-size", "9", "--communication-frequency", "batch", "--cohort", "local"]  # fmt: skip
    assert main(["formation-energy", *options, "--out", str(folder / "run")]) == 0
    (folder / "site.yaml").write_text("perimeter: {audit: true}\n")
    return folder


def test_an_audit_of_a_leaky_run_fails_the_gate_and_leaves_a_table_for_its_owners(finished_run, capsys, tmp_path):
    arguments = ["audit", str(finished_run / "run"), "--policy", str(finished_run / "site.yaml"), "--rounds", "3",
                 "--cost-rounds", "2", "--shadows", "2", "--defences", "fp16,silo_dp:8", "--changes", "steps:2",
                 "--list-length", "200", "--exposed-records", str(tmp_path / "own.csv"),
                 "--out", str(tmp_path / "audit")]  # fmt: skip
    assert main([*arguments, "--max-leak", "0.1"]) == 1
    shown = capsys.readouterr()
    limits = ", ".join(f"{model}:0.1" for model in THREAT_MODELS if model != "property")
    verdict = f"failed: max_leak={limits} is exceeded; knowing nothing of the records, "
    assert shown.err.strip().splitlines()[-1].startswith(f"ray-fed audit: {verdict}")
    assert all(f"threat model {model}: " in shown.err for model in THREAT_MODELS)
    assert "3 of 11 replayed rounds attacked, the whole run" in shown.err
    assert "list of suspects: 81 records of the audited silos among 119 public ones\n" in shown.err
    lines = [line.split() for line in shown.out.splitlines()]
    assert next(line for line in lines if line[:1] == ["silo_dp:8"])[1:3] == ["0", "/"]
    summary = json.loads((tmp_path / "audit" / "summary.json").read_text())
    assert summary["leak.passed"] is False
    assert summary["leak.property.not_tried"] == "shadows is 0, or the silos have too few rows for shadow silos"
    assert any(line[:4] == ["property", "–", "–", "not"] for line in lines)
    assert summary["leak.nothing.largest_share"] == summary["leak.list.largest_share"] == 1.0
    assert 0 <= summary["silo-1.membership.model of the whole run.auc"] <= 1
    assert all(summary[f"{silo}.found"] <= summary[f"{silo}.records"] for silo in ("silo-1", "silo-2"))
    exposed = (tmp_path / "own.csv").read_text().splitlines()
    assert exposed[0] == "silo,record,model,attack,exposure_bits"
    bits = [float(line.rsplit(",", 1)[1]) for line in exposed[1:]]
    assert len(bits) > summary["silo-1.membership.model of the whole run.members"]
    assert bits == sorted(bits, reverse=True)
    assert (tmp_path / "own.csv").stat().st_mode & 0o077 == 0
    assert "Verdict" in (tmp_path / "audit" / "report.html").read_text()
    found = events_shown(tmp_path / "audit" / "tensorboard")
    assert {"result/leak.passed", "result/leak.list.largest_share"} <= found.scalars
    assert (found.hyperparameters["pipeline"], found.hyperparameters["list_length"]) == ("audit", 200)


def test_answers_to_evaluations_are_asked_under_masks_too_as_their_sum(finished_run):
    """One silo's marks summed are its own, so the sum of one tells what the silo in clear does; of two, of both."""
    found = {}
    for silos in (("silo-1",), ("silo-1", "silo-2")):
        audited = open_audited(setup_of(str(finished_run / "run")), silos)
        replayed = replay_rounds(audited.recording, audited.coordinator, audited.job, 4, keep=(1, 2, 3, 4))
        found[silos, False] = list(answers(audited, replayed))
        masked = replace(audited, job=replace(audited.job, secure_threshold=2))
        found[silos, True] = list(answers(masked, replayed))
    [alone], [summed] = found[("silo-1",), False], found[("silo-1",), True]
    assert (summed.silo, summed.of, summed.is_in_update) == ("all silos", "marks of 4 models, summed", False)
    assert (summed.auc, summed.members) == (alone.auc, alone.members)
    in_clear, [together] = found[("silo-1", "silo-2"), False], found[("silo-1", "silo-2"), True]
    assert together.members == sum(one.members for one in in_clear)
    assert 0.0 <= together.auc <= 1.0


def test_an_audit_without_its_owners_word_leaves_nothing_behind(finished_run, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_FED_SITE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main(["audit", str(finished_run / "run")]) == 2
    assert "its owner has not allowed an audit" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


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
        (["audit", "nowhere", "--max-leak", "2"], "max_leak=2 must be a share between 0 and 1"),
        (["audit", "nowhere", "--max-leak", "lst:0"], "did you mean 'list'"),
        (["audit", "nowhere", "--max-leak", "list:0", "--candidates", "no"], "list:SHARE needs a list"),
        (["audit", "nowhere", "--defences", "dpp:8"], "unknown defence 'dpp'"),
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


def test_attacks_that_cannot_run_are_rows_with_a_reason_and_the_others_are_shown(tmp_path, capsys):
    options = ["leakage", "--data", "digits", "--images", "2", "--budget", "2", "--cohort", "local", "--studies",
               "compare", "--output-bias", "no"]  # fmt: skip
    assert main([*options, "--attacks", "wdlg,ours", "--out", str(tmp_path / "both")]) == 0
    assert "needs a bias in the output layer" in capsys.readouterr().err
    assert json.loads((tmp_path / "both" / "summary.json").read_text())["attacks.failed"] == 2
    assert main([*options, "--attacks", "wdlg", "--out", str(tmp_path / "none")]) == 1
    assert "needs a bias in the output layer" in capsys.readouterr().err


# ---- results


def row(attack: str, exact: int, to: int, problem: int = 0) -> dict[str, object]:
    return {"job": attack, "problem": problem, "attack": attack, "mse": 1e-4 if exact else 0.5, "exact": exact,
            "near": exact, "samples": 1, "psnr": 40.0, "ssim": 0.9, "labels_right": 1.0, "evaluations": 9,
            "diverged": not exact, "evaluations_to_0.01": to, "evaluations_to_0.001": to}  # fmt: skip


def test_evaluations_count_attacks_that_never_came_there_as_last():
    assert summarise([row("a", 1, 5), row("a", 1, 7), row("a", 0, 0)], {}).to_exact == 7
    assert summarise([row("a", 1, 5), row("a", 0, 0), row("a", 0, 0)], {}).to_exact is None


def test_verdicts_follow_the_numbers():
    good, sooner, bad = ([row("x", exact, to, i) for i in range(4)] for exact, to in ((1, 20), (1, 2), (0, 0)))

    def said(**methods):
        rows = {name: [{**one, "attack": name} for one in found] for name, found in methods.items()}
        results = {name: summarise(found, {}) for name, found in rows.items()}
        found = verdicts({"digits": results}, [], {}, margins("digits", results, rows, 50))
        return {one.claim[:20]: one.verdict for one in found}

    won = said(wdlg=good, idlg=bad, l2_grey=bad)
    lost = said(wdlg=bad, idlg=[*good[:3], bad[0]], l2_grey=sooner)
    assert won["The Wasserstein dist"] == HOLDS
    assert lost["The Wasserstein dist"] == NOT
    assert won["Ours (l2_grey) finds"] == NOT
    assert lost["Ours (l2_grey) finds"] == HOLDS
    one_more = said(wdlg=[*bad[:3], good[0]], idlg=bad)
    assert one_more["The Wasserstein dist"] == NOT  # one image of four more is chance


def test_a_step_size_at_which_wdlg_alone_stays_finite_is_steadiness_and_no_success():
    bad, calm = ([{**row("x", 0, 0, i), "diverged": apart} for i in range(8)] for apart in (True, False))
    rates = {(name, rate): summarise([{**one, "attack": name} for one in rows], {})
             for name, rate, rows in (("wdlg_descent", 10.0, calm), ("idlg_descent", 10.0, calm),
                                      ("wdlg_descent", 100.0, calm), ("idlg_descent", 100.0, bad),
                                      ("wdlg_descent", 1e3, bad), ("idlg_descent", 1e3, calm))}  # fmt: skip
    (verdict,) = verdicts({}, [], rates, [])
    assert verdict.verdict == "holds for steadiness alone, at 100, and the other way round at 1000"


def test_a_margin_counts_an_attack_that_never_came_there_with_the_budget():
    mine = [row("l2_grey", 1, 2, 0), row("l2_grey", 1, 4, 1)]
    rows = {"l2_grey": mine, "idlg": [row("idlg", 0, 0, 0), row("idlg", 1, 3, 1)], "rgap": [row("rgap", 1, 1)]}
    (margin,) = margins("digits", {name: summarise(found, {}) for name, found in rows.items()}, rows, 50)
    assert margin.rival == "idlg"  # algebra is set against algebra alone
    assert (margin.sooner, margin.later) == (1, 1)
    assert margin.fold == pytest.approx((50 / 2 + 3 / 4) / 2)
    assert margin.gain == 0.5
    assert not margin.is_ahead


def test_jobs_cover_every_image_once_per_attack_and_have_unique_names():
    config = LeakageConfig(data=("digits",), images=20, tasks=8)
    jobs = study_jobs(config)
    assert len({job.key for job in jobs}) == len(jobs)
    covered = [
        number for job in jobs if job.group == "compare" and job.attack.name == "ours" for number in job.problems
    ]
    assert sorted(covered) == list(range(20))
    assert snapshots(200) == (2, 5, 10, 20, 50, 100, 200)


def test_other_networks_are_attacked_on_images_that_all_of_them_take():
    jobs = study_jobs(LeakageConfig(data=("faces", "digits"), images=2, studies=("networks",)))
    assert {(job.model, job.data) for job in jobs} == {
        (model, "digits") for model in ("lenet_relu", "mlp", "resnet", "unet")
    }
    assert {job.attack.name for job in jobs} == {
        "analytic", "rgap", "dlg", "idlg", "wdlg", "cosine", "ours", "l2_grey"
    }  # fmt: skip


def test_a_larger_job_of_the_same_attack_is_more_work_and_transport_more_than_l2():
    jobs = {
        job.key: job for job in study_jobs(LeakageConfig(data=("digits", "photos"), images=2, studies=("compare",)))
    }
    cost = {
        name: work(jobs[f"compare-{name}-1-200-b1-e1-plain-0"])
        for name in ("digits-idlg", "photos-idlg", "photos-wdlg")
    }
    assert cost["digits-idlg"] < cost["photos-idlg"] < cost["photos-wdlg"]


def test_table_1_has_a_line_per_data_set_and_the_other_conditions_one_each():
    found = [
        LabelResult("digits", "bias_sign", "batch 1", 4, 1.0, 10),
        LabelResult("digits", "row_sign", "batch 1", 4, 0.75, 480),
        LabelResult("digits", "bias_sign", "no_output_bias", 4, 0.0, 10, "there is none"),
    ]  # fmt: skip
    assert table_1(found, {"digits": 0.5})[1:] == [["digits", "50%", "75%", "100%", "480", "10"]]
    assert as_rows(found)[1:] == [
        ["digits", "batch 1", "4", "100.0%", "75.0%"],
        ["digits", "no_output_bias", "4", "not possible", "–"],
    ]


def test_the_objective_is_drawn_relative_to_the_first_point_that_was_told():
    told = np.array([[np.nan, 4.0, 2.0], [np.nan, 8.0, 8.0]])  # the first evaluation chose the start
    assert list(_median(told, "loss")[1:]) == [1.0, 0.75]
    assert np.isnan(_median(told, "loss")[0])


def test_labels_of_a_batch_are_compared_without_their_order():
    assert multiset_share(torch.tensor([[1, 2, 2]]), torch.tensor([[2, 1, 3]])) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("network", "why"),
    [
        (nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)), ""),
        (nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), "has a layer of kind Tanh"),
        (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1)), "of kind BatchNorm1d"),
        (nn.Linear(3, 1), "is no such stack"),
        (nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 1)), "is no such stack"),
    ],
)
def test_a_network_that_nothing_is_crafted_of_says_why(network, why):
    said = why_not_crafted(network)
    assert said.endswith(why) if why else said == ""
    public = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    assert bool(crafted(network, public, 2)) is (why == "")


def test_a_study_with_nothing_missing_joins_no_cluster():
    _attack(LeakageConfig(cohort="ray", address="127.0.0.1:1"), [], None)  # type: ignore[arg-type]  (nobody answers)
