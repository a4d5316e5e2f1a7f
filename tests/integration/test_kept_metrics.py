"""A run whose owners keep their metrics, from the command line."""

import json

import yaml

from ray_fed.reporting.model_files import load_model
from tests.commands import ENVIRONMENT, run_ray_fed

SILOS = [{"name": f"with-{anion}", "data": "embedded", "where": {"anion": anion}} for anion in ("O", "F")]


def test_owners_who_keep_metrics_get_a_model_and_a_report_that_says_what_is_not_known(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site/site.yaml").write_text("perimeter: {kinds: [description, moments, update]}")
    training = {"epochs": 4, "rounds": 2, "hidden": [8], "rows": 400}
    (tmp_path / "federation.yaml").write_text(yaml.safe_dump({"silos": SILOS, "training": training}))
    environment = ENVIRONMENT | {"RAY_FED_SITE": str(tmp_path / "site")}
    done = run_ray_fed(
        "formation-energy", "--federation", "federation.yaml", "--out", "run", folder=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    said = "no silo tells metrics and there is no common test set: the models are trained, their errors unknown"
    assert said in done.stderr
    assert said in (tmp_path / "run/report.html").read_text()
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["status"], summary["test.num_examples"]) == ("completed", 0)
    assert not [key for key in summary if key.endswith((".mae", ".r2"))]
    assert load_model(tmp_path / "run/models/federated")[1].metrics["test"] == {"n": 0}
