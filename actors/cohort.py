"""RayCohort: silos that are actors. The same contract, and the same bits, as ray_fed's LocalCohort."""

import os
import queue
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError, RayError, RayTaskError

from actors.placement import actor_options
from actors.same_package import REMEDY
from actors.session import INLINE_VARIABLE, RAYS_INLINE_BYTES
from actors.silo import Handle, SiloActor
from actors.user_code import travelling
from ray_fed.errors import FedError, PlacementError, SiloFailed
from ray_fed.federation.cohort import RESTORE_SECONDS, Attendance, said_by
from ray_fed.federation.messages import (
    Arrived,
    Artifact,
    Counts,
    Died,
    Evaluations,
    Raised,
    Restarted,
    SessionSpec,
    SiloDescription,
    SiloEvent,
    Vector,
)
from ray_fed.federation.task import SiloSpec, Task
from ray_fed.learning.standardisation import ColumnMoments, Standardizer
from ray_fed.metrics import Scores

Value = TypeVar("Value")

COLLECT_SECONDS = 60.0
IMPORT_ERROR = re.compile(r"(?:ModuleNotFoundError|ImportError|SyntaxError|AttributeError): .+")
INSTALL = "install what is missing there"
DEATH = "its process died (killed, out of memory or crashed)"


@dataclass(frozen=True)
class PendingCall:
    """What an open reference was asked for."""

    silo: str
    server_round: int
    session: str = ""
    is_restore: bool = False
    is_joining: bool = False
    """Of a silo that was absent when the others agreed."""
    vector: Vector | None = None
    """What the silo was sent to train from."""


