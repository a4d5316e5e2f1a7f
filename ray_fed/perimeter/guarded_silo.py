"""A silo behind its wall: the same questions as `Silo`, but every answer, and every error, goes through the gate.

It reads its owner's policy itself, in the process that holds the rows. What passes is a line in the silo's ledger
before it is sent; what does not pass, and what goes wrong, is a line, too.

A further kind of message needs a check in `gate.REBUILT`, a passage in `passage.KNOWN`, and one method here that hands
the silo's answer to `_send`.
"""

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import ray_fed.perimeter.artifacts
import ray_fed.perimeter.masked_updates  # noqa: F401  (so does this)
from ray_fed.errors import FedError, PerimeterRefused, SiloFailed
from ray_fed.federation.messages import Artifact, MaskedUpdate, Metrics, SessionSpec, SiloDescription, Update, Vector
from ray_fed.federation.silo import Silo
from ray_fed.federation.task import SiloSpec
from ray_fed.learning.standardisation import ColumnMoments, Standardizer
from ray_fed.perimeter.crossing_errors import crossing, kind_of
from ray_fed.perimeter.gate import Asked, Gate
from ray_fed.perimeter.ledger import Ledger
from ray_fed.perimeter.own_log import OwnLog, passing_folder
from ray_fed.perimeter.passage import passage_of
from ray_fed.perimeter.policy import Policy, Site, read_site, site_path
from ray_fed.perimeter.signing import SigningKey

Answer = TypeVar("Answer")
Fence = Callable[[], contextlib.AbstractContextManager[None]]
"""Around every call of the silo's code; raises PerimeterRefused when it used another way out."""


