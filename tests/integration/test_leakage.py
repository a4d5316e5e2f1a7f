"""Attacks as Ray tasks: the same rows as in this process, failures as rows, a run from the command line."""

import json
from dataclasses import replace

import pytest

from actors.leakage import run_tasks
from pipelines.cli import main
from ray_fed.leakage.attacks import IDLG, OURS, WDLG
from ray_fed.leakage.study import AttackJob, run_job
from tests.events import shown

JOB = AttackJob("one", "compare", "digits", "lenet", OURS, (0, 1, 2), 8, 8)


@pytest.mark.usefixtures("ray_session")
def test_tasks_return_the_rows_of_this_process_and_one_that_cannot_run_does_not_stop_the_others():
    jobs = [JOB, replace(JOB, key="two", attack=IDLG), replace(JOB, key="three", attack=WDLG, output_bias=False)]
    found = {result.key: result for result in run_tasks(jobs)}
    assert set(found) == {"one", "two", "three"}
    import torch

    torch.set_num_threads(1)
    for job in jobs:
        assert found[job.key].rows == run_job(job).rows
    assert all("needs a bias" in str(row["failed"]) for row in found["three"].rows)
    assert found["one"].seconds > 0


@pytest.mark.usefixtures("ray_session")
def test_a_task_whose_data_are_gone_becomes_rows_with_a_reason(tmp_path):
    gone = replace(JOB, key="gone", data=str(tmp_path / "gone.npz"))
    results = {result.key: result for result in run_tasks([gone, JOB])}
    assert all("no such file" in str(row["failed"]) for row in results["gone"].rows)
    assert "failed" not in results["one"].rows[0]


@pytest.mark.usefixtures("ray_session")
def test_the_command_runs_on_ray_and_ours_beats_the_others(tmp_path):
    out = tmp_path / "run"
    arguments = ["leakage", "--data", "digits", "--images", "6", "--budget", "30", "--attacks", "dlg,idlg,cosine,ours",
                 "--studies", "compare,labels", "--tasks", "3", "--out", str(out)]  # fmt: skip
    assert main(arguments) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["attacks"] == 24
    assert summary["attacks.failed"] == 0
    ours = summary["digits.ours.evaluations_to_1e-3"]
    for rival in ("dlg", "idlg", "cosine"):
        assert summary["digits.ours.below_1e-3"] >= summary[f"digits.{rival}.below_1e-3"]
        assert ours < (summary[f"digits.{rival}.evaluations_to_1e-3"] or float("inf"))
    assert (out / "report.html").stat().st_size > 50_000
    found = shown(out / "tensorboard")
    assert {"model/ours/mse/digits", "result/digits.ours.median_mse"} <= found.scalars
    assert {"picture/mse", "picture/grid-digits"} <= found.pictures
    assert found.hyperparameters["pipeline"] == "leakage"
