"""A hub that is a site of another hub: a region, a consortium. Towards its silos it is a hub, towards the coordinator
one site with many silos.

Small messages pass through for each silo. A round's updates are added up here, exactly as the coordinator would: sums
of whole numbers are the same whoever adds them in which order, so hubs between change no bit of the model. The
coordinator sends a vector once for all silos of the hub and gets one sum back.

Which site a silo is at stands in its invitation (`way`).
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf
from typing import Any

import numpy as np

from ray_fed.errors import ConfigError, FedError, SiloFailed, UpdateRejected
from ray_fed.exact_sum import ExactWeightedSum
from ray_fed.federation.cohort import said_by
from ray_fed.federation.messages import Guard, Update
from ray_fed.sites.agent import MOST_SILOS, HubAddress, SiteAgent
from ray_fed.sites.answers import (
    FAILED,
    HostLost,
    MetricsForm,
    MetricsOfManyForm,
    NumbersForm,
    SumForm,
    answer_form,
    failure_form,
    metrics_form,
)
from ray_fed.sites.hub import RESTARTED, SAY_AFTER_SECONDS, Call, Hub, Lost, Outcome
from ray_fed.sites.link import Certificates, listed
from ray_fed.sites.requests import (
    EndRequest,
    EvaluateManyRequest,
    EvaluateRequest,
    FitRequest,
    FitSumRequest,
    Invitation,
    InviteRequest,
    SiloHost,
    SiloRequest,
)
from ray_fed.sites.wire import LONGEST_TEXT, MOST_CALLS, Answer, Ask, Encoded, WireError, encode, printable

_log = logging.getLogger(__name__)

EMPTY = np.empty(0, np.int64)
ADDED_IN_THE_LOOP = 1 << 16
"""Longer vectors are added up in a thread, so that the connections live on meanwhile."""
SITE_WITHIN_SECONDS = 540.0
"""A site that is not there, or away again, is waited for so long: less than a coordinator waits for its own sites."""
LOOK_AFTER_SECONDS = 1.0


@dataclass
class Sums:
    """Counts what was added up since the hub was started."""

    num_sums: int = 0
    num_updates: int = 0
    num_missing: int = 0
    """Updates that were asked for and did not come, came late or did not fit."""

    def __str__(self) -> str:
        missing = f"; {self.num_missing:,} more did not come" if self.num_missing else ""
        return f"{self.num_updates:,} updates in {self.num_sums:,} sums{missing}"


class RelayAgent(SiteAgent):
    """Passes an upper hub's calls on to the sites of a lower hub.

        with Hub("0.0.0.0:7443", own, {"north": "", "south": ""}) as lower:
            RelayAgent("region", HubAddress("hub.example:7443"), own, lower).run()

    patience: seconds after which a round is answered without the silos that are late, where the coordinator does not
    say fewer; None: as the coordinator says, who waits for all if it has no deadline itself. site_within: seconds that
    an invitation, or another question outside of rounds, waits for a site that is not there.
    """

    def __init__(
        self,
        site: str,
        hub: HubAddress,
        own: Certificates,
        lower: Hub,
        patience: float | None = None,
        site_within: float = SITE_WITHIN_SECONDS,
        most_bytes: int = 1 << 32,
    ):
        super().__init__(site, hub, own, _no_host, most_bytes=most_bytes, most_waiting=MOST_CALLS)
        self.lower, self.patience, self.site_within, self.sums = lower, patience, site_within, Sums()
        self._sites: dict[str, str] = {}
        """Silo -> its site below, of those that were invited."""
        self._lost: set[str] = set()
        self._relaying: set[asyncio.Task[None]] = set()
        for each in lower.sites:
            lower.watch(each, partial(self._site_restarted, each))

    # ---- what comes from above

    def _dispatch(self, header: Ask, request: "SiloRequest | WireError") -> None:
        """Ask below at once, in the order in which calls come; answer when the answers are there."""
        if isinstance(request, FitSumRequest):
            fit = FitRequest(request.session, request.server_round, request.vector)
            answer = partial(self._sum, request, self._ask_all(request.silos, fit, is_awaited=False))
        elif isinstance(request, EvaluateManyRequest):
            asked = EvaluateRequest(request.session, request.names, request.vectors)
            answer = partial(self._metrics, request, self._ask_all(request.silos, asked))
        elif isinstance(request, WireError):
            answer = partial(_raised, SiloFailed(header.silo, "reading a call", f"it is {request}"))
        elif isinstance(request, InviteRequest):
            answer = partial(self._invited, header.silo, self._invite_below(header.silo, request))
        elif isinstance(request, FitRequest):
            answer = partial(self._one, self._ask_all((header.silo,), request))
        else:
            answer = partial(self._one_there, header.silo, request.doing, self._ask_all((header.silo,), request))
        task = asyncio.get_running_loop().create_task(self._relay(self._known_hub, header, request, answer))
        self._relaying.add(task)
        task.add_done_callback(partial(self._relayed, header.num_bytes))

    def _relayed(self, num_bytes: int, task: "asyncio.Task[None]") -> None:
        self._relaying.discard(task)
        self._budget.release(num_bytes)

    async def _relay(
        self,
        hub: str,
        header: Ask,
        request: "SiloRequest | WireError",
        answer: "Callable[[], Coroutine[Any, Any, object]]",
    ) -> None:
        """Send the answer up."""
        try:
            kind, form = _form(await answer(), header.silo)
            encoded = encode(form)
        except Exception as error:  # a call without an answer would be waited for for ever
            doing = getattr(request, "doing", "answering")
            if not isinstance(error, FedError | HostLost):
                _log.exception("hub '%s', silo '%s': failed while %s", self.site, header.silo, doing)
            kind, encoded = FAILED, encode(failure_form(error, header.silo, doing))
        if hub == self._known_hub:
            sent = Answer(call=header.call, kind=kind, body=encoded.body, num_bytes=encoded.num_bytes)
            self._keep(header.call, (sent, encoded))

    def _end_places(self) -> "list[asyncio.Task[None]]":
        """The upper hub is another one, or this end hangs up: what was asked for it is dropped, hosts are ended."""
        tasks = list(self._relaying)
        for task in tasks:
            task.cancel()
        for silo in self._sites:
            self._end_below(silo)
        self._sites, self._lost = {}, set()
        return tasks

    def _end_below(self, silo: str) -> None:
        self.lower.ask(self._sites[silo], silo, EndRequest(), _nothing)

    # ---- what is asked below

    def _invite_below(self, silo: str, request: InviteRequest) -> "_Answers":
        """Note which site the silo is at, and pass the rest of its way on."""
        site, _, way = request.invitation.way.partition("/")
        full = silo not in self._sites and len(self._sites) >= MOST_SILOS * len(self.lower.sites)
        if site not in self.lower.sites or full:
            answers, named = _Answers((silo,)), f"silo '{silo}': the hub '{self.site}'"
            reason = "has no place for more silos" if full else f"knows no site '{printable(site, 64)}'; name it there"
            answers.come.put_nowait((silo, ConfigError(f"{named} {reason}"), None))
            return answers
        self._sites[silo] = site
        self._lost.discard(silo)
        return self._ask_all((silo,), InviteRequest(replace(request.invitation, way=way)))

    def _ask_all(self, silos: tuple[str, ...], request: SiloRequest, is_awaited: bool = True) -> "_Answers":
        """Put one request, encoded once, to many silos."""
        message, answers = encode(request), _Answers(silos)
        for silo in silos:
            self._ask_below(silo, request, message, is_awaited, answers)
        return answers

    def _ask_below(
        self, silo: str, request: SiloRequest, message: Encoded, is_awaited: bool, answers: "_Answers"
    ) -> None:
        if silo not in self._sites:
            failed = SiloFailed(silo, request.doing, "its site has not been invited yet")
            return answers.come.put_nowait((silo, failed, None))
        if silo in self._lost:
            return answers.come.put_nowait((silo, Lost(RESTARTED), None))
        call = self.lower.ask(self._sites[silo], silo, request, partial(self._came, answers), message, is_awaited)
        answers.calls[silo] = call
        return None

    def _came(self, answers: "_Answers", call: Call, outcome: Outcome) -> None:
        if isinstance(outcome, Lost):
            self._lost.add(call.silo)
        answers.come.put_nowait((call.silo, outcome, call))

    def _site_restarted(self, site: str, _: str, invited: frozenset[str]) -> None:
        self._lost |= {silo for silo, its_site in self._sites.items() if its_site == site} - invited

    # ---- answers

    async def _invited(self, silo: str, answers: "_Answers") -> object:
        """Wait for a site that is not there yet, but not for ever: nobody above sees that it is missing."""
        try:
            async with asyncio.timeout(self.site_within):
                return await self._one(answers)
        except TimeoutError:
            self.lower.drop(answers.calls.values())
            self._end_below(silo)
            missing = f"its site '{self._sites[silo]}' has not answered the hub '{self.site}'"
            remedy = "its owner starts it with `ray-fed site start`; silos behind a hub cannot come late"
            said = f"{missing} within {self.site_within:g} s; {remedy}"
            raise SiloFailed(silo, "joining the federation", said) from None

    async def _one_there(self, silo: str, doing: str, answers: "_Answers") -> object:
        """Wait for a silo that works, but not for ever for a site that is away: above, too, nobody sees that. How long
        a round waits is said by its own rules."""
        one = asyncio.ensure_future(self._one(answers))
        try:
            while not (await asyncio.wait([one], timeout=LOOK_AFTER_SECONDS))[0]:
                site = self._sites.get(silo, "")
                if site and (seconds := self.lower.seconds_away(site)) >= self.site_within:
                    self.lower.drop(answers.calls.values())
                    away = f"its site '{site}' has not been connected to the hub '{self.site}' for {seconds:.0f} s"
                    raise SiloFailed(silo, doing, f"{away}; when it is back, start the run again")
            return one.result()
        finally:
            one.cancel()

    async def _one(self, answers: "_Answers") -> object:
        _, outcome, _ = await answers.come.get()
        if isinstance(outcome, Lost):
            raise HostLost
        if isinstance(outcome, FedError):
            raise outcome
        return outcome.packed() if isinstance(outcome, Update) else outcome

    async def _sum(self, request: FitSumRequest, answers: "_Answers") -> SumForm:
        """Add updates up as they come; none is held longer than that."""
        total, numbers = ExactWeightedSum(len(request.vector)), {}

        async def take(silo: str, outcome: Outcome) -> None:
            update = _checked(silo, outcome, request)
            if len(update.vector) <= ADDED_IN_THE_LOOP:
                total.add(update.vector, update.num_examples)
            else:
                await asyncio.to_thread(total.add, update.vector, update.num_examples)
            numbers[silo] = NumbersForm(
                update.num_examples, update.num_steps, update.loss, update.seconds, update.num_bytes
            )

        failures, lost = await self._gather(f"for round {request.server_round}", answers, take, request.patience)
        high, low = total.parts() if numbers else (EMPTY, EMPTY)
        self.sums.num_sums += bool(numbers)
        self.sums.num_updates += len(numbers)
        self.sums.num_missing += len(failures) + len(lost)
        return SumForm(high, low, numbers, failures, lost)

    async def _metrics(self, request: EvaluateManyRequest, answers: "_Answers") -> MetricsOfManyForm:
        metrics: dict[str, MetricsForm] = {}

        async def take(silo: str, outcome: Any) -> None:
            metrics[silo] = metrics_form(outcome, silo)

        failures, lost = await self._gather("for an evaluation", answers, take, request.patience)
        return MetricsOfManyForm(metrics, failures, lost)

    async def _gather(
        self, what: str, answers: "_Answers", take: "Take", told: float | None
    ) -> tuple[dict[str, str], tuple[str, ...]]:
        """Take each answer when it comes; return (silo -> why it has none, silos that are lost). told: the
        coordinator's patience."""
        failures, lost = {}, []
        patience = min((each for each in (self.patience, told) if each is not None), default=inf)
        clock = _Clock(patience)
        waiting = set(answers.silos)
        while waiting:
            try:
                async with asyncio.timeout_at(clock.next()):
                    silo, outcome, call = await answers.come.get()
            except TimeoutError:
                if clock.is_over():
                    break
                self._say_who_is_late(what, waiting, clock.said())
                continue
            waiting.discard(silo)
            if isinstance(outcome, Lost):
                lost.append(silo)
            elif reason := await _taken(take, silo, outcome):
                failures[silo] = reason
            del outcome
            if call:
                self.lower.release(call)
        self.lower.drop([answers.calls[silo] for silo in waiting])
        failures |= dict.fromkeys(waiting, f"late: no answer to its hub within {patience:g} s")
        return failures, tuple(sorted(lost))

    def _say_who_is_late(self, what: str, silos: set[str], seconds: float) -> None:
        late = listed([f"{silo} at {self._sites.get(silo, 'no site')}" for silo in sorted(silos)])
        _log.warning("hub '%s': waiting %s, %.0f s until now, for %s", self.site, what, seconds, late)


