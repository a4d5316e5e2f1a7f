"""What secure aggregation costs: seconds of one silo and of the coordinator, and bytes, in one round.

    python benchmarks/secure_aggregation.py --parameters 55201 --silos 2 4 8 16 32 64
    python benchmarks/secure_aggregation.py --parameters 25000000 --silos 2 4 8 --dropped 1

All silos run one after another in this process; the table has processor seconds of one silo (mean) and of the
coordinator, so that a busy machine does not count. With --sampled, for many parameters, only one silo really masks: the
others would cost the same again.
"""

import argparse
import time
from collections.abc import Mapping

import numpy as np

from ray_fed.exact_sum import ExactWeightedSum
from ray_fed.federation.rounds.secure_driver import default_threshold
from ray_fed.privacy.secure_sum.collector import SecureCollector
from ray_fed.privacy.secure_sum.member import SecureMember
from ray_fed.privacy.secure_sum.sealed import SealedShares

MOST_MASKED = 1
"""Silos that really mask where all of them would take minutes; the sum is checked where all of them do."""


class Stopwatch:
    """Adds up processor seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, call, *given):
        start = time.process_time()
        value = call(*given)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - start
        return value


def one_round(num_silos: int, num_parameters: int, num_dropped: int, exact: bool) -> dict[str, float]:
    """Run one round; return seconds of a silo by phase, of the coordinator, and bytes a silo sends."""
    watch, names = Stopwatch(), [f"silo-{number:03}" for number in range(num_silos)]
    threshold = default_threshold(num_silos)
    members = {name: SecureMember(name, "bench", 1, threshold) for name in names}
    roster = {name: watch("keys", member.keys) for name, member in members.items()}
    shares = {name: watch("shares", member.shares, roster) for name, member in members.items()}
    for name, member in members.items():
        watch("shares", member.deliver, {giver: shares[giver][name] for giver in names if giver != name})
    survivors = names[: num_silos - num_dropped]
    sealed = {giver: {to: SealedShares.of_bytes(text) for to, text in shares[giver].items()} for giver in names}
    collector = SecureCollector("bench", 1, num_parameters, roster, names, sealed)
    masking = masked_sum(watch, collector, members, survivors, num_parameters, exact)
    signed = {name: watch("unmask", members[name].agree, survivors) for name in survivors}
    given = {name: watch("unmask", members[name].unmask, signed) for name in survivors}
    start = time.process_time()
    total = _sum(collector, given, exact)
    unmasking = time.process_time() - start
    if exact:
        check(total, survivors, num_parameters)
    each = {phase: watch.seconds[phase] / num_silos for phase in ("keys", "shares", "unmask")}
    own = 3 * 32 + 64 + 64  # two keys and the signer, their signature, the signature of the names
    sent = own + sum(len(text) for text in shares[names[0]].values()) + 66 * num_silos + 16 * (num_parameters + 1)
    return {
        **each,
        "mask": masking,
        "add": watch.seconds["add"] / (len(survivors) if exact else MOST_MASKED),
        "sum": unmasking,
        "bytes": sent,
    }


def masked_sum(watch: Stopwatch, collector, members, survivors, num_parameters: int, exact: bool) -> float:
    """Mask and add the survivors' updates; return the mean seconds of masking one."""
    number = len(survivors) if exact else min(MOST_MASKED, len(survivors))
    for name in survivors[:number]:
        ring_elements = watch("mask", members[name].masked, vector_of(name, num_parameters), 100)
        watch("add", collector.add, name, ring_elements)
    for name in survivors[number:]:
        members[name].has_masked = True
        collector.survivors.append(name)
    return watch.seconds["mask"] / number


def vector_of(name: str, num_parameters: int) -> np.ndarray:
    """Return the update of a silo: the same whenever it is asked for."""
    return np.random.default_rng(int(name[5:])).standard_normal(num_parameters, dtype=np.float32)


def _sum(collector: SecureCollector, given: Mapping, exact: bool) -> ExactWeightedSum | None:
    if exact:
        return collector.sum(given)
    try:  # masks that were never added do not cancel: the work is the same, the weight is noise
        return collector.sum(given)
    except ValueError:
        return None


def check(total: ExactWeightedSum | None, survivors: list[str], num_parameters: int) -> None:
    plain = ExactWeightedSum(num_parameters)
    for name in survivors:
        plain.add(vector_of(name, num_parameters), 100)
    assert total is not None
    assert total.mean().tobytes() == plain.mean().tobytes(), "the secure sum differs from the plain one"


def plain_seconds(num_parameters: int) -> float:
    total, vector = ExactWeightedSum(num_parameters), vector_of("silo-000", num_parameters)
    start = time.process_time()
    for _ in range(3):
        total.add(vector, 100)
    return (time.process_time() - start) / 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=55_201)
    parser.add_argument("--silos", type=int, nargs="+", default=[2, 4, 8, 16, 32, 64])
    parser.add_argument("--dropped", type=int, default=0)
    parser.add_argument("--sampled", action="store_true", help="let only a few silos mask, for many parameters")
    options = parser.parse_args()
    plain = plain_seconds(options.parameters)
    print(f"{options.parameters} parameters, {options.dropped} dropped, plain add {plain:.4f} s")
    print(
        "| silos | silo: keys, shares | silo: mask | silo: sign, unmask | coordinator: add one | unmask | silo sends |"
    )
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for num_silos in options.silos:
        cost = one_round(num_silos, options.parameters, options.dropped, not options.sampled)
        print(
            f"| {num_silos} | {cost['keys'] + cost['shares']:.4f} s | {cost['mask']:.3f} s | {cost['unmask']:.4f} s | "
            f"{cost['add']:.4f} s | {cost['sum']:.3f} s | {cost['bytes'] / 1e6:.2f} MB |",
            flush=True,
        )


if __name__ == "__main__":
    main()
