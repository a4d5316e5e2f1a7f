"""Which experiment: each pipeline says what is trained, on which silos, and what is left behind.

From Python:

    federate       train one network over all silos, in this process or on Ray
    Training       how every silo trains, and how often they meet
    EarlyStopping  when a run ends before its last round
    Callback       watches a run in this process
    StopTraining   raised by a callback, ends a run in good order
    Federated      what comes out: the module, its metrics, a history; saves, loads, predicts
    run_flower_app  run an app written for Flower, unchanged
    FlowerRun      what such an app came to

Names are imported when they are first used: `import pipelines` alone loads nothing; Ray comes with a run on it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.callbacks import Callback, StopTraining
    from pipelines.federated_training import EarlyStopping, Federated, Training, federate
    from pipelines.flower.running import FlowerRun, run_flower_app

__all__ = [
    "Callback", "EarlyStopping", "Federated", "FlowerRun", "StopTraining", "Training", "federate", "run_flower_app",
]  # fmt: skip
_HOMES = {"FlowerRun": "pipelines.flower.running", "run_flower_app": "pipelines.flower.running"}
"""Where names are that are not in pipelines.federated_training."""


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module 'pipelines' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES.get(name, "pipelines.federated_training")), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
