"""What CONTRIBUTING.md shows works: its examples run as they stand there, its picture names what a round enters."""

import re
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from pipelines import Training, cli, commands, federate
from pipelines.cli import main
from ray_fed import SiloSpec
from ray_fed.errors import PerimeterRefused
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.rounds.job import Job
from ray_fed.federation.silo import Silo
from ray_fed.leakage.attacks import ATTACKS
from ray_fed.leakage.study import AttackJob, run_job
from ray_fed.materials.model_crystals.crystals import make_model_crystals
from ray_fed.perimeter.guarded_silo import GuardedSilo
from ray_fed.perimeter.policy import KINDS, SITE_VARIABLE
from ray_fed.reporting.run_directory import RunDirectory
from tests.synthetic import SyntheticTask, silos
from tests.trace_round import functions_of_a_round

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"^```python\n# (\S+)\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL))
"""File -> what is to be added to it, or all of it."""
TRAINS = ["formation-energy", "--cohort", "local", "--baselines", "no", "--rows", "300", "--test-rows", "80", "--silos",
          "60,90", "--epochs", "2", "--communication-frequency", "1", "--hidden", "8"]  # fmt: skip


@pytest.fixture
def add(monkeypatch):
    """Put an example at the end of its file, as the running program sees it; everything is as before afterwards."""
    changed = []

    def adds(place: str) -> ModuleType:
        name = place.removesuffix(".py").replace("/", ".")
        if not (ROOT / place).exists():
            module = ModuleType(name)
            monkeypatch.setitem(sys.modules, name, module)
        else:
            module = import_module(name)
            before = {key: dict(value) if type(value) is dict else value for key, value in vars(module).items()}
            changed.append((module, before))
        exec(compile(EXAMPLES[place], str(ROOT / place), "exec", dont_inherit=True), vars(module))
        return module

    yield adds
    for module, before in changed:
        for key, value in list(vars(module).items()):
            if type(value) is dict and key in before and not key.startswith("__"):
                value.clear()  # the same object stands in the modules that imported it
                value.update(before[key])
            elif key not in before:
                delattr(module, key)
            elif not key.startswith("__"):
                setattr(module, key, before[key])


def train(folder: Path, *options: str) -> dict[str, object]:
    assert main([*TRAINS, *options, "--out", str(folder)]) == 0
    return RunDirectory(folder).read_summary()


def test_every_example_is_run_here():
    here = Path(__file__).read_text(encoding="utf-8")
    assert len(EXAMPLES) == GUIDE.count("```python") == 12
    assert [place for place in EXAMPLES if f'add("{place}")' not in here] == []


def test_a_change_touches_at_most_two_files():
    table = re.findall(r"^\| (?:an?|the|who) .*", GUIDE, re.MULTILINE)
    assert len(table) == 17
    assert all(1 <= len(re.findall(r"`\S+(?:\.py|/)`", row)) <= 2 for row in table)


