"""Where silos of a private cluster keep their logs, so that the user who plays them all reads why one failed."""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace

from actors.session import is_private
from ray_fed.errors import FedError
from ray_fed.federation.task import SiloSpec
from ray_fed.perimeter.own_words import words_of


@contextlib.contextmanager
def readable_logs(specs: Sequence[SiloSpec]) -> Iterator[list[SiloSpec]]:
    """Yield the specs, in a cluster of this process's own with a folder for each log that has none. An error of the
    block leaves with what the logs on this disk say of it as notes."""
    with tempfile.TemporaryDirectory(prefix="ray-fed-logs-") as folder:
        given = [_with_log(spec, folder) for spec in specs] if is_private() else list(specs)
        try:
            yield given
        except FedError as error:
            for words in words_of(str(error), given):
                error.add_note(words)
            raise


def _with_log(spec: SiloSpec, folder: str) -> SiloSpec:
    return spec if spec.ledger_folder or spec.log_folder else replace(spec, log_folder=folder)
