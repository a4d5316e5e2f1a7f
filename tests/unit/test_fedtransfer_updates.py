"""Options of the segmentation network's updates in fedtransfer: what fits together, and what a run says of it."""

import json
import shutil

import numpy as np
import pytest

from pipelines.cli import main
from pipelines.fedtransfer.config import FedTransferConfig, resolved
from pipelines.fedtransfer.setup import check_methods, job_of, specs_of, task_of
from ray_fed.errors import ConfigError
from ray_fed.federation.strategies import FedAdam, FedBN
from ray_fed.style_transfer.exchange import LocalStyleFederation
from ray_fed.style_transfer.methods import METHODS, method_named

TINY = {
    "size": 32, "images": 15, "test_images": 2, "spacing": 12.0, "style_epochs": 1, "style_width": 4, "rounds": 2,
    "local_steps": 2, "widths": (8, 16), "batch_size": 4, "repeats": 1, "trial_steps": 2,
}  # fmt: skip


def configuration(**options) -> FedTransferConfig:
    return resolved({**TINY, "methods": ("fed_avg",), **options})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"strategy": "fedadam"}, "unknown strategy 'fedadam'; did you mean 'fed_adam'"),
        ({"strategy": "fed_bn"}, "strategy=fed_bn is a method here: use --methods fed_bn"),
        ({"strategy": "fed_buff"}, "strategy=fed_buff: it never has all silos' losses"),
        ({"strategy": "scaffold", "compression": "int8"}, "control variates must be exact"),
        ({"secure_aggregation": True, "strategy": "median"}, "CoordinateMedian needs each of them"),
        ({"secure_aggregation": True, "compression": "fp16"}, "masked numbers have no shorter form"),
        ({"secure_aggregation": True, "methods": ("separate", "central", "fed_avg")}, "separate, central would send"),
        ({"secure_aggregation": True, "secure_threshold": 3}, "secure_threshold=3 must lie between 2 and 2"),
        ({"secure_threshold": 2}, "secure_threshold needs secure_aggregation"),
        ({"dp_noise_multiplier": -1.0}, "dp_noise_multiplier=-1.0 must be positive"),
        ({"dp_noise_multiplier": 1.0, "repeats": 2}, "repeats=2 would spend epsilon as often"),
        ({"dp_noise_multiplier": 1.0, "num_folds": 2}, "num_folds=2 would spend epsilon as often"),
        ({"dp_noise_multiplier": 1.0, "synthetic_weight": 0.5}, "all tiles are drawn alike; use 1"),
        (
            {"dp_noise_multiplier": 1.0, "methods": ("fed_avg", "transfer_gn")},
            "fed_avg use BatchNorm, which mixes .*; GroupNorm does not: --methods fed_avg_gn,transfer_gn",
        ),
        ({"strategy": "dp_fed_avg", "methods": ("fed_avg", "fed_bn")}, "fed_bn have strategies of their own"),
    ],
)
def test_options_that_do_not_go_together_are_refused_with_the_value_and_the_remedy(options, said):
    with pytest.raises(ConfigError, match=said):
        check_methods(configuration(**options))


def test_a_strategy_serves_the_methods_that_leave_it_open_and_no_code_shortens_what_is_not_averaged():
    config = configuration(strategy="fed_adam", compression="int8")
    jobs = {name: job_of(config, method, 0, 0) for name, method in METHODS.items()}
    adaptive = {name for name, job in jobs.items() if isinstance(job.strategy, FedAdam)}
    assert adaptive == set(METHODS) - {"separate", "central", "fed_bn", "transfer_bn", "transfer_prox"}
    assert isinstance(jobs["transfer_bn"].strategy, FedBN)
    assert {name for name, job in jobs.items() if job.any_plan.compression is None} == {"separate", "central"}
    assert {name for name, job in jobs.items() if job.kind == "baseline"} == {"separate", "central"}


def test_the_account_counts_the_chance_of_a_tile_to_be_in_a_batch():
    config = configuration(methods=("fed_avg_gn",), dp_noise_multiplier=1.0, dp_clip=0.5, dp_delta=1e-3)
    job = job_of(config, method_named("fed_avg_gn"), 0, 0)
    assert job.account is not None
    assert (job.account.sampling_probability, job.account.delta) == (1 / config.local_steps, 1e-3)
    assert job.any_plan.private is not None
    assert job.any_plan.private.clip == 0.5


THREE = ("austenite", "iron", "other=iron")


@pytest.fixture(scope="module")
def silos(tmp_path_factory):
    config = configuration(data=THREE)
    return LocalStyleFederation(specs_of(config, 0, tmp_path_factory.mktemp("silos")), task_of(config, 0))


