"""What a run keeps of its silos' data, hashes and counts, and whether it finds the same data when it goes on."""

from collections.abc import Mapping, Sequence

from ray_fed.errors import DataError
from ray_fed.federation.coordinator import Agreement
from ray_fed.reporting.run_directory import RunDirectory
from ray_fed.reporting.writing import to_plain

JOINED = "joined"


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
