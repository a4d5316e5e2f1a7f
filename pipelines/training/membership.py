"""Who was there when a run began, who came later, and what its folder keeps of it.

What all silos start from, the scaler and the number of steps in an epoch, comes from those that were there: the
*founders*. A run that is resumed needs them again, to be the same; for the others it waits as it did before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pipelines.training.setup import Setup
from ray_fed.errors import DataError
from ray_fed.federation.coordinator import Agreement
from ray_fed.federation.rounds.job import RoundRecord
from ray_fed.federation.rounds.machine import StartRules
from ray_fed.reporting.run_directory import RunDirectory
from ray_fed.reporting.writing import to_plain

JOINED = "joined"


def start_rules(setup: Setup) -> StartRules:
    """Return whom the run waits for before it begins, or goes on."""
    config = setup.config
    late = set(setup.training) - set(setup.founders) if config.late_silos else set()
    return StartRules(config.start_timeout, frozenset(late), config.min_fit_clients)


def founded(setup: Setup, agreement: Agreement) -> Setup:
    """Return the setup with its founders: those of the run that is resumed, or those that are there now."""
    there = tuple(name for name in setup.training if name in agreement.silos)
    return setup if setup.founders else replace(setup, founders=there)


def with_founders(setup: Setup, directory: RunDirectory) -> Setup:
    """Return the setup of a run that is resumed, with the founders its folder names."""
    if not setup.config.late_silos or not directory.data_path.is_file():
        return setup
    then = {str(entry["silo"]) for entry in directory.read_data() if JOINED not in entry}
    return replace(setup, founders=tuple(name for name in setup.training if name in then))


def admitted(agreement: Agreement, record: RoundRecord) -> Agreement:
    """Return the agreement with the silos that came in a round."""
    came = {description.silo: description for description in record.joined}
    when = f"{record.job}, round {record.server_round}"
    return replace(
        agreement, silos={**agreement.silos, **came}, joined={**agreement.joined, **dict.fromkeys(came, when)}
    )


def rejoined(agreement: Agreement, setup: Setup, directory: RunDirectory) -> Agreement:
    """Return the agreement of a resumed run, in which silos are no founders though they are there."""
    then = {str(entry["silo"]): str(entry[JOINED]) for entry in directory.read_data() if JOINED in entry}
    late = [name for name in setup.training if name in agreement.silos and name not in setup.founders]
    return replace(agreement, joined={name: then.get(name, "when the run was resumed") for name in late})


def fingerprints(agreement: Agreement) -> list[dict[str, object]]:
    """Return what may be told about each silo's source, and the test set's: a hash, counts; and who came late."""
    silos = [{"silo": name, **silo.fingerprint, **_joined(agreement, name)} for name, silo in agreement.silos.items()]
    return [*silos, *([{"silo": "test", **agreement.test}] if agreement.test else [])]


def _joined(agreement: Agreement, name: str) -> dict[str, object]:
    return {JOINED: agreement.joined[name]} if name in agreement.joined else {}


def check_data(agreement: Agreement, founders: Sequence[str], directory: RunDirectory) -> None:
    """A resumed run must find the data it began with: DataError names the silo whose rows changed."""
    now = {str(entry["silo"]): _source(to_plain(entry)) for entry in fingerprints(agreement)}
    then = {str(entry["silo"]): _source(entry) for entry in directory.read_data()}
    may_differ = {*then, *now} - {*founders, "test"} if founders else set()
    for silo in dict.fromkeys([*then, *now]):
        is_late = silo in may_differ and not (silo in now and silo in then)
        if not is_same_source(then.get(silo), now.get(silo)) and not is_late:
            raise DataError(f"silo '{silo}': its data changed since the run began; start a new run")


def is_same_source(then: Mapping[str, object] | None, now: Mapping[str, object] | None) -> bool:
    """Compare what both tell: runs of earlier versions told names besides hashes and counts."""
    if then is None or now is None:
        return then == now
    common = then.keys() & now.keys() - {"sample", "tile"}
    return bool(common) and all(then[key] == now[key] for key in common)


def _source(entry: object) -> dict[str, object]:
    assert isinstance(entry, Mapping)
    return {key: value for key, value in entry.items() if key != JOINED}
