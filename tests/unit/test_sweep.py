import io
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.cli import main
from pipelines.sweep import figures as sweep_figures
from pipelines.sweep import results_file
from pipelines.sweep.advice import recommendation
from pipelines.sweep.config import SweepConfig
from pipelines.sweep.outcomes import PointSummary, TrialOutcome, objective_of, pareto_front, summaries, table
from pipelines.sweep.points import FREQUENCIES, configured, joined, swept_fields, trials_of
from pipelines.sweep.privacy import privacy_of, read_privacy, write_privacy
from pipelines.sweep.progress import SweepProgress
from pipelines.sweep.watcher import Watcher
from pipelines.training.config import FormationEnergyConfig
from ray_fed.errors import ConfigError
from ray_fed.federation.rounds.job import Job
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.metrics import regression_metrics
from ray_fed.privacy.accounting import PrivacyAccount, composed_epsilon

BASE = FormationEnergyConfig()
MAE, R2, MSE = regression_metrics("eV/atom")


def trials(base=BASE, **sweep):
    return trials_of(SweepConfig(**sweep), base)


def test_a_grid_is_combined_and_repeats_come_round_by_round():
    found = trials(replace(BASE, repeats=2), grid=("communication_frequency=0.5:batch", "learning_rate=0.01:0.1"))
    assert [trial.number for trial in found] == list(range(1, 9))
    assert [trial.seed for trial in found] == [0] * 4 + [1] * 4
    assert found[0].label() == "communication_frequency=0.5, learning_rate=0.01"
    assert configured(BASE, found[2]).communication_frequency == "batch"
    assert swept_fields(found) == ["communication_frequency", "learning_rate"]


def test_values_follow_their_field_with_commas_or_with_colons_and_options_may_be_repeated():
    assert joined(["a=1", "2", "b=3:4", "c=5"]) == ["a=1:2", "b=3:4", "c=5"]
    commas = trials(grid=("communication_frequency=0.5", "batch", "learning_rate=0.01"))
    assert commas == trials(grid=("communication_frequency=0.5:batch", "learning_rate=0.01"))


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
    "a field of the run": ({"grid": ("seed=1:2",)}, "seeds are varied with --repeats N"),
    "one for all trials": ({"grid": ("num_gpus=0:1",)}, "give it as --num-gpus"),
    "a field twice": ({"grid": ("learning_rate=0.1",), "sample": ("learning_rate=log:1:2",)}, "more than once"),
    "values of no field": ({"grid": ("0.1", "learning_rate=0.1")}, "unknown field '0.1'"),
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
        (["--resume", "nowhere", "--rows", "9"], "leave out --rows"),
        (["--preset", "fig5", "--baselines", "yes"], "baselines=True: trials train no baselines"),
        (["--grid", "min_fit_clients=1,9"], "min_fit_clients=9 is more than the 4 silos"),
        (
            ["--grid", "learning_rate=0.1", "--grid", "comunication_frequency=1"],
            "did you mean 'communication_frequency'",
        ),
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
    return TrialOutcome(
        number, label, seed, status, metrics={"r2": r2, "mae": 0.2}, bytes_sent=int(1e6 * megabytes), round=4
    )


def noised(name, noise, level="example", delta=1e-5):
    account = PrivacyAccount(level, noise, 0.25 if level == "example" else 1.0, delta) if noise else None
    plan = TrainingPlan(0, epochs=5, steps_per_epoch=4, num_rounds=10)
    return Job(name, ("a",), {"a": plan}, 0, account=account)


def test_noise_of_all_trials_is_counted_together_and_trials_without_are_named(tmp_path):
    one, two = noised("1", 1.0), noised("2", 2.0, delta=1e-6)
    assert privacy_of([noised("3", None)]) == []
    (both,) = found = privacy_of([one, two, one, noised("3", None)])
    assert both.epsilon == composed_epsilon({(1.0, 0.25): 40, (2.0, 0.25): 20}, 1e-6)
    assert (both.delta, both.trials, both.trials_without) == (1e-6, 3, 1)
    assert "1 trials have no noise, and no epsilon bounds what they tell" in both.words
    assert [each.level for each in privacy_of([one, noised("4", 1.0, "silo")])] == ["example", "silo"]
    write_privacy(tmp_path, found)
    assert read_privacy(tmp_path) == found


