"""How the silos' updates become the next global model; one algorithm family a file."""

from ray_fed.federation.strategies.averaging import FedAvg, LocalOnly, fed_avg
from ray_fed.federation.strategies.base import Models, State, Strategy

__all__ = ["FedAvg", "LocalOnly", "Models", "State", "Strategy", "fed_avg"]
