"""What every kind of silo has around it: its owner's policy, the gate, the ledger, the log, the egress block."""

import contextlib
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from ray_fed.errors import FedError, PerimeterRefused, SiloFailed
from ray_fed.federation.task import SiloSpec
from ray_fed.perimeter.error_policy import crossing, kind_of
from ray_fed.perimeter.gate import Gate, Request
from ray_fed.perimeter.ledger import Ledger
from ray_fed.perimeter.message_digest import digest_of
from ray_fed.perimeter.own_log import OwnLog, passing_folder
from ray_fed.perimeter.policy import Policy, Site, read_site, site_path
from ray_fed.privacy.signing import SigningKey

Answer = TypeVar("Answer")
EgressBlock = Callable[[], contextlib.AbstractContextManager[None]]
"""Around every call of the silo's code; raises PerimeterRefused when it used another way out."""


class EgressBoundary:
    """Calls a silo's code, and lets out what passes the gate. The owner's policy is read here, in the process with the
    rows; what passes is a line in the silo's ledger before it is sent; what does not, and what goes wrong, is one,
    too."""

    def __init__(self, spec: SiloSpec, block: EgressBlock = contextlib.nullcontext, takes_output: bool = False):
        self.spec, self._block = spec, block
        self._ledger: Ledger | None = None
        self._broken: FedError | None = None
        """Why the silo could not start: the answer to every question."""
        self.site = self._read_site()
        self.gate = Gate(spec.name, self.site.policy)
        self.log = OwnLog(_log_folder(spec, self.site))
        if takes_output:
            self.log.take_output()
        self._key: SigningKey | None = None

    def __repr__(self) -> str:
        return f"Silo({self.spec.name})"

    # ---- the ledger

    def collect_ledger(self) -> tuple[bytes, str, str] | None:
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

    def _start(self, make: Callable[[], None]) -> None:
        """Find or make the key before foreign code runs, then let `make` build the silo."""
        try:
            if _ledger_folder(self.spec, self.site) is not None:
                self._key = SigningKey.at(key_path(self.spec, self.site))
            self._call("starting", make)
        except FedError as error:
            self._broken = error

    def _call(self, doing: str, question: Callable[[], Answer], is_blocked: bool = True) -> Answer:
        """Let the silo's code run; what it raises is told of, not passed on."""
        if self._broken is not None:
            raise self._broken
        try:
            with self._block() if is_blocked else contextlib.nullcontext():
                return question()
        except BaseException as error:  # SystemExit and the like carry words, too
            told = self._told(doing, error)
        raise told

    def _send(self, doing: str, message: Answer, request: Request) -> Answer:
        """Check a message, write it down, and return what may be sent."""
        ledger = self.ledger
        try:
            rebuilt = self.gate.admit(message, request)
        except Exception as error:  # a foreign object may raise anything when it is looked at
            told = self._told(doing, error, request)
        else:
            if ledger:
                ledger.write({**digest_of(rebuilt).facts(), "session": request.session, "round": request.server_round})
            return rebuilt
        raise told

    def _told(self, doing: str, error: BaseException, request: Request | None = None) -> FedError:
        """Write an error down in full at home; return what may be told of it."""
        try:
            self.log.note(doing, error)
            self._note(doing, error, request)
            return crossing(error, self.spec.name, doing, self.site.policy, f"({self.log.path})")
        except Exception as second:  # raised here it would carry the first one along
            kinds = f"{kind_of(error)}, and {kind_of(second)} while that was written down"
            return SiloFailed(self.spec.name, doing, kinds)

    def _note(self, doing: str, error: BaseException, request: Request | None) -> None:
        if self.ledger:
            kind = "refused" if isinstance(error, PerimeterRefused) else "error"
            about = {"of": request.kind, "session": request.session, "round": request.server_round} if request else {}
            self.ledger.write({"kind": kind, "while": doing, **about, "error": kind_of(error)})


def _rules(site: Site) -> dict[str, object]:
    """The policy in full, once per process: its version in the other lines stands for it."""
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
