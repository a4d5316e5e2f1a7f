"""One sum of the silos' numbers under masks, of which the coordinator learns nothing else."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from ray_fed.federation.cohort import Cohort
from ray_fed.federation.messages import Guard, Vector
from ray_fed.federation.rounds.job import Job, Observer
from ray_fed.federation.rounds.machine import RoundMachine, RoundRules
from ray_fed.federation.rounds.secure_driver import SecureRoundDriver
from ray_fed.federation.secure_client import MASKED_COUNTS, MASKED_METRICS, MASKED_MOMENTS
from ray_fed.federation.tally import COUNTS, METRICS, MOMENTS, metrics_of, moments_of
from ray_fed.learning.standardisation import ColumnMoments
from ray_fed.metrics import Scores
from ray_fed.privacy.secure_sum.wire import as_bytes

NO_PART = "secure aggregation: it sent no part of the {}"


def masked_moments(
    cohort: Cohort, silos: Sequence[str], threshold: int, observers: Sequence[Observer]
) -> tuple[ColumnMoments, dict[str, str]]:
    """Return the moments of all silos' rows together; and silo -> why of those that are not in them, or gave false
    help. QuorumLost when fewer than `threshold` silos took part."""
    tally = _tally(cohort, MOMENTS, silos, threshold, observers)
    begun, server_round = _begun(tally, silos, threshold)
    numbers, num_examples, _ = _added(tally, MASKED_MOMENTS, dict.fromkeys(begun, ()), server_round)
    return moments_of(numbers, num_examples), _left_out(tally, silos, "moments")


def masked_counts(
    cohort: Cohort, silos: Sequence[str], question: str, given: tuple, threshold: int, observers: Sequence[Observer]
) -> tuple[int, np.ndarray, dict[str, str]]:
    """Return (rows, counts int64 [n]) of all silos together, and silo -> why of those that are not in them. QuorumLost
    when fewer than `threshold` silos took part."""
    tally = _tally(cohort, COUNTS, silos, threshold, observers)
    begun, server_round = _begun(tally, silos, threshold)
    asked = (as_bytes({question: b""}), *given)
    numbers, _, _ = _added(tally, MASKED_COUNTS, dict.fromkeys(begun, asked), server_round)
    return numbers[0], np.array(numbers[1:], np.int64), _left_out(tally, silos, "counts")


def _begun(
    tally: SecureRoundDriver, silos: Sequence[str], threshold: int
) -> tuple[Mapping[str, Mapping[str, bytes]], int]:
    """Let silos begin a sum without a session; return those that did, and the number that it may have."""
    begun = tally._query("secure_begin", dict.fromkeys(silos, (np.array([threshold], np.int64),)), 0)
    tally._require_enough(begun, "answered", 0)
    return begun, max(int.from_bytes(said.get("round", b"")[:4], "little") for said in begun.values())


def masked_metrics(
    cohort: Cohort,
    job: Job,
    silos: Sequence[str],
    models: Mapping[str, Vector],
    server_round: int,
    observers: Sequence[Observer],
) -> tuple[dict[str, tuple[Scores, Scores]], dict[str, str]]:
    """Return model -> scores on all training rows, on all held-out rows, of all silos together; and silo -> why of
    those that are not in these sums, or gave false help."""
    tally = _tally(cohort, f"{job.name}{METRICS}", silos, job.secure_threshold, observers)
    told = as_bytes(dict.fromkeys(models, b""))
    given = dict.fromkeys(silos, (told, *models.values()))
    numbers, _, names = _added(tally, MASKED_METRICS, given, server_round)
    return metrics_of(numbers, names, list(models)), _left_out(tally, silos, "evaluation")


def _left_out(tally: SecureRoundDriver, silos: Sequence[str], what: str) -> dict[str, str]:
    assert tally.collector is not None
    missing = {silo: NO_PART.format(what) for silo in silos if silo not in tally.collector.survivors}
    return {**missing, **tally.objections}


def _tally(
    cohort: Cohort, name: str, silos: Sequence[str], threshold: int, observers: Sequence[Observer]
) -> SecureRoundDriver:
    machine, threshold = RoundMachine(RoundRules(), tuple(silos)), max(threshold, len(silos) // 2 + 1)
    return SecureRoundDriver(
        cohort=cohort, machine=machine, guard=Guard(), session=name, observers=observers, threshold=threshold
    )


def _added(
    tally: SecureRoundDriver, query: str, given: Mapping[str, tuple], server_round: int
) -> tuple[list[int], int, list[str]]:
    """Return the sums of the silos' numbers and of their weights, and the names that they gave to the numbers."""
    tally._exchange_keys(list(given), server_round, 0)
    collector = tally.collector
    assert collector is not None
    said = tally._query(query, {silo: given[silo] for silo in collector.partners}, server_round)
    form = _form(said)
    for silo in sorted(said):
        ring = np.frombuffer(said[silo].get("ring", b""), "<u8")
        if (len(ring), said[silo].get("names")) != form:
            tally._object(silo, f"its answer to '{query}' is of another length than the others', or has other names")
            continue
        if not collector.survivors:
            collector.total = np.zeros((len(ring) // 2, 2), np.uint64)
        collector.add(silo, ring.reshape(-1, 2).astype(np.uint64))
    high, low = (total := tally._unmasked(server_round)).parts()
    numbers = [(int(first) << 50) + int(second) for first, second in zip(high, low, strict=True)]
    return numbers, total.total_weight, [name.decode() for name in (form[1] or b"").split(b",") if name]


def _form(said: Mapping[str, Mapping[str, bytes]]) -> tuple[int, bytes | None]:
    """Return the length in words, and the names, that most of the answers have."""
    forms = Counter((len(parts.get("ring", b"")) // 8, parts.get("names")) for parts in said.values())
    usable = {form: count for form, count in forms.items() if form[0] >= 4 and form[0] % 2 == 0}
    return max(sorted(usable, key=str), key=usable.__getitem__, default=(0, None))
