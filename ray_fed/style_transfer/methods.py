"""The methods that are compared: what each silo trains on, and how the silos work together."""

from dataclasses import dataclass
from typing import Literal

from ray_fed.config import unknown_name
from ray_fed.federation.strategies import FedAvg, FedBN, FedProx, LocalOnly, Strategy
from ray_fed.micrographs.unet import Greys, Norm

Pool = Literal["own", "amplitude", "transfer", "oracle"]
"""own: the silo's images | amplitude: and its images painted with the others' amplitudes | transfer: and images of the
others' styles by their generators | oracle: and images of the others' styles by the true renderer."""
Cooperation = Literal["alone", "pooled", "fed_avg", "fed_bn", "fed_prox"]
PROXIMAL_MU = 0.01


@dataclass(frozen=True)
class Method:
    """One row of the tables."""

    name: str
    title: str
    cooperation: Cooperation = "fed_avg"
    pool: Pool = "own"
    codec: str = ""
    """How the generators travel, where they do."""
    norm: Norm = "batch"
    greys: Greys = "fixed"
    """image: every image is brought to mean 0 and standard deviation 1, which takes a part of a style away."""

    @property
    def strategy(self) -> Strategy:
        made = {"alone": LocalOnly, "fed_bn": FedBN, "fed_prox": lambda: FedProx(mu=PROXIMAL_MU)}
        return made.get(self.cooperation, FedAvg)()

    @property
    def is_federated(self) -> bool:
        """Whether silos average what they learn."""
        return self.cooperation not in ("alone", "pooled")

    @property
    def needs_generators(self) -> bool:
        return self.pool == "transfer"


METHODS = {
    method.name: method
    for method in (
        Method("separate", "each silo alone", "alone"),
        Method("central", "centralised", "pooled"),
        Method("fed_avg", "FedAvg"),
        Method("fed_avg_gn", "FedAvg + GroupNorm", norm="group"),
        Method("fed_avg_greys", "FedAvg, images standardised", greys="image"),
        Method("fed_bn", "FedBN", "fed_bn"),
        Method("amplitude", "amplitude exchange", pool="amplitude"),
        Method("transfer_fp32", "FedTransfer, fp32", pool="transfer", codec="fp32"),
        Method("transfer_fp16", "FedTransfer, fp16", pool="transfer", codec="fp16"),
        Method("transfer_int8", "FedTransfer, int8", pool="transfer", codec="int8"),
        Method("transfer_int4", "FedTransfer, 4 bit", pool="transfer", codec="int4"),
        Method("transfer_gn", "FedTransfer + GroupNorm", pool="transfer", codec="int8", norm="group"),
        Method("transfer_greys", "FedTransfer, images standardised", pool="transfer", codec="int8", greys="image"),
        Method("transfer_bn", "FedTransfer + FedBN", "fed_bn", pool="transfer", codec="int8"),
        Method("transfer_prox", "FedTransfer + FedProx", "fed_prox", pool="transfer", codec="int8"),
        Method("oracle", "true renderer (oracle)", pool="oracle"),
    )
}


def method_named(name: str) -> Method:
    """Return a method; ConfigError names the nearest."""
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    return METHODS[name]
