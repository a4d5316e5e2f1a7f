"""Questions to silos behind a hub whose answers are waited for; those of a round are events, see cohort.py."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any

from ray_fed.errors import FedError, SiloFailed
from ray_fed.sites.hub import SAY_AFTER_SECONDS, Call, Hub, Lost, Outcome
from ray_fed.sites.link import listed
from ray_fed.sites.requests import Invitation, SiloRequest
from ray_fed.sites.wire import Encoded, encode

_log = logging.getLogger(__name__)

LOOK_AFTER_SECONDS = 1.0
"""So often it is looked whether the site of a silo that has not answered is still there."""


@dataclass(frozen=True)
class SiteSilo:
    """A silo at a site: whom to ask, and for what."""

    site: str
    """The one that dials this hub."""
    invitation: Invitation

    @property
    def name(self) -> str:
        return self.invitation.silo

    @property
    def is_behind_hub(self) -> bool:
        """Whether the site is itself a hub of sites (relay.py), and the silo at one of those."""
        return bool(self.invitation.way)


def _nothing(_: str) -> None:
    """Is done at the end of a call."""


class Asking:
    """Puts questions to silos, many at once, and waits for the answers."""

    hub: Hub
    silos: dict[str, SiteSilo]
    answer_timeout: float | None
    """Seconds after which a silo that does not answer a small call counts as failed; None waits for ever."""
    away_timeout: float
    """Seconds without a connection to its site after which a silo fails, where nothing goes on without its answer."""

    def _note_loss(self, name: str, reason: str) -> None:
        """The silo's process is gone."""
        raise NotImplementedError(type(self).__name__)  # abstract: the cohort that asks notes it

    def _call(
        self,
        name: str,
        request: SiloRequest,
        message: Encoded | None = None,
        at_end: Callable[[str], None] = _nothing,
    ) -> "Future[Any]":
        """Make a call whose answer is waited for."""
        future: Future[Any] = Future()
        on_end = partial(_settle, future, at_end)
        self.hub.ask(self._site_of(name), name, request, on_end, message)
        return future

    def _send_and_forget(self, name: str, request: SiloRequest) -> None:
        self._call(name, request)

    def _ask(
        self,
        names: Iterable[str],
        request_for: Callable[[str], SiloRequest],
        at_end: Callable[[str], None] = _nothing,
    ) -> dict[str, Any]:
        """Put a request to all named silos at once; return their answers by name. A silo that works has no
        deadline, as opening a large table takes its time; one whose site is away for `away_timeout` has failed. at_end:
        called in the hub's thread with the name, before it hears anything else of the silo's site."""
        requests = {name: request_for(name) for name in names}
        futures = {name: self._call(name, request, at_end=at_end) for name, request in requests.items()}
        answers = {}
        for name, future in self._in_turn(futures, requests, None, self.away_timeout):
            answers[name] = self._value(future, name, requests[name].doing, None)
        return answers

    def _answers_of(
        self, requests: Mapping[str, SiloRequest], instead: Callable[[str, FedError], Any] | None = None
    ) -> dict[str, Any]:
        """Put requests; return the answers of those that gave one in time, or what stands `instead` of an error. A
        request that many get is encoded once."""
        encoded = {id(request): encode(request) for request in requests.values()}
        futures = {name: self._call(name, request, encoded[id(request)]) for name, request in requests.items()}
        answers = {}
        for name, future in self._in_turn(futures, requests, self.answer_timeout):
            try:
                answers[name] = self._value(future, name, requests[name].doing, self.answer_timeout)
            except FedError as error:
                if instead is None:
                    _log.warning("no answer: %s", error)
                else:
                    answers[name] = instead(name, error)
        return answers

    def _answer_of(self, name: str, request: SiloRequest, seconds: float | None, message: Encoded | None = None) -> Any:
        """Put one request; return the answer. message: the request, encoded already."""
        asked = {name: self._call(name, request, message)}
        ((_, future),) = self._in_turn(asked, {name: request}, seconds, self.away_timeout)
        return self._value(future, name, request.doing, seconds)

    def _in_turn(
        self,
        futures: "Mapping[str, Future[Any]]",
        requests: Mapping[str, SiloRequest],
        seconds: float | None,
        most_away: float = inf,
    ) -> "Iterator[tuple[str, Future[Any]]]":
        """Yield each silo's answer when it is here, or when the seconds for all of them are over; None waits for ever.
        SiloFailed where the site of one is away for `most_away` seconds.

        Whose answers are missing is said after 10 s, then at ever longer intervals."""
        start, say_after, until = time.monotonic(), SAY_AFTER_SECONDS, inf if seconds is None else seconds
        for name, future in futures.items():
            while not future.done() and (waited := time.monotonic() - start) < until:
                late = [other for other, each in futures.items() if not each.done()]
                if waited >= say_after:
                    self._say_who_is_late(late, requests[name].doing, waited)
                    say_after = 3 * waited
                for other in late:
                    self._require_site(other, requests[other].doing, most_away)
                wait([future], min(LOOK_AFTER_SECONDS, say_after - waited, until - waited))
            yield name, future

    def _say_who_is_late(self, silos: Sequence[str], doing: str, seconds: float) -> None:
        late = listed([f"{name} at {self._place_of(name)}" if name in self.silos else name for name in silos])
        remedy = "who owns the site sees in its log what it is at; Ctrl-C ends the run"
        _log.warning("waiting for %s: no answer for %.0f s while %s; %s", late, seconds, doing, remedy)

    def _require_site(self, silo: str, doing: str, most_away: float) -> None:
        site = self._site_of(silo)
        if (seconds := self.hub.seconds_away(site)) >= most_away:
            reason = f"its site '{site}' has not been connected for {seconds:.0f} s"
            raise SiloFailed(silo, doing, f"{reason}; when it is back, start the run again")

    def _site_of(self, name: str) -> str:
        """Return which site of this hub is asked: the silo's, or the hub on the way itself, asked for many silos."""
        return self.silos[name].site if name in self.silos else name

    def _place_of(self, name: str) -> str:
        silo = self.silos[name]
        return f"{silo.site}/{silo.invitation.way}" if silo.is_behind_hub else silo.site

    def _value(self, future: "Future[Any]", silo: str, doing: str, seconds: float | None) -> Any:
        """Return the answer of a silo that has been waited for; what went wrong there is raised here, naming it."""
        if not future.done():
            why = " (round_timeout)" if seconds == self.answer_timeout else ""
            raise SiloFailed(silo, doing, f"no answer within {seconds:g} s{why}")
        outcome = future.result()
        if isinstance(outcome, FedError):
            raise outcome
        if isinstance(outcome, Lost):
            self._note_loss(silo, outcome.reason)
            raise SiloFailed(silo, doing, outcome.reason)
        return outcome


def _settle(future: "Future[Any]", at_end: Callable[[str], None], call: Call, outcome: Outcome) -> None:
    at_end(call.silo)
    future.set_result(outcome)
