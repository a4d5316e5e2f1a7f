"""How the silos' updates become the next global model; one algorithm family a file."""

from dataclasses import is_dataclass
from typing import Any, cast

from ray_fed.config import from_mapping, own_class, unknown_name
from ray_fed.errors import ConfigError
from ray_fed.federation.strategies.averaging import FedAvg, LocalOnly, fed_avg
from ray_fed.federation.strategies.base import Models, State, Strategy, local_plan, started
from ray_fed.federation.strategies.buffered import FedBuff
from ray_fed.federation.strategies.client_side import FedBN, FedProx, Scaffold
from ray_fed.federation.strategies.clipping import CentredClipping, NormClipping
from ray_fed.federation.strategies.common_moments import ScaffoldAdam
from ray_fed.federation.strategies.normalised import FedNova
from ray_fed.federation.strategies.private import DPFedAvg
from ray_fed.federation.strategies.robust import CoordinateMedian, GeometricMedian, Krum, MultiKrum, TrimmedMean
from ray_fed.federation.strategies.server_optimizers import FedAdagrad, FedAdam, FedAvgM, FedYogi

STRATEGIES: dict[str, type[Strategy]] = {
    "fed_avg": FedAvg,
    "fed_avg_m": FedAvgM,
    "fed_prox": FedProx,
    "fed_adagrad": FedAdagrad,
    "fed_adam": FedAdam,
    "fed_yogi": FedYogi,
    "scaffold": Scaffold,
    "scaffold_adam": ScaffoldAdam,
    "fed_nova": FedNova,
    "fed_bn": FedBN,
    "fed_buff": FedBuff,
    "median": CoordinateMedian,
    "trimmed_mean": TrimmedMean,
    "krum": Krum,
    "multi_krum": MultiKrum,
    "geometric_median": GeometricMedian,
    "centred_clipping": CentredClipping,
    "norm_clipping": NormClipping,
    "dp_fed_avg": DPFedAvg,
}
"""Strategies by the names people know. All of them train one global model."""


def make_strategy(strategy: str, /, **options: Any) -> Strategy:
    """Return the strategy of that name with these options (values or command-line strings).

    ConfigError names the nearest known strategy or option, or the value that is wrong.
    """
    if ":" in strategy:
        return from_mapping(_own_class(strategy), options, f"strategy {strategy}")
    if strategy not in STRATEGIES:
        raise unknown_name("strategy", strategy, STRATEGIES)
    return from_mapping(STRATEGIES[strategy], options, f"strategy {strategy}")


def _own_class(name: str) -> type[Strategy]:
    """Import a user's own strategy, a dataclass named MODULE:CLASS; the current folder counts as a place of modules."""
    found = own_class("strategy", name)
    missing = [method for method in ("start", "dispatch", "aggregate", "models") if not hasattr(found, method)]
    if missing or not is_dataclass(found):
        raise ConfigError(f"strategy={name!r} must be a dataclass with start, dispatch, aggregate and models")
    return cast("type[Strategy]", found)


__all__ = [
    "STRATEGIES",
    "CentredClipping",
    "CoordinateMedian",
    "DPFedAvg",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedBN",
    "FedBuff",
    "FedNova",
    "FedProx",
    "FedYogi",
    "GeometricMedian",
    "Krum",
    "LocalOnly",
    "Models",
    "MultiKrum",
    "NormClipping",
    "Scaffold",
    "ScaffoldAdam",
    "State",
    "Strategy",
    "TrimmedMean",
    "fed_avg",
    "local_plan",
    "make_strategy",
    "started",
]
