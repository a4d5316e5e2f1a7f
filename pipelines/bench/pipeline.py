"""Runs the parts of `ray-fed bench` one after another and prints one table."""

import platform
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pipelines.bench import aggregation, exchanges, large_model, local_steps
from pipelines.bench.config import BenchConfig
from pipelines.bench.measurement import Measurement, cells
from ray_fed.errors import ConfigError
from ray_fed.reporting.terminal import aligned


def run(options: Mapping[str, Any], _command_line: Sequence[str]) -> int:
    """Measure, print, return 0."""
    config = BenchConfig(**options)
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda: torch finds no GPU here; leave --device out")
    torch.set_num_threads(1)
    measured: list[Measurement] = []
    for part in config.parts:
        print(f"measuring {part}", file=sys.stderr)
        measured += _measured(part, config)
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {platform.platform()}\n")
    print(aligned(cells(measured), right=(2, 4), rule=True))
    return 0


def _measured(part: str, config: BenchConfig) -> list[Measurement]:
    if part == "local-step":
        return local_steps.measured(config.device, *((500, 7) if config.full else (100, 3)))
    if part == "aggregation":
        return aggregation.measured(repeats=9 if config.full else 3)
    if part == "exchange":
        return exchanges.measured(rounds=1000 if config.full else 200)
    if part == "large":
        return large_model.measured(rounds=20 if config.full else 4)
    return exchanges.at_frequency(epochs=100 if config.full else 40)
