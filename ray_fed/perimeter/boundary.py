"""What every kind of silo has around it: its owner's policy, the gate, the ledger, the log, the egress block."""

import contextlib
import fcntl
import os
import re
import secrets
import stat
import sys
import tempfile
import time
import traceback
import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from ray_fed.errors import ConfigError, DataError, FedError, PerimeterRefused, SiloFailed, Trouble
from ray_fed.federation.task import SiloSpec
from ray_fed.perimeter.error_policy import class_name_of, gates_refusal, reduced_error
from ray_fed.perimeter.gate import Gate, MessageKinds, Request
from ray_fed.perimeter.ledger import Ledger
from ray_fed.perimeter.policy import Policy, Site, read_site, site_path
from ray_fed.privacy.signing import SigningKey

MAX_LOG_BYTES = 1 << 24
"""A longer log is set aside when the silo starts again, and the one set aside before is removed."""
LOG_FILE = "silo.log"
PASSING_PREFIX = "ray-fed-silo-"
BEING_MADE_SECONDS = 60
"""A log is locked at once after it was made; a younger one may not be yet."""
OPENED_AS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
"""Never through a link, and never waiting for somebody at the other end of a pipe."""

Answer = TypeVar("Answer")
EgressBlock = Callable[[], contextlib.AbstractContextManager[None]]
"""Around every call of the silo's code; raises PerimeterRefused when it used another way out."""


