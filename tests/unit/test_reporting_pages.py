"""What people read of a run: the results, the report page, the terminal."""

import contextlib
import io
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_fed.errors import DataError
from ray_fed.metrics import Metric, regression_metrics
from ray_fed.reporting.figure_style import save_figure
from ray_fed.reporting.figures import learning_curves_figure
from ray_fed.reporting.report import Code, Figure, Note, Paragraph, Section, Table, write_report
from ray_fed.reporting.results import ResultRow, Results, natural_order, results_from_summary
from ray_fed.reporting.run_directory import RunDirectory
from ray_fed.reporting.terminal import RoundProgress, aligned, clipped, one_line, paths_table, results_table

METRICS = regression_metrics("eV/atom")
LONG = "National Institute for Materials Science, Tsukuba, database of room-temperature superconductors"

# ---- results


def summary_of_a_study() -> dict[str, object]:
    return {
        "federated.mae": 0.17, "federated.r2": 0.95, "federated.mae_std": 0.001, "federated.num_examples": 10_000,
        "pooled.mae": np.float32(0.2), "pooled.r2": math.nan, "silo.b.10.mae": 0.34, "silo.b.2.mae": 0.4,
        "test.num_examples": 2897, "rounds": 25, "bytes_sent": 44_160_800, "seconds.total": 41.26,
        "status": "completed", "repeats": 3,
    }  # fmt: skip


def row(name, mae, r2, mae_std=None, r2_std=None, num_examples=None, kind="") -> ResultRow:
    return ResultRow(name, kind or name, {"mae": mae, "r2": r2}, {"mae": mae_std, "r2": r2_std}, num_examples)


def results(*rows: ResultRow) -> Results:
    return Results(METRICS[:2], rows)


def test_results_are_read_from_flat_keys_in_natural_order_with_federated_last():
    rows = results_from_summary(summary_of_a_study(), METRICS).rows
    assert [(row.kind, row.name) for row in rows] == [
        ("silo", "b.2"), ("silo", "b.10"), ("pooled", "pooled"), ("federated", "federated"),
    ]  # fmt: skip
    assert rows[-1] == row("federated", 0.17, 0.95, 0.001, num_examples=10_000)


def test_the_comparison_names_both_rivals_and_is_silent_without_them():
    found = results_from_summary(summary_of_a_study(), METRICS)
    assert found.comparison() == (
        "Federated MAE is 15.0 % below that of pooled training and 50.0 % below that of the best silo alone (the same "
        "model; no other learner was tried)."
    )
    assert results(*found.rows[:3]).comparison() == ""
    assert results(*found.rows[-1:]).comparison() == ""
    equal = results(row("pooled", 0.2, None), row("federated", 0.2, None))
    assert equal.comparison() == "Federated MAE is equal to that of pooled training."


def test_the_comparison_is_with_the_best_that_a_silo_could_do_alone_whatever_learned():
    summary = summary_of_a_study() | {
        "best.b.2.mae": 0.3, "best.b.2.learner": "gradient_boosting", "best.b.10.mae": 0.34,
        "best.b.10.learner": "network", "best.pooled.mae": 0.16, "best.pooled.learner": "random_forest",
        "best.b.2.cv.network": 0.5,
    }  # fmt: skip
    found = results_from_summary(summary, METRICS)
    assert found.comparison() == (
        "Federated MAE is 6.2 % above that of pooled training (random forest) and 43.3 % below that of the best silo "
        "alone (b.2, gradient boosting)."
    )
    assert [cells[0] for cells in found.table()[1:]] == [
        "b.2 alone", "b.10 alone", "b.2 alone, gradient boosting", "pooled", "pooled, random forest", "federated",
    ]  # fmt: skip
    summary["silo.b.10.mae"] = summary["best.b.10.mae"] = 0.1
    found = results_from_summary(summary, METRICS)
    assert found.comparison().endswith("70.0 % above that of the best silo alone (b.10, network).")


