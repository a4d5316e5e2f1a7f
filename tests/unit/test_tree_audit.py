"""What the sums of boosted trees show of single rows, and the command that says it."""

import json

import numpy as np
import pytest

from pipelines.cli import main
from ray_fed.leakage.tree_sums import SUM, exposures
from ray_fed.randomness import generator
from ray_fed.trees.growth import Grower
from ray_fed.trees.member import Member
from ray_fed.trees.settings import TreeSettings
from tests.events import shown as events_shown


def found(settings: TreeSettings, rows: int = 400):
    random = generator(0, "shown")
    x = random.normal(size=(rows, 3))
    y = x[:, 0] + 0.1 * random.normal(size=rows)
    members = {"small": Member(x[:12], y[:12], settings), "large": Member(x[12:], y[12:], settings)}
    return {(each.silo, each.seen_in): each for each in exposures(members, Grower(settings, 3))}


def test_a_bin_of_one_row_shows_its_target_to_half_a_level():
    shown = found(TreeSettings(trees=1, depth=2, min_rows=5))["small", "its own sums"]
    assert shown.share_in_bins == 1
    assert len(shown.errors) == 12
    assert max(shown.errors) <= 4.0 / 64 / 2, "half a level; the scale is 2 or 4"


def test_the_sum_of_all_shows_fewer_rows_and_large_bins_none():
    small_bins, large_bins = found(TreeSettings(trees=2, depth=3)), found(TreeSettings(trees=1, depth=1, bins=4))
    for silo in ("small", "large"):
        own, together = small_bins[silo, "its own sums"], small_bins[silo, SUM]
        assert together.alone_in_a_bin <= own.alone_in_a_bin
        assert together.alone_in_a_leaf <= own.alone_in_a_leaf
        assert large_bins[silo, SUM].share_in_bins == 0
    assert np.isnan(large_bins["large", SUM].error)


def test_an_audit_of_a_run_of_trees_says_what_its_sums_show(tmp_path, capsys):
    options = ["--model", "boosted_trees", "--features", "guo65", "--cohort", "local", "--rows", "300"]
    options += ["--silos", "50,90", "--baselines", "no", "--tree-options", "trees=2,depth=2"]
    assert main(["train", *options, "--out", str(tmp_path / "run")]) == 0
    site = tmp_path / "site.yaml"
    site.write_text("perimeter:\n  audit: true\n")
    asked = ["audit", str(tmp_path / "run"), "--policy", str(site), "--list-length", "400"]
    asked += ["--out", str(tmp_path / "audit")]
    capsys.readouterr()
    assert main(asked) == 0
    shown = json.loads((tmp_path / "audit" / "summary.json").read_text())
    assert shown["leak.nothing.largest_share"] == max(shown[f"silo-{n}.own.alone_in_a_bin"] for n in (1, 2))
    assert shown["leak.list.largest_share"] > 0
    assert "result/leak.list.largest_share" in events_shown(tmp_path / "audit" / "tensorboard").scalars
    assert shown["silo-1.own.alone_in_a_bin"] > shown["silo-1.sum.alone_in_a_bin"]
    assert "secure-aggregation yes" in capsys.readouterr().err
    assert shown["silo-1.sum.named"] >= 0.9 * shown["silo-1.sum.listed"] > 0
    assert main([*asked[:-1], str(tmp_path / "again"), "--max-leak", "list:0.1"]) == 1
    assert "failed: max_leak=list:0.1 is exceeded; with a list of suspects, silo 'silo-" in capsys.readouterr().err
    assert main([*asked[:-1], str(tmp_path / "other"), "--max-leak", "membership:0.1"]) == 2


def test_counts_in_bins_name_rows_on_a_list_in_a_sum_too_and_not_those_of_others():
    random = generator(0, "counted")
    x, strangers = random.normal(size=(300, 8)), random.normal(size=(300, 8))
    settings = TreeSettings(trees=2, depth=3)
    members = {name: Member(part, part[:, 0], settings) for name, part in (("a", x[:40]), ("b", x[40:100]))}
    for one in exposures(members, Grower(settings, 8), x):
        assert one.named
        assert one.named.right >= 0.95 * one.num_rows == 0.95 * one.named.named
    for one in exposures(members, Grower(settings, 8), np.concatenate([x[:5], strangers])):
        assert one.named
        assert one.named.named == (5 if one.silo == "a" else 0)


@pytest.mark.parametrize(
    "option", ["--communication-frequency=0.5", "--learning-rate=0.1", "--epochs=3", "--hidden=10"]
)
def test_options_of_networks_are_refused_for_trees(option, tmp_path, capsys):
    assert main(["train", "--model", "boosted_trees", option, "--out", str(tmp_path / "run")]) != 0
    assert "choose model=mlp" in capsys.readouterr().err
