"""What every kind of silo has around it: its owner's policy, the gate, the ledger, the log, the egress block."""

import contextlib
import getpass
import os
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from ray_fed.errors import FedError, PerimeterRefused, SiloFailed
from ray_fed.federation.task import SiloSpec
from ray_fed.perimeter.error_policy import class_name_of, reduced_error
from ray_fed.perimeter.gate import Gate, MessageKinds, Request
from ray_fed.perimeter.ledger import Ledger
from ray_fed.perimeter.policy import Policy, Site, read_site, site_path
from ray_fed.privacy.signing import SigningKey

MAX_LOG_BYTES = 1 << 24
"""A longer log is set aside when the silo starts again, and the one set aside before is removed."""

Answer = TypeVar("Answer")
EgressBlock = Callable[[], contextlib.AbstractContextManager[None]]
"""Around every call of the silo's code; raises PerimeterRefused when it used another way out."""


class EgressBoundary:
    """Runs a silo's code, and lets out what passes the gate.

    The owner's policy is read here, in the process that holds the rows. Each message is a line in the silo's ledger
    before it is sent; each refusal and each error is a line, too. `kinds` are the kinds of message that this silo has.
    """

    def __init__(
        self,
        spec: SiloSpec,
        kinds: MessageKinds,
        block: EgressBlock = contextlib.nullcontext,
        redirects_output: bool = False,
        site: Site | None = None,
    ):
        """site: what its owner says, where that is known already; it is read from the owner's file if not given."""
        self.spec, self._block = spec.at_home(), block
        self._ledger: Ledger | None = None
        self._startup_error: FedError | None = None
        """Why the silo could not start: the answer to every question."""
        self.site = site or self._read_site()
        self.gate = Gate(spec.name, self.site.policy, kinds)
        self.log = SiloLog(_log_folder(self.spec, self.site))
        if redirects_output:
            self.log.redirect_output()
        self._key: SigningKey | None = None

    def __repr__(self) -> str:
        return f"Silo({self.spec.name})"

    # ---- the ledger

    def collect_ledger(self) -> tuple[bytes, str, str] | None:
        """Return (ledger, head, public key), closed by a signed line that counts the others; None where there is no
        ledger, or its owner keeps it."""
        if self._ledger is None:
            return None
        self._ledger.write_closing()
        if not self.site.policy.hand_over_ledger:
            return None
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

    # ---- the silo's code, and its messages

    def _read_site(self) -> Site:
        """Without a policy that can be read nothing is let out."""
        try:
            return read_site(self.spec.name)
        except FedError as error:
            self._startup_error = error
            return Site(Policy(), "", site_path())

    def _build(self, make: Callable[[], None]) -> None:
        """Find or make the key before foreign code runs, then let `make` build the silo."""
        try:
            if _ledger_folder(self.spec, self.site) is not None:
                self._key = SigningKey.at(key_path(self.spec, self.site))
            self._run("starting", make)
        except FedError as error:
            self._startup_error = error

    def _run(self, doing: str, call: Callable[[], Answer], is_blocked: bool = True) -> Answer:
        """Run the silo's code. What it raises stays here; a FedError that may cross is raised in its place."""
        if self._startup_error is not None:
            raise self._startup_error
        try:
            with self._block() if is_blocked else contextlib.nullcontext():
                return call()
        except BaseException as error:  # SystemExit and the like carry words, too
            error_to_send = self._error_for_coordinator(doing, error)
        raise error_to_send

    def _release(self, doing: str, message: Answer, request: Request) -> Answer:
        """Check a message at the gate, write its line, and return what may be sent."""
        ledger = self.ledger
        try:
            rebuilt = self.gate.admit(message, request)
        except Exception as error:  # a foreign object may raise anything when it is looked at
            error_to_send = self._error_for_coordinator(doing, error, request)
        else:
            if ledger:
                digest = self.gate.digest(rebuilt, request.kind)
                ledger.write({**digest.facts(), "session": request.session, "round": request.server_round})
            return rebuilt
        raise error_to_send

    def _run_and_release(self, doing: str, call: Callable[[], Answer], request: Request) -> Answer:
        """Run the silo's code and release what it answers."""
        return self._release(doing, self._run(doing, call), request)

    def _error_for_coordinator(self, doing: str, error: BaseException, request: Request | None = None) -> FedError:
        """Log an error in full on the silo's disk; return the one that may be raised to the coordinator."""
        try:
            self.log.write(doing, error)
            self._record(doing, error, request)
            return reduced_error(error, self.spec.name, doing, self.site.policy, f"({self.log.path})")
        except Exception as second:  # raised here it would carry the first one along
            names = f"{class_name_of(error)}, and {class_name_of(second)} while that was written down"
            return SiloFailed(self.spec.name, doing, names)

    def _record(self, doing: str, error: BaseException, request: Request | None) -> None:
        """Write the ledger's line of a refusal or an error."""
        if self.ledger:
            kind = "refused" if isinstance(error, PerimeterRefused) else "error"
            about = {"of": request.kind, "session": request.session, "round": request.server_round} if request else {}
            self.ledger.write({"kind": kind, "while": doing, **about, "error": class_name_of(error)})


class SiloLog:
    """A silo's own log, one text file: its output and the words of its errors. It stays on the silo's disk, readable by
    its owner."""

    def __init__(self, folder: Path):
        self.path = folder / "silo.log"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self.path.exists() and self.path.stat().st_size > MAX_LOG_BYTES:
            self.path.replace(self.path.with_suffix(".log.1"))
        self._handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, doing: str, error: BaseException) -> None:
        """Write down an error in full."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        text = f"{stamp} while {doing}\n{''.join(traceback.format_exception(error))}\n"
        os.write(self._handle, text.encode("utf-8", "backslashreplace"))

    def redirect_output(self) -> None:
        """Send all that this process writes to standard output and error into the log from now on."""
        sys.stdout.flush()
        sys.stderr.flush()
        for number in (1, 2):
            os.dup2(self._handle, number)


def _rules(site: Site) -> dict[str, object]:
    """Return the policy in full: only the first line of a process holds it, together with its version."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(site.policy).items()}


def _ledger_folder(spec: SiloSpec, site: Site) -> Path | None:
    folder = site.ledger_folder or spec.ledger_folder
    return Path(folder) / _file_name(spec.name) if folder else None


def key_path(spec: SiloSpec, site: Site) -> Path:
    """Return where a silo's key is: where the owner keeps ledgers, or else with the silo's states. It is not in what
    the coordinator collects."""
    folder = site.ledger_folder or spec.state_folder or spec.ledger_folder
    return site.key_file or Path(folder) / _file_name(spec.name) / "signing.key"


def _log_folder(spec: SiloSpec, site: Site) -> Path:
    """The log of a silo without a folder is among the machine's temporary files."""
    folder = _ledger_folder(spec, site)
    return folder or Path(tempfile.gettempdir()) / f"ray-fed-{getpass.getuser()}" / _file_name(spec.name)


def _file_name(name: str) -> str:
    """A silo's name as a name of a folder; it must not lead elsewhere."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name).lstrip(".") or "silo"