class GuardedSilo:
    """See `Silo` for what the questions mean. `make` builds the silo and is the first foreign code that runs."""

    def __init__(
        self,
        spec: SiloSpec,
        make: Callable[[], Silo],
        fence: Fence = contextlib.nullcontext,
        takes_output: bool = False,
    ):
        self.spec, self._fence = spec, fence
        self._ledger: Ledger | None = None
        self._rounds: dict[str, int] = {}
        self._broken: FedError | None = None
        """Why the silo could not start: the answer to every question."""
        self.site = self._read_site()
        self.gate = Gate(spec.name, self.site.policy)
        self.log = OwnLog(_log_folder(spec, self.site))
        if takes_output:
            self.log.take_output()
        self._key: SigningKey | None = None
        self._start(make)

    def __repr__(self) -> str:
        return f"Silo({self.spec.name})"

    # ---- the questions of `Silo`

    def open(self) -> SiloDescription:
        said = self._call("opening its data", lambda: self.silo.open())
        self._watch()
        return self._send("opening its data", said, Asked("description"))

    def moments(self) -> ColumnMoments:
        return self._send(
            "computing moments", self._call("computing moments", lambda: self.silo.moments()), Asked("moments")
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

    def revive(self, standardizer: Standardizer | None, sessions: Sequence[SessionSpec]) -> None:
        self._call("starting again", lambda: self.silo.revive(standardizer, sessions))
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
        asked = Asked("update", session, server_round, vector)
        if not self.silo.secure.is_secure(session):
            return self._send(doing, update, asked)
        masked = self._call(doing, lambda: self.silo.leaving(self.gate.inspect(update, asked)))
        return self._send(doing, masked, replace(asked, kind="masked"))

    def leaving(self, update: Update | MaskedUpdate) -> Update | MaskedUpdate:
        """Return what `fit` returned: it has left already."""
        return update

    def evaluate(self, session: str, models: Mapping[str, Vector]) -> dict[str, Metrics]:
        found = self._call("evaluating", lambda: self.silo.evaluate(session, models))
        asked = Asked("metrics", session, self._rounds.get(session, 0), models=tuple(models))
        return self._send("evaluating", found, asked)

    def ask(self, question: str, *given: Any) -> Artifact:
        """Put one of the further questions to the silo (`Silo.questions`)."""
        doing = f"answering '{question}'"
        artifact = self._call(doing, lambda: self.silo.ask(question, *given))
        # Nothing was received that its size could be measured by: max_bytes_per_round and _per_run bound it.
        return self._send(doing, artifact, Asked("artifact", question, vector=getattr(artifact, "data", None)))

    # ---- the ledger

    def hand_over(self) -> tuple[bytes, str, str] | None:
        """Return (ledger, head, public key), signed up to the last line; None where there is no ledger, or its owner
        keeps it."""
        if self._ledger is None or not self.site.policy.hand_over_ledger:
            return None
        self._ledger.sign()
        return self._ledger.path.read_bytes(), self._ledger.head, self._ledger.public_key

    @property
    def ledger(self) -> Ledger | None:
        """The silo's ledger, begun with its first line; None where it has no folder."""
        if self._ledger is not None or self._key is None:
            return self._ledger
        folder = _ledger_folder(self.spec, self.site)
        if folder is not None:
            opening = {"writer": self.spec.name, "run": self.spec.run, "policy": self.site.policy.version}
            path = folder / f"{self.spec.run or 'ledger'}.jsonl"
            self._ledger = Ledger(path, self._key, opening | {"rules": _rules(self.site)})
            self.gate.sent = self._ledger.total
        return self._ledger

    # ---- out

    def _read_site(self) -> Site:
        """Without a policy that can be read nothing is let out."""
        try:
            return read_site(self.spec.name)
        except FedError as error:
            self._broken = error
            return Site(Policy(), "", site_path())

    def _start(self, make: Callable[[], Silo]) -> None:
        """Find or make the key before foreign code runs, then build the silo."""
        try:
            if _ledger_folder(self.spec, self.site) is not None:
                self._key = SigningKey.at(key_path(self.spec, self.site))
            self.silo = self._call("starting", make)
            self.silo.secure.sign_with(self._key or SigningKey.passing(), self.site.partners)
        except FedError as error:
            self._broken = error

    def _call(self, doing: str, question: Callable[[], Answer]) -> Answer:
        """Let the silo's code run; what it raises is told of, not passed on."""
        if self._broken is not None:
            raise self._broken
        try:
            with self._fence():
                return question()
        except BaseException as error:  # SystemExit and the like carry words, too
            told = self._told(doing, error)
        raise told

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

    def _send(self, doing: str, message: Answer, asked: Asked) -> Answer:
        """Check a message, write it down, and return what may be sent."""
        ledger = self.ledger
        try:
            rebuilt = self.gate.admit(message, asked)
        except Exception as error:  # a foreign object may raise anything when it is looked at
            told = self._told(doing, error, asked)
        else:
            if ledger:
                ledger.write({**passage_of(rebuilt).facts(), "session": asked.session, "round": asked.server_round})
            return rebuilt
        raise told

    def _told(self, doing: str, error: BaseException, asked: Asked | None = None) -> FedError:
        """Write an error down in full at home; return what may be told of it."""
        try:
            self.log.note(doing, error)
            self._note(doing, error, asked)
            return crossing(error, self.spec.name, doing, self.site.policy, f"({self.log.path})")
        except Exception as second:  # raised here it would carry the first one along
            kinds = f"{kind_of(error)}, and {kind_of(second)} while that was written down"
            return SiloFailed(self.spec.name, doing, kinds)

    def _note(self, doing: str, error: BaseException, asked: Asked | None) -> None:
        if self.ledger:
            kind = "refused" if isinstance(error, PerimeterRefused) else "error"
            about = {"of": asked.kind, "session": asked.session, "round": asked.server_round} if asked else {}
            self.ledger.write({"kind": kind, "while": doing, **about, "error": kind_of(error)})

    def _watch(self) -> None:
        """Show the gate the rows, raw and as the network sees them, so that it knows them when it sees them again."""
        rows = getattr(self.silo, "_rows", None)
        if rows is not None:
            for name in ("features", "targets", "held_out_features", "held_out_targets"):
                self.gate.echo.watch(name, getattr(rows, name))
        for name in ("features", "targets"):
            tensor: Any = getattr(self.silo, name, None)
            if tensor is not None:
                self.gate.echo.watch(f"prepared {name}", tensor.cpu().numpy())


def _rules(site: Site) -> dict[str, object]:
    """The policy in full, once per process: its version in the other lines stands for it."""
    from dataclasses import asdict

    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(site.policy).items()}


def _ledger_folder(spec: SiloSpec, site: Site) -> Path | None:
    folder = site.ledger_folder or spec.ledger_folder
    return Path(folder) / _file_name(spec.name) if folder else None


def key_path(spec: SiloSpec, site: Site) -> Path:
    """The key stays where the owner wants ledgers, or else with the silo's states: not in what is handed over."""
    folder = site.ledger_folder or spec.state_folder or spec.ledger_folder
    return Path(folder) / _file_name(spec.name) / "signing.key"


def _log_folder(spec: SiloSpec, site: Site) -> Path:
    return _ledger_folder(spec, site) or passing_folder(_file_name(spec.name))


def _file_name(name: str) -> str:
    """A silo's name as a name of a folder; it must not lead elsewhere."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name).lstrip(".") or "silo"
