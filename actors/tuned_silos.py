"""Silos that stand while trials come and go, and become for each trial what it wants of them.

One actor per owner holds a silo, behind its boundary, for every (specification, task) that trials ask for: trials of
one network share it, those of another have their own beside it. What all silos of one such pair agree on is asked once,
by the board, and told to every later trial.
"""

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from actors import placement, waiting
from actors.cohort import RayCohort, value_of
from actors.egress_block import ClosedEgress
from actors.federation import CONTROL_CPUS
from actors.owned import owned, owners_site_file
from actors.same_package import check_this_process
from actors.silo import Handle, reserved_device, stand_at_site
from actors.silo_logs import readable_logs
from actors.user_code import travelling
from ray_fed.errors import FedError
from ray_fed.federation.coordinator import Agreement, Coordinator
from ray_fed.federation.silo import Evaluator, make_silo
from ray_fed.federation.task import SiloSpec, Task
from ray_fed.perimeter.guarded_evaluator import GuardedEvaluator
from ray_fed.perimeter.guarded_silo import GuardedSilo

TEST = "test"
"""Name of the owner of the common test set."""
MOST_KINDS = 8
"""Pairs of specification and task that an owner holds at once; the oldest that no trial uses makes room."""


@ray.remote
@owned
class TunedOwnerActor:
    """An owner's silos, one for each key; see `SiloActor`."""

    def __init__(self, spec: SiloSpec):
        import torch

        torch.set_num_threads(1)
        self.name = spec.name
        check_this_process(f"silo '{spec.name}'")
        stand_at_site(spec)
        self.device = reserved_device(f"silo '{spec.name}'")
        self.block, self.site_file = ClosedEgress(spec.name), owners_site_file()
        self.silos: dict[str, GuardedSilo | GuardedEvaluator] = {}

    def __repr__(self) -> str:
        return f"Silo({self.name})"

    @ray.method
    def take(self, key: str, spec: SiloSpec, task: Task, is_test: bool) -> None:
        """Become a silo, or who holds the test set, for the trials of a key."""
        if key in self.silos:
            return
        if is_test:
            make = functools.partial(Evaluator, spec, task)
            self.silos[key] = GuardedEvaluator(spec, make, self.block, True, site_file=self.site_file)
        else:
            make = functools.partial(make_silo, spec, task, self.device)
            self.silos[key] = GuardedSilo(spec, make, self.block, redirects_output=True, site_file=self.site_file)

    @ray.method
    def drop(self, key: str) -> None:
        self.silos.pop(key, None)

    @ray.method
    def ask(self, key: str, method: str, *given: Any) -> Any:
        """Call a method of `SiloActor` on the silo of a key."""
        silo = self.silos[key]
        if method == "fit":
            assert isinstance(silo, GuardedSilo)
            return silo.fit(*given).packed()
        if method == "evaluate" and isinstance(silo, GuardedSilo):
            session, names, *vectors = given
            return silo.evaluate(session, dict(zip(names, vectors, strict=True)))
        return question(silo, method)(*given)


def question(silo: GuardedSilo | GuardedEvaluator, method: str) -> Callable[..., Any]:
    """Return what answers through the silo's gate; FedError for a name of anything else, such as what lies behind."""
    if method.startswith("_") or not callable(getattr(type(silo), method, None)):
        raise FedError(f"{type(silo).__name__} answers no question of this name; ask one of its public methods")
    return getattr(silo, method)


@dataclass(frozen=True)
class KeyedMethod:
    """A method of a silo of one key; called like a remote one."""

    owner: Handle
    key: str
    method: str

    def remote(self, *given: Any) -> Any:
        return self.owner.ask.remote(self.key, self.method, *given)


@dataclass(frozen=True)
class KeyedSilo:
    """Stands for the actor of a silo, of one key."""

    owner: Handle
    key: str

    def __getattr__(self, name: str) -> KeyedMethod:
        if name.startswith("_"):
            raise AttributeError(name)
        return KeyedMethod(self.owner, self.key, name)


