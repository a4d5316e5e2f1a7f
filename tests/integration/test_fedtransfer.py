"""FedTransfer on silo actors: who holds the generators, what passes through whom, and what a broken-off run does."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from ray.exceptions import RayActorError

from actors.federation import silo_actors
from pipelines.cli import main
from pipelines.fedtransfer.config import FedTransferConfig, resolved
from pipelines.fedtransfer.setup import job_of, specs_of, task_of
from ray_fed.errors import DataError
from ray_fed.federation.messages import Artifact
from ray_fed.style_transfer.exchange import LocalStyleFederation
from ray_fed.style_transfer.methods import METHODS
from tests.events import shown

TINY = {
    "size": 32, "images": 30, "test_images": 6, "spacing": 12.0, "style_epochs": 1, "style_width": 4, "rounds": 2,
    "local_steps": 2, "widths": (8, 16), "batch_size": 4, "repeats": 1, "trial_steps": 2,
}  # fmt: skip


def configuration(**changes) -> FedTransferConfig:
    return resolved({**TINY, "methods": ("fed_avg", "transfer_int8"), **changes})


def flags(**changes) -> list[str]:
    options = {**TINY, **changes}
    return [f"--{name.replace('_', '-')}={_text(value)}" for name, value in options.items()]


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


@pytest.fixture(scope="module")
def standing(ray_session, tmp_path_factory):  # noqa: ARG001
    """Two silo actors whose generators are trained."""
    config = configuration()
    folder = tmp_path_factory.mktemp("silos")
    with silo_actors(specs_of(config, 0, folder), task_of(config, 0)) as silos:
        silos.open()
        silos.query(["austenite", "iron"], "learn_style")
        yield silos


def test_a_generator_goes_from_silo_to_silo_and_the_driver_never_holds_it(standing, monkeypatch):
    fetched = []
    real_get = ray.get

    def watched(refs, **options):
        found = real_get(refs, **options)
        fetched.extend(found if isinstance(found, list) else [found])
        return found

    monkeypatch.setattr(ray, "get", watched)
    sent = standing.exchange(["austenite", "iron"], "style", "take_style", "int8")
    artifacts = [value for value in fetched if isinstance(value, Artifact)]
    assert artifacts
    assert all(len(artifact.data) == 0 for artifact in artifacts)
    assert set(sent) == {("austenite", "iron"), ("iron", "austenite")}
    assert all(size > 1000 for size in sent.values())


def test_silos_on_ray_learn_the_same_generators_as_silos_in_this_process(standing, tmp_path):
    config = configuration()
    local = LocalStyleFederation(specs_of(config, 0, tmp_path), task_of(config, 0))
    here = local.query(["iron"], "learn_style")["iron"].facts
    there = standing.query(["iron"], "learn_style")["iron"].facts
    assert here == there
    ours = local.query(["iron"], "style", "fp32")["iron"].data
    theirs = standing.query(["iron"], "style", "fp32")["iron"].data
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("methods", "options"),
    [
        ("fed_avg", ["--secure-aggregation=yes"]),
        ("fed_avg", ["--strategy=fed_adam", "--strategy-options=eta=0.01", "--compression=int8"]),
    ],
)
def test_options_of_updates_come_out_on_ray_as_here(methods, options, ray_session, tmp_path, capsys):  # noqa: ARG001
    for cohort in ("ray", "local"):
        command = ["fedtransfer", *flags(), f"--methods={methods}", f"--cohort={cohort}", *options]
        assert main([*command, f"--out={tmp_path / cohort}"]) == 0
    capsys.readouterr()
    runs = [(tmp_path / cohort / "history.jsonl").read_text().splitlines() for cohort in ("ray", "local")]
    assert [json.loads(line) for line in runs[0]] == [json.loads(line) for line in runs[1]]


def test_a_corrupt_generator_is_refused_by_the_receiver_with_the_senders_name(standing):
    message = standing.query(["iron"], "style", "int8")["iron"]
    damaged = message.data.copy()
    damaged[-1] ^= 1
    with pytest.raises(DataError, match="what another silo sent cannot be used"):
        standing.query(["austenite"], "take_style", "int8", replace(message, data=damaged))


def test_a_generator_that_is_too_large_for_the_receiver_is_refused(tmp_path):
    config = configuration()
    task = replace(task_of(config, 0), artifact_limit=100)
    local = LocalStyleFederation(specs_of(config, 0, tmp_path), task)
    local.query(["austenite", "iron"], "learn_style")
    with pytest.raises(DataError, match="artifact_limit"):
        local.exchange(["austenite", "iron"], "style", "take_style", "int8")


def test_a_silo_that_died_between_two_methods_starts_again_with_the_styles_it_received(standing):
    config, method = configuration(), METHODS["transfer_int8"]
    standing.exchange(["austenite", "iron"], "style", "take_style", "int8")

    def trained():
        with standing.coordinator(standing.task.of(method), every_state=True) as coordinator:
            coordinator.agree()
            return list(coordinator.run(job_of(config, method, 0, 0)))

    before = trained()
    ray.kill(standing.handles["iron"])
    while is_alive(standing.handles["iron"]):  # a kill takes its time
        pass
    after = trained()
    assert [record.server_round for record in before] == [0, 1, 2]
    assert before == after
    for ours, theirs in zip(before, after, strict=True):
        assert ours.state is not None
        assert theirs.state is not None
        assert {key: value.tobytes() for key, value in ours.state.items()} == {
            key: value.tobytes() for key, value in theirs.state.items()
        }


def is_alive(actor):
    try:
        return ray.get(actor.__ray_ready__.remote())
    except RayActorError:
        return False


def test_a_silo_refuses_a_question_it_does_not_know(standing):
    with pytest.raises(Exception, match=r"silo 'iron'.*answering 'images'"):
        standing.query(["iron"], "images")


def test_the_command_compares_all_kinds_of_methods_on_ray_and_here_alike(ray_session, tmp_path, capsys):  # noqa: ARG001
    methods = "separate,central,fed_avg_gn,amplitude,transfer_bn,oracle"
    for cohort in ("ray", "local"):
        out = str(tmp_path / cohort)
        command = ["fedtransfer", *flags(test_images=5), f"--methods={methods}", f"--cohort={cohort}"]
        assert main([*command, f"--out={out}"]) == 0
    printed = capsys.readouterr().out
    assert "FedTransfer + FedBN" in printed
    assert "each silo alone: iron" in printed
    runs = [(tmp_path / cohort / "history.jsonl").read_text().splitlines() for cohort in ("ray", "local")]
    assert [json.loads(line) for line in runs[0]] == [json.loads(line) for line in runs[1]]
    report = (tmp_path / "ray" / "report.html").read_text()
    assert all(part in report for part in ("Table 2", "Table 3", ">no sign</td>", "Limits"))
    found = shown(tmp_path / "ray" / "tensorboard")
    methods = {"model/fed_avg_gn-fold0-seed0/train_loss", "model/separate-fold0-seed0 iron/map/iron"}
    assert {*methods, "silo/iron/style/l1/fold0", "result/transfer_bn.global.map"} <= found.scalars
    assert "picture/iron-styles" in found.pictures
    assert found.hyperparameters["pipeline"] == "fedtransfer"
    summary = json.loads((tmp_path / "ray" / "summary.json").read_text())
    assert 0 <= summary["transfer_bn.global.map"] <= 1
    assert summary["separate.iron.austenite.vi"] >= 0


def test_every_method_takes_the_same_number_of_local_steps():
    config = configuration(methods=("fed_avg",))
    for method in METHODS.values():
        job = job_of(config, method, 0, 0)
        steps = sum(plan.total_steps for plan in job.plans.values())
        assert steps == 2 * config.rounds * config.local_steps


def test_a_broken_off_run_goes_on_and_ends_as_if_it_had_not_been(tmp_path, monkeypatch, capsys):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    command = ["fedtransfer", *flags(), "--methods=fed_avg,transfer_int8,fed_bn", "--cohort=local"]
    assert main([*command, f"--out={whole}"]) == 0
    from pipelines.fedtransfer.experiment import FedTransferExperiment

    train = FedTransferExperiment.train

    def stops(self, method, seed):
        if method.name == "transfer_int8":
            raise KeyboardInterrupt
        train(self, method, seed)

    with monkeypatch.context() as patch:
        patch.setattr(FedTransferExperiment, "train", stops)
        assert main([*command, f"--out={broken}"]) == 130
    assert main([*command, f"--out={broken}"]) == 0
    capsys.readouterr()
    ends = [json.loads((folder / "summary.json").read_text()) for folder in (whole, broken)]
    for summary in ends:
        del summary["seconds.total"]
    assert ends[0] == ends[1]
    assert main([*command, f"--out={broken}"]) == 2
    assert "holds a complete run" in capsys.readouterr().err
    assert main([*command, f"--out={broken}", "--rounds=3"]) == 2
    assert "rounds=2, not 3" in capsys.readouterr().err
    assert main([*command[:-2], "--methods=fed_avg,amplitude", "--cohort=local", f"--out={broken}"]) == 0
    extended = json.loads((broken / "summary.json").read_text())
    assert extended["fed_bn.global.map"] == ends[0]["fed_bn.global.map"]
    assert "amplitude.global.map" in extended


def test_choosing_on_the_test_sets_is_said_in_the_report(tmp_path, capsys):
    out = tmp_path / "run"
    command = ["fedtransfer", *flags(), "--methods=fed_avg,separate", "--cohort=local", "--select-on=test"]
    assert main([*command, f"--out={out}"]) == 0
    capsys.readouterr()
    assert "chosen on the test sets" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--data=austenite"], "at least two silos"),
        (["--data=austenite,steel"], "'steel' is neither a folder nor one of austenite, iron"),
        (["--data=austenite,austenite"], "names silo 'austenite' twice"),
        (["--methods=fedavg"], "unknown method 'fedavg'; did you mean 'fed_avg'?"),
        (["--size=36", "--style-width=4"], "multiples of 8"),
        (["--masks=copper=between_classes"], "there are the silos austenite, iron"),
        (["--images=3", "--folds=5", "--cohort=local"], "silo 'austenite' has 3 micrograph(s), too few for 5 folds"),
    ],
)
def test_wrong_options_end_in_one_line_and_leave_no_folder(given, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["fedtransfer", *given]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert len(told.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_the_models_of_a_run_segment_images_and_score_as_the_run_says(tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["fedtransfer", *flags(), "--methods=transfer_int8,separate", "--cohort=local", f"--out={out}"]) == 0
    capsys.readouterr()
    from ray_fed.micrographs.model_file import load_segmenter
    from ray_fed.style_transfer.task import FedTransferTask

    network, card = load_segmenter(out / "models" / "fedtransfer")
    config = configuration()
    test = specs_of(config, 0, tmp_path)[1].source.parts("iron").test  # type: ignore[attr-defined]
    with torch.no_grad():
        logits = network(torch.from_numpy(test.images)).numpy()
    scores = FedTransferTask().score(test.masks, logits).values()
    assert card.metrics["iron"]["loss"] == pytest.approx(scores["loss"], rel=1e-4)
    assert card.trained_on == ("austenite", "iron")
    assert (out / "models" / "separate-iron.safetensors").is_file()


def micrograph_folder(place, sizes=(64,) * 8, mask_size=64):
    """Write images with a cross for a boundary."""
    from PIL import Image

    for name in ("images", "labels"):
        (place / name).mkdir(parents=True)
    for number, size in enumerate(sizes):
        image = np.random.default_rng(number).integers(0, 255, (size, size)).astype(np.uint8)
        mask = np.zeros((mask_size, mask_size), np.uint8)
        mask[mask_size // 2] = mask[:, mask_size // 2] = 255
        Image.fromarray(image).save(place / "images" / f"{number}.png")
        Image.fromarray(mask).save(place / "labels" / f"{number}.png")
    return place


def test_folders_of_micrographs_are_silos_and_their_pictures_stay_at_home(tmp_path, capsys):
    mine = micrograph_folder(tmp_path / "mine")
    command = ["fedtransfer", *flags(), f"--data=lab={mine},iron", "--methods=transfer_int8,oracle", "--cohort=local"]
    assert main([*command, f"--out={tmp_path / 'run'}"]) == 0
    capsys.readouterr()
    assert not list((tmp_path / "run" / "figures").glob("lab-*"))
    assert list((tmp_path / "run" / "silos").rglob("styles.png"))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert "transfer_int8.lab.map" in summary
    assert not any(key.startswith("oracle") for key in summary)  # nobody has the true renderer of real micrographs


def test_silos_of_two_magnifications_learn_at_one_scale_and_the_model_says_it(tmp_path, capsys):
    for name in ("fine", "coarse"):
        micrograph_folder(tmp_path / name)
    (tmp_path / "fine" / "images" / "notes.txt").write_text("mine")
    command = ["fedtransfer", *flags(), "--methods=fed_avg", "--cohort=local", f"--out={tmp_path / 'run'}"]
    data = [f"--data=fine={tmp_path / 'fine'},coarse={tmp_path / 'coarse'}", "--pixel-size-um=fine=0.25"]
    assert main([*command, *data]) == 2
    assert "the pixel size of fine is known, that of coarse is not" in capsys.readouterr().err
    assert main([*command, *data, "--pixel-size-um=coarse=0.5"]) == 0
    assert "silo 'fine': 1 note(s) about its files" in capsys.readouterr().err
    from ray_fed.micrographs.model_file import load_segmenter

    assert load_segmenter(tmp_path / "run" / "models" / "fed_avg")[1].pixel_size_um == 0.5
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    tiles = {name: sum(summary[f"data.{name}.{part}.tiles"] for part in PARTS) for name in ("fine", "coarse")}
    assert tiles == {"fine": 8, "coarse": 32}  # 64 pixels of 0.25 um are one tile of 32, of 0.5 um four
    assert "notes.txt" in next((tmp_path / "run" / "silos").rglob("fine/data.txt")).read_text()
    report = (tmp_path / "run" / "report.html").read_text()
    assert "notes.txt" not in report  # names of files stay with their owner
    assert "1 note(s) about its files" in report


PARTS = ("train", "validation", "test")


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ({"mask_size": 32}, "0.png"),
        ({"sizes": (64,)}, "silo 'lab' has 1 micrograph(s)"),
    ],
)
@pytest.mark.parametrize("cohort", ["local", "ray"])
def test_a_folder_that_cannot_be_used_is_named_and_nothing_is_written(
    folder,
    said,
    cohort,
    tmp_path,
    capsys,
    ray_session,  # noqa: ARG001
):
    mine = micrograph_folder(tmp_path / "mine", **folder)
    command = ["fedtransfer", *flags(), f"--data=lab={mine},iron", "--methods=fed_avg", f"--cohort={cohort}"]
    assert main([*command, f"--out={tmp_path / 'run'}"]) == 2
    told = capsys.readouterr().err
    assert "silo 'lab'" in told
    assert said in told
    assert not (tmp_path / "run").exists()


DATASETS = Path(__file__).resolve().parents[3] / "shared" / "datasets"


def few_of(name, place, count=6):
    """Copy one micrograph of each of the first sources of a shared data set, as a folder of its own."""
    whole = DATASETS / name
    with (whole / "index.csv").open(newline="") as file:
        first = {row["source_image"]: row["name"] for row in csv.DictReader(file)}
    images = next(folder for folder in ("images_gray", "images") if (whole / folder).is_dir())
    for folder in (images, "labels"):
        (place / folder).mkdir(parents=True)
        for stem in sorted(first.values())[:count]:
            shutil.copy(whole / folder / f"{stem}.png", place / folder)
    shutil.copy(whole / "index.csv", place)
    return place


@pytest.mark.skipif(not DATASETS.is_dir(), reason="the shared micrographs are not beside this checkout")
def test_a_steel_and_a_superalloy_exchange_styles(tmp_path, capsys):
    tbm = few_of("micrographs_tbm", tmp_path / "tbm")
    alloy = few_of("micrographs_superalloy", tmp_path / "alloy")
    command = ["fedtransfer", *flags(size=96), f"--data=tbm={tbm},alloy={alloy}", "--masks=alloy=between_classes"]
    out = tmp_path / "run"
    assert main([*command, "--methods=fed_avg,transfer_int8", "--cohort=local", f"--out={out}"]) == 0
    capsys.readouterr()
    summary = json.loads((out / "summary.json").read_text())
    for method in ("fed_avg", "transfer_int8"):
        for silo in ("tbm", "alloy"):
            assert 0 <= summary[f"{method}.{silo}.map"] <= 1
    lines = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    (exchange,) = [line for line in lines if line["stage"] == "exchange int8"]
    assert set(exchange["sent"]) == {"tbm -> alloy", "alloy -> tbm"}
    assert not list((out / "figures").glob("tbm-*"))
    report = (out / "report.html").read_text()
    assert "own data stay in the silos" in report
