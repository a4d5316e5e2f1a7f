"""Where silos may stand: what they ask for against what the cluster has, before anything waits for ever."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import ceil
from typing import Any, NoReturn

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.packing import GB, NodeOffer, Room, packed, parts, share
from ray_fed.errors import PlacementError
from ray_fed.federation.task import SiloSpec


def offers() -> list[NodeOffer]:
    """Return the living nodes of the connected cluster."""
    return [_offer(node, node.get("Resources", {})) for node in ray.nodes() if node["Alive"]]


def free_offers() -> list[NodeOffer]:
    """Return the living nodes with what of them is free now. What of each GPU that is, Ray does not tell: parts are
    taken to be spread evenly."""
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()
    return [_offer(node, free.get(node["NodeID"], {})) for node in ray.nodes() if node["Alive"]]


def _offer(node: Mapping[str, Any], resources: Mapping[str, float]) -> NodeOffer:
    labels, gpus = node.get("Labels") or {}, resources.get("GPU", 0.0)
    number = int(gpus) if gpus == int(gpus) else int(node["Resources"]["GPU"])
    return NodeOffer(
        node.get("NodeManagerHostname", "?"),
        labels.get("site", ""),
        resources.get("CPU", 0.0),
        gpus,
        resources.get("memory", 0.0),
        (gpus / number,) * number if number else (),
    )


def settle(specs: Sequence[SiloSpec], nodes: Sequence[NodeOffer]) -> tuple[list[SiloSpec], list[str]]:
    """Return the specs as they can be placed, and notices for the user.

    Silos that leave it open share their site's GPUs evenly: each asks for the largest share with which all fit. Those
    whose site has no GPU for them train on CPU, which is said once. What else does not fit is refused with what is
    there, and what would fit: PlacementError.
    """
    for site in sorted({spec.site for spec in specs}):
        _check_label(site, [spec for spec in specs if spec.site == site], nodes)
    notices, has_gpus = [], any(node.gpus for node in nodes)
    if not has_gpus:
        if any(spec.num_gpus != 0 for spec in specs):
            notices.append("no GPU in this cluster: the silos train on CPU")
        specs = [replace(spec, num_gpus=0.0) for spec in specs]
    settled = _with_shares(specs, nodes)
    if has_gpus:
        notices += _left_without(specs, settled)
    _check_fit(settled, nodes)
    return settled, notices


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

    def taken(spec: SiloSpec) -> float:
        return share(sharing[spec.site]) if has_gpus else 0.0

    return [replace(spec, num_gpus=taken(spec)) if spec.num_gpus is None else spec for spec in specs]


def refuse_absent(silo: SiloSpec, seconds: float) -> NoReturn:
    """Raise PlacementError: the silo's site has no machine."""
    _check_label(silo.site, [silo], offers(), f" after {seconds:g} s (start_timeout)" if seconds else "")
    raise PlacementError(
        f"silo '{silo.name}': its site '{silo.site}' has machines, and none has room for it: it asks for {wish(silo)}"
    )


def _with_shares(specs: Sequence[SiloSpec], nodes: Sequence[NodeOffer]) -> list[SiloSpec]:
    """Return the specs with a share of a GPU for each that leaves it open; those bound to a site choose first."""
    for site in sorted({spec.site for spec in specs if spec.num_gpus is None}, reverse=True):
        concerned = [spec for spec in specs if spec.site == site or not site]
        there = [node for node in nodes if node.site == site or not site]
        fitting = _largest_share(site, concerned, there)
        specs = _sharing(specs, site, fitting)
    return list(specs)


def _largest_share(site: str, specs: Sequence[SiloSpec], nodes: Sequence[NodeOffer]) -> float:
    """Return one over the fewest silos a GPU with which all fit; 0 where none of it is left for them."""
    sharing = sum(spec.num_gpus is None and spec.site == site for spec in specs)
    for silos_a_gpu in range(1, sharing + 1):
        if packed(_sharing(specs, site, share(silos_a_gpu)), nodes) is not None:
            return share(silos_a_gpu)
    return 0.0


def _sharing(specs: Sequence[SiloSpec], site: str, num_gpus: float) -> list[SiloSpec]:
    return [replace(spec, num_gpus=num_gpus) if spec.num_gpus is None and spec.site == site else spec for spec in specs]


def _left_without(specs: Sequence[SiloSpec], settled: Sequence[SiloSpec]) -> list[str]:
    """Return one notice for each site of silos that would have taken a GPU."""
    pairs = zip(specs, settled, strict=True)
    without = [found for spec, found in pairs if spec.num_gpus is None and not found.num_gpus]
    sites = sorted({spec.site for spec in without})
    named = {site: _names(spec for spec in without if spec.site == site) for site in sites}
    return [f"no GPU is left{_at(site)} for silos {names}: they train on CPU" for site, names in named.items()]


