"""RayCohort: silos that are actors. The same contract, and the same bits, as ray_fed's LocalCohort."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import ray
from ray.exceptions import RayActorError, RayTaskError

from actors.silo import Handle
from ray_fed.errors import FedError, SiloFailed
from ray_fed.federation.messages import Metrics, SessionSpec, SiloDescription, Update, Vector
from ray_fed.learning.regression import RegressionSums
from ray_fed.learning.standardisation import ColumnMoments, Standardizer

Value = TypeVar("Value")


class RayCohort:
    """Fans calls out to silo actors and gathers their answers; see `ray_fed.federation.cohort.Cohort`."""

    def __init__(self, silos: Mapping[str, Handle], examiner: Handle | None = None):
        self.silos, self.examiner = dict(silos), examiner
        self._fingerprint: dict[str, object] | None = None

    def open(self) -> dict[str, SiloDescription]:
        examiner = self.examiner.open.remote() if self.examiner else None
        descriptions = self._ask(self.silos, "opening its data", lambda silo, _: silo.open.remote())
        self._fingerprint = value_of(examiner, "test", "opening the test set") if examiner else None
        return descriptions

    def examiner_fingerprint(self) -> dict[str, object] | None:
        return self._fingerprint

    def moments(self, silos: Iterable[str]) -> dict[str, ColumnMoments]:
        return self._ask(silos, "computing moments", lambda silo, _: silo.moments.remote())

    def prepare(self, standardizer: Standardizer) -> None:
        examiner = self.examiner.prepare.remote(standardizer) if self.examiner else None
        self._ask(self.silos, "standardising", lambda silo, _: silo.prepare.remote(standardizer))
        if examiner:
            value_of(examiner, "test", "standardising")

    def open_session(self, specs: Mapping[str, SessionSpec]) -> None:
        self._ask(specs, "opening a session", lambda silo, name: silo.open_session.remote(specs[name]))

    def close_session(self, session: str, silos: Iterable[str]) -> None:
        self._ask(silos, "closing a session", lambda silo, _: silo.close_session.remote(session))

    def fit(self, session: str, server_round: int, vectors: Mapping[str, Vector]) -> Iterator[Update]:
        put = _put_once(vectors.values())
        pending: dict[Any, str] = {
            self.silos[name].fit.remote(session, server_round, put[id(vector)]): name
            for name, vector in vectors.items()
        }
        while pending:
            ready, _ = ray.wait(list(pending), num_returns=1)
            yield value_of(ready[0], pending.pop(ready[0]), f"training round {server_round}")

    def evaluate(
        self, session: str, silos: Iterable[str], models: Mapping[str, Vector]
    ) -> dict[str, dict[str, Metrics]]:
        put = _put_once(models.values())
        refs = [put[id(vector)] for vector in models.values()]
        names = tuple(models)
        return self._ask(silos, "evaluating", lambda silo, _: silo.evaluate.remote(session, names, *refs))

    def examine(self, models: Mapping[str, Vector]) -> dict[str, RegressionSums] | None:
        return value_of(self.examiner.examine.remote(models), "test", "examining") if self.examiner else None

    def parity(self, models: Mapping[str, Vector]) -> tuple[np.ndarray, dict[str, np.ndarray]] | None:
        return value_of(self.examiner.parity.remote(models), "test", "predicting") if self.examiner else None

    def _ask(self, names: Iterable[str], doing: str, call: Callable[[Handle, str], ray.ObjectRef]) -> dict[str, Any]:
        """Call all named silos at once; return their answers by name."""
        refs = {name: call(self.silos[name], name) for name in names}
        return {name: value_of(ref, name, doing) for name, ref in refs.items()}


def value_of(ref: "ray.ObjectRef[Value]", silo: str, doing: str) -> Value:
    """Return the value behind `ref`; what went wrong there is raised here as one of our errors, naming the silo."""
    try:
        return ray.get(ref)
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, FedError):
            raise cause from None
        raise SiloFailed(silo, doing, f"{type(cause).__name__}: {cause}") from error
    except RayActorError as error:
        raise _creation_error(error) or SiloFailed(
            silo, doing, "its process died (killed, out of memory or crashed)"
        ) from error


def _creation_error(error: RayActorError) -> FedError | None:
    """Ray reports an exception of an actor's constructor only inside the text; find the one we raise there."""
    from ray_fed.errors import PlacementError

    for line in str(error).splitlines():
        if "PlacementError: " in line:
            return PlacementError(line.split("PlacementError: ", 1)[1])
    return None


def _put_once(vectors: Iterable[Vector]) -> dict[int, "ray.ObjectRef"]:
    """Put each distinct vector into the object store once, however many silos receive it."""
    distinct = {id(vector): vector for vector in vectors}
    return {key: ray.put(vector) for key, vector in distinct.items()}
