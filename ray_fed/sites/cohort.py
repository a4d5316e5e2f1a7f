"""SiteCohort: silos behind a hub, at sites that their owners run. The contract, and the bits, are LocalCohort's."""

import logging
import queue
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import wait
from functools import partial
from typing import Any, Protocol

import numpy as np

from ray_fed.config import require
from ray_fed.errors import FedError, SiloFailed
from ray_fed.federation.cohort import RESTORE_SECONDS, Attendance, said_by
from ray_fed.federation.messages import (
    Arrived,
    Artifact,
    Counts,
    Died,
    Evaluations,
    GradientObservation,
    MaskedUpdate,
    Raised,
    Restarted,
    SessionSpec,
    SiloDescription,
    SiloEvent,
    Update,
    Vector,
    answer_size,
)
from ray_fed.federation.rounds.machine import AT_ONCE, StartRules
from ray_fed.federation.task import Task
from ray_fed.learning.standardisation import ColumnMoments, Standardizer
from ray_fed.metrics import Scores
from ray_fed.sites.answers import LedgerCopy, MetricsOfManyForm, SumForm
from ray_fed.sites.asking import Asking, SiteSilo
from ray_fed.sites.hub import Call, Hub, Lost, Outcome
from ray_fed.sites.link import listed
from ray_fed.sites.requests import (
    CloseSessionRequest,
    EndRequest,
    EvaluateManyRequest,
    EvaluateRequest,
    FitRequest,
    FitSumRequest,
    Given,
    InviteRequest,
    JoinRequest,
    LedgerRequest,
    MomentsRequest,
    ObserveRequest,
    OpenRequest,
    OpenSessionRequest,
    PrepareRequest,
    QueryRequest,
    ReceiveModelRequest,
    RestoreRequest,
    SiloRequest,
)
from ray_fed.sites.sums import metrics_in, updates_of_sum
from ray_fed.sites.wire import Encoded, encode, printable

_log = logging.getLogger(__name__)

SITES_WITHIN_SECONDS = 600.0
"""Where no other time is given, all sites are waited for so long; one that has not come, or is away again for so long
while the run begins, is named, and the run does not begin."""
SHARE_ON_THE_WAY = 0.9
"""A hub on the way answers after this share of the time that is waited for it: what is there then still arrives."""
DIED_THERE = "its process, or its site's, was lost behind its hub"
LAST_ANSWER_SECONDS = 600.0
"""A ledger is waited for so long, and that a silo takes the final model: the run is over, and must come to its end."""
CLOSE_SECONDS = 10.0


class TestSet(Protocol):
    """The common test set's evaluator, wherever it is; see `ray_fed.federation.silo.Evaluator`."""

    def open(self) -> dict[str, object]: ...

    def prepare(self, standardizer: Standardizer | None) -> None: ...

    def evaluate(self, models: Mapping[str, Vector]) -> dict[str, Scores]: ...

    def count(self, question: str, *given: Any) -> Counts: ...

    def predict(self, models: Mapping[str, Vector]) -> tuple[np.ndarray, dict[str, np.ndarray]]: ...