def test_the_floors_are_those_of_the_import_contracts():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = project["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract.get("containers") == ["ray_fed"])
    lines = GUIDE.split("import in a circle:")[1].split("\n## ")[0].split("\n")
    shown = [line.strip() for line in lines if line.startswith("    ")]
    assert [re.split(" [|:] ", layer) for layer in layers] == [re.split(" {3,}", line)[0].split() for line in shown]


def test_a_strategy(add, tmp_path):
    add("my_strategy.py")
    own, half = (["--strategy", "my_strategy:Halfway", "--strategy-options", f"share={share}"] for share in (1, 0.5))
    plain = train(tmp_path / "plain")
    assert train(tmp_path / "whole", *own)["federated.mae"] == pytest.approx(plain["federated.mae"], rel=1e-4)
    assert train(tmp_path / "half", *half)["federated.mae"] != plain["federated.mae"]


def test_a_data_source(add, tmp_path):
    add("ray_fed/materials/databases/feather.py")
    add("ray_fed/materials/databases/kinds.py")
    table = make_model_crystals(num_rows=300).rename(columns={"target": "formation_energy_per_atom"})
    table.to_csv(tmp_path / "crystals.csv", index=False)
    table.to_feather(tmp_path / "crystals.feather")
    addresses = (str(tmp_path / "crystals.csv"), f"feather:///{tmp_path}/crystals.feather")
    from_csv, added = (train(tmp_path / str(number), "--data", at) for number, at in enumerate(addresses))
    assert added["federated.mae"] == pytest.approx(from_csv["federated.mae"], rel=1e-6)


def test_a_descriptor(add, tmp_path):
    make = add("ray_fed/materials/features/feature_sets.py").make_feature_set
    features, reasons = make("guo+count", structure="none").transform_with_reasons(["NaCl", "BaTiO3", "Xx"])
    assert features[:2, -1].tolist() == [2, 3]
    assert [bool(reason) for reason in reasons] == [False, False, True]
    assert train(tmp_path / "run", "--features", "guo+count")["federated.mae"] > 0


def test_a_metric_and_a_task(add):
    task = add("my_task.py").TASK
    result = federate(task, [SiloSpec("a", 1), SiloSpec("b", 2)], Training(5, 40, learning_rate=0.05), cohort="local")
    assert result.metrics["federated.within_0.1"] > 90 > result.records[0].metrics["federated.within_0.1"]


def test_a_network(add, tmp_path):
    add("my_network.py")
    own = ["--model", "my_network:Net", "--model-options", "width=3", "--out", str(tmp_path / "run")]
    assert main([*TRAINS, *own]) == 0
    assert (tmp_path / "run/models/federated.safetensors").exists()


def test_an_attack(add):
    add("ray_fed/leakage/attacks.py")
    job = AttackJob("one", "compare", "digits", "lenet", ATTACKS["smooth"], (0,), 1, 20)
    assert np.isfinite(run_job(job).arrays["mse"]).all()


def test_a_command(add, monkeypatch, capsys):
    monkeypatch.setattr(cli, "COMMANDS", commands.COMMANDS)
    add("pipelines/commands.py")
    monkeypatch.setattr(cli, "COMMANDS", commands.COMMANDS)
    add("pipelines/hello.py")
    assert main(["hello", "north"]) == 0
    assert capsys.readouterr().out == "hello north\n"


def test_a_kind_of_message_leaves_where_its_owner_lists_it_and_has_its_line(add, tmp_path, monkeypatch):
    histogram = add("ray_fed/federation/messages.py").Histogram
    checks = import_module("ray_fed.perimeter.checks")
    monkeypatch.setattr(checks, "Histogram", histogram, raising=False)
    add("ray_fed/perimeter/checks.py")

    class CountingSilo(Silo):
        def queries(self):
            return {"count": lambda *counts: histogram(self.spec.name, sum(counts), counts)}

    monkeypatch.setenv(SITE_VARIABLE, str(tmp_path))
    spec = SiloSpec(**{**vars(silos(40)[0]), "ledger_folder": str(tmp_path / "ledger"), "run": "counted"})
    make = lambda: GuardedSilo(spec, lambda: CountingSilo(spec, SyntheticTask()))  # noqa: E731
    with pytest.raises(PerimeterRefused, match="its owner allows"):
        make().query("count", 30, 10)
    (tmp_path / "site.yaml").write_text(f"perimeter: {{kinds: [{', '.join(KINDS)}, histogram]}}")
    silo = make()
    answer = silo.query("count", 30, 10)
    assert (answer.silo, answer.num_examples, answer.counts) == (spec.name, 40, (30, 10))
    assert checks.digest_of(answer).kind == "histogram"
    assert silo.ledger is not None
    assert '"kind":"histogram"' in silo.ledger.path.read_text().splitlines()[-1]
    with pytest.raises(PerimeterRefused, match="fewer rows stand behind a bin than its owner's min_examples=5"):
        silo.query("count", 39, 1)


def test_an_observer(add):
    watching, task, members = add("my_observer.py").Traffic(), SyntheticTask(), silos(40, 60)
    names = tuple(spec.name for spec in members)
    coordinator = Coordinator(LocalCohort(members, task), task, names, [watching])
    coordinator.agree()
    plans = dict.fromkeys(names, Training(2, 2).plan(40))
    size = coordinator.layout.size
    assert len(list(coordinator.run(Job("federated", names, plans, 0)))) == 3
    assert watching.num_bytes == 2 * 2 * 4 * size


def test_the_picture_of_a_round_names_the_files_that_a_round_enters(tmp_path):
    picture = GUIDE.split("## One round")[1].split("\n\n", 1)[1]
    shown = re.findall(r"\S+\.py", picture)
    assert set(shown) == {file for file, _ in functions_of_a_round(str(tmp_path))}
