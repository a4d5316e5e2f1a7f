"""The site's end: dials out to the hub, for ever, and runs each call at the silo it is for.

A call is run once, whatever the connection does: the agent remembers the number of the last one that came, and keeps
each answer until the hub has said that it is there. A hub that is another process than before begins anew: silos of
the old one are ended, and wait for new invitations.
"""

import asyncio
import logging
import random
import threading
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import grpc
import grpc.aio
import torch

from ray_fed.errors import ConfigError, FedError, SiloFailed
from ray_fed.sites import link
from ray_fed.sites.answers import FAILED, HostLost, answer_form, failure_form
from ray_fed.sites.link import ByteBudget, Certificates, Peer
from ray_fed.sites.requests import (
    CloseSessionRequest,
    EndRequest,
    Invitation,
    InviteRequest,
    MakeHost,
    OpenSessionRequest,
    RestoreRequest,
    SiloHost,
    SiloRequest,
    decode_request,
)
from ray_fed.sites.wire import (
    PROTOCOL,
    Acknowledge,
    Answer,
    AnyHeader,
    Ask,
    Encoded,
    Header,
    Hello,
    Welcome,
    WireError,
    encode,
    printable,
)

_log = logging.getLogger(__name__)

JITTER = random.Random()  # its own: training seeds the shared one, and sites would all come back at once
FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 30.0
SAY_EVERY = 20
"""Failed tries with one reason are one line in the log, then one for so many."""
WELCOME_SECONDS = 20.0
MOST_SILOS = 64
MOST_SESSIONS = 256
"""Sessions of all its silos together: each holds a model and its optimiser's state."""
MOST_WAITING = 256
"""Calls that wait for their turn at one site; a hub that sends more has to wait."""
MOST_KEPT = 1024
KEPT_SHARE = 4
"""Answers that are kept for a hub that does not acknowledge them, and their bytes in units of `most_bytes`; then
nothing more is taken from it. Waiting could take for ever: acknowledgements come behind calls that wait for room."""


@dataclass(frozen=True)
class HubAddress:
    """Where a site finds the hub, and how it knows it."""

    address: str
    """HOST:PORT."""
    key_hash: str = ""
    """Hash of the hub's public key; empty: a certificate of the authorities with the host's name is enough."""
    server_name: str = ""
    """Name in the hub's certificate, where it is not that of the address."""
    proxy: str = ""
    """HOST:PORT of an HTTP CONNECT proxy; empty: what grpc_proxy, https_proxy or http_proxy name, if any."""


class _NotWelcome(Exception):
    """The hub refused the site, or is not the hub; says why."""


@dataclass(eq=False)
class _Place:
    """A silo's place at the site: its calls in line, and its host or why there is none."""

    silo: str
    line: "asyncio.Queue[tuple[str, Ask, SiloRequest | WireError] | None]" = field(default_factory=asyncio.Queue)
    """(the hub that asks, call, request), or None: end the host."""
    host: SiloHost | None = None
    missing: FedError | None = None
    """Why there is no host: the answer to every question."""
    task: "asyncio.Task[None] | None" = None
    sessions: set[str] = field(default_factory=set)
    """Those that were opened at its host."""


def _nothing(_: SiloHost) -> None:
    """Ends a host that needs no ending."""


