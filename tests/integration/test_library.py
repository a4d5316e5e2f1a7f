"""The library on Ray: builds as tasks that go on where they stopped, moved models, a silo that keeps its rows."""

import json

import numpy as np
import pandas as pd
import pytest

from pipelines.cli import main
from pipelines.model_library import build as build_module
from pipelines.model_library.build import carry_out
from pipelines.model_library.config import BuildConfig
from ray_fed.errors import DataError
from ray_fed.model_library.property_catalogue import embedded_tables
from ray_fed.model_library.selection import Protocol
from ray_fed.model_library.silo_search import SiloTarget
from ray_fed.model_library.store import Library
from tests.events import shown

SMALL = {
    "networks": 4, "forests": 0, "boosted": 1, "linear": 1, "max_rows": 200, "descriptors": ("guo65",),
    "properties": ("model_oxides", "model_halides"),
}  # fmt: skip


@pytest.fixture(scope="module")
def library(ray_session, tmp_path_factory) -> Library:  # noqa: ARG001
    return carry_out(BuildConfig(library=str(tmp_path_factory.mktemp("lib") / "library"), **SMALL)).library


def test_a_build_fills_the_library_and_goes_on_where_it_stopped(library):
    assert len(library) == 2 * 3 * 6
    records = sorted((library.path / "jobs").glob("*.json"))
    lost = json.loads(records[0].read_text())["models"]
    records[0].unlink()
    again = carry_out(BuildConfig(library=str(library.path), **SMALL))
    # The one job that was taken back is done again, and gives the very models it gave before.
    assert again.models == len(lost)
    assert again.skipped_jobs == len(records) - 1
    assert len(library) == 2 * 3 * 6
    assert library.verify() == []
    told = json.loads((library.path / "summary.json").read_text())
    assert told["models"] == len(library)
    assert len([key for key in told if key.startswith("best.") and key.endswith(".r2")]) == 2 * 3


def test_two_actors_with_two_libraries_predict_identical_bits(library, tmp_path):
    from actors.library import predict_with
    from ray_fed.model_library.places import pull, push

    ids = library.stored_ids()[:4]
    push(library, str(tmp_path / "place"), ids)
    other = Library.create(tmp_path / "other")
    pull(other, str(tmp_path / "place"))
    frame = embedded_tables()["model_pnictides/cell_volume"].frame.head(30)
    for model_id in ids:
        here, there = (predict_with(str(place.path), model_id, frame) for place in (library, other))
        np.testing.assert_array_equal(here, there)
        assert np.isfinite(here).all()


def test_a_silo_searches_pulled_models_and_only_errors_come_back(library):
    from actors.library import LibrarySilo, search_at

    ids = library.query("method = mlp", ["id"])["id"].tolist()
    silo = LibrarySilo.remote("pnictides", SiloTarget("model_pnictides/formation_energy"))
    found = search_at(
        silo, [library.packed(item) for item in ids], Protocol(20, ensemble=3, max_held_out=50, num_trees=5), "ridge", 3
    )
    assert len(found) == 3
    assert all(errors.chosen in ids for errors in found)
    for errors in found:
        assert len(errors.source_cv) == len(errors.source_held_out) == 0
        assert errors.cv["paper"] <= errors.cv["median"]


def test_a_silo_refuses_a_tampered_model(library):
    from dataclasses import replace

    from actors.library import LibrarySilo, search_at

    model = library.packed(library.query("method = mlp", ["id"])["id"].iloc[0])
    silo = LibrarySilo.remote("pnictides", SiloTarget("model_pnictides/formation_energy"))
    with pytest.raises(DataError, match="silo 'pnictides' failed while taking models: a file is damaged"):
        search_at(silo, [replace(model, weights=model.weights[:-1] + b"?")], Protocol(20), "ridge", 1)


