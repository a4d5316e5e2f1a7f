"""RAY_ADDRESS, which `ray job submit` sets, is where every command goes that can join a cluster."""

import pytest

from pipelines import cli

COMMANDS = ["formation-energy", "sweep", "leakage", "fedtransfer", "doctor", "library demo", "library build"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_job_joins_the_cluster_that_runs_it_unless_told_otherwise(command, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.10:6379")
    assert cli._parse(command.split())[1]["address"] == "192.0.2.10:6379"
    assert cli._parse([*command.split(), "--address", "local"])[1]["address"] == "local"


@pytest.mark.parametrize("command", COMMANDS)
def test_without_it_a_command_keeps_its_own_default(command, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert "address" not in cli._parse(command.split())[1]