@dataclass(frozen=True)
class ErrorInstead:
    """An error of the silo's code, in the place of its answer."""

    error: FedError


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
        site_file: Path | None = None,
        site: Site | None = None,
    ):
        """site_file: the owner's, where it is not the one of this process's environment. site: what it says, where that
        is known already."""
        self.spec, self._block = spec.at_home(), block
        self._ledger: Ledger | None = None
        self._startup_error: FedError | None = None
        """Why the silo could not start: the answer to every question."""
        self._key: SigningKey | None = None
        self.site, wrong = (site, None) if site else self._read_site(site_file)
        self.gate = Gate(spec.name, self.site.policy, kinds)
        self.log, no_log = _opened_log(self.spec, self.site)
        for doing, error in (("reading its owner's site file", wrong), ("opening its log", no_log)):
            if error is not None:
                self._startup_error = self._error_for_coordinator(doing, error)
        if redirects_output:
            self.log.redirect_output()

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

    def _read_site(self, path: Path | None) -> tuple[Site, FedError | None]:
        """Without a policy that can be read nothing is let out."""
        try:
            return read_site(self.spec.name, path), None
        except FedError as error:
            return Site(Policy(), "", path or site_path()), ConfigError(str(error), failure=Trouble.SITE_FILE_WRONG)

    def _build(self, make: Callable[[], None]) -> None:
        """Find or make the key before foreign code runs, then let `make` build the silo."""
        if self._startup_error is not None:
            return
        try:
            self._check("reading its key", self._read_key)
            self._run("starting", make)
        except FedError as error:
            self._startup_error = error

    def _read_key(self) -> None:
        if _ledger_folder(self.spec, self.site) is not None:
            self._key = SigningKey.at(key_path(self.spec, self.site))

    def _run(self, doing: str, call: Callable[[], Answer], is_blocked: bool = True) -> Answer:
        """Run the silo's code; return its answer as plain data. What it raises stays here; a FedError that
        may cross is raised in its place.

        All that touches an object of the task's happens while the ways out are closed: taking the answer apart,
        reading an error's words, and what is run when both are thrown away.
        """
        if self._startup_error is not None:
            raise self._startup_error
        try:
            with self._block() if is_blocked else contextlib.nullcontext():
                outcome = self._outcome(doing, call)
        except PerimeterRefused as refusal:  # the block's own: it has no words of the task's
            outcome = ErrorInstead(self._refused(doing, refusal))
        if isinstance(outcome, ErrorInstead):
            raise outcome.error
        return outcome

    def _outcome(self, doing: str, call: Callable[[], Answer]) -> Any:
        try:
            return self.gate.taken(call())
        except BaseException as error:  # SystemExit and the like carry words, too
            return ErrorInstead(self._error_for_coordinator(doing, error))

    def _check(self, doing: str, check: Callable[[], Answer], request: Request | None = None) -> Answer:
        """Run code of the gate on plain data; its refusals cross as they are: fixed phrases and limits."""
        try:
            return check()
        except PerimeterRefused as refusal:
            error_to_send = self._refused(doing, refusal, request)
        except Exception as error:  # a mistake of the gate's is no way out either
            error_to_send = self._error_for_coordinator(doing, error, request)
        raise error_to_send

    def _release(self, doing: str, message: Answer, request: Request) -> Answer:
        """Check a message at the gate, write its line, and return what may be sent."""
        return self._check(doing, lambda: self._admitted(message, request), request)

    def _admitted(self, message: Answer, request: Request) -> Answer:
        ledger = self.ledger
        rebuilt = self.gate.admit(message, request)
        if ledger:
            digest = self.gate.digest(rebuilt, request.kind)
            ledger.write({**digest.facts(), "session": request.session, "round": request.server_round})
        return rebuilt

    def _run_and_release(self, doing: str, call: Callable[[], Answer], request: Request) -> Answer:
        """Run the silo's code and release what it answers."""
        return self._release(doing, self._run(doing, call), request)

    def _refused(self, doing: str, refusal: PerimeterRefused, request: Request | None = None) -> FedError:
        """Log a refusal of the gate or the block; return it as it may be raised to the coordinator."""
        reference = self._noted(doing, refusal, request)
        return gates_refusal(refusal, self.spec.name, doing, self.site.policy, reference)

    def _error_for_coordinator(self, doing: str, error: BaseException, request: Request | None = None) -> FedError:
        """Log an error in full on the silo's disk; return the one that may be raised to the coordinator."""
        try:
            reference = self._noted(doing, error, request)
            return reduced_error(error, self.spec.name, doing, self.site.policy, reference)
        except Exception as second:  # raised here it would carry the first one along
            names = f"{class_name_of(error)}, and {class_name_of(second)} while that was written down"
            return SiloFailed(self.spec.name, doing, names)

    def _noted(self, doing: str, error: BaseException, request: Request | None) -> str:
        """Write an error into the silo's log, and its line into the ledger; return its reference."""
        reference = self.log.write(doing, error)
        try:
            self._write_line(doing, error, request, reference)
        except (DataError, OSError) as second:
            self.log.write("writing that into the ledger", second)
        return reference

    def _write_line(self, doing: str, error: BaseException, request: Request | None, reference: str) -> None:
        if self.ledger:
            kind = "refused" if isinstance(error, PerimeterRefused) else "error"
            about = {"of": request.kind, "session": request.session, "round": request.server_round} if request else {}
            said = {"error": class_name_of(error), "reference": reference}
            self.ledger.write({"kind": kind, "while": doing, **about, **said})


class SiloLog:
    """A silo's own log, one text file: its output and the words of its errors. It stays on the silo's disk, readable by
    its owner."""

    def __init__(self, folder: Path | None):
        """folder: where the owner or the run keeps it; None: among the machine's temporary files, where nobody else can
        foresee, from its first entry on. DataError where the folder or the file is somebody else's, or leads elsewhere.
        """
        self._file = _OpenLog(folder) if folder else None

    @property
    def path(self) -> Path:
        return self._opened().path

    def _opened(self) -> "_OpenLog":
        if self._file is None:
            _remove_left_behind()
            self._file = _OpenLog(Path(tempfile.mkdtemp(prefix=PASSING_PREFIX)))
            fcntl.flock(self._file.handle, fcntl.LOCK_SH)  # also of what has the same file as its output
            weakref.finalize(self._file, _remove_empty, self._file.path)  # after a silo that had nothing to say
        return self._file

    def write(self, doing: str, error: BaseException) -> str:
        """Write down an error in full; return the number under which it can be found."""
        said = " ".join("".join(traceback.format_exception_only(error)).split())
        return self.note(f"while {doing}: {said}\n{''.join(traceback.format_exception(error))}")

    def note(self, text: str) -> str:
        """Write down a text, whose first line says it all; return the number under which it can be found."""
        reference = secrets.token_hex(6)
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        entry = f"{stamp} reference {reference} {text}\n".encode("utf-8", "backslashreplace")
        os.write(self._opened().handle, entry)
        return reference

    def redirect_output(self) -> None:
        """Send all that this process writes to standard output and error into the log from now on."""
        sys.stdout.flush()
        sys.stderr.flush()
        for number in (1, 2):
            os.dup2(self._opened().handle, number)