def test_the_command_line_queries_shows_predicts_and_verifies(library, tmp_path, capsys):
    folder = ["--library", str(library.path)]
    assert main(["library", "query", *folder, "property = cell_volume order by meanAbsError limit 2"]) == 0
    model_id = capsys.readouterr().out.splitlines()[1].split()[0]
    assert main(["library", "show", *folder, model_id]) == 0
    assert json.loads(capsys.readouterr().out)["property"] == "cell_volume"
    (tmp_path / "new.csv").write_text("formula\nMgO\nNotAFormula\n")
    out = tmp_path / "predicted.csv"
    assert main(["library", "predict", *folder, model_id, str(tmp_path / "new.csv"), "--out", str(out)]) == 0
    good, bad = out.read_text().splitlines()[1:]
    assert float(good.split(",")[1]) > 0
    assert "NotAFormula" in bad.split(",", 1)[1]
    assert main(["library", "verify", *folder]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["query", "mae <"], "query ends"),
        (["query", "property = x"], "unknown property 'x'"),
        (["show", "beef00"], "no model with id 'beef00'"),
        (["pull", "/nowhere/at/all"], "holds no models"),
        (["deprecate", "zz"], "no model with id"),
        (["show", "4"], "too short; give 4 digits or more"),
        (["diff", "/nowhere/at/all"], "no such place"),
        (["push", __file__], "is a file; give a folder"),
        (["add", "/nowhere/at/all"], "is not a run directory"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(library, arguments, said, capsys):
    action, *rest = arguments
    assert main(["library", action, "--library", str(library.path), *rest]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def test_unknown_names_in_a_build_are_refused_before_anything_is_written(tmp_path, capsys):
    target = tmp_path / "new"
    for option, value, said in (
        ("--properties", "formation_enrgy", "did you mean 'formation_energy'"),
        ("--descriptors", "guo7", "did you mean 'guo"),
        ("--descriptors", "xenon290", "--element-table"),
    ):
        assert main(["library", "build", "--library", str(target), option, value]) == 2
        assert said in capsys.readouterr().err
    assert not target.exists()


def test_a_transfer_study_writes_both_numbers_side_by_side(library, tmp_path, capsys):
    arguments = ["library", "transfer", "--library", str(library.path), "--target", "model_pnictides/formation_energy"]
    arguments += ["--rows", "20", "--draws", "2", "--permutations", "1", "--max-held-out", "50", "--ensemble", "3"]
    arguments += ["--num-trees", "5"]
    assert main([*arguments, "--sources", "method = mlp", "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert "best source by CV (the paper)" in printed
    assert "judged by nested CV" in printed
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["paper.cv_mae"] < summary["median.cv_mae"]
    assert summary["oracle.held_out_mae"] <= summary["paper.held_out_mae"]
    # Sources of the target's own quantity are not used unless asked for; each source and its relation is told.
    assert "left out: the target's own quantity" in printed
    assert len(json.loads((tmp_path / "run" / "relations.json").read_text())) == 6
    assert summary["stack.held_out_mae"] > 0
    assert summary["sources"] == 2 * 2 * 4
    assert (tmp_path / "run" / "figures" / "sources.png").stat().st_size > 10_000
    found = shown(tmp_path / "run" / "tensorboard")
    assert {"model/paper/held_out_mae", "result/oracle.held_out_mae"} <= found.scalars
    assert found.pictures == {"picture/parity", "picture/sources"}
    assert found.hyperparameters["pipeline"] == "library-transfer"


def test_a_federated_model_enters_the_library_with_its_record_and_predicts_the_same(tmp_path, capsys):
    run, library, table = tmp_path / "run", str(tmp_path / "library"), tmp_path / "new.csv"
    table.write_text("formula\nNaCl\nBaTiO3\nnonsense\n")
    options = ["--cohort", "local", "--features", "guo65", "--rows", "400", "--silos", "120,150", "--epochs", "4"]
    assert main(["formation-energy", *options, "--baselines", "false", "--out", str(run)]) == 0
    assert main(["library", "add", "--library", library, str(run)]) == 0
    assert (
        main(["library", "add", "--library", library, str(run / "models" / "federated.safetensors")]) == 0
    )  # the same
    ours = Library.open(library)
    (row,) = ours.query("", ["id", "n_train", "n_test"]).itertuples(index=False)
    summary = json.loads((run / "summary.json").read_text())
    assert (row.n_train, row.n_test) == (summary["federated.num_examples"], summary["test.num_examples"])
    card = ours.load(row.id)[1]
    assert card.federation["silos"] == ["silo-1", "silo-2"]
    assert card.federation["rounds"] == summary["rounds"]
    there, here = tmp_path / "library.csv", tmp_path / "run.csv"
    assert main(["library", "predict", "--library", library, row.id, str(table), "--out", str(table)]) == 2
    assert table.read_text() == "formula\nNaCl\nBaTiO3\nnonsense\n"
    assert main(["library", "predict", "--library", library, row.id, str(table), "--out", str(there)]) == 0
    assert main(["predict", str(run), str(table), "--out", str(here)]) == 0
    column = "predicted_formation_energy_per_atom"
    found, expected = (pd.read_csv(path)[column].to_numpy() for path in (there, here))
    np.testing.assert_allclose(found, expected, rtol=1e-6)  # NumPy here, torch there: the last bit of a float32
    assert np.isfinite(found).tolist() == [True, True, False]
    capsys.readouterr()


def test_a_build_that_is_interrupted_says_what_is_kept_and_how_it_goes_on(tmp_path, monkeypatch, capsys):
    def interrupted(_jobs, _tables, _address):
        raise KeyboardInterrupt

    arguments = ["library", "build", "--library", str(tmp_path / "library"), "--networks", "1"]
    monkeypatch.setattr(build_module, "_results", interrupted)
    assert main(arguments) == 130
    assert "library; the same command goes on from there" in capsys.readouterr().err
