"""Silos of a site that its owner runs: each an actor on the site's own Ray, made from the owner's file when invited."""

import contextlib
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from actors import placement, waiting
from actors.silo import Handle, SiloActor
from ray_fed.errors import ConfigError, FedError, PlacementError, SiloFailed
from ray_fed.federation.messages import (
    GradientObservation,
    MaskedUpdate,
    Metrics,
    SessionSpec,
    SiloDescription,
    Update,
    Vector,
)
from ray_fed.federation.task import SiloSpec
from ray_fed.learning.standardisation import ColumnMoments, Standardizer
from ray_fed.sites.answers import HostLost
from ray_fed.sites.requests import Invitation, SiloHost
from ray_fed.sites.site_file import read_site_file
from ray_fed.sites.tasks import accepted, refuse, require_plain


class ActorHost:
    """One silo: see `ray_fed.sites.requests.SiloHost`. `HostLost` when its process is gone."""

    def __init__(self, silo: str, actor: Handle, departures: "Departures"):
        self.silo, self.actor, self._departures = silo, actor, departures

    def open(self) -> SiloDescription:
        return self._answer(self.actor.open.remote(), "opening its data")

    def moments(self) -> ColumnMoments:
        return self._answer(self.actor.moments.remote(), "computing moments")

    def prepare(self, standardizer: Standardizer | None) -> None:
        self._answer(self.actor.prepare.remote(standardizer), "standardising")

    def open_session(self, spec: SessionSpec) -> str:
        require_plain(self.silo, spec.session)
        return self._answer(self.actor.open_session.remote(spec), "opening a session")

    def restore(self, standardizer: Standardizer | None, sessions: Sequence[SessionSpec]) -> None:
        for spec in sessions:
            require_plain(self.silo, spec.session)
        self._answer(self.actor.restore.remote(standardizer, list(sessions)), "starting again")

    def close_session(self, session: str) -> None:
        self._answer(self.actor.close_session.remote(session), "closing a session")

    def fit(self, session: str, server_round: int, vector: Vector) -> Update | MaskedUpdate:
        ref = self.actor.fit.remote(session, server_round, vector)
        return self._answer(ref, f"training round {server_round}")

    def evaluate(self, session: str, models: Mapping[str, Vector]) -> dict[str, Metrics]:
        ref = self.actor.evaluate.remote(session, tuple(models), *models.values())
        return self._answer(ref, "evaluating")

    def query(self, query: str, *given: Any) -> Any:
        return self._answer(self.actor.query.remote(query, *given), "answering a query")

    def observe(self, vector: Vector, num_examples: int) -> GradientObservation:
        return self._answer(self.actor.observe.remote(vector, num_examples), "showing a gradient")

    def receive_model(self, weights: np.ndarray, card: np.ndarray) -> None:
        self._answer(self.actor.receive_model.remote(weights, card), "taking the final model")

    def collect_ledger(self) -> tuple[bytes, str, str] | None:
        return self._answer(self.actor.collect_ledger.remote(), "handing over its ledger")

    def end(self) -> None:
        """Kill the process; what it is at is lost."""
        with contextlib.suppress(RayError):
            ray.kill(self.actor)

    def _answer(self, ref: "ray.ObjectRef[Any]", doing: str) -> Any:
        """Return what the silo's boundary has let out, or raise the error that it has reduced."""
        try:
            return self._departures.noted(ray.get(ref))
        except RayTaskError as error:
            cause = error.cause
        except RayActorError:
            raise HostLost from None
        except RayError as error:
            cause = error
        if isinstance(cause, FedError):
            raise cause from None
        raise SiloFailed(self.silo, doing, type(cause).__name__) from None


class Departures:
    """Counts what has left since the site was started; the ledgers have it line by line."""

    def __init__(self) -> None:
        self.num_messages: Counter[str] = Counter()
        """By class of message."""
        self.num_bytes = 0
        """Of updates, clear and masked."""
        self._lock = threading.Lock()

    def noted(self, message: Any) -> Any:
        """Count a message; return it."""
        if message is not None and not isinstance(message, str):
            with self._lock:
                self.num_messages[type(message).__name__] += 1
                self.num_bytes += getattr(message, "num_bytes", 0)
        return message

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {_WORDS.get(name, name)}" for name, count in sorted(self.num_messages.items()))
        return f"{counts}; {self.num_bytes:,} bytes of updates" if counts else "nothing has left"


_WORDS = {
    "SiloDescription": "descriptions", "ColumnMoments": "moments", "Update": "updates",
    "MaskedUpdate": "masked updates", "dict": "evaluations", "Artifact": "artifacts", "Counts": "counts of rows",
    "GradientObservation": "gradients", "tuple": "ledgers",
}  # fmt: skip


class ActorHosts:
    """All silos of a site. Called with an invitation it makes a silo, as the owner's file says now."""

    def __init__(self, site_file: Path):
        self.site_file, self.departures = site_file, Departures()
        self._hosts: dict[str, ActorHost] = {}
        self._lock = threading.Lock()

    def __call__(self, invitation: Invitation) -> ActorHost:
        """PerimeterRefused, in a phrase without a name of the owner, where there is no such silo."""
        try:
            invited = accepted(read_site_file(self.site_file), invitation)
        except ConfigError as error:
            refuse(invitation.silo, "its owner's site file is wrong", str(error))
        try:
            spec = _placed(invited.spec)
            host = ActorHost(spec.name, _actor(spec, invitation), self.departures)
        except PlacementError as error:
            refuse(invitation.silo, "its site has no place for it", str(error))
        with self._lock:
            self._hosts[spec.name] = host
        return host

    def end(self, host: SiloHost) -> None:
        """Free what a silo holds."""
        assert isinstance(host, ActorHost)
        with self._lock:
            if self._hosts.get(host.silo) is host:
                del self._hosts[host.silo]
        host.end()

    def end_all(self) -> None:
        """Kill all silos, whatever they are at."""
        with self._lock:
            hosts = list(self._hosts.values())
        for host in hosts:
            host.end()


def _placed(spec: SiloSpec) -> SiloSpec:
    """Return the spec with the GPU it gets; PlacementError where nothing here can hold it."""
    (settled,), _ = placement.settle([spec], placement.offers())
    return settled


def _actor(spec: SiloSpec, invitation: Invitation) -> Handle:
    """Start the silo's process and wait until it stands: another one may have what is free. It looks up in the owner's
    file by itself what it is asked for."""
    actor: Handle = SiloActor.options(**placement.actor_options(spec)).remote(spec, invitation)
    if waiting.until_ready({spec.name: actor}, [spec], waiting.START_TIMEOUT_SECONDS):
        ray.kill(actor)
        free = placement.listed(placement.free_offers())
        late = f"{placement.wish(spec)} were not free within {waiting.START_TIMEOUT_SECONDS:g} s, but: {free}"
        raise PlacementError(f"{late}; see device in the site file")
    try:
        ray.get(actor.__ray_ready__.remote())
    except RayActorError as error:
        raise PlacementError(f"its process did not start: {' '.join(str(error).split())}") from None
    return actor
