"""Apps written for Flower, run on silos of this runtime: `run_flower_app` from Python, `ray-fed flower` as a command."""

from pipelines.flower.running import FlowerRun, run_flower_app

__all__ = ["FlowerRun", "run_flower_app"]
