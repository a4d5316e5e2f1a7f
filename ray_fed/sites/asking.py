"""Questions to silos behind a hub whose answers are waited for; those of a round are events, see cohort.py."""

import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from typing import Any

from ray_fed.errors import FedError, SiloFailed
from ray_fed.sites.hub import SAY_AFTER_SECONDS, Call, Hub, Lost, Outcome
from ray_fed.sites.link import listed
from ray_fed.sites.requests import Invitation, SiloRequest
from ray_fed.sites.wire import Encoded, encode

_log = logging.getLogger(__name__)


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

    def _note_loss(self, name: str, reason: str) -> None:
        """The silo's process is gone."""
        raise NotImplementedError(type(self).__name__)

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
        site = self.silos[name].site if name in self.silos else name
        self.hub.ask(site, name, request, on_end, message)
        return future

    def _send_and_forget(self, name: str, request: SiloRequest) -> None:
        self._call(name, request)

    def _ask(
        self,
        names: Iterable[str],
        request_for: Callable[[str], SiloRequest],
        at_end: Callable[[str], None] = _nothing,
    ) -> dict[str, Any]:
        """Put a request to all named silos at once; return their answers by name. at_end: called in the hub's thread
        with the name, before it hears anything else of the silo's site."""
        requests = {name: request_for(name) for name in names}
        futures = {name: self._call(name, request, at_end=at_end) for name, request in requests.items()}
        answers = {}
        for name, future in futures.items():
            self._wait_and_say(future, futures, requests[name].doing)
            answers[name] = self._value(future, name, requests[name].doing, None)
        return answers

    def _wait_and_say(self, future: "Future[Any]", futures: "Mapping[str, Future[Any]]", doing: str) -> None:
        """Wait for an answer; say after 10 s, then at ever longer intervals, whose answers are not there. Of a site
        behind another hub this hub could say nothing."""
        seconds = SAY_AFTER_SECONDS
        while wait([future], seconds).not_done:
            late = [f"{name} at {self._place_of(name)}" for name, each in futures.items() if not each.done()]
            _log.warning("waiting, %.0f s more until now, while %s, for the silos %s", seconds, doing, listed(late))
            seconds *= 3

    def _place_of(self, name: str) -> str:
        silo = self.silos[name]
        return f"{silo.site}/{silo.invitation.way}" if silo.is_behind_hub else silo.site

    def _answers_of(
        self, requests: Mapping[str, SiloRequest], instead: Callable[[str, FedError], Any] | None = None
    ) -> dict[str, Any]:
        """Put requests; return the answers of those that gave one, or what stands `instead` of an error. A request that
        many get is encoded once."""
        encoded = {id(request): encode(request) for request in requests.values()}
        futures = {name: self._call(name, request, encoded[id(request)]) for name, request in requests.items()}
        wait(futures.values(), self.answer_timeout)
        answers = {}
        for name, future in futures.items():
            try:
                answers[name] = self._value(future, name, requests[name].doing, is_over=self.answer_timeout is not None)
            except FedError as error:
                if instead is None:
                    _log.warning("no answer: %s", error)
                else:
                    answers[name] = instead(name, error)
        return answers

    def _value(
        self, future: "Future[Any]", silo: str, doing: str, timeout: float | None = -1.0, is_over: bool = False
    ) -> Any:
        """Return a silo's answer; what went wrong there is raised here, naming the silo. is_over: the time has been
        waited for already."""
        limit = self.answer_timeout if timeout == -1.0 else timeout
        try:
            outcome = future.result(0 if is_over else limit)
        except TimeoutError:
            raise SiloFailed(silo, doing, f"no answer within {limit:g} s (round_timeout)") from None
        if isinstance(outcome, FedError):
            raise outcome
        if isinstance(outcome, Lost):
            self._note_loss(silo, outcome.reason)
            raise SiloFailed(silo, doing, outcome.reason)
        return outcome


def _settle(future: "Future[Any]", at_end: Callable[[str], None], call: Call, outcome: Outcome) -> None:
    at_end(call.silo)
    future.set_result(outcome)
