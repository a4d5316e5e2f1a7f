"""Where silos may stand: what they ask for against what the cluster has, before anything waits for ever."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import floor
from typing import Any, NoReturn

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_fed.errors import PlacementError
from ray_fed.federation.task import SiloSpec


@dataclass(frozen=True)
class NodeOffer:
    """What one node of the cluster has."""

    name: str
    site: str
    cpus: float
    gpus: float


def offers() -> list[NodeOffer]:
    """Return the living nodes of the connected cluster."""
    return [_offer(node) for node in ray.nodes() if node["Alive"]]


def _offer(node: Mapping[str, Any]) -> NodeOffer:
    resources = node.get("Resources", {})
    labels = node.get("Labels") or {}
    return NodeOffer(
        node.get("NodeManagerHostname", "?"),
        labels.get("site", ""),
        resources.get("CPU", 0.0),
        resources.get("GPU", 0.0),
    )


def settle(specs: Sequence[SiloSpec], nodes: Sequence[NodeOffer]) -> tuple[list[SiloSpec], list[str]]:
    """Return the specs as they can be placed, and notices for the user.

    A cluster without any GPU trains on CPU and says so once. Anything else that does not fit is refused with what is
    there: PlacementError.
    """
    notices = []
    if not any(node.gpus for node in nodes):
        if any(spec.num_gpus != 0 for spec in specs):
            notices.append("no GPU in this cluster: the silos train on CPU")
        specs = [replace(spec, num_gpus=0.0) for spec in specs]
    for site in sorted({spec.site for spec in specs}):
        _check_label(site, [spec for spec in specs if spec.site == site], nodes)
    specs = [replace(spec, num_gpus=_share(spec, specs, nodes)) for spec in specs]
    for site in sorted({spec.site for spec in specs}):
        _check_room([spec for spec in specs if spec.site == site], [n for n in nodes if not site or n.site == site])
    _check_total("GPU", specs, nodes)
    return list(specs), notices


def divided(specs: Sequence[SiloSpec], nodes: Sequence[NodeOffer]) -> tuple[list[SiloSpec], list[SiloSpec]]:
    """Return the specs whose site has a machine, and the others."""
    sites = {"", *(node.site for node in nodes)}
    return [spec for spec in specs if spec.site in sites], [spec for spec in specs if spec.site not in sites]


def unseen(specs: Sequence[SiloSpec], nodes: Sequence[NodeOffer]) -> list[SiloSpec]:
    """Return the specs of sites without a machine as they are waited for.

    What a machine will offer cannot be known. A silo that leaves it open asks for its share of one GPU where other
    machines have GPUs, and for none where they have none.
    """
    has_gpus = any(node.gpus for node in nodes)
    sharing = Counter(spec.site for spec in specs if spec.num_gpus is None)

    def wish(spec: SiloSpec) -> float:
        return floor(100 / sharing[spec.site]) / 100 if has_gpus else 0.0

    return [replace(spec, num_gpus=wish(spec)) if spec.num_gpus is None else spec for spec in specs]


def refuse_absent(silo: SiloSpec, seconds: float) -> NoReturn:
    """Raise PlacementError: the silo's site has no machine."""
    _check_label(silo.site, [silo], offers(), f" after {seconds:g} s (start_timeout)" if seconds else "")
    raise PlacementError(
        f"silo '{silo.name}': its site '{silo.site}' has machines, and none has room for it: it asks for "
        f"{silo.num_gpus or 0.0:g} GPU and {silo.num_cpus:g} CPU"
    )


def _share(spec: SiloSpec, specs: Sequence[SiloSpec], nodes: Sequence[NodeOffer]) -> float:
    """Return the GPUs a silo asks for: as stated, or an even share of what its site has besides stated wishes."""
    if spec.num_gpus is not None:
        return spec.num_gpus
    there = sum(node.gpus for node in nodes if not spec.site or node.site == spec.site)
    stated = sum(other.num_gpus or 0.0 for other in specs if other.site == spec.site)
    sharing = sum(other.num_gpus is None for other in specs if other.site == spec.site)
    return min(1.0, floor(100 * max(0.0, there - stated) / sharing) / 100)


def _check_label(site: str, specs: Sequence[SiloSpec], nodes: Sequence[NodeOffer], waited: str = "") -> None:
    if site and not any(node.site == site for node in nodes):
        known = sorted({node.site for node in nodes if node.site})
        raise PlacementError(
            f"silo '{specs[0].name}': no node has the label site={site}{waited}; sites in this cluster: "
            f'{", ".join(known) or "none"}; start a node there with: ray start --labels="site={site}"'
        )


def _check_room(specs: Sequence[SiloSpec], here: Sequence[NodeOffer]) -> None:
    for spec in specs:
        if not any(spec.num_cpus <= node.cpus and (spec.num_gpus or 0.0) <= node.gpus for node in here):
            raise PlacementError(
                f"silo '{spec.name}' asks for {spec.num_gpus:g} GPU and {spec.num_cpus:g} CPU on one node; "
                f"there is: {_listed(here)}"
            )
    for what in ("GPU", "CPU"):
        _check_total(what, specs, here)


def _check_total(what: str, specs: Sequence[SiloSpec], nodes: Sequence[NodeOffer]) -> None:
    field = f"num_{what.lower()}s"
    asked = sum(getattr(spec, field) for spec in specs)
    there = sum(node.gpus if what == "GPU" else node.cpus for node in nodes)
    if asked > there:
        names = ", ".join(f"'{spec.name}'" for spec in specs)
        raise PlacementError(
            f"silos {names} ask for {asked:g} {what}s together, there are {there:g}: {_listed(nodes)}; "
            f"lower {field} (a share such as 0.25 is allowed) or add nodes"
        )


def _listed(nodes: Iterable[NodeOffer]) -> str:
    return "; ".join(
        f"{node.name} ({f'site {node.site}, ' if node.site else ''}{node.gpus:g} GPU, {node.cpus:g} CPU)"
        for node in nodes
    )


def actor_options(spec: SiloSpec) -> dict[str, Any]:
    """Return Ray's options for a silo's actor. The site is a hard requirement: data have no second home."""
    options: dict[str, Any] = {"num_cpus": spec.num_cpus, "num_gpus": spec.num_gpus or 0.0}
    if spec.site:
        options["label_selector"] = {"site": spec.site}
    return options


def options_beside_driver() -> dict[str, Any]:
    """Return Ray's options for an actor that sees every silo's answers: it stands where the driver does.

    Left to itself Ray might put it on a silo's machine, among them one whose head offers no CPUs. It mostly waits.
    """
    here = ray.get_runtime_context().get_node_id()
    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False)}


def evaluator_options(test: SiloSpec) -> dict[str, Any]:
    """Return Ray's options for the actor that reads the common test set: at its site, if one is named.

    PlacementError when no node has that site.
    """
    if not test.site:
        return options_beside_driver()
    _check_label(test.site, [test], offers())
    return {"num_cpus": 0, "label_selector": {"site": test.site}}
