"""The coordinator's end: one port that sites dial, and the calls that wait for their answers.

A call lives here until its answer has come, so a connection may come and go: when a site is back it says how far it
got, and only what it has not heard is sent again. A site whose process is another one than before has lost its silos:
its calls end as `Lost`. Everything a site does wrong ends that site's connection and its calls, by name, and no more.

All state belongs to one event loop; `ask`, `drop` and `release` may be called from any thread.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

import grpc
import grpc.aio

from ray_fed.errors import ConfigError, FedError
from ray_fed.sites import link
from ray_fed.sites.answers import FAILED, LOST, FailureForm, decode_answer, error_of, message_of
from ray_fed.sites.link import ByteBudget, Certificates, Peer
from ray_fed.sites.requests import InviteRequest, SiloRequest
from ray_fed.sites.wire import (
    MOST_CALLS,
    PROTOCOL,
    Acknowledge,
    Answer,
    AnyHeader,
    Ask,
    Encoded,
    Hello,
    Welcome,
    WireError,
    encode,
)

_log = logging.getLogger(__name__)

HELLO_SECONDS = 10.0
ACKNOWLEDGE_SECONDS = 0.1
"""An acknowledgement waits so long for a call that it can travel with."""
SAY_AFTER_SECONDS = 10.0
"""A site that is waited for is named in the log after so long, then at ever longer intervals."""
OUR_OWN_ENDS = (grpc.aio.AbortError, grpc.aio.BaseError)
"""Refusals, and hang-ups: no failure of the hub."""
RESTARTED = "its site's process was started again"
UNCLAIMED_BYTES = 1 << 20
"""Answers up to this size need no claim."""


@dataclass(frozen=True)
class Lost:
    """The silo's process, or its site's, is gone."""

    reason: str


Outcome = object | FedError | Lost
"""What a call comes to: the message, the silo's error, or `Lost`."""


@dataclass(eq=False)
class Call:
    """A call of a silo, until it has ended."""

    site: str
    silo: str
    request: SiloRequest
    message: Encoded
    on_end: "Callable[[Call, Outcome], None]"
    is_awaited: bool
    """Somebody waits for exactly this answer, so it never stands in line for memory."""
    number: int = 0
    was_sent: bool = False
    claimed: int = 0
    """Bytes of the hub's memory that its answer takes."""


@dataclass(eq=False)
class _Connection:
    """A site's stream. `outgoing` wakes its writer: a call, or None for acknowledgements alone."""

    context: grpc.aio.ServicerContext
    task: "asyncio.Task[None]"
    outgoing: "asyncio.Queue[Call | None]" = field(default_factory=asyncio.Queue)


@dataclass(eq=False)
class _KnownSite:
    """What the hub knows of one site."""

    name: str
    pin: str
    """Hash of its public key; empty: a certificate with its name is enough."""
    connection: _Connection | None = None
    incarnation: str = ""
    calls: dict[int, Call] = field(default_factory=dict)
    """Open ones by number, in order."""
    last_number: int = 0
    done: list[int] = field(default_factory=list)
    """To be acknowledged."""
    listeners: "list[Callable[[str, frozenset[str]], None]]" = field(default_factory=list)
    away_since: float = field(default_factory=time.monotonic)
    times_said: int = 0
    is_awaited: bool = False

    def seconds_away(self) -> float:
        return 0.0 if self.connection else time.monotonic() - self.away_since

    def is_to_be_named(self) -> bool:
        """Whether it is waited for, and it is time to say so again."""
        return bool(self.calls or self.is_awaited) and self.seconds_away() >= SAY_AFTER_SECONDS * 3**self.times_said

    def is_entitled(self, peer: Peer) -> bool:
        """Whether a certificate is this site's."""
        return peer.key_hash == self.pin if self.pin else self.name in peer.names


