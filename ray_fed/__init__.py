"""Train one model over data whose owners do not hand them out. The names that a user of Python needs:

What is trained
    Task             samples, network, loss, metrics: the base class
    TorchTask        any torch network, from a function that reads samples
    FlowerTask       clients written for Flower, unchanged
    PropertyTask     one property of crystals from their composition and cell
    SiloSpec         one silo: its name, where its rows are, what it may use
    LocalRows        what a task reads in a silo; never leaves it
    Samples          the same rows, ready for training
    CrystalRows      which rows of a source a silo of a PropertyTask takes
    Source           a file, a folder or the embedded crystals
    make_featurizer  formulas and structures to numbers, for scikit-learn

How it is trained
    Trainer          what trains in a silo: the protocol for a loop of one's own
    FitResult        what a stretch of local training came to
    SessionSpec      what a task is told when it makes a trainer
    TrainingPlan     how a silo works through a run
    RoundRules       when a round counts, in Flower's words
    Strategy         how updates become the next model: the protocol
    FedAvg           the weighted mean, to derive from
    make_strategy    any of 18 strategies by name, or one's own
    Update           what a silo sends after a round

What comes out
    Metric           one number an evaluation tells: name, unit, direction, digits
    MeanScores       metrics that are means over samples
    RegressionSums   MAE, R² and MSE as sums that add up across silos
    RoundRecord      what happened in one round
    Layout           names and shapes of the parts of a parameter vector
    load_vector      write a parameter vector into a module
    load_model       read a model file and its card
    predict          predictions of such a model

Errors (all of them: ray_fed.errors)
    FedError         base of every error raised on purpose
    ConfigError      an option, or a combination of them, is wrong
    DataError        a source cannot be read or holds nothing usable

The one call that trains is `pipelines.federate`. Names are imported when they are first used: `import ray_fed` alone
loads neither torch nor pandas, and never Ray.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray_fed.errors import ConfigError, DataError, FedError
    from ray_fed.federation.flower_client import FlowerTask
    from ray_fed.federation.messages import SessionSpec, Update
    from ray_fed.federation.rounds.job import RoundRecord
    from ray_fed.federation.rounds.machine import RoundRules
    from ray_fed.federation.strategies import FedAvg, Strategy, make_strategy
    from ray_fed.federation.task import LocalRows, Samples, SiloSpec, Task
    from ray_fed.federation.torch_task import TorchTask
    from ray_fed.learning.layout import Layout, load_vector
    from ray_fed.learning.trainer import FitResult, Trainer, TrainingPlan
    from ray_fed.materials.databases.source import Source
    from ray_fed.materials.features.featurizers import make_featurizer
    from ray_fed.materials.property_task import CrystalRows, PropertyTask
    from ray_fed.metrics import MeanScores, Metric, RegressionSums
    from ray_fed.model_library.predictors import predict
    from ray_fed.reporting.model_files import load_model

    __version__: str
    """Version of the installed distribution; "0+unknown" where the code was not installed but only put on the path."""

_NAMES = {
    "errors": ("ConfigError", "DataError", "FedError"),
    "federation.flower_client": ("FlowerTask",),
    "federation.messages": ("SessionSpec", "Update"),
    "federation.rounds.job": ("RoundRecord",),
    "federation.rounds.machine": ("RoundRules",),
    "federation.strategies": ("FedAvg", "Strategy", "make_strategy"),
    "federation.task": ("LocalRows", "Samples", "SiloSpec", "Task"),
    "federation.torch_task": ("TorchTask",),
    "learning.layout": ("Layout", "load_vector"),
    "learning.trainer": ("FitResult", "Trainer", "TrainingPlan"),
    "materials.databases.source": ("Source",),
    "materials.features.featurizers": ("make_featurizer",),
    "materials.property_task": ("CrystalRows", "PropertyTask"),
    "metrics": ("MeanScores", "Metric", "RegressionSums"),
    "model_library.predictors": ("predict",),
    "reporting.model_files": ("load_model",),
}
"""Module below ray_fed -> the public names it has, as type checkers find them above."""
_HOMES = {name: f"ray_fed.{module}" for module, names in _NAMES.items() for name in names}

# A literal, as type checkers want it.
__all__ = [
    "ConfigError", "CrystalRows", "DataError", "FedAvg", "FedError", "FitResult", "FlowerTask", "Layout", "LocalRows",
    "MeanScores", "Metric", "PropertyTask", "RegressionSums", "RoundRecord", "RoundRules", "Samples", "SessionSpec",
    "SiloSpec", "Source", "Strategy", "Task", "TorchTask", "Trainer", "TrainingPlan", "Update", "load_model",
    "load_vector", "make_featurizer", "make_strategy", "predict",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name == "__version__":
        value = _version()
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'ray_fed' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("ray-fed")
    except PackageNotFoundError:
        return "0+unknown"