class SiteCohort(Attendance, Asking):
    """Fans calls out to silos behind a hub and gathers their answers; see `ray_fed.federation.cohort.Cohort`.

    start: how long `open` waits for sites, and without which silos a run may begin. answer_timeout: seconds after which
    a silo that does not answer a small call counts as failed; None waits for ever. evaluator: of the common test set,
    in this process.
    """

    def __init__(
        self,
        hub: Hub,
        silos: Sequence[SiteSilo],
        task: Task,
        evaluator: TestSet | None = None,
        answer_timeout: float | None = None,
        start: StartRules = AT_ONCE,
    ):
        super().__init__({})
        self.hub, self.task, self.evaluator = hub, task, evaluator
        self.answer_timeout, self.start = answer_timeout, start
        self.away_timeout = start.timeout or SITES_WITHIN_SECONDS
        self.silos = {silo.name: silo for silo in silos}
        require(len(self.silos) == len(silos), f"silos must have different names: {[each.name for each in silos]}")
        for silo in silos:
            require(silo.site in hub.sites, f"silo '{silo.name}': the hub knows no site '{silo.site}'; name it there")
        twice = sorted({silo.site for silo in silos if silo.is_behind_hub} & set(self.silos))
        require(not twice, f"{twice} are hubs on the way, and silos, too; give the silos other names")
        self._sessions: dict[str, Mapping[str, SessionSpec]] = {}
        self._standardizer: Standardizer | None = None
        self._num_told: dict[str, int] = {}
        """Silo -> rows for training that its description had."""
        self._opened: set[str] = set()
        self._lost: set[str] = set()
        """Silos whose process is gone and whose restart was not asked for yet. Written in the hub's thread, too."""
        self._waiting: dict[Call, str] = {}
        """Calls whose answers are events -> the session they belong to."""
        self._arrived: queue.SimpleQueue[tuple[Call | str, Outcome]] = queue.SimpleQueue()
        self._used: Call | None = None
        self._events: deque[SiloEvent] = deque()
        """What came at once, from a hub on the way, and is told one by one."""
        for site in {silo.site for silo in silos}:
            hub.watch(site, partial(self._site_restarted, site))

    # ---- before training

    def open(self) -> dict[str, SiloDescription]:
        self._opened.clear()
        self._wait_for_sites()
        present = self._present()
        self._ask(present, lambda name: InviteRequest(self.silos[name].invitation))
        descriptions = self._ask(present, lambda _: OpenRequest(), self._opened.add)
        self._num_told = {name: description.num_examples for name, description in descriptions.items()}
        self._fingerprint = self.evaluator.open() if self.evaluator else None
        return descriptions

    def _wait_for_sites(self) -> None:
        sites, start = [silo.site for silo in self.silos.values()], self.start
        seconds = start.timeout if start.timeout or start.may_be_late else SITES_WITHIN_SECONDS
        missing = set(self.hub.wait_for(sites, seconds))
        late = {name: silo.site for name, silo in self.silos.items() if silo.site in missing}
        for name in late:
            may_be_late = name in start.may_be_late and not self.silos[name].is_behind_hub
            if not may_be_late or len(self.silos) - len(late) < start.fewest:
                raise _not_there(self.silos[name], seconds)
        self._absent = {name: f"its site '{site}' has not connected yet" for name, site in late.items()}

    def moments(self, silos: Iterable[str]) -> dict[str, ColumnMoments]:
        return self._ask(silos, lambda _: MomentsRequest())

    def prepare(self, standardizer: Standardizer | None) -> None:
        self._standardizer = standardizer
        if self.evaluator:
            self.evaluator.prepare(standardizer)
        self._ask(self._present(), lambda _: PrepareRequest(standardizer))
        for name in self._absent:
            self._invite(name)

    def _invite(self, name: str) -> None:
        """Answered when the silo's site is there. What it is asked after that stands in line behind it."""
        self._send_and_forget(name, InviteRequest(self.silos[name].invitation))
        self._expect(self.silos[name].site, name, JoinRequest(self._standardizer))

    # ---- sessions

    def open_session(self, specs: Mapping[str, SessionSpec]) -> None:
        for spec in specs.values():
            self._sessions[spec.session] = specs
        requests = {name: OpenSessionRequest(spec) for name, spec in specs.items()}
        futures = {name: self._call(name, request) for name, request in requests.items()}
        present = {name: futures[name] for name in self._present() if name in futures}
        for name, future in self._in_turn(present, requests, self.answer_timeout, self.away_timeout):
            try:
                self._value(future, name, requests[name].doing, self.answer_timeout)
            except SiloFailed:
                # A silo that was lost in an earlier job gets one fresh start: it opens its sessions while it restores.
                if name not in self._lost:
                    raise
                self._lost.discard(name)
                self._start_again(name)

    def close_session(self, session: str, silos: Iterable[str]) -> None:
        """Not waited for: a silo may be late or gone, and nothing depends on the answer. Late answers are dropped."""
        late = [call for call, of in self._waiting.items() if of == session]
        self.hub.drop(late)
        for call in late:
            del self._waiting[call]
        self._sessions.pop(session, None)
        for name in silos:
            self._send_and_forget(name, CloseSessionRequest(session))

    # ---- rounds

    def submit(self, session: str, server_round: int, vectors: Mapping[str, Vector]) -> None:
        # Of a lost silo `Died` stands in line, and the rules send it the round again once it is back.
        present = {name: vector for name, vector in vectors.items() if name not in self._lost}
        summed = [name for name in present if self.silos[name].is_behind_hub and self._can_be_summed(session, name)]
        for (site, _), names in _grouped(summed, lambda name: (self.silos[name].site, id(present[name]))):
            vector = present[names[0]]
            most = tuple(self._most_examples(session, name) for name in names)
            request = FitSumRequest(session, server_round, tuple(names), most, vector, self._patience_on_the_way())
            self._expect(site, site, request, session=session)
        single = [name for name in present if name not in set(summed)]
        for _, names in _grouped(single, lambda name: id(present[name])):
            vector, spec = present[names[0]], self._sessions.get(session, {}).get(names[0])
            num_values = answer_size(vector, spec.plan.sums) if spec and spec.plan.sums else 0
            request = FitRequest(session, server_round, vector, num_values)
            message = encode(request)
            for name in names:
                self._expect(self.silos[name].site, name, request, message, session)

    def _most_examples(self, session: str, silo: str) -> int:
        """Return the most rows that an update may claim: a hub on the way cannot take it out of its sum later."""
        spec = self._sessions.get(session, {}).get(silo)
        if spec is None or self.task is None:
            return 0  # no silo answers in a session that was not opened
        public = spec.plan.private.public_examples if spec.plan.private else None
        return self.task.most_examples(max(self._num_told[silo], public or 0), spec.plan)

    def _patience_on_the_way(self) -> float | None:
        return None if self.answer_timeout is None else SHARE_ON_THE_WAY * self.answer_timeout

    def _can_be_summed(self, session: str, silo: str) -> bool:
        """Whether a hub on the way may add up what the silo answers: neither what is under masks, nor answers of
        another length than what was sent."""
        spec = self._sessions.get(session, {}).get(silo)
        return spec is None or not (spec.secure_threshold or spec.plan.sums)

    def sums_updates(self) -> bool:
        return any(silo.is_behind_hub for silo in self.silos.values())

    def next_event(self, timeout: float | None = None) -> SiloEvent | None:
        limit = None if timeout is None else time.monotonic() + timeout
        while self.is_waiting():
            if self._events:
                return self._events.popleft()
            self._release_used()
            try:
                about, outcome = self._arrived.get(
                    timeout=None if limit is None else max(0.0, limit - time.monotonic())
                )
            except queue.Empty:
                return None
            event = self._event(about, outcome)
            if event is not None:
                return event
        return None

    def is_waiting(self) -> bool:
        """Whether an event is still to come."""
        return bool(self._events or self._waiting) or not self._arrived.empty()

    def _release_used(self) -> None:
        if self._used:
            self.hub.release(self._used)
            self._used = None

    def _event(self, about: "Call | str", outcome: Outcome) -> SiloEvent | None:
        """Turn what came back into an event; None where nobody waits for it any more."""
        if isinstance(about, str):
            assert isinstance(outcome, Lost)
            return self._died(about, outcome.reason)
        self._used = about
        if self._waiting.pop(about, None) is None:
            return None
        name, request = about.silo, about.request
        if isinstance(request, JoinRequest):
            return self._come(name, outcome)
        if isinstance(request, RestoreRequest):
            return self._restored(name, outcome)
        if isinstance(request, FitSumRequest):
            self._events += self._events_of_sum(request, outcome)
            return self._events.popleft() if self._events else None
        assert isinstance(request, FitRequest)
        if isinstance(outcome, Lost):
            return None  # the note of the loss stands in line, too
        if isinstance(outcome, FedError):
            return Raised(name, request.server_round, said_by(outcome))
        assert isinstance(outcome, Update | MaskedUpdate)
        try:
            return Arrived(name, request.server_round, outcome.unpacked(request.vector))
        except ValueError as error:
            return Raised(name, request.server_round, said_by(error))

    def _events_of_sum(self, request: FitSumRequest, outcome: Outcome) -> list[SiloEvent]:
        """Turn what a hub on the way sent into an event for each of its silos."""
        if isinstance(outcome, Lost):
            return []
        try:
            if isinstance(outcome, FedError):
                raise outcome
            assert isinstance(outcome, SumForm)
            updates = updates_of_sum(outcome, request)
        except FedError as error:
            return [Raised(name, request.server_round, said_by(error)) for name in request.silos]
        for name in outcome.lost:
            self._note_loss(name, DIED_THERE)
        failed = sorted(outcome.failures.items())
        return [
            *(Arrived(update.silo, request.server_round, update) for update in updates),
            *(Raised(name, request.server_round, printable(reason)) for name, reason in failed),
        ]

    def _died(self, name: str, reason: str) -> SiloEvent | None:
        """A silo is gone, with all it was asked for, unless it was started again meanwhile."""
        if name not in self._lost:
            return None
        gone = [call for call, session in self._waiting.items() if call.silo == name and session]
        self.hub.drop(gone)
        for call in gone:
            del self._waiting[call]
        return Died(name, reason)

    def _note_loss(self, name: str, reason: str) -> None:
        """Put the loss of a silo in line, once; in any thread."""
        if name in self._opened and name not in self._lost:
            self._lost.add(name)
            self._arrived.put((name, Lost(reason)))

    def _restored(self, name: str, outcome: Outcome) -> SiloEvent:
        if isinstance(outcome, Lost | FedError):
            said = outcome.reason if isinstance(outcome, Lost) else said_by(outcome)
            return Died(name, f"it could not be started again: {said}")
        return Restarted(name)

    def _come(self, name: str, outcome: Outcome) -> SiloEvent:
        """A silo that was absent is there, or cannot join."""
        if isinstance(outcome, Lost):
            return Died(name, f"it could not be started again: {outcome.reason}")
        if isinstance(outcome, FedError):
            return self._refuse_join(name, said_by(outcome))
        assert isinstance(outcome, SiloDescription)
        event = self._joined(outcome)
        if isinstance(event, Restarted):
            self._opened.add(name)
        return event

    def _dismiss(self, name: str) -> None:
        self._send_and_forget(name, EndRequest())

    def _site_restarted(self, site: str, reason: str, invited: frozenset[str]) -> None:
        """In the hub's thread."""
        for name, silo in self.silos.items():
            if silo.site == site and name not in invited:
                self._note_loss(name, reason)

    def restart(self, silo: str) -> None:
        """Invite the silo again: its site makes a new host, which catches up."""
        self._lost.discard(silo)
        if silo in self._absent:
            self._invite(silo)
            for spec in self._specs_of(silo):
                self._send_and_forget(silo, OpenSessionRequest(spec))
            return
        self._send_and_forget(silo, InviteRequest(self.silos[silo].invitation))
        self._expect(self.silos[silo].site, silo, RestoreRequest(self._standardizer, self._specs_of(silo)))

    def _start_again(self, name: str) -> None:
        self._send_and_forget(name, InviteRequest(self.silos[name].invitation))
        seconds = self.answer_timeout and self.answer_timeout + RESTORE_SECONDS
        self._answer_of(name, RestoreRequest(self._standardizer, self._specs_of(name)), seconds)

    def _specs_of(self, silo: str) -> tuple[SessionSpec, ...]:
        return tuple(specs[silo] for specs in self._sessions.values() if silo in specs)

    # ---- other questions

    def evaluate(self, session: str, silos: Iterable[str], models: Mapping[str, Vector]) -> Evaluations:
        """A silo that is lost now raised; the rules hear of it when it is asked next."""
        names, vectors, asked = tuple(models), tuple(models.values()), list(silos)
        groups = {
            site: EvaluateManyRequest(session, tuple(group), names, vectors, self._patience_on_the_way())
            for site, group in _grouped(asked, lambda name: self.silos[name].site if self._is_behind_hub(name) else "")
            if site
        }
        single = EvaluateRequest(session, names, vectors)
        alone = {name: single for name in asked if not self._is_behind_hub(name)}
        told = self._answers_of(groups | alone, lambda name, error: Raised(name, 0, said_by(error)))
        found = {name: told[name] for name in alone}
        for site, request in groups.items():
            found |= self._metrics_of_many(request.silos, told[site])
        return {name: found[name] for name in asked if name in found}

    def _is_behind_hub(self, silo: str) -> bool:
        return self.silos[silo].is_behind_hub

    def _metrics_of_many(self, silos: Sequence[str], told: "MetricsOfManyForm | Raised") -> dict[str, Any]:
        """Return silo -> metrics, or what it raised instead, from what a hub on the way told of these silos."""
        if isinstance(told, Raised):
            return {name: Raised(name, 0, told.reason) for name in silos}
        for name in set(told.lost) & set(silos):
            self._note_loss(name, DIED_THERE)
        found = {name: metrics_in(told.metrics[name], name) for name in silos if name in told.metrics}
        why = dict.fromkeys(silos, "its hub told nothing of it") | dict.fromkeys(told.lost, DIED_THERE) | told.failures
        return {name: found.get(name) or Raised(name, 0, printable(why[name])) for name in silos}

    def query(self, query: str, given: Mapping[str, tuple]) -> "dict[str, Artifact | Raised]":
        asked = {name: QueryRequest(query, tuple(map(Given.of, parts))) for name, parts in given.items()}
        return self._answers_of(asked, lambda name, error: Raised(name, 0, said_by(error)))

    def count(self, question: str, given: Mapping[str, tuple]) -> "dict[str, Counts | Raised]":
        requests = {id(parts): QueryRequest(question, tuple(map(Given.of, parts))) for parts in given.values()}
        asked = {name: requests[id(parts)] for name, parts in given.items()}
        return self._answers_of(asked, lambda name, error: Raised(name, 0, said_by(error)))

    def count_test(self, question: str, given: tuple) -> Counts | None:
        return self.evaluator.count(question, *given) if self.evaluator else None

    def observe(self, silo: str, vector: Vector, num_examples: int) -> GradientObservation:
        """Return one gradient for an audit; PerimeterRefused unless the silo's owner allows it."""
        return self._ask([silo], lambda _: ObserveRequest(vector, num_examples))[silo]

    def close(self) -> None:
        """Let the sites end the silos' hosts: after the run nothing of it is held there."""
        there = [name for name in self.silos if self.hub.is_connected(self.silos[name].site)]
        futures = {name: self._call(name, EndRequest()) for name in there}
        wait(futures.values(), CLOSE_SECONDS)
        if late := [name for name, future in futures.items() if not future.done()]:
            said = "have not said within %.0f s that they ended; their sites end them when another run begins"
            _log.warning(f"the silos %s {said}", listed(late), CLOSE_SECONDS)

    def collect_ledger(self, silo: str) -> tuple[bytes, str, str] | None:
        """Return (ledger, head, public key) of a silo; None where its owner keeps it."""
        copy: LedgerCopy | None = self._answer_of(silo, LedgerRequest(), LAST_ANSWER_SECONDS)
        return (copy.lines.tobytes(), copy.head, copy.public_key) if copy else None

    def receive_model(self, silo: str, weights: np.ndarray, card: np.ndarray) -> None:
        """Hand a final model to a silo; PerimeterRefused where its owner takes none."""
        self._answer_of(silo, ReceiveModelRequest(weights, card), LAST_ANSWER_SECONDS)

    def evaluate_test(self, models: Mapping[str, Vector]) -> dict[str, Scores] | None:
        return self.evaluator.evaluate(models) if self.evaluator else None

    def predict_test(self, models: Mapping[str, Vector]) -> tuple[np.ndarray, dict[str, np.ndarray]] | None:
        return self.evaluator.predict(models) if self.evaluator else None

    # ---- calls

    def _expect(
        self, site: str, name: str, request: SiloRequest, message: Encoded | None = None, session: str = ""
    ) -> None:
        """Make a call whose answer is an event."""
        is_awaited = not isinstance(request, FitRequest | FitSumRequest)
        call = self.hub.ask(site, name, request, self._put, message, is_awaited)
        self._waiting[call] = session

    def _put(self, call: Call, outcome: Outcome) -> None:
        """In the hub's thread."""
        if isinstance(outcome, Lost) and isinstance(call.request, FitRequest | FitSumRequest):
            for silo in getattr(call.request, "silos", (call.silo,)):
                self._note_loss(silo, outcome.reason)
        elif isinstance(outcome, Lost):
            self._lost.add(call.silo)  # the answer itself says so
        self._arrived.put((call, outcome))


def _grouped(names: Iterable[str], key: Callable[[str], Any]) -> list[tuple[Any, list[str]]]:
    """Return (key, names) for each key, in the order in which they come."""
    groups: dict[Any, list[str]] = {}
    for name in names:
        groups.setdefault(key(name), []).append(name)
    return list(groups.items())


def _not_there(silo: SiteSilo, seconds: float) -> SiloFailed:
    missing = f"its site '{silo.site}' has not connected within {seconds:g} s; its owner starts it with "
    reason = missing + (
        "`ray-fed site relay`; silos behind a hub cannot come late" if silo.is_behind_hub else "`ray-fed site start`"
    )
    return SiloFailed(silo.name, "joining the federation", reason)