def _names(specs: Iterable[SiloSpec]) -> str:
    return ", ".join(f"'{spec.name}'" for spec in specs)


def _at(site: str) -> str:
    return f" at site '{site}'" if site else ""


def _check_label(site: str, specs: Sequence[SiloSpec], nodes: Sequence[NodeOffer], waited: str = "") -> None:
    if site and not any(node.site == site for node in nodes):
        known = sorted({node.site for node in nodes if node.site})
        raise PlacementError(
            f"silo '{specs[0].name}': no node has the label site={site}{waited}; sites in this cluster: "
            f'{", ".join(known) or "none"}; start a node there with: ray start --labels="site={site}"'
        )


def _check_fit(specs: Sequence[SiloSpec], nodes: Sequence[NodeOffer]) -> None:
    """PlacementError where the silos of a site, or all silos together, do not fit into the nodes."""
    for site in [*sorted({spec.site for spec in specs if spec.site}), ""]:
        concerned = [spec for spec in specs if spec.site == site or not site]
        there = [node for node in nodes if node.site == site or not site]
        for spec in concerned:
            if not any(Room.of(node).after(spec) for node in there):
                raise PlacementError(f"silo '{spec.name}' asks for {wish(spec)} on one node; there is: {listed(there)}")
        for what in ("GPU", "CPU"):
            _check_total(what, concerned, there)
        if packed(concerned, there) is None:
            raise PlacementError(
                f"silos {_names(concerned)} do not fit{_at(site)}: a silo stands on one node, and its share comes from "
                f"one GPU. They ask for {_wishes(concerned)}; there is: {listed(there)}; {_remedy(concerned, there)}"
            )


def _check_total(what: str, specs: Sequence[SiloSpec], nodes: Sequence[NodeOffer]) -> None:
    asked = [getattr(spec, f"num_{what.lower()}s") for spec in specs]
    there = [node.gpus if what == "GPU" else node.cpus for node in nodes]
    if sum(map(parts, asked)) > sum(map(parts, there)):
        raise PlacementError(
            f"silos {_names(specs)} ask for {sum(asked):g} {what}s together, there are {sum(there):g}: "
            f"{listed(nodes)}; {_remedy(specs, nodes)}"
        )


def _remedy(specs: Sequence[SiloSpec], nodes: Sequence[NodeOffer]) -> str:
    """Return what would fit, or that nodes are missing."""
    most_cpus = ceil(max(spec.num_cpus for spec in specs))
    for number in range(1, len(specs) + 1):
        if packed(_at_most(specs, "num_gpus", share(number)), nodes) is not None:
            return f"num_gpus={share(number):g} for each would fit, or add nodes"
    for number in range(most_cpus - 1, 0, -1):
        if packed(_at_most(specs, "num_cpus", number), nodes) is not None:
            return f"num_cpus={number} for each would fit, or add nodes"
    return "lower num_cpus (a share such as 0.25 is allowed), or add nodes"


def _at_most(specs: Sequence[SiloSpec], name: str, value: float) -> list[SiloSpec]:
    return [replace(spec, **{name: min(getattr(spec, name), value)}) for spec in specs]


def check_tasks(what: str, num_cpus: float, num_gpus: float) -> None:
    """Raise PlacementError where no node could ever run such a task."""
    wanted, nodes = SiloSpec(what, None, num_gpus, num_cpus), offers()
    if not any(Room.of(node).after(wanted) for node in nodes):
        cpu = "; --num-gpus 0 computes on CPU" if num_gpus else ""
        raise PlacementError(f"{what} asks for {wish(wanted)} on one node; there is: {listed(nodes)}{cpu}")


def cpus_of(node_id: str) -> float:
    """Return the CPUs that a living node offers."""
    return sum(node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["NodeID"] == node_id)


def wish(spec: SiloSpec) -> str:
    """Return what a silo asks for, in words."""
    memory = f" and {spec.memory_gb:g} GB of memory" if spec.memory_gb else ""
    return f"{spec.num_gpus or 0.0:g} GPU and {spec.num_cpus:g} CPU{memory}"


def _wishes(specs: Sequence[SiloSpec]) -> str:
    return "; ".join(f"{count} x {words}" for words, count in Counter(map(wish, specs)).items())


def listed(nodes: Iterable[NodeOffer]) -> str:
    """Return nodes with what they have, in words."""
    return "; ".join(
        f"{node.name} ({f'site {node.site}, ' if node.site else ''}{node.gpus:g} GPU, {node.cpus:g} CPU)"
        for node in nodes
    )


def actor_options(spec: SiloSpec) -> dict[str, Any]:
    """Return Ray's options for a silo's actor. The site is a hard requirement: data have no second home."""
    options: dict[str, Any] = {"num_cpus": spec.num_cpus, "num_gpus": spec.num_gpus or 0.0}
    if spec.memory_gb:
        options["memory"] = int(spec.memory_gb * GB)
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