class _OpenLog:
    """A log's file, open for as long as this object is there."""

    def __init__(self, folder: Path):
        """DataError where the folder or the file is somebody else's, or leads elsewhere."""
        self.path = folder / LOG_FILE
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _require_own(os.lstat(folder), stat.S_ISDIR, folder)
        if self.path.is_file() and not self.path.is_symlink() and self.path.stat().st_size > MAX_LOG_BYTES:
            self.path.replace(self.path.with_suffix(".log.1"))
        try:
            self.handle = os.open(self.path, OPENED_AS, 0o600)
        except OSError as error:
            raise DataError(f"{self.path}: {error.strerror}; remove it", failure=Trouble.NO_ROOM) from error
        weakref.finalize(self, os.close, self.handle)
        _require_own(os.fstat(self.handle), stat.S_ISREG, self.path)


def _remove_empty(path: Path) -> None:
    """Remove a log among the temporary files, and its folder, where no word was ever written into it."""
    with contextlib.suppress(OSError):  # somebody has tidied up already
        if path.stat().st_size == 0:
            path.unlink()
            path.parent.rmdir()


def _remove_left_behind() -> None:
    """Remove the empty logs among the temporary files that killed processes of this account left there."""
    for path in Path(tempfile.gettempdir()).glob(f"{PASSING_PREFIX}*/{LOG_FILE}"):
        with contextlib.suppress(OSError), path.open("rb") as file:
            known = os.fstat(file.fileno())
            if known.st_uid == os.getuid() and time.time() - known.st_mtime > BEING_MADE_SECONDS:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # OSError while a process has it
                _remove_empty(path)


def _require_own(found: os.stat_result, is_right_kind: Callable[[int], bool], path: Path) -> None:
    """DataError unless a file or folder is what it should be, this account's, and no other's to write."""
    is_own = is_right_kind(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022
    is_one = stat.S_ISDIR(found.st_mode) or found.st_nlink == 1
    if not (is_own and is_one):
        remedy = "it must be this account's own, no link, and for no other to write; remove it or chmod go-w"
        raise DataError(f"{path}: {remedy}", failure=Trouble.NO_ROOM)


def _rules(site: Site) -> dict[str, object]:
    """Return the policy in full: only the first line of a process holds it, together with its version."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(site.policy).items()}


def _ledger_folder(spec: SiloSpec, site: Site) -> Path | None:
    folder = site.ledger_folder or spec.ledger_folder
    return Path(folder) / file_name(spec.name) if folder else None


def key_path(spec: SiloSpec, site: Site) -> Path:
    """Return where a silo's key is: where the owner keeps ledgers, or else with the silo's states. It is not in what
    the coordinator collects."""
    folder = site.ledger_folder or spec.state_folder or spec.ledger_folder
    return site.key_file or Path(folder) / file_name(spec.name) / "signing.key"


def _opened_log(spec: SiloSpec, site: Site) -> tuple[SiloLog, Exception | None]:
    """Return the silo's log; where it cannot be had at its place, another one and why."""
    try:
        return SiloLog(_log_folder(spec, site)), None
    except (DataError, OSError) as error:
        return SiloLog(None), error


def _log_folder(spec: SiloSpec, site: Site) -> Path | None:
    return _ledger_folder(spec, site) or (Path(spec.log_folder) / file_name(spec.name) if spec.log_folder else None)


def file_name(name: str) -> str:
    """A silo's name as a name of a folder; it must not lead elsewhere."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name).lstrip(".") or "silo"