class SiteAgent:
    """One site's end of the connection.

        SiteAgent("north", HubAddress("hub.example:7443"), Certificates.read(folder), make_host).run()

    make_host: Invitation -> SiloHost; raises ConfigError or PerimeterRefused where the owner's file does not allow it.
    end_host: frees what a host holds. executor: where hosts work; by default a thread for each silo.
    most_waiting: calls that wait for their turn. most_bytes: of their arrays; four times as many of answers that are
    not acknowledged.
    """

    def __init__(
        self,
        site: str,
        hub: HubAddress,
        own: Certificates,
        make_host: MakeHost,
        end_host: Callable[[SiloHost], None] = _nothing,
        executor: Executor | None = None,
        most_bytes: int = 1 << 32,
        most_waiting: int = MOST_WAITING,
    ):
        self.site, self.hub, self.own = site, hub, own
        self.incarnation = link.random_name()
        self._make_host, self._end_host, self._most_bytes = make_host, end_host, most_bytes
        self._most_waiting = most_waiting
        self._executor = executor or ThreadPoolExecutor(MOST_SILOS, f"site-{site}", _one_thread)
        self._loop = link.background_loop()
        self._known_hub, self._received = "", 0
        self._places: dict[str, _Place] = {}
        self._open: set[int] = set()
        """Calls that came and have no answer yet."""
        self._unwanted: set[int] = set()
        self._kept: dict[int, tuple[Answer, Encoded]] = {}
        """Answers that the hub has not acknowledged."""
        self._outgoing: asyncio.Queue[int] = asyncio.Queue()
        self._changed = asyncio.Event()
        self._budget = ByteBudget(most_bytes)
        self._task: asyncio.Task[None] | None = None
        self._ended = threading.Event()
        self._counting = threading.Lock()

    # ---- from any thread

    def run(self) -> None:
        """Serve until `stop`."""
        self.start()
        self._ended.wait()

    def start(self) -> "SiteAgent":
        """Serve in the background."""
        self._loop.call_soon_threadsafe(self._begin)
        return self

    def stop(self) -> None:
        """Hang up and end the silos' hosts; waits until calls under way are done."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._executor.shutdown()
        self._ended.set()

    def _begin(self) -> None:
        self._task = asyncio.create_task(self._serve())

    async def _stop(self) -> None:
        if self._task:
            await link.end(self._task)
        self._known_hub = ""
        self._changed.set()
        await asyncio.gather(*self._end_places(), return_exceptions=True)

    # ---- connections

    async def _serve(self) -> None:
        pause, said, tries = FIRST_PAUSE_SECONDS, "", 0
        while True:
            try:
                await self._connect()
                reason, pause = "the connection was closed", FIRST_PAUSE_SECONDS
            except _NotWelcome as error:
                reason = str(error)
            except WireError as error:
                reason, pause = f"the hub sent {error}", LONGEST_PAUSE_SECONDS
            except grpc.aio.AioRpcError as error:
                reason = _why(error)
                pause = FIRST_PAUSE_SECONDS if self._was_connected else pause
            except TimeoutError:
                reason = f"the hub gave no welcome within {WELCOME_SECONDS:g} s"
            except Exception as error:  # the agent outlives whatever happens to one connection
                _log.exception("site '%s': a connection failed", self.site)
                reason = type(error).__name__
            tries = 0 if reason != said else tries + 1
            if tries % SAY_EVERY == 0:
                _log.warning("site '%s': no connection to %s: %s; trying again", self.site, self.hub.address, reason)
            said = reason
            await asyncio.sleep(pause * JITTER.uniform(0.7, 1.3))
            pause = min(LONGEST_PAUSE_SECONDS, 2 * pause)

    async def _connect(self) -> None:
        """Dial, and converse until the connection ends."""
        self._was_connected = False
        options = link.channel_options(self.hub.server_name, self.hub.proxy)
        credentials = link.channel_credentials(self.own)
        async with grpc.aio.secure_channel(self.hub.address, credentials, options) as channel:
            stream = channel.stream_stream(f"/{link.SERVICE}/{link.METHOD}")()
            try:
                async with asyncio.timeout(WELCOME_SECONDS):  # wait_for would at times swallow a cancellation
                    await self._greet(stream)
                self._was_connected = True
                _log.info("site '%s' is connected to %s", self.site, self.hub.address)
                await self._converse(stream)
            finally:
                stream.cancel()

    async def _greet(self, stream: grpc.aio.StreamStreamCall) -> None:
        nonce = link.random_name()
        hello = Hello(
            protocol=PROTOCOL, site=self.site, incarnation=self.incarnation, hub=self._known_hub,
            received=self._received, nonce=nonce,
        )  # fmt: skip
        await _send(stream, hello, Encoded(b""))
        message = await link.receive(stream.read, _admit_welcome)
        if message is None:
            raise _NotWelcome(_refusal(await stream.code(), await stream.details()))
        welcome = message[0]
        assert isinstance(welcome, Welcome)
        self._check(welcome, nonce)
        if welcome.incarnation != self._known_hub:
            self._begin_anew(welcome.incarnation)
        self._keep_only(set(welcome.wanted))

    def _check(self, welcome: Welcome, nonce: str) -> None:
        """Raise _NotWelcome where the hub speaks otherwise, or is not the one whose key the owner wrote down."""
        if welcome.protocol != PROTOCOL:
            versions = f"the hub speaks protocol {welcome.protocol}, this site {PROTOCOL}"
            raise _NotWelcome(f"{versions}; install the same ray-fed at both ends")
        if not self.hub.key_hash:
            return
        ours = Peer.of(self.own.certificate).key_hash
        try:
            is_it = Peer.of(welcome.certificate).key_hash == self.hub.key_hash
            is_it = is_it and link.is_proof(welcome.proof, welcome.certificate, nonce, ours)
        except ConfigError:
            is_it = False
        if not is_it:
            raise _NotWelcome("it is not the hub whose public key is pinned; ask the coordinator, or correct the pin")

    def _begin_anew(self, hub: str) -> None:
        """Another process of the hub: nothing that the last one asked for is wanted any more."""
        self._received, self._known_hub = 0, hub
        self._open, self._unwanted, self._kept = set(), set(), {}
        self._changed.set()
        self._end_places()

    def _keep_only(self, wanted: set[int]) -> None:
        self._kept = {call: answer for call, answer in self._kept.items() if call in wanted}
        self._unwanted |= self._open - wanted
        self._outgoing = asyncio.Queue()
        for call in self._kept:
            self._outgoing.put_nowait(call)

    async def _converse(self, stream: grpc.aio.StreamStreamCall) -> None:
        tasks = [asyncio.create_task(part) for part in (self._read(stream), self._write(stream, self._outgoing))]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, stream: grpc.aio.StreamStreamCall) -> None:
        while message := await self._received_message(stream):
            header, payload = message
            assert isinstance(header, Ask | Acknowledge)
            for call in header.done:
                self._kept.pop(call, None)
            self._changed.set()
            if isinstance(header, Ask):
                self._take(header, payload)

    async def _received_message(self, stream: grpc.aio.StreamStreamCall) -> "tuple[AnyHeader, memoryview] | None":
        """Return the next message; what was claimed for one that broke off is free again."""
        claimed: list[int] = []
        message = None
        try:
            message = await link.receive(stream.read, partial(self._admit, claimed))
        finally:
            if message is None:
                self._budget.release(sum(claimed))
        return message

    async def _admit(self, claimed: list[int], header: AnyHeader) -> None:
        """Raise WireError for what no hub sends; wait while there is no room."""
        if not isinstance(header, Ask | Acknowledge):
            raise WireError("a message that is no call")
        if header.num_bytes > self._most_bytes:
            raise WireError(f"a call of {header.num_bytes} bytes, {self._most_bytes} are the most")
        if isinstance(header, Ask) and header.call <= self._received:
            raise WireError("a call that was made before")
        if isinstance(header, Ask):
            if self._keeps_too_much():
                raise WireError(f"one more call, and no word that {len(self._kept)} answers have arrived")
            while len(self._open) >= self._most_waiting:
                await self._change()
            await self._budget.claim(header.num_bytes)
            claimed.append(header.num_bytes)

    async def _write(self, stream: grpc.aio.StreamStreamCall, outgoing: "asyncio.Queue[int]") -> None:
        while True:
            call = await outgoing.get()
            if call in self._kept:
                await _send(stream, *self._kept[call])

    # ---- calls

    def _take(self, header: Ask, payload: memoryview) -> None:
        """Put a call in line behind those of its silo."""
        self._received = header.call
        try:
            request: SiloRequest | WireError = decode_request(header.body, payload)
        except WireError as error:
            request = error
        self._open.add(header.call)
        self._dispatch(header, request)

    def _dispatch(self, header: Ask, request: "SiloRequest | WireError") -> None:
        place = self._places.get(header.silo)
        if place is None:
            if len(self._places) >= MOST_SILOS:
                self._budget.release(header.num_bytes)
                raise WireError(f"calls of more than {MOST_SILOS} silos")
            place = self._places[header.silo] = _Place(header.silo)
            place.task = asyncio.create_task(self._work(place))
        place.line.put_nowait((self._known_hub, header, request))

    async def _work(self, place: _Place) -> None:
        """Run a silo's calls one after another; those of a hub that is no more are left out."""
        while True:
            item = await place.line.get()
            if item is None:
                await self._loop.run_in_executor(self._executor, self._end, place)
                if place.line.empty():
                    del self._places[place.silo]
                    return
                continue
            hub, header, request = item
            if hub == self._known_hub:
                answer = await self._loop.run_in_executor(self._executor, self._answer, place, header, request)
                if hub == self._known_hub:
                    self._keep(header.call, answer)
            del item, request
            self._budget.release(header.num_bytes)
            self._changed.set()

    def _keeps_too_much(self) -> bool:
        num_bytes = sum(encoded.num_bytes for _, encoded in self._kept.values())
        return len(self._kept) >= MOST_KEPT or num_bytes > KEPT_SHARE * self._most_bytes

    async def _change(self) -> None:
        """Wait for one more answer, acknowledgement or hub."""
        self._changed.clear()
        await self._changed.wait()

    def _keep(self, call: int, answer: tuple[Answer, Encoded]) -> None:
        self._open.discard(call)
        if call in self._unwanted:
            self._unwanted.discard(call)
            return
        self._kept[call] = answer
        self._outgoing.put_nowait(call)

    def _end_places(self) -> "list[asyncio.Task[None]]":
        """End all hosts, each when the call that it is at is done; return what is done then."""
        for place in self._places.values():
            place.line.put_nowait(None)
        return [place.task for place in self._places.values() if place.task]

    # ---- in the silo's thread

    def _answer(self, place: _Place, header: Ask, request: "SiloRequest | WireError") -> tuple[Answer, Encoded]:
        """Run a call; return what travels back, an error included."""
        try:
            if isinstance(request, WireError):
                raise SiloFailed(place.silo, "reading a call", f"it is {request}")
            kind, form = answer_form(self._run(place, request), place.silo)
            encoded = encode(form)
        except BaseException as error:  # SystemExit and the like of a task's code must not end the site
            doing = getattr(request, "doing", "answering")
            if not isinstance(error, FedError):
                _log.exception("site '%s', silo '%s': failed while %s", self.site, place.silo, doing)
            kind, encoded = FAILED, encode(failure_form(error, place.silo, doing))
        return Answer(call=header.call, kind=kind, body=encoded.body, num_bytes=encoded.num_bytes), encoded

    def _run(self, place: _Place, request: SiloRequest) -> object:
        if isinstance(request, InviteRequest):
            return self._invite(place, request.invitation)
        if isinstance(request, EndRequest):
            return self._end(place)
        if place.host is None:
            raise place.missing or SiloFailed(place.silo, request.doing, "its site has not been invited yet")
        opened = self._counted_sessions(place, request)
        try:
            return request.put_to(place.host)
        except HostLost:
            self._end(place)
            raise
        except BaseException:
            place.sessions -= opened
            raise

    def _counted_sessions(self, place: _Place, request: SiloRequest) -> set[str]:
        """Return the sessions that a call opens, now counted; SiloFailed where all silos together would have too
        many."""
        if isinstance(request, CloseSessionRequest):
            place.sessions.discard(request.session)
        wanted = _opened_by(request) - place.sessions
        with self._counting:
            num_open = sum(len(each.sessions) for each in list(self._places.values()))
            if wanted and num_open + len(wanted) > MOST_SESSIONS:
                reason = f"{num_open} sessions are open at its site, {MOST_SESSIONS} are the most; close some"
                raise SiloFailed(place.silo, request.doing, reason)
            place.sessions |= wanted
        return wanted

    def _invite(self, place: _Place, invitation: Invitation) -> None:
        self._end(place)
        try:
            if invitation.silo != place.silo:
                raise ConfigError(f"silo '{place.silo}': the invitation is one of another silo")
            place.host = self._make_host(invitation)
        except FedError as error:
            place.missing = error
            raise

    def _end(self, place: _Place) -> None:
        host, place.host, place.missing = place.host, None, None
        place.sessions = set()
        if host is not None:
            self._end_host(host)


def _opened_by(request: SiloRequest) -> set[str]:
    if isinstance(request, OpenSessionRequest):
        return {request.spec.session}
    return {spec.session for spec in request.sessions} if isinstance(request, RestoreRequest) else set()


def _one_thread() -> None:
    """Sums over several threads differ in the last bits; one thread makes every cohort bit-equal."""
    torch.set_num_threads(1)


async def _admit_welcome(header: AnyHeader) -> None:
    if not isinstance(header, Welcome) or header.num_bytes:
        raise WireError("something else than a welcome")


async def _send(stream: grpc.aio.StreamStreamCall, header: Header, encoded: Encoded) -> None:
    for frame in link.frames(header, encoded):
        await stream.write(frame)


def _refusal(code: grpc.StatusCode, details: str | None) -> str:
    return printable(details or code.name, 400)


def _why(error: grpc.aio.AioRpcError) -> str:
    """Return why there is no connection: gRPC's words, and a remedy for what is usual."""
    details = printable(error.details() or "", 300)
    if error.code() is not grpc.StatusCode.UNAVAILABLE:
        return details or error.code().name
    remedy = "check the address and the proxy, that the hub runs, and that both certificates are of one authority"
    return f"{details or 'it cannot be reached'} ({remedy})"