def test_the_best_silo_is_the_one_with_the_highest_value_where_more_is_better():
    summary = {"federated.hits": 0.8, "silo.a.hits": 0.5, "silo.b.hits": 0.4, "federated.num_examples": 3}
    found = results_from_summary(summary, (Metric("hits", "", True, 2, "Hits"), *METRICS))
    assert found.comparison() == (
        "Federated Hits is 60.0 % above that of the best silo alone (the same model; no other learner was tried)."
    )
    assert found.table()[0][:3] == ["model", "training rows", "Hits"]
    assert found.table()[-1][:3] == ["federated", "3", "0.80"]
    below_zero = results_from_summary({"federated.hits": 0.1, "pooled.hits": -0.2}, found.metrics)
    assert below_zero.comparison() == "Federated Hits is 0.10 against -0.20 of pooled training."


@given(st.lists(st.text(alphabet="a01²٣.", max_size=4)))
def test_any_names_can_be_ordered_whatever_order_they_come_in(names):
    backwards = names[::-1]
    assert sorted(backwards, key=natural_order) == sorted(names, key=natural_order)
    assert natural_order("a01") != natural_order("a1")


# ---- report


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.rows: list[list[str]] = []
        self.in_cell = False
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag):
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        self.words.append(data)
        if self.in_cell:
            self.rows[-1][-1] += data.strip()


@pytest.fixture
def run(tmp_path):
    return RunDirectory.create(tmp_path / "run", "formation-energy")


def hostile_report(run: RunDirectory) -> Page:
    evil = '<script>alert("x")</script><img src=x onerror=alert(1)>'
    png = save_figure(learning_curves_figure({evil: ([0, 1], [1.0, 0.5])}, METRICS[0]), run.figures / "curves.png")
    run.write_config({evil: {"nested": [1, 2]}, "plain": evil})
    run.write_data([{"name": evil, "rows": 1000, "sha256": "ab" * 32}, {"name": "b", evil: 1}])
    run.write_environment({evil: "cpu"})
    summary = summary_of_a_study() | {f"silo.{evil}.mae": 0.5, evil: evil}
    blocks = [Paragraph(evil), Note(evil), Code(evil), Table([evil], [[evil]], evil), Figure(png, f'{evil}" onload="x')]
    path = write_report(
        run, evil, summary, [Section(evil, blocks), Section(evil, [], folded=True)], subtitle=evil, command=evil,
        unreadable={evil: {evil: 3}}, warnings=[evil], provenance=evil,
    )  # fmt: skip
    return Page(path.read_text(encoding="utf-8"))


def test_a_silo_named_as_a_script_injects_nothing_anywhere(run):
    page = hostile_report(run)
    assert "script" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert [value[:22] for name, value in page.attributes if name == "src"] == ["data:image/png;base64,"]
    assert sum('<script>alert("x")</script>' in word for word in page.words) >= 15


def test_the_report_loads_nothing_from_outside(run):
    page = hostile_report(run)
    assert not {"link", "iframe", "object", "embed", "base", "script"} & page.tags
    assert not [value for name, value in page.attributes if name in ("href", "srcset", "data", "action")]
    assert not re.search(r"url\(|@import", run.report_path.read_text())
    assert any("default-src 'none'" in (value or "") for name, value in page.attributes if name == "content")


