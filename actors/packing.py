"""Whether silos fit into the nodes of a cluster together, counted as Ray counts. No Ray here: numbers in, places out.

Ray keeps amounts as whole ten-thousandths. A share of a GPU comes from one GPU, the fullest that has room for it; it
never straddles two.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ray_fed.federation.task import SiloSpec

UNIT = 10_000
"""Parts of one CPU or GPU that Ray tells apart."""
MOST_TRIES = 20_000
"""Places looked at until silos of many different wishes are left to Ray's luck, which says what it waits for."""
GB = 1e9


@dataclass(frozen=True)
class NodeOffer:
    """What one node of the cluster has, or has free."""

    name: str
    site: str
    cpus: float
    gpus: float
    memory: float = float("inf")
    """Bytes of main memory that Ray deals out."""
    gpu_parts: tuple[float, ...] | None = None
    """How much of each GPU is there, where some are in use; None: all of each."""


def share(silos_per_gpu: int) -> float:
    """Return the largest share of a GPU that Ray can give so many silos, a number that its counting can hold."""
    return UNIT // silos_per_gpu / UNIT


def parts(amount: float) -> int:
    """Return an amount as Ray counts it, in ten-thousandths: sums of floats exceed what they should be."""
    return round(amount * UNIT)


class Room(NamedTuple):
    """What is left of a node while silos are dealt out."""

    node: NodeOffer
    cpu: int
    gpus: tuple[int, ...]
    """Of each GPU, what is left."""
    memory: float

    @classmethod
    def of(cls, node: NodeOffer) -> "Room":
        whole = (1.0,) * int(node.gpus) if node.gpu_parts is None else node.gpu_parts
        return cls(node, parts(node.cpus), tuple(parts(part) for part in whole), node.memory)

    @property
    def state(self) -> tuple:
        """Equal for rooms in which a silo of any site could stand as well."""
        return self.node.site, self.cpu, tuple(sorted(self.gpus)), self.memory

    def after(self, spec: SiloSpec) -> "Room | None":
        """Return what is left when the silo stands here; None where there is not enough."""
        cpu, memory = self.cpu - parts(spec.num_cpus), self.memory - spec.memory_gb * GB
        gpus = _gpus_after(self.gpus, parts(spec.num_gpus or 0.0))
        return None if cpu < 0 or memory < 0 or gpus is None else Room(self.node, cpu, gpus, memory)


def _gpus_after(gpus: tuple[int, ...], asked: int) -> tuple[int, ...] | None:
    if asked == 0:
        return gpus
    room = [(left, number) for number, left in enumerate(gpus) if left >= asked]
    if not room:
        return None
    chosen = min(room)[1]
    return tuple(left - asked if number == chosen else left for number, left in enumerate(gpus))


def hardest_first(specs: Sequence[SiloSpec]) -> list[SiloSpec]:
    """Return the silos in the order in which Ray is to place them: bound to a site first, large ones before small."""
    return sorted(specs, key=lambda spec: (not spec.site, -(spec.num_gpus or 0.0), -spec.num_cpus, -spec.memory_gb))


def packed(specs: Sequence[SiloSpec], nodes: Sequence[NodeOffer]) -> Mapping[str, str] | None:
    """Return silo -> node for silos that fit together, and None where no way of dealing them out does.

    Silos of more different wishes than MOST_TRIES can be told about are taken to fit: an empty mapping.
    """
    tries = iter(range(MOST_TRIES))
    try:
        return _deal(hardest_first(specs), [Room.of(node) for node in nodes], 0, tries)
    except StopIteration:
        return {}


def _deal(specs: Sequence[SiloSpec], rooms: list[Room], first: int, tries: Iterator[int]) -> dict[str, str] | None:
    """first: of several equal silos, one does not stand in an earlier room than the one before it."""
    if not specs:
        return {}
    spec, rest, seen = specs[0], specs[1:], set()
    for number in range(first, len(rooms)):
        room = rooms[number]
        if (spec.site and room.node.site != spec.site) or room.state in seen:
            continue
        seen.add(room.state)
        next(tries)
        left = room.after(spec)
        if left is None:
            continue
        same = bool(rest) and _wish(rest[0]) == _wish(spec)
        dealt = _deal(rest, [*rooms[:number], left, *rooms[number + 1 :]], number if same else 0, tries)
        if dealt is not None:
            return {spec.name: room.node.name, **dealt}
    return None


def _wish(spec: SiloSpec) -> tuple:
    return spec.site, spec.num_gpus, spec.num_cpus, spec.memory_gb
