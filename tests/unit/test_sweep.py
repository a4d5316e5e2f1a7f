from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.cli import main
from pipelines.formation_energy.config import FormationEnergyConfig
from pipelines.sweep.config import SweepConfig
from pipelines.sweep.outcomes import (
    PointSummary,
    TrialOutcome,
    pareto_front,
    recommendation,
    summaries,
    table,
)
from pipelines.sweep.points import FREQUENCIES, configured, swept_fields, trials_of
from pipelines.sweep.watcher import Watcher, read_outcomes
from ray_fed.errors import ConfigError
from ray_fed.reporting import sweep_figures

BASE = FormationEnergyConfig()


def trials(base=BASE, **sweep):
    return trials_of(SweepConfig(**sweep), base)


def test_a_grid_is_combined_and_repeats_come_round_by_round():
    found = trials(replace(BASE, repeats=2), grid=("communication_frequency=0.5:batch", "learning_rate=0.01:0.1"))
    assert [trial.number for trial in found] == list(range(1, 9))
    assert [trial.seed for trial in found] == [0] * 4 + [1] * 4
    assert found[0].label() == "communication_frequency=0.5, learning_rate=0.01"
    assert configured(BASE, found[2]).communication_frequency == "batch"
    assert swept_fields(found) == ["communication_frequency", "learning_rate"]


def test_the_preset_is_figure_5_with_fewer_repeats_of_the_long_runs():
    found = trials(replace(BASE, repeats=10), preset="fig5", batch_repeats=3)
    values = [dict(trial.point)["communication_frequency"] for trial in found]
    assert {value: values.count(value) for value in (*FREQUENCIES, "batch")} == dict.fromkeys(FREQUENCIES, 10) | {
        "batch": 3
    }


def test_draws_lie_in_their_range_and_depend_on_the_seed_alone():
    options = {"sample": ("learning_rate=log:1e-4:1e-2", "proximal_mu=uniform:0:1"), "samples": 20}
    found = trials(**options)
    rates = [dict(trial.point)["learning_rate"] for trial in found]
    assert len(set(rates)) == 20
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)
    assert sum(rate < 1e-3 for rate in rates) in range(5, 16)
    assert found == trials(**options)
    assert found != trials(replace(BASE, seed=1), **options)


WRONG = {
    "nothing": ({}, "nothing to sweep"),
    "unknown field": ({"grid": ("learning_rte=1",)}, "did you mean 'learning_rate'"),
    "a field of the data": ({"grid": ("silos=1:2",)}, "silos cannot be swept"),
    "a field of the run": ({"grid": ("seed=1:2",)}, "unknown field 'seed'"),
    "no values": ({"grid": ("learning_rate=",)}, "has no values"),
    "not a number": ({"grid": ("learning_rate=fast",)}, "learning_rate='fast' must be a number"),
    "out of range": ({"grid": ("communication_frequency=7",)}, r"communication_frequency=7.0 must lie in \(0, 1\]"),
    "no range": ({"sample": ("learning_rate=1:2",)}, "must be FIELD=log:LOW:HIGH"),
    "reversed range": ({"sample": ("learning_rate=log:1:0.1",)}, "LOW must be below HIGH"),
    "no real number": ({"sample": ("optimizer=uniform:0:1",)}, "takes no real number"),
    "no trial at a time": ({"preset": "fig5", "concurrent": 0}, "concurrent=0 must be positive"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_sweep_that_makes_no_sense_is_refused_with_the_value_and_the_remedy(what):
    options, said = WRONG[what]
    with pytest.raises(ConfigError, match=said):
        trials(**options)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--grid", "features=guo73:rich"], "features cannot be swept"),
        (["--preset", "fig5", "--scheduler", "ash"], "scheduler='ash' must be 'fifo'"),
        (["--preset", "fig5", "--cohort", "local"], "leave --cohort ray"),
        (["--resume", "nowhere"], "is not a run directory"),
    ],
)
def test_bad_options_are_one_line_and_leave_nothing(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_FED_FORK", "off")
    try:
        code = main(["sweep", "formation-energy", *arguments])
    except SystemExit as stop:
        code = stop.code
    err = capsys.readouterr().err
    assert code == 2
    assert said in err
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


# outcomes -----------------------------------------------------------------------------------------------------------


def outcome(number, label, r2, megabytes=1.0, status="completed", seed=0):
    return TrialOutcome(number, label, seed, status, r2=r2, mae=0.2, bytes_sent=int(1e6 * megabytes), round=4)


def test_only_runs_that_came_to_their_end_count():
    points = summaries(
        [
            outcome(1, "a", 0.8),
            outcome(2, "a", 0.9, seed=1),
            outcome(3, "b", 0.99, status="stopped"),
            TrialOutcome(4, "b", 1, "failed", "no power"),
        ]
    )
    assert [point.label for point in points] == ["a", "b"]
    assert points[0].mean_r2 == pytest.approx(0.85)
    assert points[0].std_r2 == pytest.approx(0.0707, abs=1e-4)
    assert (points[1].r2, points[1].num_failed) == ((), 1)
    assert table(points)[2][:3] == ["b", "0 (1 failed)", "-"]


def point(label, r2, megabytes):
    spent = {
        "bytes_sent": 1e6 * megabytes,
        "seconds_communicate": 0.1,
        "seconds_compute": 1.0,
        "local_steps": 9,
        "round": 3,
    }
    return PointSummary(label, tuple(r2), tuple(0.1 for _ in r2), spent, 0)


def test_the_recommendation_is_the_cheapest_within_the_error_of_the_best():
    cheap, good, best = point("cheap", [0.5, 0.6], 1), point("good", [0.9, 0.92], 10), point("best", [0.9, 0.93], 100)
    said = recommendation([cheap, good, best])
    assert said.startswith("take good: R2 0.9100")
    assert "10 times the bytes" in said
    assert recommendation([cheap, best]).startswith("take best")
    assert "nothing can be recommended" in recommendation([point("a", [], 1)])


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=12))
def test_nothing_beats_a_point_of_the_front_in_both_and_something_beats_each_other_one(places):
    points = [point(f"p{i}", [r2 / 50], mb) for i, (mb, r2) in enumerate(places)]
    front = pareto_front(points)

    def beats(a, b):
        fewer, better = a.spent["bytes_sent"] <= b.spent["bytes_sent"], a.mean_r2 >= b.mean_r2
        return fewer and better and (a.spent["bytes_sent"], a.mean_r2) != (b.spent["bytes_sent"], b.mean_r2)

    for each in points:
        beaten = any(beats(other, each) for other in points)
        twin = any(o.label in front and (o.spent, o.r2) == (each.spent, each.r2) for o in points)
        assert (each.label in front or twin) == (not beaten)


