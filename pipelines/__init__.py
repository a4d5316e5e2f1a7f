"""Which experiment: each pipeline says what is trained, on which silos, and what is left behind.

From Python:

    federate   train one network over all silos, in this process or on Ray
    Training   how every silo trains, and how often they meet
    Federated  what comes out: the module, its metrics, a history

Names are imported when they are first used: `import pipelines` alone loads nothing; Ray comes with a run on it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.federated_training import Federated, Training, federate

__all__ = ["Federated", "Training", "federate"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module 'pipelines' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module("pipelines.federated_training"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