@pytest.mark.parametrize(
    "strategy",
    ["fed_avg_m", "fed_prox", "fed_adagrad", "fed_yogi", "scaffold", "fed_nova", "median", "trimmed_mean",
     "geometric_median", "centred_clipping", "norm_clipping"],
)  # fmt: skip
def test_every_synchronous_strategy_federates_the_segmentation_network(strategy, silos):
    method, config = METHODS["fed_avg"], configuration(strategy=strategy, data=THREE)
    job = job_of(config, method, 0, 0)
    with silos.coordinator(task_of(config, 0).of(method), every_state=True) as coordinator:
        coordinator.agree()
        records = list(coordinator.run(job))
    start, end = (next(iter(job.strategy.models(records[number].state).values())) for number in (0, -1))
    assert np.isfinite(end).all()
    assert (start != end).any()
    facts = silos.query(["iron"], "test", job.name, {"federated": (2, end)})["iron"].facts
    assert 0 <= facts["federated.map"] <= 1


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


FLAGS = [*(f"--{name.replace('_', '-')}={_text(value)}" for name, value in TINY.items()), "--cohort=local"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return (summary, lines of the methods, report, folder) of a tiny run with these options; equal ones run once."""
    known: dict[tuple[str, ...], tuple] = {}

    def run(*options):
        if options not in known:
            out = tmp_path_factory.mktemp("run") / "run"
            assert main(["fedtransfer", *FLAGS, f"--out={out}", *options]) == 0
            lines = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
            summary, report = json.loads((out / "summary.json").read_text()), (out / "report.html").read_text()
            known[options] = summary, [line for line in lines if "method" in line], report, out
        return known[options]

    return run


PLAIN = "--methods=fed_avg,fed_bn,transfer_int8"


def test_under_masks_every_method_comes_out_bit_for_bit_the_same(finished):
    plain, secure = finished(PLAIN), finished(PLAIN, "--secure-aggregation=yes")
    for ours, theirs in zip(plain[1], secure[1], strict=True):
        assert {**ours, "bytes": 0} == {**theirs, "bytes": 0}
        assert ours["bytes"] < theirs["bytes"]  # keys and shares
    assert "privacy.epsilon" not in plain[0]
    assert "each can take its own update off" in secure[2]
    assert "secure aggregation" not in plain[2]


def test_a_code_shortens_updates_and_the_report_says_so(finished):
    plain, coded = finished(PLAIN), finished("--methods=fed_avg,fed_bn", "--compression=int8")
    for ours, theirs in zip(plain[1], coded[1], strict=False):
        assert theirs["bytes"] < 0.7 * ours["bytes"]
    assert "travelled as int8" in coded[2]


def test_another_strategy_ends_in_another_model(finished):
    plain = finished(PLAIN)
    summary, lines, report, _ = finished(
        "--methods=fed_avg,fed_bn", "--strategy=fed_adam", "--strategy-options=eta=0.1"
    )
    assert lines[0]["losses"] != plain[1][0]["losses"]
    assert lines[1]["losses"] == plain[1][1]["losses"]  # FedBN brings its own
    assert "combined by fed_adam (eta=0.1)" in report
    assert summary["status"] == "completed"


def test_a_private_run_says_what_its_noise_covers_and_what_not(finished):
    summary, lines, report, _ = finished("--methods=fed_avg_gn,transfer_gn", "--dp-noise-multiplier=1", "--dp-clip=0.5")
    assert summary["privacy.level"] == "example"
    assert 0 < summary["privacy.epsilon"] == lines[0]["epsilon"] == lines[1]["epsilon"]
    assert summary["privacy.epsilon"] < summary["privacy.epsilon_all_methods"] < 2 * summary["privacy.epsilon"]
    for left_out in ("synthetic copies in other styles are rows of their own", "style generators", "validation losses"):
        assert left_out in summary["privacy.not_covered"]
        assert left_out in report


def test_noise_on_whole_silos_is_accounted_for_by_its_strategy(finished):
    options = ("--strategy=dp_fed_avg", "--strategy-options=noise_multiplier=2.0")
    summary, lines, *_ = finished("--methods=fed_avg_gn", *options)
    assert summary["privacy.level"] == "silo"
    assert summary["privacy.epsilon"] == summary["privacy.epsilon_all_methods"] == lines[0]["epsilon"] > 0


def test_a_run_of_a_version_without_an_option_had_its_default(finished, tmp_path, capsys):
    out = shutil.copytree(finished(PLAIN)[3], tmp_path / "run")
    config = out / "config.yaml"
    kept = [line for line in config.read_text().splitlines() if not line.startswith(("compression", "secure_", "dp_"))]
    config.write_text("\n".join(kept))
    command = ["fedtransfer", *FLAGS, PLAIN, f"--out={out}"]
    assert main(command) == 2
    assert "holds a complete run" in capsys.readouterr().err
    assert main([*command, "--compression=int8"]) == 2
    assert "holds a run with compression=none, not int8" in capsys.readouterr().err
