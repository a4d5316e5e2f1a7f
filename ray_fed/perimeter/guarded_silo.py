"""A silo behind its boundary: the same calls as `Silo`, but every answer, and every error, goes through the gate.

A further kind of message is an entry in checks.py: `query` releases it if it answers queries. What is asked for in any
other way has a method here.
"""

import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from ray_fed.errors import DataError, Trouble
from ray_fed.federation.messages import (
    COUNT,
    Counts,
    GradientObservation,
    MaskedUpdate,
    Metrics,
    SessionSpec,
    SiloDescription,
    Update,
    Vector,
)
from ray_fed.federation.secure_client import MASKED_COUNTS, MASKED_METRICS, MASKED_MOMENTS
from ray_fed.federation.silo import Silo, counts_asked, models_asked, names_asked
from ray_fed.federation.task import SiloSpec
from ray_fed.learning.layout import load_vector
from ray_fed.learning.standardisation import ColumnMoments, Standardizer
from ray_fed.perimeter.book import Book
from ray_fed.perimeter.boundary import EgressBlock, EgressBoundary
from ray_fed.perimeter.checks import (
    ANOTHER,
    KINDS,
    LICENCES,
    kind_of_answer,
    largest,
    measure,
    num_models,
    require_audit,
    require_countable,
)
from ray_fed.perimeter.error_policy import place_of_words
from ray_fed.perimeter.gate import Request
from ray_fed.perimeter.insistence import FEWER, Insistence
from ray_fed.perimeter.policy import COORDINATOR, Site
from ray_fed.perimeter.received_model import keep_model
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
        site_file: Path | None = None,
        site: Site | None = None,
    ):
        super().__init__(spec, KINDS, block, redirects_output, site_file, site)
        self._rounds: dict[str, int] = {}
        self._num_told = 0
        """Rows for training that its description had."""
        self._most_examples: dict[str, int] = {}
        """Session -> most rows that an update of it may claim."""
        self._sums: dict[str, int] = {}
        """Session -> most values of an answer, of one whose answers are sums."""
        folder = self.site.ledger_folder
        book = Book(Path(folder) if folder else None)
        self.insistence = Insistence(self.site, self.gate, book, spec.dataset, spec.run)
        if book.lasts:
            self.gate.take_bytes = self.insistence.before_bytes
        self._told = ToldMoments(folder_of_told(folder, spec.dataset) if folder else None)
        self._num_marked = 0
        self._build(lambda: self._install(make()))

    def _install(self, silo: Silo) -> None:
        partners = {name: key for name, key in self.site.partners.items() if name != COORDINATOR}
        silo.secure.sign_with(self._key or SigningKey.passing(), partners)
        silo.resolution = self.site.policy.resolution
        self.silo = silo

    # ---- the calls of `Silo`

    def open(self) -> SiloDescription:
        doing = "opening its data"
        opened = self._opened(doing, lambda: self.silo.open())
        self._write_notes(doing)
        return self._release(doing, *opened)

    def moments(self) -> ColumnMoments:
        doing, request = "computing moments", Request("moments")
        self._check(doing, lambda: self.insistence.before_clear("moments"), request)
        return self._release(doing, self._inspected_moments(doing), request)

    def prepare(self, standardizer: Standardizer | None) -> None:
        self._run("standardising", lambda: self.silo.prepare(standardizer))
        self._run("showing the gate its rows", self._add_rows)

    def open_session(self, spec: SessionSpec) -> str:
        """PerimeterRefused when its updates would leave otherwise than the owner wants (insistence.py), or the planned
        ones would break the budget of the run."""
        doing = "opening a session"
        self._check(doing, lambda: self.insistence.open(spec))
        digest, num_bytes, trainer = self._run(doing, lambda: self._open_session(spec))
        self._check(doing, lambda: self.insistence.trained_by(trainer))
        self._rounds[spec.session] = 0
        self._check(doing, lambda: self._check_session(spec, digest, num_bytes))
        self._bound_examples(doing, spec)
        return spec.layout_digest

    def restore(self, standardizer: Standardizer | None, sessions: Sequence[SessionSpec]) -> None:
        doing = "starting again"
        for spec in sessions:
            self._check(doing, lambda spec=spec: self.insistence.open(spec))
        said, request = self._opened(doing, lambda: self.silo.restore(standardizer, sessions))
        for spec in sessions:
            trainer = self._run(doing, lambda spec=spec: self._trainer_of(spec.session))
            self._check(doing, lambda trainer=trainer: self.insistence.trained_by(trainer))
            self._bound_examples(doing, spec)
        self._rounds |= {spec.session: 0 for spec in sessions}
        # It does not leave once more, but what it declares counts for this process, too.
        self._check(doing, lambda: self.gate.inspect(said, request))

    def close_session(self, session: str) -> None:
        self._run("closing a session", lambda: self.silo.close_session(session))
        self._rounds.pop(session, None)
        self._most_examples.pop(session, None)
        self._sums.pop(session, None)
        self.insistence.priced.pop(session, None)
        if self._ledger:
            self._ledger.sign()

    def fit(self, session: str, server_round: int, vector: Vector) -> Update | MaskedUpdate:
        doing = f"training round {server_round}"
        if session in self.insistence.priced:
            self._check(doing, lambda: self.insistence.before_fit(session, server_round))
        update = self._run(doing, lambda: self.silo.fit(session, server_round, vector))
        self._rounds[session] = server_round
        most, sums = self._most_examples.get(session), self._sums.get(session, 0)
        request = Request("update", session, server_round, vector, most, sums=sums)
        if session not in self.insistence.masked:
            return self._release(doing, update, request)
        inspected = self._check(doing, lambda: self.gate.inspect(update, replace(request, gets_masks=True)), request)
        masked = self._run(doing, lambda: self.silo.secure.masked(inspected, vector))
        return self._release(doing, masked, replace(request, kind="masked"))

    def leaving(self, update: Update | MaskedUpdate, received: Vector) -> Update | MaskedUpdate:  # noqa: ARG002
        """Return what `fit` returned: it has left already."""
        return update

    def evaluate(self, session: str, models: Mapping[str, Vector]) -> dict[str, Metrics]:
        request = Request("metrics", session, self._rounds.get(session, 0), models=tuple(models))
        if self.site.policy.masks == "required":
            self._check("evaluating", lambda: self.insistence.before_clear("metrics"), request)
        self._check("evaluating", lambda: self._count_evaluation(len(models)), request)
        return self._run_and_release("evaluating", lambda: self.silo.evaluate(session, models), request)

    def query(self, query: str, *given: Any) -> Any:
        """Put one of the further questions to the silo (`Silo.queries`)."""
        doing = f"answering '{query}'"
        if query.startswith(COUNT):
            return self._counted(doing, query, given)
        names = self._check(doing, lambda: names_asked(query, given))
        if names:
            return self._metrics_of(doing, query, names, given)
        self._check(doing, lambda: self.insistence.before_answer("artifact", query))
        answer = self._answer(doing, query, given)
        # Nothing was received that its size could be measured by: max_bytes_per_round and _per_run bound it.
        return self._release(doing, answer, Request(kind_of_answer(answer), query, vector=measure(answer)))

    def observe(self, vector: Vector, num_examples: int) -> GradientObservation:
        """Return the gradient over the silo's first rows at `vector`, for attacks on it elsewhere; PerimeterRefused
        unless the owner says `audit: true`."""
        doing, request = "showing a gradient", Request("observation", vector=vector)
        self._check(doing, lambda: require_audit(self.gate), request)
        self._check(doing, lambda: self.insistence.before_answer("observation", ""), request)
        return self._run_and_release(doing, lambda: self._gradient(vector, num_examples), request)

    def receive_model(self, weights: np.ndarray, card: np.ndarray) -> None:
        """Keep the final model of a run as a file of the owner's, who says where (`receive_models`); PerimeterRefused
        where the owner takes none."""
        if self._startup_error is not None:
            raise self._startup_error
        self._check("taking the final model", lambda: self._keep_model(weights, card))

    # ---- what the calls are made of

    def _metrics_of(self, doing: str, query: str, names: tuple[str, ...], given: Sequence[Any]) -> dict[str, Metrics]:
        """Return metrics of the names asked for, each counted like a model; what the silo has to say of single rows is
        written into its owner's log."""
        request = Request("metrics", query, models=names)
        self._check(doing, lambda: self.insistence.before_answer("metrics", query), request)
        self._check(doing, lambda: self._count_evaluation(len(names)), request)
        answer = self._run(doing, lambda: self.silo.query(query, *given))
        self._write_notes(doing)
        return self._release(doing, answer, request)

    def _write_notes(self, doing: str) -> None:
        """Write what the silo has to say of single rows into its owner's log, the only place for it."""
        for note in self._run(doing, lambda: self.silo.notes_for_owner()):
            self.log.note(str(note))

    def _keep_model(self, weights: np.ndarray, card: np.ndarray) -> None:
        folder = self.site.model_folder
        self.gate.require(folder is not None, "model", "its owner takes no models")
        assert folder is not None
        keep_model(folder, weights, card)

    def _gradient(self, vector: Vector, num_examples: int) -> GradientObservation:
        """Return the gradient of the task's loss over the silo's first rows, at parameters [num_parameters]."""
        silo, samples = self.silo, self.silo.samples
        num_examples = max(1, min(num_examples, len(samples.features)))
        network = load_vector(silo.task.model(0), vector)
        loss = silo.task.loss(network(samples.features[:num_examples]), samples.targets[:num_examples])
        parts = torch.autograd.grad(loss, list(network.parameters()))
        gradient = torch.cat([part.reshape(-1) for part in parts])
        return GradientObservation(silo.spec.name, num_examples, gradient.cpu().numpy())

    def _open_session(self, spec: SessionSpec) -> tuple[str, int, str]:
        """Return what the silo answers, the bytes of all updates, and the module of what trains."""
        digest = self.silo.open_session(spec)
        trainer = self.silo.sessions.get(spec.session)
        plan = spec.plan
        trained = 0 if trainer is None else plan.num_rounds * trainer.layout.size
        return digest, 4 * (plan.all_sums if plan.sums else trained), self._trainer_of(spec.session)

    def _trainer_of(self, session: str) -> str:
        """Return the module of the class that trains in a session; "" where nothing does."""
        trainer = self.silo.sessions.get(session)
        return "" if trainer is None else str(type(trainer).__module__)

    def _bound_examples(self, doing: str, spec: SessionSpec) -> None:
        """Note how many rows an update of a session may claim: under masks, nobody but this gate sees how many it
        does."""
        private = spec.plan.private
        told = max(self._num_told, private.public_examples or 0 if private else 0)
        most = self._run(doing, lambda: self.silo.task.most_examples(told, spec.plan))
        self._check(doing, lambda: self.gate.require(type(most) is int, "session", "its task bounds no rows"))
        self._most_examples[spec.session], self._sums[spec.session] = most, spec.plan.sums

    def _check_session(self, spec: SessionSpec, digest: object, num_bytes: object) -> None:
        """The answer is what the coordinator sent, or none."""
        agrees = type(digest) is str and digest == spec.layout_digest and type(num_bytes) is int
        self.gate.require(agrees, "layout", "it is not the digest of the layout agreed on")
        self.gate.check_plan(spec.session, spec.plan.num_rounds, cast(int, num_bytes))

    def _answer(self, doing: str, query: str, given: Sequence[Any]) -> Any:
        """Return the silo's answer. What leaves under masks is checked before, as it would be in clear."""
        if query == MASKED_MOMENTS:
            moments = self._inspected_moments(doing)
            return self._run(doing, lambda: self.silo.secure.masked_moments(moments, *given))
        if query == MASKED_METRICS:
            metrics = self._inspected_metrics(doing, given)
            return self._run(doing, lambda: self.silo.secure.masked_metrics(metrics, *given[:2]))
        if query == MASKED_COUNTS:
            counted = self._inspected_counts(doing, given)
            return self._run(doing, lambda: self.silo.secure.masked_counts(counted, *given[:2]))
        return self._run(doing, lambda: self.silo.query(query, *given))

    def _counted(self, doing: str, question: str, given: Sequence[Any]) -> Counts:
        """Return counts of rows, in clear."""
        self._check(doing, lambda: self.insistence.before_answer("counts", question))
        self._check(doing, lambda: self._before_counts(question, given))
        request = Request("counts", question, vector=largest(given))
        return self._run_and_release(doing, lambda: self.silo.query(question, *given), request)

    def _before_counts(self, question: str, given: Sequence[Any]) -> None:
        """Refuse a question that the owner does not answer, or not without noise; each model in it is marked."""
        require_countable(self.gate, question)
        self.insistence.before_counts()
        self._count_evaluation(num_models(given))

    def _inspected_counts(self, doing: str, given: Sequence[Any]) -> Counts:
        question, *more = self._run(doing, lambda: counts_asked(tuple(given)))
        self._check(doing, lambda: self._before_counts(question, more))
        found = self._run(doing, lambda: self.silo.count(question, *more))
        return self._check(doing, lambda: self.gate.inspect(found, Request("counts", question)))

    def _inspected_metrics(self, doing: str, given: Sequence[Any]) -> dict[str, Metrics]:
        session, models = models_asked(tuple(given))
        request = Request("metrics", session, self._rounds.get(session, 0), models=tuple(models))
        self._check(doing, lambda: self._count_evaluation(len(models)), request)
        found = self._run(doing, lambda: self.silo.evaluate(session, models))
        return self._check(doing, lambda: self.gate.inspect(found, request), request)

    def _inspected_moments(self, doing: str) -> ColumnMoments:
        """Return the moments, checked, or those that were told of nearly the same rows before (told.py)."""
        request, found = Request("moments"), self._run(doing, lambda: self.silo.moments())
        moments = self._check(doing, lambda: self.gate.inspect(found, request), request)
        columns = self._run(doing, self._columns_of_moments)
        if type(columns) is not np.ndarray:
            return moments
        return self._check(doing, lambda: self._told_before(columns, moments), request)

    def _columns_of_moments(self) -> object:
        """Return what the moments are of, None where the silo has no rows of its own."""
        return None if getattr(self.silo, "_rows", None) is None else self.silo.moment_columns()

    def _told_before(self, columns: np.ndarray, moments: ColumnMoments) -> ColumnMoments:
        try:
            return self._told.answer(columns, moments, self.site.policy.min_examples)  # type: ignore[union-attr]
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

    def _opened(self, doing: str, call: Callable[[], SiloDescription]) -> tuple[SiloDescription, Request]:
        """Let the silo open its data, and the gate know the rows; return the description as plain data, and what the
        gate must hold it against."""
        # Asked before there are rows, so that none can be in it.
        expected, metrics = self._run(doing, self._declared)
        request = Request("description", agreement=expected, metrics=metrics)
        said = self._run(doing, call)
        self._run(doing, self._add_rows)
        if type(said) is not SiloDescription:
            return said, request  # the gate refuses it
        said = self._with_enough_rows(doing, said)
        self._num_told = said.num_examples
        fingerprint = self._keyed(said.fingerprint)
        return replace(said, agreement=self._compared(said.agreement, expected), fingerprint=fingerprint), request

    def _keyed(self, fingerprint: Any) -> Any:
        """Return a fingerprint whose hashes nobody else can compute, where the owner's key lasts: who knows all rows
        but one value could try values until the hash is the one told. In all runs of the owner's they are the same."""
        key = self._key
        if key is None or not self.site.ledger_folder or type(fingerprint) is not dict:
            return fingerprint
        hashed = {name: value for name, value in fingerprint.items() if type(value) is str and value not in LICENCES}
        return {**fingerprint, **{name: _keyed_hash(key, value) for name, value in hashed.items()}}

    def _declared(self) -> tuple[dict[str, str], tuple[str, ...]]:
        """Return what the task wants all to agree on, and the names of its metrics."""
        agreement = {str(key): str(text) for key, text in self.silo.task.agreement().items()}
        return agreement, tuple(str(metric.name) for metric in self.silo.task.metrics)

    def _with_enough_rows(self, doing: str, said: SiloDescription) -> SiloDescription:
        """Return the description; of too few rows, where the task has a place for such a silo, one of none. A source
        with one row that fits a question and one with none must look the same."""
        counts = (said.num_examples, said.num_held_out)
        is_enough = any(type(count) is not int for count in counts) or sum(counts) >= self.site.policy.min_examples
        if is_enough or not self._run(doing, lambda: bool(self.silo.task.knows_rows)):
            return said
        if not self._run(doing, lambda: bool(self.silo.task.may_be_empty)):
            error = DataError(f"{counts} rows for training and evaluation", failure=Trouble.TOO_FEW_ROWS)
            raise self._error_for_coordinator(doing, error)
        self.log.note(f"{counts} rows for training and evaluation: fewer than min_examples, so it is said to have none")
        return replace(said, num_examples=0, num_held_out=0, unreadable={}, notes={}, fingerprint={})

    def _compared(self, agreement: Any, expected: Mapping[str, str]) -> Any:
        """Return what all must agree on, each text only where it is the one that the task wants: others may be names of
        the owner's, and stay in the log."""
        if type(agreement) is not dict:
            return agreement
        return {key: text if text == expected.get(key) else self._another(key, text) for key, text in agreement.items()}

    def _another(self, key: Any, text: Any) -> str:
        return ANOTHER + place_of_words(self.spec.name, self.log.note(f"{key}: {text}"))

    def _add_rows(self) -> None:
        """Show the gate the rows, raw and as the network sees them, so that it knows them when it sees them again."""
        rows = getattr(self.silo, "_rows", None)
        if rows is not None:
            for name in ("features", "targets", "held_out_features", "held_out_targets"):
                self._add(name, getattr(rows, name))
            for name in ("calibration_features", "calibration_targets"):
                self._add(name, getattr(rows, name, np.empty(0)))
        samples = getattr(self.silo, "_samples", None)
        for name in ("features", "targets") if samples is not None else ():
            self._add(f"prepared {name}", getattr(samples, name))

    def _add(self, name: str, values: Any) -> None:
        """Show the gate an array, a tensor, or the arrays of what is neither (graphs)."""
        if isinstance(values, torch.Tensor):
            values = values.cpu().numpy()
        parts = values.arrays() if hasattr(values, "arrays") else {"": values}
        for part, array in parts.items():
            self.gate.row_matcher.add(f"{name} {part}".strip(), array)


def _keyed_hash(key: SigningKey, text: str) -> str:
    """Return a hash that needs the private key; Ed25519 signs a text in one way only (RFC 8032)."""
    return hashlib.sha256(key.sign(f"fingerprint {text}".encode()).encode()).hexdigest()