class RayCohort(Attendance):
    """Fans calls out to silo actors and gathers their answers; see `ray_fed.federation.cohort.Cohort`."""

    def __init__(
        self,
        silos: Mapping[str, Handle],
        evaluator: Handle | None = None,
        specs: Sequence[SiloSpec] = (),
        task: Task | None = None,
        answer_timeout: float | None = None,
        absent: Iterable[str] = (),
    ):
        """absent: silos whose actors wait for a machine at their site; they join when it appears."""
        self.silos, self.evaluator = dict(silos), evaluator
        self.answer_timeout = answer_timeout
        """Seconds after which a silo that does not answer a small call counts as failed; None waits for ever."""
        self._specs, self.task = {spec.name: spec for spec in specs}, task
        self._pending: dict[Any, PendingCall] = {}
        self._arrived: queue.SimpleQueue[tuple[ray.ObjectRef, Future]] = queue.SimpleQueue()
        self._sessions: dict[str, Mapping[str, SessionSpec]] = {}
        super().__init__({name: f"no machine at its site '{self._specs[name].site}' yet" for name in absent})

    def open(self) -> dict[str, SiloDescription]:
        evaluator = self.evaluator.open.remote() if self.evaluator else None
        descriptions = self._ask(self._present(), "opening its data", lambda silo, _: silo.open.remote())
        self._fingerprint = value_of(evaluator, "test", "opening the test set") if evaluator else None
        return descriptions

    def moments(self, silos: Iterable[str]) -> dict[str, ColumnMoments]:
        return self._ask(silos, "computing moments", lambda silo, _: silo.moments.remote())

    def prepare(self, standardizer: Standardizer | None) -> None:
        self._standardizer = standardizer
        evaluator = self.evaluator.prepare.remote(standardizer) if self.evaluator else None
        self._ask(self._present(), "standardising", lambda silo, _: silo.prepare.remote(standardizer))
        if evaluator:
            value_of(evaluator, "test", "standardising")
        for name in self._absent:
            self._invite(name)

    def _invite(self, name: str) -> None:
        """Arrived when Ray has found the silo a place. What it is asked after that stands in line behind it."""
        self._expect(self.silos[name].join.remote(self._standardizer), PendingCall(name, 0, is_joining=True))

    def _expect(self, ref: "ray.ObjectRef", call: PendingCall) -> None:
        """Hear of the answer when it is here, whatever other answers do.

        `ray.wait` settles on the first answers that are ready anywhere and waits until those have come: one that its
        silo finished and then could not send, because its network is gone, would hold up those of all others.
        """
        self._pending[ref] = call
        ref.future().add_done_callback(lambda future: self._arrived.put((ref, future)))

    def open_session(self, specs: Mapping[str, SessionSpec]) -> None:
        for spec in specs.values():
            self._sessions[spec.session] = specs
        refs = {name: self.silos[name].open_session.remote(spec) for name, spec in specs.items()}
        for name in self._present():
            ref = refs.get(name)
            if ref is None:
                continue
            try:
                value_of(ref, name, "opening a session", self.answer_timeout)
            except SiloFailed:
                # A silo that was lost in an earlier job gets one fresh start: it opens its sessions while it restores.
                if name not in self._specs:
                    raise
                self.restart(name)
                self._wait_for_restore(name)

    def _wait_for_restore(self, name: str) -> None:
        ref = next(ref for ref, call in self._pending.items() if call.silo == name and call.is_restore)
        del self._pending[ref]
        value_of(ref, name, "starting again", self.answer_timeout and self.answer_timeout + RESTORE_SECONDS)

    def close_session(self, session: str, silos: Iterable[str]) -> None:
        """Not waited for: a silo may be late or dead, and nothing depends on the answer. Late answers are dropped."""
        self._pending = {ref: asked for ref, asked in self._pending.items() if asked.session != session}
        self._sessions.pop(session, None)
        for name in silos:
            self.silos[name].close_session.remote(session)

    def submit(self, session: str, server_round: int, vectors: Mapping[str, Vector]) -> None:
        put = _put_once(vectors.values())
        for name, vector in vectors.items():
            ref = self.silos[name].fit.remote(session, server_round, put[id(vector)])
            self._expect(ref, PendingCall(name, server_round, session, vector=vector))

    def next_event(self, timeout: float | None = None) -> SiloEvent | None:
        limit = None if timeout is None else time.monotonic() + timeout
        while self._pending:
            try:
                ref, future = self._arrived.get(timeout=None if limit is None else max(0.0, limit - time.monotonic()))
            except queue.Empty:
                return None
            call = self._pending.pop(ref, None)  # nobody waits for those of a closed session any more
            if call:
                return self._read(future, call)
        return None

    def sums_updates(self) -> bool:
        return False

    def is_waiting(self) -> bool:
        return bool(self._pending)

    def _read(self, future: Future, call: "PendingCall") -> SiloEvent:
        """Turn what came back into an answer; a dead process takes its other open calls with it."""
        name = call.silo
        try:
            value = future.result()
        except RayTaskError as error:
            if call.is_restore:
                return Died(name, f"it could not be started again: {said_by(error.cause)}")
            if call.is_joining:
                return self._refuse_join(name, said_by(error.cause))
            return Raised(name, call.server_round, said_by(error.cause))
        except RayActorError as error:
            self._pending = {other: asked for other, asked in self._pending.items() if asked.silo != name}
            return Died(name, str(_creation_error(error) or DEATH))
        except ObjectLostError:
            # A large answer stays in its node's store until fetched; the next call tells whether more is gone.
            return self._lost(call, "its answer was lost with its node, before it was fetched")
        except RayError as error:
            return self._lost(call, f"its answer cannot be read ({type(error).__name__})")
        if call.is_restore:
            return Restarted(name)
        if call.is_joining:
            return self._joined(value)
        assert call.vector is not None
        try:
            return Arrived(name, call.server_round, value.unpacked(call.vector))
        except ValueError as error:
            return Raised(name, call.server_round, said_by(error))

    def _dismiss(self, name: str) -> None:
        ray.kill(self.silos[name])

    @staticmethod
    def _lost(call: "PendingCall", reason: str) -> SiloEvent:
        if call.is_restore or call.is_joining:
            return Died(call.silo, f"it could not be started again: {reason}")
        return Raised(call.silo, call.server_round, reason)

    def restart(self, silo: str) -> None:
        """Start a new actor from the silo's specification, on the same site, and let it catch up."""
        ray.kill(self.silos[silo])
        spec = self._specs[silo]
        self.silos[silo] = SiloActor.options(**actor_options(spec)).remote(spec, travelling(self.task))
        sessions = [silos[silo] for silos in self._sessions.values() if silo in silos]
        if silo in self._absent:
            self._invite(silo)
            for session in sessions:
                self.silos[silo].open_session.remote(session)
            return
        ref = self.silos[silo].restore.remote(self._standardizer, sessions)
        self._expect(ref, PendingCall(silo, 0, is_restore=True))

    def evaluate(self, session: str, silos: Iterable[str], models: Mapping[str, Vector]) -> Evaluations:
        """Raised of a silo that dies or does not answer now; the rules hear of a death when it is asked next."""
        put = _put_once(models.values())
        vectors = [put[id(vector)] for vector in models.values()]
        refs = {name: self.silos[name].evaluate.remote(session, tuple(models), *vectors) for name in silos}
        return {name: self._evaluated(name, ref) for name, ref in refs.items()}

    def _evaluated(self, name: str, ref: "ray.ObjectRef[Value]") -> "Value | Raised":
        try:
            return ray.get(ref, timeout=self.answer_timeout)
        except RayTaskError as error:
            return Raised(name, 0, said_by(error.cause))
        except RayError as error:
            return Raised(name, 0, _loss(error, self.answer_timeout))

    def query(self, query: str, given: Mapping[str, tuple]) -> "dict[str, Artifact | Raised]":
        refs = {name: self.silos[name].query.remote(query, *parts) for name, parts in given.items()}
        return {name: self._evaluated(name, ref) for name, ref in refs.items()}

    def count(self, question: str, given: Mapping[str, tuple]) -> "dict[str, Counts | Raised]":
        """Raised of a silo that dies or does not answer now."""
        put = _put_once([part for parts in given.values() for part in parts])
        refs = {
            name: self.silos[name].query.remote(question, *(put[id(part)] for part in parts))
            for name, parts in given.items()
        }
        return {name: self._evaluated(name, ref) for name, ref in refs.items()}

    def count_test(self, question: str, given: tuple) -> Counts | None:
        if self.evaluator is None:
            return None
        return value_of(self.evaluator.count.remote(question, *given), "test", f"answering '{question}'")

    def collect_ledger(self, silo: str) -> tuple[bytes, str, str] | None:
        """Return (ledger, head, public key) of a silo; None where its owner keeps it."""
        ref = self.silos[silo].collect_ledger.remote()
        return value_of(ref, silo, "handing over its ledger", COLLECT_SECONDS)

    def receive_model(self, silo: str, weights: np.ndarray, card: np.ndarray) -> None:
        """Hand a final model to a silo; PerimeterRefused where its owner takes none."""
        ref = self.silos[silo].receive_model.remote(weights, card)
        value_of(ref, silo, "taking the final model", COLLECT_SECONDS)

    def evaluate_test(self, models: Mapping[str, Vector]) -> dict[str, Scores] | None:
        return value_of(self.evaluator.evaluate.remote(models), "test", "evaluating") if self.evaluator else None

    def predict_test(self, models: Mapping[str, Vector]) -> tuple[np.ndarray, dict[str, np.ndarray]] | None:
        return value_of(self.evaluator.predict.remote(models), "test", "predicting") if self.evaluator else None

    def _ask(self, names: Iterable[str], doing: str, call: Callable[[Handle, str], ray.ObjectRef]) -> dict[str, Any]:
        """Call all named silos at once; return their answers by name."""
        refs = {name: call(self.silos[name], name) for name in names}
        return {name: value_of(ref, name, doing) for name, ref in refs.items()}