def test_only_runs_that_came_to_their_end_count():
    points = summaries(
        [
            outcome(1, "a", 0.8),
            outcome(2, "a", 0.9, seed=1),
            outcome(3, "b", 0.99, status="stopped"),
            TrialOutcome(4, "b", 1, "failed", "no power"),
        ],
        R2,
    )
    assert [point.label for point in points] == ["a", "b"]
    assert points[0].mean == pytest.approx(0.85)
    assert points[0].std == pytest.approx(0.0707, abs=1e-4)
    assert (points[1].reached, points[1].num_failed) == ({}, 1)
    assert table(points, (MAE, R2))[2][:3] == ["b", "0 (1 failed)", "-"]


def point(label, r2, megabytes):
    spent = {
        "bytes_sent": 1e6 * megabytes,
        "seconds_communicate": 0.25,
        "seconds_compute": 1.0,
        "local_steps": 9,
        "round": 3,
    }
    values = {"r2": dict(enumerate(r2)), "mae": dict.fromkeys(range(len(r2)), 0.1)} if r2 else {}
    return PointSummary(label, R2, values, spent, 0)


def test_the_recommendation_is_the_cheapest_within_the_error_of_the_best_seed_by_seed():
    cheap = point("cheap", [0.5, 0.6, 0.5], 1)
    # Lost against the best: 0.02, -0.02, 0.02, with mean 0.0067 and standard error 0.0133.
    good, best = point("good", [0.7, 0.83, 0.9], 10), point("best", [0.72, 0.81, 0.92], 100)
    said = " ".join(recommendation([cheap, good, best]))
    assert said.startswith("Take good (R² 0.8100 ± 0.1015, 10.0 MB, 20.0 % of the time communicating).")
    assert "for 10 times the bytes" in said
    assert recommendation([cheap, best])[0].startswith("Take best")
    # Worse by 0.02 for every seed: no spread to hide in, whatever the spread of the runs themselves.
    always = point("always", [0.7, 0.79, 0.9], 10)
    assert recommendation([always, best])[0].startswith("Take best")
    assert "nothing can be recommended" in recommendation([point("a", [], 1)])[0]


def test_an_objective_of_which_less_is_better_is_turned_round():
    def measured(label, values, megabytes):
        return replace(point(label, values, megabytes), objective=MAE, values={"mae": dict(enumerate(values))})

    cheap, best = measured("cheap", [0.3, 0.4, 0.3], 1), measured("best", [0.1, 0.2, 0.1], 100)
    beaten = measured("beaten", [0.2, 0.3, 0.2], 200)
    assert pareto_front([beaten, best, cheap]) == ["cheap", "best"]
    assert recommendation([cheap, beaten, best])[0].startswith("Take best (MAE 0.1333 ± 0.0577 eV/atom, 100.0 MB")
    assert table([best], (MAE, R2))[0][2:6] == ["MAE", "± std", "R²", "± std"]


def test_trials_are_compared_by_a_metric_that_says_the_same_of_every_target_unless_another_is_named():
    assert objective_of((MAE, R2, MSE)) == R2
    assert objective_of((MAE, R2, MSE), "mae") == MAE
    assert objective_of((MAE,)) == MAE
    with pytest.raises(ConfigError, match="objective='accuracy' must be one of the task's metrics: mae, r2, mse"):
        objective_of((MAE, R2, MSE), "accuracy")


def test_results_of_a_sweep_that_knew_two_metrics_only_are_read(tmp_path):
    line = b'{"number": 1, "label": "a", "seed": 0, "status": "completed", "r2": 0.9, "mae": 0.1, "loss": null}\n'
    (tmp_path / "results.jsonl").write_bytes(line)
    [found] = results_file.read(tmp_path / "results.jsonl")
    assert found.metrics == {"r2": 0.9, "mae": 0.1}
    assert np.isnan(found.train_loss)


def test_a_metric_called_like_a_column_has_a_column_of_its_own():
    columns = results_file.columns([TrialOutcome(1, "a", 0, "completed", metrics={"round": 0.5, "hits": 1.0})])
    assert (columns["round"], columns["metric round"], columns["hits"]) == ([0], [0.5], [1.0])


