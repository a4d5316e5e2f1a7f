"""The coordinator's ledger in the run directory: what it received, every global model, and the silos' own ledgers.

ledger/coordinator.jsonl            written while the run goes on
ledger/silos/<silo>/<run>.jsonl     each silo's own ledger, as it was handed over
"""

import hashlib
import re
import secrets
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from pipelines.ledger.foreign_files import this_process
from ray_fed.errors import DataError
from ray_fed.federation.task import SiloSpec
from ray_fed.perimeter.boundary import key_path
from ray_fed.perimeter.chain import MAX_LINE_BYTES
from ray_fed.perimeter.coordinator_record import CollectedLedgers
from ray_fed.perimeter.ledger import Ledger
from ray_fed.perimeter.policy import COORDINATOR, read_site
from ray_fed.privacy.signing import SigningKey
from ray_fed.reading import bounded_lines, open_regular, parse_json
from ray_fed.reporting.run_directory import RunDirectory

FOLDER = "ledger"


def coordinator_path(directory: RunDirectory) -> Path:
    return directory.path / FOLDER / "coordinator.jsonl"


def silos_folder(directory: RunDirectory) -> Path:
    return directory.path / FOLDER / "silos"


def name_of_run(directory: RunDirectory) -> str:
    """Return the name under which ledgers know a run: that of its folder, in letters and digits, and a random part; a
    resumed run keeps it."""
    path = coordinator_path(directory)
    if path.exists():
        first = next(bounded_lines(path, MAX_LINE_BYTES, MAX_LINE_BYTES), b"")
        try:
            return str(parse_json(first, path)["run"])
        except (DataError, KeyError, TypeError) as error:
            raise DataError(f"{path} is damaged in line 1; the run cannot be resumed with its ledger") from error
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", directory.path.resolve().name).lstrip("_.-")[:100]
    return f"{plain or 'run'}-{secrets.token_hex(4)}"


def discard_unused(directory: RunDirectory) -> None:
    """Remove ledgers and keys of a run that never began."""
    if not directory.config_path.exists():
        for name in (FOLDER, "checkpoint"):
            shutil.rmtree(directory.path / name, ignore_errors=True)


def model_file_digests(directory: RunDirectory) -> dict[str, str]:
    """Return the name of each file of the run's models, within the run -> SHA-256 of its bytes; "" for what is no
    regular file."""
    found = sorted(path for path in directory.models.rglob("*") if path.is_symlink() or not path.is_dir())
    return {path.relative_to(directory.path).as_posix(): _file_digest(path) for path in found}


def _file_digest(path: Path) -> str:
    if path.is_symlink() or not path.is_file():
        return ""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class CoordinatorLedger:
    """Writes what comes with the records."""

    def __init__(self, directory: RunDirectory, run: str, key: SigningKey):
        self.directory, self.run = directory, run
        coordinator_path(directory).parent.mkdir(exist_ok=True)
        opening = {"writer": COORDINATOR, "run": run, "process": this_process()}
        self.ledger = Ledger(coordinator_path(directory), key, opening)

    @classmethod
    def of_run(cls, directory: RunDirectory, run: str, key_folder: Path) -> "CoordinatorLedger | None":
        """Return the ledger of a run that keeps ledgers, None of any other. Its key is the coordinator's lasting one
        where the site file names a folder for keys, else one in `key_folder`, which goes with the run."""
        if not run:
            return None
        site = read_site(COORDINATOR)
        lasting = key_path(SiloSpec(COORDINATOR, ""), site)
        return cls(directory, run, SigningKey.at(lasting if site.ledger_folder else key_folder / "coordinator.key"))

    def end_run(self) -> None:
        """Write and sign the line that closes a complete run: its numbers of lines and rounds, and the hashes of its
        model files."""
        self.ledger.write_closing({"files": model_file_digests(self.directory)})
        self.close()

    def close(self) -> None:
        """Sign the last line."""
        self.ledger.close()

    def write(self, notes: Iterable[Mapping[str, object]]) -> None:
        for note in notes:
            self.ledger.write(note)

    def add_silo_ledgers(self, collected: CollectedLedgers) -> None:
        """Keep the silos' ledgers, and write down their heads: a silo cannot change its past any more."""
        self.write(collected.notes)
        for silo, ledger in sorted(collected.silos.items()):
            path = silos_folder(self.directory) / silo / f"{self.run}.jsonl"
            if not path.exists() or path.read_bytes() != ledger.content:  # on one machine it is the silo's own file
                self.directory.write_bytes(str(path.relative_to(self.directory.path)), ledger.content)
            self.ledger.write({"kind": "handed over", "silo": silo, "head": ledger.head, "silo_key": ledger.public_key})
        self.ledger.sign()
