"""Lines that say which silos failed in a round, and why: once per reason, for terminals and logs."""

from collections.abc import Iterable, Mapping, Sequence

from ray_fed.federation.rounds.job import RoundRecord
from ray_fed.federation.task import SiloSpec
from ray_fed.perimeter.error_policy import REFERENCE
from ray_fed.perimeter.own_words import words_of

UNEVALUATED, POOLED_OVER = "unevaluated", "pooled_over"
"""Keys of a round in the history; not there where nothing is missing."""


class FailureNotes:
    """Remembers what was said."""

    def __init__(self, silos: Iterable[SiloSpec] = ()) -> None:
        """silos: those whose logs may be on this disk; what they say of a failure is said, too."""
        self._silos = tuple(silos)
        self._told: set[tuple[str, str]] = set()
        self._is_amiss = False
        self._pooled_over: tuple[str, ...] = ()

    def lines(self, failures: Mapping[str, str], unevaluated: Mapping[str, str], pooled: Sequence[str]) -> list[str]:
        """Return what is new: who takes no part and why, whose evaluation is missing and why, over whom a metric is
        pooled where not over all; and that nobody is missing any more."""
        out = {silo: reason for silo, reason in failures.items() if unevaluated.get(silo) != reason}
        said = [f"silo '{silo}' does not take part: {reason}" for silo, reason in self._new(out)]
        if not out and self._is_amiss:
            said.append("all silos take part again")
        self._is_amiss = bool(out) and (self._is_amiss or bool(said))
        said += [f"silo '{silo}' is in no metric: its evaluation failed: {why}" for silo, why in self._new(unevaluated)]
        if pooled and tuple(pooled) != self._pooled_over:
            self._pooled_over = tuple(pooled)
            said.append(f"metrics of all held-out rows are pooled over {_listed(pooled)} alone")
        return [line for one in said for line in (one, *(f"  {words}" for words in words_of(one, self._silos)))]

    def _new(self, reasons: Mapping[str, str]) -> list[tuple[str, str]]:
        """Return those not told before. Each failure has a reference of its own to a silo's log, which does not make it
        another one."""
        fresh = {silo: why for silo, why in reasons.items() if (silo, REFERENCE.sub("", why)) not in self._told}
        self._told |= {(silo, REFERENCE.sub("", why)) for silo, why in fresh.items()}
        return sorted(fresh.items())


def _listed(silos: Sequence[str]) -> str:
    return ", ".join(f"'{silo}'" for silo in silos)


def missing_in(record: RoundRecord) -> dict[str, object]:
    """Return what the history says of a round's evaluation where it lacks silos."""
    unevaluated = {UNEVALUATED: dict(record.unevaluated)} if record.unevaluated else {}
    return {**unevaluated, **({POOLED_OVER: list(record.pooled_over)} if record.pooled_over else {})}


def missed(records: Iterable[RoundRecord]) -> dict[str, int | str]:
    """Return of a job's rounds, for a summary: `silo.<name>.rounds_missed`, `silo.<name>.evaluations_missed`, and
    `federated.pooled_over` where the last evaluation lacks silos; nothing where nobody is missing."""
    found: dict[str, int | str] = {}
    for record in records:
        if record.server_round:
            for silo in {silo for silo, _ in record.failures} - {*record.participants}:
                found[key] = int(found.get(key := f"silo.{silo}.rounds_missed", 0)) + 1
        for silo, _ in record.unevaluated:
            found[key] = int(found.get(key := f"silo.{silo}.evaluations_missed", 0)) + 1
        if any(name.startswith("federated.") for name in record.metrics):
            found["federated.pooled_over"] = ", ".join(record.pooled_over)
    return {key: value for key, value in sorted(found.items()) if value != ""}