def test_what_one_percent_of_r2_saves_is_said_and_so_is_that_few_repeats_say_little():
    almost, best = point("almost", [0.892] * 3, 2), point("best", [0.9] * 3, 100)
    assert "almost (R² 0.8920 ± 0.0000, 2.0 MB" in " ".join(recommendation([almost, best])[1:])
    far = point("far", [0.890] * 3, 2)
    assert "far" not in " ".join(recommendation([far, best]))
    assert "fewer than three repeats" in " ".join(recommendation([point("one", [0.9], 1)]))
    assert "fewer than three repeats" not in " ".join(recommendation([best]))


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=12))
def test_nothing_beats_a_point_of_the_front_in_both_and_something_beats_each_other_one(places):
    points = [point(f"p{i}", [r2 / 50], mb) for i, (mb, r2) in enumerate(places)]
    front = pareto_front(points)

    def beats(a, b):
        fewer, better = a.spent["bytes_sent"] <= b.spent["bytes_sent"], a.mean >= b.mean
        return fewer and better and (a.spent["bytes_sent"], a.mean) != (b.spent["bytes_sent"], b.mean)

    for each in points:
        beaten = any(beats(other, each) for other in points)
        twin = any(o.label in front and (o.spent, o.values) == (each.spent, each.values) for o in points)
        assert (each.label in front or twin) == (not beaten)


REPORT = {
    "epochs": 100, "round": 25, "metrics": {"r2": 0.9, "mae": 0.1}, "train_loss": 0.2, "bytes_sent": 5,
    "local_steps": 400, "digest": "ab", "seconds_compute": 2.0, "seconds_communicate": 0.5,
    "silos": {"mit": {"train_loss": 0.3, "seconds_compute": 1.5}},
}  # fmt: skip


def watched(tmp_path, found, stream=None, clock=lambda: 0.0):
    """Let a watcher see the first trial finish and the second one fail."""
    results = tmp_path / "results.jsonl"
    progress = SweepProgress(found, R2, stream=stream or io.StringIO(), clock=clock)
    watcher = Watcher(
        found, lambda _: 100, results, tmp_path / "tensorboard", progress, silos=["mit"], metrics=(MAE, R2)
    )
    watcher.on_trial_start(1)
    watcher.on_trial_report(1, REPORT)
    watcher.on_trial_end(1, "")
    watcher.on_trial_start(2)
    watcher.on_trial_end(2, "silo 'a' died")
    watcher.close()
    return results


def test_outcomes_are_written_and_read_again_and_a_line_that_was_cut_is_left_out_and_cut_off(tmp_path):
    results = watched(tmp_path, trials(grid=("learning_rate=0.01:0.1",)))
    whole = results.read_bytes()
    results.write_bytes(whole + b'{"number": 3, "lab')
    first, second = results_file.read(results)
    assert (first.status, first.value(R2), first.digest) == ("completed", 0.9, "ab")
    assert (second.status, second.reason) == ("failed", "silo 'a' died")
    results_file.mend(results)
    assert results.read_bytes() == whole


def test_the_last_line_of_a_trial_counts(tmp_path):
    path = tmp_path / "results.jsonl"
    for each in (TrialOutcome(1, "a", 0, "failed", "no power"), outcome(2, "b", 0.5), outcome(1, "a", 0.8)):
        results_file.append(path, each)
    assert {o.number: o.status for o in results_file.read(path)} == {1: "completed", 2: "completed"}
    assert results_file.columns(results_file.read(path))["number"] == [1, 2]