def value_of(ref: "ray.ObjectRef[Value]", silo: str, doing: str, timeout: float | None = None) -> Value:
    """Return the value behind `ref`; what went wrong there is raised here as one of our errors, naming the silo."""
    try:
        return ray.get(ref, timeout=timeout)
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, FedError):
            raise cause from None
        raise SiloFailed(silo, doing, f"{type(cause).__name__}: {cause}") from error
    except RayActorError as error:
        raise _creation_error(error) or SiloFailed(silo, doing, DEATH) from error
    except RayError as error:
        raise SiloFailed(silo, doing, _loss(error, timeout)) from error


def _loss(error: RayError, timeout: float | None) -> str:
    """Return why there is no answer, where the silo's code is not the reason."""
    if isinstance(error, GetTimeoutError):
        return f"no answer within {timeout:g} s (round_timeout)"
    if isinstance(error, RayActorError):
        return str(_creation_error(error) or DEATH)
    return f"its answer is lost ({type(error).__name__})"


def _creation_error(error: RayActorError) -> PlacementError | None:
    """Ray reports an exception of an actor's constructor only inside the text; find the one we raise there, or what
    the import of a task's code says."""
    for line in str(error).splitlines():
        if "PlacementError: " in line:
            return PlacementError(line.split("PlacementError: ", 1)[1])
        if "ModuleNotFoundError: No module named 'actors" in line:
            return PlacementError(f"its node has no ray-fed: {REMEDY}")
        if found := IMPORT_ERROR.match(line.strip()):
            return PlacementError(f"the task's code cannot be loaded where a silo is: {found[0]}; {INSTALL}")
    return None


def _put_once(vectors: Iterable[Vector]) -> "dict[int, ray.ObjectRef | Vector]":
    """Put each distinct vector into the object store once, however many silos receive it.

    One that Ray carries inside the message itself is left as it is: the store costs a millisecond for each.
    """
    distinct = {id(vector): vector for vector in vectors}
    inside = int(os.environ.get(INLINE_VARIABLE, RAYS_INLINE_BYTES))
    return {key: vector if vector.nbytes < inside else ray.put(vector) for key, vector in distinct.items()}