@dataclass(frozen=True)
class Wanted:
    """What a trial wants of the silos."""

    key: str
    """Equal for equal wants."""
    specs: tuple[SiloSpec, ...]
    task: Task
    test: SiloSpec | None
    training: tuple[str, ...]
    secure_threshold: int = 0
    answer_timeout: float | None = None

    def cohort(self, owners: Mapping[str, Handle]) -> RayCohort:
        """Return the cohort of the silos of this key."""
        silos = {spec.name: KeyedSilo(owners[spec.name], self.key) for spec in self.specs}
        evaluator = KeyedSilo(owners[TEST], self.key) if self.test else None
        return RayCohort(silos, evaluator, answer_timeout=self.answer_timeout)


@ray.remote
class TuningBoard:
    """Lets silos agree once for each key, and counts the trials that use it."""

    def __init__(self, owners: Mapping[str, Handle]):
        self.owners = dict(owners)
        self.agreed: dict[str, Agreement] = {}
        self.used: Counter[str] = Counter()

    @ray.method
    def begin(self, wanted: Wanted) -> Agreement:
        """Let every owner become the silo that a trial wants; return what they agree on."""
        key = wanted.key
        self._make_room(key)
        for spec, is_test in [
            *((spec, False) for spec in wanted.specs),
            *([(wanted.test, True)] if wanted.test else []),
        ]:
            owner = self.owners[TEST if is_test else spec.name]
            value_of(owner.take.remote(key, spec, travelling(wanted.task), is_test), spec.name, "being made")
        if key not in self.agreed:
            coordinator = Coordinator(wanted.cohort(self.owners), wanted.task, wanted.training)
            self.agreed[key] = coordinator.agree(wanted.secure_threshold)
        self.used[key] += 1
        return self.agreed[key]

    @ray.method
    def end(self, key: str) -> None:
        self.used[key] -= 1

    def _make_room(self, wanted: str) -> None:
        unused = [key for key in self.agreed if key != wanted and self.used[key] <= 0]
        for key in unused[: max(0, len(self.agreed) - MOST_KINDS + 1)]:
            del self.agreed[key]
            for owner in self.owners.values():
                owner.drop.remote(key)


@dataclass(frozen=True)
class TunedSilos:
    """The driver's and the trials' end of standing silos."""

    owners: Mapping[str, Handle]
    board: Handle

    def begin(self, wanted: Wanted) -> tuple[RayCohort, Agreement]:
        """Return a trial's cohort and what its silos agree on; `end` it."""
        agreement = value_of(self.board.begin.remote(travelling(wanted)), "coordinator", "agreeing with the silos")
        return wanted.cohort(self.owners), agreement

    def end(self, key: str) -> None:
        self.board.end.remote(key)


@contextlib.contextmanager
def tuned_silos(specs: Sequence[SiloSpec], test: SiloSpec | None) -> Iterator[TunedSilos]:
    """Place one actor per owner and yield them; kill them afterwards. One that dies is started again by Ray, for the
    trials to come."""
    settled, _ = placement.settle(specs, placement.offers())
    with readable_logs([*settled, *([test] if test else [])]) as logged:
        silos = logged[: len(settled)]
        owners = {
            spec.name: TunedOwnerActor.options(**placement.actor_options(spec), max_restarts=-1).remote(spec)  # type: ignore[arg-type]
            for spec in silos
        }
        if test:
            options = placement.evaluator_options(test)
            owners[TEST] = TunedOwnerActor.options(**options, max_restarts=-1).remote(logged[-1])  # type: ignore[arg-type]
        waiting.refuse_late({spec.name: owners[spec.name] for spec in silos}, silos)
        board = TuningBoard.options(num_cpus=CONTROL_CPUS).remote(owners)
        try:
            yield TunedSilos(owners, board)
        finally:
            for actor in (board, *owners.values()):
                ray.kill(actor)  # type: ignore[arg-type]
