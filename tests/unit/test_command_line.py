"""The command line itself: what it costs to read it."""

import inspect
import subprocess
import sys

import pytest

from actors import forking
from pipelines import cli
from pipelines.commands import COMMANDS, named

CRYSTALS = ("ray_fed.materials.model_crystals.crystals:enumerate_model_crystals",)
HEAVY = ("torch", "ray", "pandas", "pymatgen", "sklearn", "matplotlib", "scipy", "skimage")


def test_options_are_read_before_anything_heavy_is_imported():
    """A second of imports would come before every --help, and before the workers-to-be begin with theirs."""
    code = (
        "import argparse, sys; from pipelines.commands import COMMANDS;"
        "[each.add_options(argparse.ArgumentParser()) for each in COMMANDS];"
        f"print(*sorted({set(HEAVY)!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_command_costs_nothing_until_it_is_chosen():
    code = (
        "import sys; from pipelines import cli; cli._parse(['library', 'show', 'x']); sys.exit('numpy' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_command_names_a_function_of_its_options_and_the_command_line():
    for each in COMMANDS:
        if each.run:
            assert len(inspect.signature(named(each.run)).parameters) == 2, each.name


def test_every_command_stands_after_its_group():
    for position, each in enumerate(COMMANDS):
        group, _, _ = each.name.rpartition(" ")
        assert group in ("", *(before.name for before in COMMANDS[:position] if before.run is None)), each.name


@pytest.mark.parametrize(
    ("line", "started"),
    [
        ("formation-energy", [CRYSTALS]),
        ("formation-energy --federation sites.yaml", [()]),
        ("formation-energy --data table.csv", [()]),
        ("formation-energy --cohort local", []),
        ("sweep --grid epochs=1,2", [()]),
        ("fedtransfer --quick", [()]),
        ("fedtransfer --address auto", []),
        ("bench", [()]),
        ("bench --parts aggregation,local-step", []),
        ("library build", []),
    ],
)
def test_workers_begin_with_their_imports_where_the_command_will_start_some(line, started, monkeypatch):
    begun = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(forking, "start", lambda *preloaded: begun.append(preloaded))
    command, options, _ = cli._parse(line.split())
    if command.warm_up:
        command.warm_up(options)
    assert begun == started
