"""`ray-fed flower`: what `flwr run` does, on silos of this runtime."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.flower.app_folder import parsed_run_config
from pipelines.flower.running import FlowerRun, run_flower_app
from ray_fed.reporting.terminal import aligned


def run(options: Mapping[str, Any], command_line: Sequence[str]) -> int:  # noqa: ARG001
    """Carry out `ray-fed flower`."""
    given = dict(options)
    app, texts = given.pop("app"), given.pop("run_config")
    done = run_flower_app(app, run_config=parsed_run_config(texts), **given)
    print("\n" + aligned(table(done), right=range(1, 99), rule=True))
    if given.get("out"):
        print(f"\nrun: {Path(given['out'])}")
    return 0


def table(done: FlowerRun) -> list[list[str]]:
    """Return rounds and metrics of all silos together, as text; those of single silos are in the history."""
    names = list(dict.fromkeys(name for one in done.records for name in one.metrics if not name.startswith("silo.")))
    head = ["round", "silos", "failed", "bytes", *names]
    rows = [
        [
            str(one.server_round), str(len(one.participants)), str(len(one.failures)), f"{one.bytes_sent:,}",
            *(f"{one.metrics[name]:.4g}" if name in one.metrics else "" for name in names),
        ]
        for one in done.records
    ]  # fmt: skip
    return [head, *rows]