class Hub:
    """Serves the sites it knows; `with Hub(...) as hub` or `start` and `close`.

        hub = Hub("0.0.0.0:7443", Certificates.read(folder), {"north": "", "south": "3fa1..."})

    address: HOST:PORT; port 0 takes a free one. sites: name -> hash of its public key, or "" to accept any certificate
    of the authorities that has the site's name. most_bytes: of answers that are held until the coordinator takes them;
    one answer always fits.
    """

    def __init__(self, address: str, own: Certificates, sites: Mapping[str, str], most_bytes: int = 1 << 29):
        self.address, self.own, self.port = address, own, 0
        self.incarnation = link.random_name()
        self._sites = {name: _KnownSite(name, pin) for name, pin in sites.items()}
        self._budget = ByteBudget(most_bytes)
        self._loop = link.background_loop()
        self._server: grpc.aio.Server | None = None
        self._changed = threading.Condition()

    def __enter__(self) -> "Hub":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> "Hub":
        """Listen. ConfigError where the address is taken or is none."""
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        return self

    def close(self) -> None:
        """End all connections; sites try again until a hub is there."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()

    async def _start(self) -> None:
        handler = grpc.stream_stream_rpc_method_handler(self._serve)
        server = grpc.aio.server(options=link.server_options())
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(link.SERVICE, {link.METHOD: handler}),))
        try:
            self.port = server.add_secure_port(self.address, link.server_credentials(self.own))
        except RuntimeError:
            self.port = 0
        if not self.port:
            raise ConfigError(
                f"the hub cannot listen at {self.address}: the port is taken, or the address is none here"
            )
        await server.start()
        self._server = server
        self._saying = asyncio.create_task(self._say_who_is_awaited())

    async def _stop(self) -> None:
        if self._server:
            self._saying.cancel()
            await self._server.stop(None)
            self._server = None
        for site in self._sites.values():
            for call in list(site.calls.values()):
                self._end(site, call, Lost("the hub was closed"))

    # ---- what the coordinator's side calls, from any thread

    @property
    def sites(self) -> frozenset[str]:
        return frozenset(self._sites)

    def is_connected(self, site: str) -> bool:
        return self._sites[site].connection is not None

    def seconds_away(self, site: str) -> float:
        """Return since when a site is not connected; 0 for one that is."""
        return self._sites[site].seconds_away()

    def wait_for(self, sites: Iterable[str], timeout: float | None) -> list[str]:
        """Wait until these sites are connected; return those that were not within `timeout` seconds."""
        wanted = [self._sites[name] for name in dict.fromkeys(sites)]
        for site in wanted:
            site.is_awaited = True
        with self._changed:
            self._changed.wait_for(lambda: all(site.connection for site in wanted), timeout)
        for site in wanted:
            site.is_awaited = False
        return [site.name for site in wanted if site.connection is None]

    def watch(self, site: str, listener: "Callable[[str, frozenset[str]], None]") -> None:
        """Let `listener(why, silos)` hear, in the hub's thread, when the site is back in another process than before;
        all its silos are lost but for these, whose invitation was not sent yet."""
        self._sites[site].listeners.append(listener)

    def ask(
        self,
        site: str,
        silo: str,
        request: SiloRequest,
        on_end: "Callable[[Call, Outcome], None]",
        message: Encoded | None = None,
        is_awaited: bool = True,
    ) -> Call:
        """Put a request to a silo at a site, now or when the site is there; `on_end` is called once, in the hub's
        thread. message: the request, encoded already, for one that goes to many silos."""
        call = Call(site, silo, request, message or encode(request), on_end, is_awaited)
        self._loop.call_soon_threadsafe(self._add, call)
        return call

    def drop(self, calls: Iterable[Call]) -> None:
        """Forget calls: their answers are thrown away."""
        self._loop.call_soon_threadsafe(self._drop, list(calls))

    def release(self, call: Call) -> None:
        """The answer of a call that was not awaited is used and gone: there is room for another."""
        if call.claimed:
            self._loop.call_soon_threadsafe(self._release, call)

    # ---- calls, in the loop

    def _add(self, call: Call) -> None:
        site = self._sites[call.site]
        if len(site.calls) >= MOST_CALLS:
            reason = f"{MOST_CALLS} calls of its site are open already"
            call.on_end(call, Lost(reason))
            return
        site.last_number += 1
        call.number = site.last_number
        site.calls[call.number] = call
        if site.connection:
            site.connection.outgoing.put_nowait(call)
        self._budget.let_through()

    def _drop(self, calls: list[Call]) -> None:
        for call in calls:
            call.on_end = _nobody
        self._budget.let_through()

    def _release_all(self, calls: Iterable[Call]) -> None:
        for call in calls:
            self._release(call)

    def _release(self, call: Call) -> None:
        self._budget.release(call.claimed)
        call.claimed = 0

    def _end(self, site: _KnownSite, call: Call, outcome: Outcome) -> None:
        site.calls.pop(call.number, None)
        if call.on_end is _nobody:
            self._release(call)
        call.on_end(call, outcome)

    # ---- connections

    async def _serve(self, _: object, context: grpc.aio.ServicerContext) -> None:
        """One site's stream, from its first word to its last."""
        site: _KnownSite | None = None
        try:
            hello = await self._hello(context)
            site = await self._admitted(hello, context)
            await self._converse(site, hello, context)
        except WireError as error:
            name = site.name if site else "unknown"
            reason = f"site '{name}' sent {error}"
            _log.warning("%s; the connection is ended", reason)
            if site:
                self._fail_all(site, reason)
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, reason)
        except Exception as error:
            if not isinstance(error, OUR_OWN_ENDS):
                _log.exception("the hub failed in a connection of site '%s'", site.name if site else "unknown")
                await context.abort(grpc.StatusCode.INTERNAL, "the hub failed; its log says how")
            raise

    async def _hello(self, context: grpc.aio.ServicerContext) -> Hello:
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                message = await link.receive(context.read, _admit_small)
        except TimeoutError:
            raise WireError(f"no word within {HELLO_SECONDS:g} s") from None
        if message is None or not isinstance(message[0], Hello):
            raise WireError("something else before its hello")
        return message[0]

    async def _admitted(self, hello: Hello, context: grpc.aio.ServicerContext) -> _KnownSite:
        """Return the site that says hello; or refuse it, in words for its owner."""
        peer = Peer.of(b"".join(context.auth_context().get("x509_pem_cert", ())))
        site, code = self._sites.get(hello.site), grpc.StatusCode.PERMISSION_DENIED
        if site is None:
            await self._refuse(context, code, hello.site, "this hub does not know a site of that name")
        assert site is not None
        if not site.is_entitled(peer):
            shown = "its certificate has another public key than the one pinned for it" if site.pin else (
                f"its certificate is made out to {link.listed(sorted(peer.names)) or 'nobody'}"
            )  # fmt: skip
            await self._refuse(context, code, hello.site, shown)
        if hello.protocol != PROTOCOL:
            versions = (
                f"it speaks protocol {hello.protocol}, this hub {PROTOCOL}; install the same ray-fed at both ends"
            )
            await self._refuse(context, grpc.StatusCode.FAILED_PRECONDITION, hello.site, versions)
        if site.connection and hello.incarnation != site.incarnation:
            twice = "another process of this site is connected; stop one of the two"
            await self._refuse(context, grpc.StatusCode.ALREADY_EXISTS, hello.site, twice)
        await self._replace(site)
        return site

    async def _refuse(self, context: grpc.aio.ServicerContext, code: grpc.StatusCode, site: str, reason: str) -> None:
        shown = "".join(letter for letter in site[:60] if letter.isprintable())
        _log.warning("site '%s' refused: %s", shown, reason)
        await context.abort(code, f"site '{shown}' refused: {reason}")

    async def _replace(self, site: _KnownSite) -> None:
        """End the connection that the same process had before."""
        if site.connection:
            before, site.connection = site.connection, None
            await link.end(before.task)

    async def _converse(self, site: _KnownSite, hello: Hello, context: grpc.aio.ServicerContext) -> None:
        received = hello.received if hello.hub == self.incarnation else 0
        if received > site.last_number:
            raise WireError(f"word of call {received}, which was never made")
        self._note_process(site, hello)
        peer = Peer.of(b"".join(context.auth_context()["x509_pem_cert"]))
        wanted = tuple(number for number in site.calls if number <= received)
        welcome = Welcome(
            protocol=PROTOCOL, incarnation=self.incarnation, wanted=wanted, certificate=self.own.certificate,
            proof=link.proof_of(self.own, hello.nonce, peer.key_hash),
        )  # fmt: skip
        await _send(context, welcome, Encoded(b""))
        task = asyncio.current_task()
        assert task is not None
        connection = _Connection(context, task)
        for number, call in site.calls.items():
            if number > received:
                connection.outgoing.put_nowait(call)
        site.connection, site.done = connection, []
        self._tell_changed()
        _log.info("site '%s' is connected", site.name)
        writer = asyncio.create_task(self._write(site, connection))
        try:
            await self._read(site, context)
        finally:
            writer.cancel()
            if site.connection is connection:
                site.connection, site.away_since, site.times_said = None, time.monotonic(), 0
            self._tell_changed()
            _log.info("site '%s' is disconnected", site.name)

    def _note_process(self, site: _KnownSite, hello: Hello) -> None:
        """A site that comes from another process than before has no silos any more; what has not been sent and begins
        with an invitation can still be."""
        before, site.incarnation = site.incarnation, hello.incarnation
        if not before or before == hello.incarnation:
            return
        invited: set[str] = set()
        for call in list(site.calls.values()):
            if isinstance(call.request, InviteRequest) and not call.was_sent:
                invited.add(call.silo)
            if call.silo not in invited:
                self._end(site, call, Lost(RESTARTED))
        for listener in site.listeners:
            listener(RESTARTED, frozenset(invited))

    def _tell_changed(self) -> None:
        with self._changed:
            self._changed.notify_all()

    async def _write(self, site: _KnownSite, connection: _Connection) -> None:
        while True:
            call = await connection.outgoing.get()
            done, site.done = tuple(site.done[:MOST_CALLS]), site.done[MOST_CALLS:]
            if call is None:
                if done:
                    await _send(connection.context, Acknowledge(done=done), Encoded(b""))
            elif call.number in site.calls:
                call.was_sent = True
                await _send(connection.context, _asked(call, done), call.message)

    async def _read(self, site: _KnownSite, context: grpc.aio.ServicerContext) -> None:
        while True:
            admitted: list[Call] = []
            try:
                message = await link.receive(context.read, partial(self._admit, site, admitted))
                if message is None:
                    return self._release_all(admitted)
                call, (header, payload) = admitted[0], message
                assert isinstance(header, Answer)
                outcome = self._outcome(call, header, payload)
            except BaseException:
                self._release_all(admitted)
                raise
            self._acknowledge(site, call)
            self._end(site, call, outcome)

    async def _admit(self, site: _KnownSite, admitted: list[Call], header: AnyHeader) -> None:
        """Refuse an answer that nobody asked for, or that is larger than it can be, before room is made for it."""
        if not isinstance(header, Answer):
            raise WireError("a message that is no answer")
        call = site.calls.get(header.call)
        if call is None or not call.was_sent:
            raise WireError(f"an answer to call {header.call}, which is not open")
        if header.kind not in (*call.request.answers, FAILED):
            raise WireError(f"an answer of another kind than was asked for while {call.request.doing}")
        limit = call.request.answer_limit()
        if header.num_bytes > limit:
            raise WireError(f"{header.num_bytes} bytes while {call.request.doing}, at most {limit} can be right")
        admitted.append(call)
        if header.num_bytes > UNCLAIMED_BYTES and not call.is_awaited:
            await self._budget.claim(header.num_bytes, partial(self._is_urgent, site, call))
            call.claimed = header.num_bytes

    @staticmethod
    def _is_urgent(site: _KnownSite, call: Call) -> bool:
        """Whether an answer must not wait for room: it is thrown away, or somebody waits for one that comes behind."""
        return call.on_end is _nobody or any(other.is_awaited for other in site.calls.values())

    def _outcome(self, call: Call, header: Answer, payload: memoryview) -> Outcome:
        form = decode_answer(header.kind, header.body, payload)
        if getattr(form, "silo", call.silo) != call.silo:
            raise WireError("a message in the name of another silo than the one that was asked")
        if not isinstance(form, FailureForm):
            return message_of(form)
        if form.error == LOST:
            return Lost("its process at its site died (killed, out of memory or crashed)")
        return error_of(form, call.silo, call.request.doing)

    def _acknowledge(self, site: _KnownSite, call: Call) -> None:
        """Tell the site that an answer is here: with the next call, or else soon."""
        connection = site.connection
        if connection and not site.done:
            self._loop.call_later(ACKNOWLEDGE_SECONDS, connection.outgoing.put_nowait, None)
        site.done.append(call.number)

    def _fail_all(self, site: _KnownSite, reason: str) -> None:
        """End the calls of a site that broke the rules; it may come back."""
        for call in list(site.calls.values()):
            self._end(site, call, error_of(FailureForm("SiloFailed", ("", call.request.doing, reason)), call.silo, ""))

    async def _say_who_is_awaited(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            due = [site for site in self._sites.values() if site.is_to_be_named()]
            for site in due:
                site.times_said += 1
            if due:
                names, seconds = link.listed([site.name for site in due]), max(site.seconds_away() for site in due)
                which = f"site{'s' * (len(due) > 1)} {names}"
                remedy = "who owns one starts it with `ray-fed site start`"
                _log.warning("waiting for %s: not connected for %.0f s; %s", which, seconds, remedy)


def _nobody(_: Call, __: Outcome) -> None:
    """Ends a call that was dropped."""


async def _admit_small(header: AnyHeader) -> None:
    if header.num_bytes or header.body:
        raise WireError("a payload where none belongs")


def _asked(call: Call, done: tuple[int, ...]) -> Ask:
    message = call.message
    return Ask(call=call.number, silo=call.silo, done=done, body=message.body, num_bytes=message.num_bytes)


async def _send(context: grpc.aio.ServicerContext, header: Acknowledge | Ask | Welcome, encoded: Encoded) -> None:
    for frame in link.frames(header, encoded):
        await context.write(frame)