def test_the_report_leads_with_results_and_ends_with_what_is_needed_to_repeat(run):
    run.write_config({"silos": [1000, 2000], "model": {"hidden": [200, 200]}})
    run.write_data([{"sha256": "ab" * 32, "rows": 1000, "name": "mit"}])
    run.write_environment()
    path = write_report(
        run, "Formation energy", summary_of_a_study(), [], command="ray-fed formation-energy --seed 0",
        results=results_from_summary(summary_of_a_study(), METRICS),
        unreadable={"mit": {"unknown element": 1200, "NaN target": 0}}, provenance="model data, not DFT",
    )  # fmt: skip
    page = Page(path.read_text(encoding="utf-8"))
    assert page.rows[0] == ["model", "training rows", "MAE (eV/atom)", "± std", "R²", "± std"]
    assert ["federated", "10,000", "0.1700", "0.0010", "0.9500", "-"] in page.rows
    assert ["pooled", "-", "0.2000", "-", "-", "-"] in page.rows
    assert ["mit", "unknown element", "1,200"] in page.rows
    assert not any("NaN target" in row for row in page.rows)
    assert ["model.hidden", "200, 200"] in page.rows
    assert ["mit", "1000", "ab" * 8 + "…"] in page.rows
    assert ["packages.numpy", np.__version__] in page.rows
    text = "\n".join(page.words)
    for expected in ("common test set of 2,897 rows", "44.2 MB", "41.3 s", "ray-fed formation-energy --seed 0",
                     "1,200 rows could not be used", "model data, not DFT"):  # fmt: skip
        assert expected in text


def test_columns_of_numbers_are_set_to_the_right(run):
    table = Table(["name", "n", "hash"], [["mit", "1,000", "ab1"], ["ucla", "–", "12"]])
    text = write_report(run, "t", {}, [Section("s", [table])]).read_text(encoding="utf-8")
    assert '<td class="short">mit</td><td class="number">1,000</td><td class="short">ab1</td>' in text


def test_a_missing_figure_and_a_figure_that_is_no_png_leave_no_report(run):
    (run.path / "figure.svg").write_text("<svg onload='alert(1)'/>")
    for name, message in [("none.png", "cannot be read"), ("figure.svg", "not a PNG")]:
        with pytest.raises(DataError, match=message):
            write_report(run, "t", {}, [Section("s", [Figure(run.path / name, "c")])])
    assert not run.report_path.exists()


def test_equal_runs_give_equal_reports(run):
    run.write_environment()
    first = write_report(run, "t", summary_of_a_study(), []).read_bytes()
    assert write_report(run, "t", dict(reversed(summary_of_a_study().items())), [], results=None).read_bytes() == first


# ---- terminal


class Terminal(io.StringIO):
    def isatty(self):
        return True


def run_rounds(progress: RoundProgress, total: int = 100) -> None:
    progress.start(total, "federated \x1b[31m[red]")
    for server_round in range(total + 1):
        progress.advance(
            {"server_round": server_round, "train_loss": 0.5, "mae": 0.17, "r2": 0.95, "bytes_sent": 10**6}
        )