class _Clock:
    """When an answer is given without those who are late, and when it is said for whom it waits: after 10 s, then at
    ever longer intervals."""

    def __init__(self, patience: float):
        self._now = asyncio.get_running_loop().time
        self._start, self._patience, self._say_after = self._now(), patience, SAY_AFTER_SECONDS

    def next(self) -> float:
        """Return the loop's time of whichever comes first."""
        return self._start + min(self._say_after, self._patience)

    def is_over(self) -> bool:
        return self._now() >= self._start + self._patience

    def said(self) -> float:
        """Return the seconds until now, and wait longer until it is said again."""
        self._say_after *= 3
        return self._now() - self._start


Take = Callable[[str, Outcome], Coroutine[Any, Any, None]]


@dataclass(eq=False)
class _Answers:
    """What comes to one question that was put to several silos."""

    silos: tuple[str, ...]
    calls: dict[str, Call] = field(default_factory=dict)
    come: "asyncio.Queue[tuple[str, Outcome, Call | None]]" = field(default_factory=asyncio.Queue)


async def _taken(take: Take, silo: str, outcome: Outcome) -> str:
    """Let an answer be taken; return why it could not, "" where it could."""
    try:
        if isinstance(outcome, FedError):
            raise outcome
        await take(silo, outcome)
    except (FedError, ValueError) as error:
        return printable(said_by(error), LONGEST_TEXT)
    return ""


def _checked(silo: str, outcome: Outcome, request: FitSumRequest) -> Update:
    """Return a silo's update with its vector; UpdateRejected for one that does not fit, as at the coordinator."""
    if not isinstance(outcome, Update):
        raise UpdateRejected(silo, request.server_round, "it came under masks, and no sum was asked for under masks")
    update, most = outcome.unpacked(request.vector), dict(zip(request.silos, request.most_examples, strict=False))
    guard = Guard(most_examples=lambda name: most.get(name, 0))
    guard.check(update, request.vector, request.server_round, request.session)
    return update


def _form(answer: object, silo: str) -> tuple[str, object]:
    if isinstance(answer, SumForm):
        return "sum", answer
    return ("metrics_of_many", answer) if isinstance(answer, MetricsOfManyForm) else answer_form(answer, silo)


async def _raised(error: FedError) -> object:
    raise error


def _nothing(_: Call, __: Outcome) -> None:
    """Nobody waits for this answer."""


def _no_host(_: Invitation) -> SiloHost:
    raise AssertionError("a hub has no hosts of its own")
