"""The coordinator's ledger in the run directory: what it received, every global model, and the silos' own ledgers.

ledger/coordinator.jsonl            written while the run goes on
ledger/silos/<silo>/<run>.jsonl     each silo's own ledger, as it was handed over
"""

import json
import re
import secrets
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from pipelines.ledger.foreign_files import this_process
from ray_fed.errors import DataError
from ray_fed.perimeter.coordinator_record import CollectedLedgers
from ray_fed.perimeter.ledger import Ledger
from ray_fed.privacy.signing import SigningKey
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
        first = path.read_bytes().split(b"\n", 1)[0]
        try:
            return str(json.loads(first)["run"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is damaged in line 1; the run cannot be resumed with its ledger") from error
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", directory.path.resolve().name).lstrip("_.-")[:100]
    return f"{plain or 'run'}-{secrets.token_hex(4)}"


def discard_unused(directory: RunDirectory) -> None:
    """Remove ledgers and keys of a run that never began."""
    if not directory.config_path.exists():
        for name in (FOLDER, "checkpoint"):
            shutil.rmtree(directory.path / name, ignore_errors=True)


class CoordinatorLedger:
    """Writes what comes with the records."""

    def __init__(self, directory: RunDirectory, run: str, key_folder: Path):
        self.directory, self.run = directory, run
        key = SigningKey.at(key_folder / "coordinator.key")
        coordinator_path(directory).parent.mkdir(exist_ok=True)
        opening = {"writer": "coordinator", "run": run, "process": this_process()}
        self.ledger = Ledger(coordinator_path(directory), key, opening)

    @classmethod
    def of_run(cls, directory: RunDirectory, run: str, key_folder: Path) -> "CoordinatorLedger | None":
        """Return the ledger of a run that keeps ledgers, None of any other."""
        return cls(directory, run, key_folder) if run else None

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
