"""Nobody waits in silence: what a silo, or tasks, wait for, what the cluster has and has free, and what would help."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray

from actors.packing import Room
from actors.placement import free_offers, listed, offers, wish
from ray_fed.errors import PlacementError
from ray_fed.federation.task import SiloSpec

START_TIMEOUT_SECONDS = 120.0
SPEAKS_AFTER_SECONDS = 8.0
"""A process of a silo stands sooner, where it finds a place."""
SPEAKS_AGAIN_SECONDS = 30.0


def to_stderr(line: str) -> None:
    print(f"note: {line}", file=sys.stderr, flush=True)


def until_ready(
    silos: Mapping[str, Any],
    specs: Sequence[SiloSpec],
    timeout: float,
    say: Callable[[str], None] = to_stderr,
    speaks_after: float = SPEAKS_AFTER_SECONDS,
) -> list[str]:
    """Wait until the actors stand, at most `timeout` seconds, and say of each that does not what it waits for: once
    after `speaks_after` seconds, and again when that changes. Return the names of those that do not stand."""
    by_name = {spec.name: spec for spec in specs}
    started, told = time.monotonic(), dict.fromkeys(silos, "")
    pending = {silo.__ray_ready__.remote(): name for name, silo in silos.items()}
    pause, left = speaks_after, timeout
    while pending:
        _, late = ray.wait(list(pending), num_returns=len(pending), timeout=min(pause, left))
        pending = {ref: pending[ref] for ref in late}
        left, pause = max(0.0, started + timeout - time.monotonic()), SPEAKS_AGAIN_SECONDS
        if not left:
            break
        for name, line in _lines([by_name[name] for name in pending.values()]).items():
            if line != told[name]:
                told[name] = line
                say(f"silo '{name}' waits since {time.monotonic() - started:.0f} s: {line}")
    return list(pending.values())


def refuse_late(silos: Mapping[str, Any], specs: Sequence[SiloSpec]) -> None:
    """Wait for actors for which there was room a moment ago; PlacementError of those that found none in time."""
    if late := until_ready(silos, specs, START_TIMEOUT_SECONDS):
        names = ", ".join(f"'{name}'" for name in late)
        free = listed(free_offers())
        raise PlacementError(f"silos {names} found no place within {START_TIMEOUT_SECONDS:g} s; free now: {free}")


def _lines(specs: Sequence[SiloSpec]) -> dict[str, str]:
    """Return silo -> what it waits for."""
    if not specs:
        return {}
    free, whole = free_offers(), offers()
    return {spec.name: _line(spec, free, whole) for spec in specs}


def _line(spec: SiloSpec, free: Sequence[Any], whole: Sequence[Any]) -> str:
    there = [node for node in whole if not spec.site or node.site == spec.site]
    now = [node for node in free if not spec.site or node.site == spec.site]
    if not there:
        return f'no machine has the label site={spec.site}; start one: ray start --labels="site={spec.site}"'
    if any(Room.of(node).after(spec) for node in now):
        return "there is room for it, and its process is being started; imports on a busy or slow disk take a while"
    return (
        f"it asks for {wish(spec)}; there is: {listed(there)}; free now: {listed(now)}; "
        f"it starts when others end, or asks for less (num_gpus, num_cpus), or a node is added"
    )


class TaskWatch:
    """Says once that tasks of ours wait, where none has ended after a while and the cluster had no room for any."""

    def __init__(self, what: str, num_cpus: float, num_gpus: float, say: Callable[[str], None] = to_stderr):
        self.spec, self.say, self.is_told = SiloSpec(what, None, num_gpus, num_cpus), say, False
        self.had_room = any(Room.of(node).after(self.spec) for node in free_offers())
        """Asked before the first of our own tasks takes some."""

    def wait(self, refs: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Return (those of `refs` that are done, one of them; the others)."""
        done, rest = ray.wait(list(refs), num_returns=1, timeout=SPEAKS_AFTER_SECONDS)
        if not done and not (self.had_room or self.is_told):
            self.is_told = True
            self.say(
                f"{len(rest)} tasks wait: {self.spec.name} asks for {wish(self.spec)}, which others use; there is: "
                f"{listed(offers())}; free now: {listed(free_offers())}; they start when others end, or on a new node"
            )
        self.had_room |= bool(done)
        return (done, rest) if done else ray.wait(rest, num_returns=1)

    def until_first(self, refs: Sequence[Any]) -> Sequence[Any]:
        """Wait until one is done; return all."""
        self.wait(refs)
        return refs