def test_progress_in_a_log_file_is_a_plain_line_about_every_tenth(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream, times = io.StringIO(), iter(range(1000))
    with RoundProgress(METRICS, stream=stream, clock=lambda: next(times)) as progress:
        run_rounds(progress)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", stream.getvalue())
    assert lines[-1].startswith("federated [red]: round 100/100  loss 0.5  MAE 0.170 eV/atom  R² 0.950  101.0 MB  ")


def test_the_remaining_time_follows_from_the_elapsed_one():
    stream, times = io.StringIO(), iter([0.0, 30.0])
    progress = RoundProgress(METRICS, stream=stream, clock=lambda: next(times))
    progress.start(4, "x")
    progress.advance({"server_round": 3})
    assert stream.getvalue() == "x: round 3/4  30 s  10 s left\n"


def test_rounds_without_an_evaluation_keep_the_last_figures_and_need_no_number():
    stream = io.StringIO()
    progress = RoundProgress(METRICS, stream=stream, clock=lambda: 0.0)
    progress.start(2, "x")
    progress.advance({"mae": 0.3, "r2": math.nan})
    progress.advance({"mae": None})
    assert [line.split("  ")[1:3] for line in stream.getvalue().splitlines()] == [["MAE 0.300 eV/atom", "R² -"]] * 2


def test_a_single_round_is_told_once():
    stream = io.StringIO()
    with RoundProgress(METRICS, stream=stream) as progress:
        progress.start(1, "x")
        progress.advance({})
    assert len(stream.getvalue().splitlines()) == 1


def test_progress_on_a_terminal_fits_in_80_columns_and_gives_the_cursor_back(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    stream = Terminal()
    with contextlib.suppress(KeyboardInterrupt), RoundProgress(METRICS, stream=stream) as progress:
        run_rounds(progress)
        raise KeyboardInterrupt
    written = stream.getvalue()
    assert written.count("\x1b[?25l") == written.count("\x1b[?25h") == 1
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written).replace("\r", "\n").split("\n")
    [line] = {text for text in last if "100/100" in text}
    assert re.fullmatch(r"federated \[… 100/100 loss 0.5 MAE 0.170 eV/atom R² 0.950 101.0 MB \S+ \S+\s*", line), line


def test_a_wide_terminal_shows_a_bar_and_a_name_with_brackets_as_it_is(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "130")
    stream = Terminal()
    with RoundProgress(METRICS, stream=stream) as progress:
        run_rounds(progress)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert re.search(r"federated \[red\] ━+ 100/100 loss 0\.5 ", plain)


def test_results_printed_while_progress_is_shown_still_go_to_stdout(monkeypatch, capsys):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with RoundProgress(METRICS, stream=stream) as progress:
        progress.start(1, "x")
        results_table(results(result_rows()[-1]))
    assert "0.2000" in capsys.readouterr().out
    assert "0.2000" not in stream.getvalue()


def test_a_dumb_terminal_gets_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with RoundProgress(METRICS, stream=stream) as progress:
        run_rounds(progress)
    assert "\x1b" not in stream.getvalue()
    assert len(stream.getvalue().splitlines()) == 10


def result_rows() -> list[ResultRow]:
    names = ["\x1b[31mevil\nsilo", "材料", LONG]
    silos = [row(name, 0.25, 0.9, 0.01, 0.02, 1000, "silo") for name in names]
    return [*silos, row("pooled", math.nan, None), row("federated", 0.2, 0.95)]


def test_the_results_table_lines_up_whatever_the_names(capsys):
    from rich.cells import cell_len

    results_table(results(*result_rows()))
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert captured.err == ""
    assert "\x1b" not in captured.out
    assert len(lines) == 2 + 5 + 1
    assert {cell_len(line) for line in lines[:7]} == {cell_len(lines[1])}
    assert lines[0].split() == ["model", "training", "rows", "MAE", "(eV/atom)", "±", "std", "R²", "±", "std"]
    assert lines[6].split() == ["federated", "-", "0.2000", "-", "0.9500", "-"]
    assert lines[-1].startswith("Federated MAE is 20.0 % below that of the best silo alone (the same model; ")


def test_the_results_table_lines_up_in_ascii_too():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    results_table(results(*result_rows()), stream=stream)
    stream.seek(0)
    lines = stream.read().splitlines()
    assert "+/- std" in lines[0]
    assert {len(line) for line in lines[:7]} == {len(lines[1])}


def test_paths_go_to_stdout_in_two_columns(capsys):
    paths_table({"report": "runs/x/report.html", "model": "runs/x/models/federated.safetensors"})
    assert capsys.readouterr().out == "report  runs/x/report.html\nmodel   runs/x/models/federated.safetensors\n"


@given(st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8)), min_size=1, max_size=5))
def test_aligned_rows_never_contain_control_characters_or_extra_lines(rows):
    text = aligned(rows)
    assert text.count("\n") == len(rows)
    assert all(letter.isprintable() for letter in text.replace("\n", ""))


@given(st.text(), st.integers(1, 20))
def test_a_clipped_text_fits(text, width):
    from rich.cells import cell_len

    assert cell_len(clipped(one_line(text), width)) <= width