def test_outcomes_are_written_and_read_again_and_a_line_that_was_cut_is_left_out(tmp_path, capsys):
    found = trials(grid=("learning_rate=0.01:0.1",))
    results = tmp_path / "results.jsonl"
    watcher = Watcher(found, lambda _: 100, results, tmp_path / "tensorboard")
    report = {"epochs": 100, "round": 25, "r2": 0.9, "mae": 0.1, "loss": 0.2, "bytes_sent": 5, "digest": "ab"}
    watcher.reports(1, report)
    watcher.ends(1, "")
    watcher.ends(2, "silo 'a' died")
    watcher.close()
    with results.open("ab") as file:
        file.write(b'{"number": 3, "lab')
    first, second = read_outcomes(results)
    assert (first.status, first.r2, first.digest) == ("completed", 0.9, "ab")
    assert (second.status, second.reason) == ("failed", "silo 'a' died")
    said = capsys.readouterr().err
    assert "trial 1/2  learning_rate=0.01, seed 0: R2 0.9000  best 0.9000" in said
    assert "trial 2/2  learning_rate=0.1, seed 0: failed at epoch 0, silo 'a' died" in said


def test_tensorboard_knows_what_is_varied_and_each_trials_values(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    found = trials(grid=("learning_rate=0.01:0.1", "communication_frequency=0.5:batch"))
    watcher = Watcher(found, lambda _: 100, tmp_path / "results.jsonl", tmp_path / "tensorboard")
    watcher.reports(1, {"epochs": 100, "round": 25, "r2": 0.9, "mae": 0.1, "loss": 0.2})
    watcher.ends(1, "")
    watcher.close()

    def hparams(folder):
        events = EventAccumulator(str(folder)).Reload()
        content = events.summary_metadata
        return {tag: plugin_data_pb2.HParamsPluginData.FromString(m.plugin_data.content) for tag, m in content.items()
                if m.plugin_data.plugin_name == "hparams"}, events  # fmt: skip

    experiment, _ = hparams(tmp_path / "tensorboard")
    names = {info.name for info in experiment["_hparams_/experiment"].experiment.hparam_infos}
    assert names == {"learning_rate", "communication_frequency", "seed"}
    session, events = hparams(tmp_path / "tensorboard" / "trial-1")
    values = session["_hparams_/session_start_info"].session_start_info.hparams
    assert values["learning_rate"].number_value == 0.01
    assert events.Scalars("sweep/r2")[0].value == pytest.approx(0.9)


def test_the_figures_show_every_point():
    boxes = sweep_figures.boxes_figure({"0.1": [0.8, 0.9], "batch": [0.7]}, "frequency")
    assert [t.get_text() for t in boxes.axes[0].get_xticklabels()] == ["0.1\n2 runs", "batch\n1 runs"]
    times = sweep_figures.times_figure({"a": 9.0, "b": 1.0}, {"a": 1.0, "b": 3.0}, "frequency")
    assert {"90 %", "25 %"} <= {text.get_text() for text in times.axes[0].texts}
    heat = sweep_figures.heat_figure(["r"], ["c", "d"], np.array([[0.5, np.nan]]), ("x", "y", "v"))
    assert [text.get_text() for text in heat.axes[0].texts] == ["0.500"]
    pareto = sweep_figures.pareto_figure(["a", "b"], [1.0, 10.0], [0.8, 0.9], [0.01, 0.0], ["a", "b"])
    assert pareto.axes[0].get_xscale() == "log"
