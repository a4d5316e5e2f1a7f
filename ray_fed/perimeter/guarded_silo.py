"""A silo behind its boundary: the same calls as `Silo`, but every answer, and every error, goes through the gate.

A further kind of message is an entry in checks.py: `query` releases it if it answers queries. What is asked for in any
other way has a method here.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

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
from ray_fed.federation.secure_client import MASKED_METRICS, MASKED_MOMENTS
from ray_fed.federation.silo import Silo, models_asked
from ray_fed.federation.task import SiloSpec
from ray_fed.learning.layout import load_vector
from ray_fed.learning.standardisation import ColumnMoments, Standardizer
from ray_fed.perimeter.book import Book
from ray_fed.perimeter.boundary import EgressBlock, EgressBoundary
from ray_fed.perimeter.checks import KINDS, kind_of_answer, require_audit
from ray_fed.perimeter.gate import Request
from ray_fed.perimeter.insistence import FEWER, Insistence
from ray_fed.perimeter.told import ToldMoments, folder_of_told
from ray_fed.privacy.signing import SigningKey


class GuardedSilo(EgressBoundary):
    """See `Silo` for what the calls mean. `make` builds the silo and is the first foreign code that runs."""

    silo: Silo

    def __init__(
        self,
        spec: SiloSpec,
        make: Callable[[], Silo],
        block: EgressBlock = contextlib.nullcontext,
        redirects_output: bool = False,
    ):
        super().__init__(spec, KINDS, block, redirects_output)
        self._rounds: dict[str, int] = {}
        folder = self.site.ledger_folder
        book = Book(Path(folder) if folder else None)
        self.insistence = Insistence(self.site, self.gate, book, spec.dataset)
        self._told = ToldMoments(folder_of_told(folder, spec.dataset) if folder else None)
        self._num_marked = 0
        self._build(lambda: self._install(make()))

    def _install(self, silo: Silo) -> None:
        silo.secure.sign_with(self._key or SigningKey.passing(), self.site.partners)
        silo.resolution = self.site.policy.resolution
        self.silo = silo

    # ---- the calls of `Silo`

    def open(self) -> SiloDescription:
        doing = "opening its data"
        description = self._run(doing, lambda: self.silo.open())
        self._register_rows()
        return self._release(doing, description, Request("description"))

    def moments(self) -> ColumnMoments:
        self._run("computing moments", lambda: self.insistence.before_clear("moments"))
        moments = self._run("computing moments", lambda: self._inspected_moments())
        return self._release("computing moments", moments, Request("moments"))

    def prepare(self, standardizer: Standardizer | None) -> None:
        self._run("standardising", lambda: self.silo.prepare(standardizer))
        self._register_rows()

    def open_session(self, spec: SessionSpec) -> str:
        """PerimeterRefused when its updates would leave otherwise than the owner wants (insistence.py), or the planned
        ones would break the budget of the run."""
        self._run("opening a session", lambda: self.insistence.open(spec))
        digest = self._run("opening a session", lambda: self.silo.open_session(spec))
        self._rounds[spec.session] = 0
        self._check_session(spec, digest)
        return spec.layout_digest

    def restore(self, standardizer: Standardizer | None, sessions: Sequence[SessionSpec]) -> None:
        for spec in sessions:
            self._run("starting again", lambda spec=spec: self.insistence.open(spec))
        said = self._run("starting again", lambda: self.silo.restore(standardizer, sessions))
        for spec in sessions:
            self._run("starting again", lambda spec=spec: self._require_our_trainer(spec.session))
        self._rounds |= {spec.session: 0 for spec in sessions}
        self._register_rows()
        # It does not leave once more, but what it declares counts for this process, too.
        self._run("starting again", lambda: self.gate.inspect(said, Request("description")))

    def close_session(self, session: str) -> None:
        self._run("closing a session", lambda: self.silo.close_session(session))
        self._rounds.pop(session, None)
        self.insistence.priced.pop(session, None)
        if self._ledger:
            self._ledger.sign()

    def fit(self, session: str, server_round: int, vector: Vector) -> Update | MaskedUpdate:
        doing = f"training round {server_round}"
        if session in self.insistence.priced:
            self._run(doing, lambda: self.insistence.before_fit(session, server_round))
        update = self._run(doing, lambda: self.silo.fit(session, server_round, vector))
        self._rounds[session] = server_round
        request = Request("update", session, server_round, vector)
        if session not in self.insistence.masked:
            return self._release(doing, update, request)
        masked = self._run(doing, lambda: self.silo.secure.masked(self.gate.inspect(update, request)))
        return self._release(doing, masked, replace(request, kind="masked"))

    def leaving(self, update: Update | MaskedUpdate) -> Update | MaskedUpdate:
        """Return what `fit` returned: it has left already."""
        return update

    def evaluate(self, session: str, models: Mapping[str, Vector]) -> dict[str, Metrics]:
        request = Request("metrics", session, self._rounds.get(session, 0), models=tuple(models))
        if session in self.insistence.masked or self.site.policy.masks == "required":
            self._run("evaluating", lambda: self.insistence.before_clear("metrics", session))
        self._run("evaluating", lambda: self._count_evaluation(len(models)))
        return self._run_and_release("evaluating", lambda: self.silo.evaluate(session, models), request)

    def query(self, query: str, *given: Any) -> Any:
        """Put one of the further questions to the silo (`Silo.queries`)."""
        doing = f"answering '{query}'"
        self._run(doing, lambda: self.insistence.before_answer("artifact", query))
        asked = {MASKED_MOMENTS: self._masked_moments, MASKED_METRICS: self._masked_metrics}.get(query)
        answer = self._run(doing, lambda: asked(*given) if asked else self.silo.query(query, *given))
        # Nothing was received that its size could be measured by: max_bytes_per_round and _per_run bound it.
        vector = answer.data if type(answer) is Artifact else None
        return self._release(doing, answer, Request(kind_of_answer(answer), query, vector=vector))

    def observe(self, vector: Vector, num_examples: int) -> GradientObservation:
        """Return the gradient over the silo's first rows at `vector`, for attacks on it elsewhere; PerimeterRefused
        unless the owner says `audit: true`."""
        request = Request("observation", vector=vector)
        self._run("showing a gradient", lambda: self.insistence.before_answer("observation", ""))
        return self._run_and_release("showing a gradient", lambda: self._gradient(vector, num_examples), request)

    # ---- what the calls are made of

    def _gradient(self, vector: Vector, num_examples: int) -> GradientObservation:
        """Return the gradient of the task's loss over the silo's first rows, at parameters [num_parameters]; nothing is
        computed where the owner does not allow it."""
        require_audit(self.gate)
        silo, samples = self.silo, self.silo.samples
        num_examples = max(1, min(num_examples, len(samples.features)))
        network = load_vector(silo.task.model(0), vector)
        loss = silo.task.loss(network(samples.features[:num_examples]), samples.targets[:num_examples])
        parts = torch.autograd.grad(loss, list(network.parameters()))
        gradient = torch.cat([part.reshape(-1) for part in parts])
        return GradientObservation(silo.spec.name, num_examples, gradient.cpu().numpy())

    def _check_session(self, spec: SessionSpec, digest: object) -> None:
        """The answer is what the coordinator sent, or none."""
        trainer = self.silo.sessions.get(spec.session)
        try:
            self._require_our_trainer(spec.session)
            agrees = type(digest) is str and digest == spec.layout_digest
            self.gate.require(agrees, "layout", "it is not the digest of the layout agreed on")
            if trainer is not None:
                self.gate.check_plan(spec.session, spec.plan.num_rounds, 4 * trainer.layout.size)
        except Exception as error:  # a foreign object may raise anything when it is looked at
            error_to_send = self._error_for_coordinator("opening a session", error)
        else:
            return
        raise error_to_send

    def _masked_moments(self, name: str, server_round: int) -> Artifact:
        return self.silo.secure.masked_moments(self._inspected_moments(), name, server_round)

    def _masked_metrics(self, *given: Any) -> Artifact:
        """Return the metrics under masks; checked before, as they would be in clear."""
        session, models = models_asked(given)
        self._count_evaluation(len(models))
        request = Request("metrics", session, self._rounds.get(session, 0), models=tuple(models))
        metrics = self.gate.inspect(self.silo.evaluate(session, models), request)
        return self.silo.secure.masked_metrics(metrics, *given[:2])

    def _inspected_moments(self) -> ColumnMoments:
        """Return the moments, checked, or those that were told of nearly the same rows before (told.py)."""
        moments = self.gate.inspect(self.silo.moments(), Request("moments"))
        rows, fewest = getattr(self.silo, "_rows", None), self.site.policy.min_examples
        if not isinstance(getattr(rows, "features", None), np.ndarray):
            return moments
        try:
            return self._told.answer(rows.features, moments, fewest)  # type: ignore[union-attr]
        except ValueError as error:
            raise self.gate.refusal("moments", str(error)) from None

    def _count_evaluation(self, num_models: int) -> None:
        """Refuse more models than may be marked; where the owner's book lasts, over all runs."""
        self._num_marked += num_models
        most = self.site.policy.max_evaluations_per_run
        reason = f"{self._num_marked} models in one run; max_evaluations_per_run={most}; {FEWER}"
        self.gate.require(self._num_marked <= most, "metrics", reason)
        if self.site.ledger_folder:
            self.insistence.before_evaluation(self.spec.run, num_models)

    def _require_our_trainer(self, session: str) -> None:
        self.insistence.trained_by(self.silo.sessions.get(session))

    def _register_rows(self) -> None:
        """Show the gate the rows, raw and as the network sees them, so that it knows them when it sees them again."""
        self._run("showing the gate its rows", self._add_rows)

    def _add_rows(self) -> None:
        rows = getattr(self.silo, "_rows", None)
        if rows is not None:
            for name in ("features", "targets", "held_out_features", "held_out_targets"):
                self.gate.row_matcher.add(name, getattr(rows, name))
        samples = getattr(self.silo, "_samples", None)
        for name in ("features", "targets") if samples is not None else ():
            values = getattr(samples, name)
            shown = values.cpu().numpy() if isinstance(values, torch.Tensor) else values
            self.gate.row_matcher.add(f"prepared {name}", shown)