class Screen(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_one_line_per_trial_in_a_log_and_a_line_redrawn_on_a_terminal(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    log, screen = io.StringIO(), Screen()
    found = trials(grid=("learning_rate=0.01:0.1:1",))
    watched(tmp_path / "log", found, log, iter([0.0, 4.0, 4.0, 5.0, 6.0, 6.0]).__next__)
    best = "best R² 0.9000 (learning_rate=0.01, seed 0)"
    assert log.getvalue().splitlines() == [
        f"trial 1/3  learning_rate=0.01, seed 0: R² 0.9000  4.0 s  |  {best}, 8 s left",
        f"trial 2/3  learning_rate=0.1, seed 0: failed: silo 'a' died  1.0 s  |  {best}, 4 s left",
    ]
    watched(tmp_path / "screen", found, screen)
    drawn = screen.getvalue().split("\r\x1b[K")
    assert "0/3 trials  learning_rate=0.01 seed 0 epoch 100 R² 0.9000" in drawn
    assert all(len(line) < 60 for line in drawn if not line.endswith("\n"))


def test_time_left_knows_that_some_points_take_longer_and_that_trials_run_side_by_side():
    found = trials(replace(BASE, repeats=2), grid=("communication_frequency=1:batch",))
    now = [0.0]
    progress = SweepProgress(found, R2, concurrent=2, stream=io.StringIO(), clock=lambda: now[0])
    assert progress.seconds_left() is None
    for trial, seconds in zip(found[:2], (2.0, 50.0), strict=True):
        progress.on_trial_start(trial)
        now[0] += seconds
        progress.on_trial_end(trial, outcome(trial.number, trial.label(), 0.9))
    assert progress.seconds_left() == (2 + 50) / 2


def test_tensorboard_knows_each_trials_values_and_groups_the_silos(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.custom_scalar import layout_pb2
    from tensorboard.plugins.hparams import plugin_data_pb2

    watched(tmp_path, trials(grid=("learning_rate=0.01:0.1", "communication_frequency=0.5:batch")))

    def hparams(folder):
        events = EventAccumulator(str(folder)).Reload()
        content = events.summary_metadata
        return {tag: plugin_data_pb2.HParamsPluginData.FromString(m.plugin_data.content) for tag, m in content.items()
                if m.plugin_data.plugin_name == "hparams"}, events  # fmt: skip

    nothing, root = hparams(tmp_path / "tensorboard")
    assert nothing == {}  # what a sweep varies would be taken for what all runs below a folder have
    session, events = hparams(tmp_path / "tensorboard" / "trial-1")
    values = session["_hparams_/session_start_info"].session_start_info.hparams
    assert set(values) == {"pipeline", "learning_rate", "communication_frequency", "seed"}
    assert values["learning_rate"].number_value == 0.01
    scalars = set(events.Tags()["scalars"])
    assert events.Scalars("result/r2")[0].value == pytest.approx(0.9)
    layout = layout_pb2.Layout.FromString(root.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    titles = [category.title for category in layout.category]
    assert titles == ["Federation", "Silos"]
    drawn = {tag.strip("^$") for category in layout.category for chart in category.chart for tag in chart.multiline.tag}
    assert drawn <= scalars
    assert "silo/mit/train_loss" in drawn
    assert events.Scalars("silo/mit/train_loss")[0].step == 400  # curves of all trials meet at equal local steps


def test_the_curves_of_a_try_that_was_broken_off_are_replaced(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = trials(grid=("learning_rate=0.01:0.1",))
    watched(tmp_path, found)
    watched(tmp_path, found)
    assert len(EventAccumulator(str(tmp_path / "tensorboard" / "trial-1")).Reload().Scalars("global/r2")) == 1


def test_the_figures_show_every_point():
    boxes = sweep_figures.boxes_figure({"0.1": [0.8, 0.9], "batch": [0.7]}, R2, "frequency")
    assert [t.get_text() for t in boxes.axes[0].get_xticklabels()] == ["0.1\n2 runs", "batch\n1 run"]
    times = sweep_figures.times_figure({"a": 9.0, "b": 1.0}, {"a": 1.0, "b": 3.0}, "frequency")
    assert {"90 %", "25 %"} <= {text.get_text() for text in times.axes[0].texts}
    heat = sweep_figures.heat_figure(["r"], ["c", "d"], np.array([[0.5, np.nan]]), ("x", "y", "v"))
    assert [text.get_text() for text in heat.axes[0].texts] == ["0.500"]
    pareto = sweep_figures.pareto_figure(["a", "b"], [1.0, 10.0], [0.8, 0.9], [0.01, 0.0], R2, ["a", "b"])
    assert pareto.axes[0].get_xscale() == "log"
