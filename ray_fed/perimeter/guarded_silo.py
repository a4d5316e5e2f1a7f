"""A silo behind its boundary: the same questions as `Silo`, but every answer, and every error, goes through the gate.

A further kind of message needs a check in `gate.REBUILT`, a passage in `passage.KNOWN`, and one method here that hands
the silo's answer to `_send`.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

import ray_fed.perimeter.artifacts
import ray_fed.perimeter.masked_updates  # noqa: F401  (so does this)
from ray_fed.errors import PerimeterRefused
from ray_fed.federation.messages import (
    Artifact,
    GradientObservation,
    MaskedUpdate,
    Metrics,
    SessionSpec,
    SiloDescription,
    Update,
    Vector,
)
from ray_fed.federation.silo import Silo
from ray_fed.federation.task import SiloSpec
from ray_fed.learning.standardisation import ColumnMoments, Standardizer
from ray_fed.perimeter.boundary import EgressBlock, EgressBoundary
from ray_fed.perimeter.gate import Request
from ray_fed.perimeter.observations import observed
from ray_fed.privacy.signing import SigningKey


class GuardedSilo(EgressBoundary):
    """See `Silo` for what the questions mean. `make` builds the silo and is the first foreign code that runs."""

    silo: Silo

    def __init__(
        self,
        spec: SiloSpec,
        make: Callable[[], Silo],
        block: EgressBlock = contextlib.nullcontext,
        takes_output: bool = False,
    ):
        super().__init__(spec, block, takes_output)
        self._rounds: dict[str, int] = {}
        self._start(lambda: self._take(make()))

    def _take(self, silo: Silo) -> None:
        silo.secure.sign_with(self._key or SigningKey.passing(), self.site.partners)
        self.silo = silo

    # ---- the questions of `Silo`

    def open(self) -> SiloDescription:
        said = self._call("opening its data", lambda: self.silo.open())
        self._watch()
        return self._send("opening its data", said, Request("description"))

    def moments(self) -> ColumnMoments:
        return self._send(
            "computing moments", self._call("computing moments", lambda: self.silo.moments()), Request("moments")
        )

    def prepare(self, standardizer: Standardizer | None) -> None:
        self._call("standardising", lambda: self.silo.prepare(standardizer))
        self._watch()

    def open_session(self, spec: SessionSpec) -> str:
        """PerimeterRefused when the planned updates would break the budget of the run."""
        digest = self._call("opening a session", lambda: self.silo.open_session(spec))
        self._rounds[spec.session] = 0
        self._check_session(spec, digest)
        return spec.layout_digest

    def restore(self, standardizer: Standardizer | None, sessions: Sequence[SessionSpec]) -> None:
        self._call("starting again", lambda: self.silo.restore(standardizer, sessions))
        self._rounds |= {spec.session: 0 for spec in sessions}
        self._watch()

    def close_session(self, session: str) -> None:
        self._call("closing a session", lambda: self.silo.close_session(session))
        self._rounds.pop(session, None)
        if self._ledger:
            self._ledger.sign()

    def fit(self, session: str, server_round: int, vector: Vector) -> Update | MaskedUpdate:
        doing = f"training round {server_round}"
        update = self._call(doing, lambda: self.silo.fit(session, server_round, vector))
        self._rounds[session] = server_round
        request = Request("update", session, server_round, vector)
        if not self.silo.secure.is_secure(session):
            return self._send(doing, update, request)
        masked = self._call(doing, lambda: self.silo.leaving(self.gate.inspect(update, request)))
        return self._send(doing, masked, replace(request, kind="masked"))

    def leaving(self, update: Update | MaskedUpdate) -> Update | MaskedUpdate:
        """Return what `fit` returned: it has left already."""
        return update

    def evaluate(self, session: str, models: Mapping[str, Vector]) -> dict[str, Metrics]:
        found = self._call("evaluating", lambda: self.silo.evaluate(session, models))
        request = Request("metrics", session, self._rounds.get(session, 0), models=tuple(models))
        return self._send("evaluating", found, request)

    def query(self, query: str, *given: Any) -> Artifact:
        """Put one of the further questions to the silo (`Silo.queries`)."""
        doing = f"answering '{query}'"
        artifact = self._call(doing, lambda: self.silo.query(query, *given))
        # Nothing was received that its size could be measured by: max_bytes_per_round and _per_run bound it.
        return self._send(doing, artifact, Request("artifact", query, vector=getattr(artifact, "data", None)))

    def observe(self, vector: Vector, num_examples: int) -> GradientObservation:
        """Return the gradient over the silo's first rows at `vector`, for attacks on it elsewhere; PerimeterRefused
        unless the owner says `audit: true`."""
        doing = "showing a gradient"
        shown = self._call(doing, lambda: observed(self.gate, self.silo, vector, num_examples))
        return self._send(doing, shown, Request("observation", vector=vector))

    # ---- out

    def _check_session(self, spec: SessionSpec, digest: object) -> None:
        """The answer is what the coordinator sent, or none."""
        trainer = self.silo.sessions.get(spec.session)
        try:
            if digest != spec.layout_digest:
                raise self.gate.refusal("layout", "it is not the digest of the layout agreed on")
            if trainer is not None:
                self.gate.check_plan(spec.session, spec.plan.num_rounds, 4 * trainer.layout.size)
        except PerimeterRefused as error:
            told = self._told("opening a session", error)
        else:
            return
        raise told

    def _watch(self) -> None:
        """Show the gate the rows, raw and as the network sees them, so that it knows them when it sees them again."""
        rows = getattr(self.silo, "_rows", None)
        if rows is not None:
            for name in ("features", "targets", "held_out_features", "held_out_targets"):
                self.gate.row_matcher.watch(name, getattr(rows, name))
        samples = getattr(self.silo, "_samples", None)
        for name in ("features", "targets") if samples is not None else ():
            values = getattr(samples, name)
            shown = values.cpu().numpy() if isinstance(values, torch.Tensor) else values
            self.gate.row_matcher.watch(f"prepared {name}", shown)
