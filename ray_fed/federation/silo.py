"""A silo: holds its rows, trains sessions on them, answers with typed messages. Actors give it a place.

The evaluator, who holds the common test set, stands beside it.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ray_fed.config import require
from ray_fed.errors import SiloFailed, Trouble
from ray_fed.federation.messages import (
    COUNT,
    Counts,
    MaskedUpdate,
    Metrics,
    SessionSpec,
    SiloDescription,
    Update,
    Vector,
    unmarked,
)
from ray_fed.federation.secure_client import MASKED_COUNTS, MASKED_METRICS, MASKED_MOMENTS, SecureClient
from ray_fed.federation.secure_client import QUERIES as SECURE_QUERIES
from ray_fed.federation.silo_state import SiloState
from ray_fed.federation.tally import METRICS
from ray_fed.federation.task import Care, LocalRows, Samples, SiloSpec, Task
from ray_fed.learning.kept_values import KeepsValues, KeptValues
from ray_fed.learning.layout import initial_vector
from ray_fed.learning.partial_exchange import PartialExchange, innermost
from ray_fed.learning.private_steps import Spent
from ray_fed.learning.standardisation import ColumnMoments, Standardizer, without_rare
from ray_fed.learning.trainer import FitResult, Trainer
from ray_fed.metrics import Resolution, Scores, coin_of, secret_of
from ray_fed.privacy.secure_sum.wire import as_bytes, of_bytes
from ray_fed.randomness import generator

MOST_SESSIONS = 64
"""Each holds a network and its optimiser: a coordinator that forgets to close them must not fill the silo's memory."""


class Silo:
    """One data owner. Call `open`, `moments`, `prepare`, then any number of sessions.

    No method returns a row: what comes back is a `SiloDescription`, `ColumnMoments`, `Update` or `Metrics`.
    """

    def __init__(self, spec: SiloSpec, task: Task, device: str = "cpu"):
        self.spec, self.task, self.device = spec, task, device
        self.sessions: dict[str, Trainer] = {}
        self._last_round: dict[str, int] = {}
        self._states: dict[str, SiloState] = {}
        self._values: dict[str, KeptValues] = {}
        self._spent: dict[str, Spent] = {}
        self.secure = SecureClient(spec.name)
        self.secure_sessions: set[str] = set()
        """Those whose updates leave under masks only."""
        self.resolution = Resolution()
        """How exactly its evaluations are told."""
        self._scoring: Scoring | None = None
        self._counting: Counter | None = None
        self._rows: LocalRows | None = None
        self._samples: Samples | None = None
        self.owner_notes: list[str] = []
        """What its owner alone may read, and has not been written into the owner's log yet."""

    def __repr__(self) -> str:
        return f"Silo({self.spec.name})"

    def open(self) -> SiloDescription:
        """Read and featurise the rows (DataError when that fails) and describe them."""
        rows = self._rows = self.task.load(self.spec)
        self._scoring, self._counting, self.secure.num_examples = None, None, len(rows.features)
        self.owner_notes += rows.remarks
        return SiloDescription(
            self.spec.name,
            len(rows.features),
            len(rows.held_out_features),
            rows.unreadable,
            rows.agreement,
            rows.fingerprint,
            self.device,
            metrics=tuple(metric.name for metric in self.task.metrics),
            notes=rows.notes,
        )

    @property
    def rows(self) -> LocalRows:
        if self._rows is None:
            reason = "its data are not open yet; call open() first"
            raise SiloFailed(self.spec.name, "answering", reason, failure=Trouble.NOT_OPEN)
        return self._rows

    def moments(self) -> ColumnMoments:
        """Return count, sum and sum of squares of each column that the federation standardises, over the training rows,
        without what fewer rows alone have than a statistic needs."""
        return ColumnMoments.of(without_rare(self.moment_columns(), self.resolution.fewest_rows))

    def moment_columns(self) -> np.ndarray:
        """Return what the moments are of, [num_examples, k]; it stays here."""
        return self.task.moment_columns(self.rows)

    def prepare(self, standardizer: Standardizer | None) -> None:
        """Apply the federation's scaler, where the task has one, and put the samples on the device."""
        self._samples = self.task.prepare(self.rows, standardizer, self.device)

    @property
    def samples(self) -> Samples:
        if self._samples is None:
            reason = "its samples are not prepared yet; call prepare() first"
            raise SiloFailed(self.spec.name, "answering", reason, failure=Trouble.NOT_OPEN)
        return self._samples

    def open_session(self, spec: SessionSpec) -> str:
        """Make the trainer of a session; returns the layout digest for comparison."""
        if spec.session not in self.sessions and len(self.sessions) >= MOST_SESSIONS:
            reason = f"it has {len(self.sessions)} open already, and that is the most; close one"
            raise SiloFailed(self.spec.name, "opening a session", reason, failure=Trouble.TOO_MANY_SESSIONS)
        trainer = self.make_trainer(spec)
        digest = trainer.layout.digest
        if digest != spec.layout_digest:
            reason = Trouble.OTHER_NETWORK.value
            raise SiloFailed(self.spec.name, "opening a session", reason, failure=Trouble.OTHER_NETWORK)
        if spec.plan.num_beside:
            _check_numbers(trainer)
        self.sessions[spec.session] = trainer
        if spec.plan.private:
            self._spent[spec.session] = Spent(spec.plan.private, self.spec.state_folder, self.spec.name, spec.session)
        self.secure_sessions.discard(spec.session)
        if spec.secure_threshold:
            self.secure_sessions.add(spec.session)
        self.secure.open(spec)
        self._last_round[spec.session] = 0
        where = self.spec.state_folder, self.spec.name, spec.session, spec.kept_states
        self._states[spec.session], self._values[spec.session] = SiloState(*where), KeptValues(*where)
        return digest

    def make_trainer(self, spec: SessionSpec) -> Trainer:
        trainer = self.task.trainer(self.samples, spec, self.spec)
        module = self.task.model(spec.model_seed)
        names = self.task.exchanged(module)
        if names is None:
            return trainer
        return PartialExchange(trainer, names, initial_vector(module, spec.plan.buffers), self.spec.name)

    def restore(self, standardizer: Standardizer | None, sessions: Sequence[SessionSpec]) -> SiloDescription:
        """Bring a silo that was started again to where the one before it stood; it says of itself what that one did."""
        said = self.open()
        self.prepare(standardizer)
        for spec in sessions:
            self.open_session(spec)
        return said

    def close_session(self, session: str) -> None:
        self.sessions.pop(session, None)
        self._states.pop(session, None)
        self._values.pop(session, None)
        self._spent.pop(session, None)
        self.secure_sessions.discard(session)
        self.secure.close(session)

    def fit(self, session: str, server_round: int, vector: Vector) -> Update:
        """Train the round's steps from `vector` on (Guo et al. 2022, Algorithm 2, lines 4-8).

        Asked again for a round it has done, or asked after a restart, the silo starts from the optimiser state it kept
        before that round: the same query has the same answer.
        """
        start = time.perf_counter()
        trainer = self._session(session)
        if self._last_round[session] == 0 or self._last_round[session] >= server_round:
            self._recall(session, trainer, server_round)
        if session in self._spent:
            self._spent[session].take(len(trainer.plan.steps_of_round(server_round)))
        result_vector, result = self._trained(trainer, vector, server_round)
        code = trainer.compress(vector, result_vector)
        self._states[session].remember(server_round, trainer.local_state())
        if isinstance(trainer, KeepsValues):
            self._values[session].remember(server_round, trainer.kept())
        self._last_round[session] = server_round
        return Update(
            self.spec.name,
            session,
            server_round,
            result_vector,
            result.num_examples,
            result.num_steps,
            result.mean_loss,
            time.perf_counter() - start,
            code,
        ).unpacked(vector)

    @staticmethod
    def _trained(trainer: Trainer, vector: Vector, server_round: int) -> tuple[Vector, FitResult]:
        """Let a trainer train, with the numbers behind the vector that are this silo's own."""
        plan = trainer.plan
        if not plan.num_beside:
            return trainer.fit_round(vector, server_round)
        size, inner = len(vector) - plan.num_beside, innermost(trainer)
        given = vector[size : size + len(plan.config)]
        inner.take(dict(zip(plan.config, given.tolist(), strict=True)))  # type: ignore[attr-defined]  (see open_session)
        moved, result = trainer.fit_round(vector[:size], server_round)
        told = inner.tell()  # type: ignore[attr-defined]
        return np.concatenate([moved, given, np.array([told[name] for name in plan.told], np.float32)]), result

    def _recall(self, session: str, trainer: Trainer, server_round: int) -> None:
        """Bring a trainer's local state to where it stood before a round; to its beginning where nothing was kept."""
        found = self._states[session].recall(server_round, trainer.local_state())
        values = self._values[session].recall(server_round)
        if not found and values is None:
            trainer.forget()
        elif isinstance(trainer, KeepsValues) and values is not None:
            trainer.restore(values)

    def leaving(self, update: Update, received: Vector) -> Update | MaskedUpdate:
        """Return the answer of `fit` to what was received as it may leave the silo: under masks, in a session of secure
        aggregation."""
        return self.secure.masked(update, received) if update.session in self.secure_sessions else update

    def evaluate(self, session: str, models: Mapping[str, Vector]) -> dict[str, Metrics]:
        """Return each model's errors on the silo's training and held-out rows, as sums of few digits; see `Scoring`
        for models that are not marked."""
        trainer, samples = self._session(session), self.samples
        return {
            name: Metrics(self.spec.name, *self.scoring.scores(self.task, trainer, samples, vector))
            for name, vector in models.items()
        }

    @property
    def scoring(self) -> "Scoring":
        """What marks models on the silo's rows."""
        self._scoring = self._scoring or Scoring(self.rows, self.resolution)
        return self._scoring

    def query(self, query: str, *given: object) -> Any:
        """Answer one of the further queries of this kind of silo; SiloFailed for one it does not know."""
        if query == MASKED_MOMENTS:
            return self.secure.masked_moments(self.moments(), *given)  # type: ignore[arg-type]
        if query == MASKED_METRICS:
            return self.secure.masked_metrics(self.evaluate(*models_asked(given)), *given[:2])  # type: ignore[arg-type]
        if query == MASKED_COUNTS:
            return self.secure.masked_counts(self.count(*counts_asked(given)), *given[:2])  # type: ignore[arg-type]
        if query.startswith(COUNT):
            return self.count(query, *given)
        if query in SECURE_QUERIES:
            return self.secure.answer(query, len(self.rows.features), *given)  # type: ignore[arg-type]
        queries = self.queries()
        if query not in queries:
            known = f"it knows {sorted(queries)}"
            raise SiloFailed(self.spec.name, f"answering '{query}'", known, failure=Trouble.UNKNOWN_QUERY)
        return queries[query](*given)

    def count(self, question: str, *given: object) -> Counts:
        """Answer one of the task's questions for counts of rows; SiloFailed for one it does not know."""
        if question not in self.task.countings():
            known = f"its task counts {sorted(self.task.countings()) or 'nothing'}"
            raise SiloFailed(self.spec.name, f"answering '{question}'", known, failure=Trouble.UNKNOWN_QUERY)
        self._counting = self._counting or Counter(self.task, self.rows, self.resolution)
        return Counts(self.spec.name, question, *self._counting.count(question, self.samples, *given))

    def queries(self) -> Mapping[str, Callable[..., Any]]:
        """Return the further queries of this kind of silo: name -> what answers it, with an `Artifact` or another kind
        of message that answers queries. One whose name begins with METRICS_OF is answered by metrics of the names that
        are its first argument (`names_told`)."""
        return {}

    def notes_for_owner(self) -> list[str]:
        """Return what is for the owner's log, once."""
        notes, self.owner_notes = self.owner_notes, []
        return notes

    def _session(self, session: str) -> Trainer:
        if session not in self.sessions:
            reason = f"no session '{session}'; open: {sorted(self.sessions)}"
            raise SiloFailed(self.spec.name, "answering", reason, failure=Trouble.NO_SESSION)
        return self.sessions[session]


def _check_numbers(trainer: Trainer) -> None:
    """Raise ConfigError where a trainer can make nothing of the numbers of its plan."""
    inner, plan = innermost(trainer), trainer.plan
    kind = type(inner).__name__
    require(hasattr(inner, "check_numbers"), f"a {kind} takes and tells no numbers of single silos")
    inner.check_numbers(plan.config, plan.told)  # type: ignore[attr-defined]


def models_asked(given: tuple) -> tuple[str, dict[str, Vector]]:
    """Return the session and the models of a question for masked metrics: (name of the sum, round, names, *vectors)."""
    name, _, names, *vectors = given
    return name.removesuffix(METRICS), dict(zip(of_bytes(names), vectors, strict=True))


def counts_asked(given: tuple) -> tuple:
    """Return the question, and what is given with it, of a question for masked counts: (name of the sum, round,
    question, *given)."""
    question, *more = given[2:]
    return next(iter(of_bytes(question))), *more


METRICS_OF = "metrics of "
"""How the name of a further query begins that is answered by metrics, by names that the question holds."""


def names_told(names: Iterable[str]) -> np.ndarray:
    """Return names as the first argument of a query for metrics, uint8 [n]."""
    return as_bytes(dict.fromkeys(names, b""))


def names_asked(query: str, given: Sequence[object]) -> tuple[str, ...]:
    """Return the names that a query for metrics asks for; none where it is no such query, or names none."""
    is_asked = query.startswith(METRICS_OF) and len(given) > 0 and isinstance(given[0], np.ndarray)
    return tuple(of_bytes(given[0])) if is_asked else ()  # type: ignore[arg-type]


def make_silo(spec: SiloSpec, task: Task, device: str = "cpu") -> Silo:
    """Return the silo that does the task: its own kind, where it has one."""
    own_kind, spec = getattr(task, "silo", None), spec.at_home()
    return own_kind(spec, device) if own_kind else Silo(spec, task, device)


class Evaluator:
    """Holds the common test set of a study and scores models on it; takes no part in training or standardisation.

    Where who asks has shown that it has the same samples (`Task.possession`), or their owner publishes them, scores
    have all digits and single predictions are shown; else models are marked as a silo marks them (`Scoring`).
    """

    def __init__(self, spec: SiloSpec, task: Task):
        self.spec, self.task = spec, task
        self.resolution = Resolution()
        """How exactly scores on samples that others do not have are told."""
        self.is_public = False
        """Whether the owner publishes the samples."""

    def open(self) -> dict[str, object]:
        """Read the test samples; returns their fingerprint with `num_examples`."""
        self.rows, self._predict = self.task.load(self.spec), self.task.predictor()
        said = self.spec.possession
        self.is_known = self.is_public or (bool(said) and self.task.possession(self.spec.source) == said)
        self._scoring = Scoring(self.rows, self.resolution)
        return {**self.rows.fingerprint, "num_examples": len(self.rows.targets)}

    def prepare(self, standardizer: Standardizer | None) -> None:
        self.samples = self.task.prepare(self.rows, standardizer, "cpu")

    def evaluate(self, models: Mapping[str, Vector]) -> dict[str, Scores]:
        """Return the scores of each model on the test samples."""
        found = {name: self.task.test_scores(self._predict, self.samples, each) for name, each in models.items()}
        if self.is_known:
            return {name: scores for name, (scores, _) in found.items()}
        return {
            name: self._scoring.told([scores], [torch.from_numpy(outputs)], models[name])[0]
            for name, (scores, outputs) in found.items()
        }

    def count(self, question: str, *given: object) -> Counts:
        """Answer one of the task's questions for counts of rows, of the test samples as of held-out ones; exactly
        where who asks knows the samples."""
        care = replace(self.resolution, fewest_rows=1) if self.is_known else self.resolution
        counter = Counter(self.task, self.rows, care)
        return Counts(self.spec.name, question, *counter.count(question, self.samples, *given))

    def predict(self, models: Mapping[str, Vector]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return (true values [rows], model -> predictions [rows]) for parity plots, in the target's unit; of several
        values per row [rows, values] each."""
        found = {
            name: self.samples.said(self._predict(vector, self.samples.features)) for name, vector in models.items()
        }
        return self.rows.targets, {name: told[:, 0] if told.shape[1] == 1 else told for name, told in found.items()}


# ---- evaluations of models on the silo's own rows

NEARLY_EQUAL = 2.0**-18
"""Outputs nearer to each other, in units of the largest, are the same: float32 has 2^-24."""
NEARLY_NOTHING = 2.0**-8
"""A change smaller than this part of the largest one is none."""
REMEMBERED_VALUES = 1 << 24
"""Outputs of models marked before: 64 MiB. The oldest are forgotten."""
PARTS = ("train", "held out")


class Counter:
    """Answers a task's questions for counts of rows without becoming an oracle for the rows."""

    def __init__(self, task: Task, rows: LocalRows, resolution: Resolution):
        self.task, self.rows, self.resolution = task, rows, resolution
        self._parts: dict[str, Scoring] = {}

    def count(self, question: str, samples: Samples, *given: object) -> tuple[int, np.ndarray]:
        """Return (rows counted, counts int64 [n])."""
        return self.task.countings()[question](samples, Care(self.resolution.fewest_rows, self._is_probe), *given)

    def _is_probe(self, part: str, outputs: np.ndarray) -> bool:
        scoring = self._parts.setdefault(part, Scoring(self.rows, self.resolution))
        shown = one_per_row(torch.from_numpy(outputs))
        return len(shown) >= self.resolution.fewest_rows > 1 and scoring.is_probe([shown])


class Scoring:
    """Marks models on a silo's rows without becoming an oracle for them.

    Not marked, NaN for every metric, is a probe: a model that tells the rows apart in fewer groups than a statistic
    needs rows (a constant, a step), or that differs from a model marked before in fewer rows than that. What is marked
    is told with few digits (`ray_fed.metrics.Resolution`).
    """

    def __init__(self, rows: LocalRows, resolution: Resolution | None = None):
        self.resolution = resolution or Resolution()
        arrays = (rows.targets, rows.held_out_targets)
        self._secret = secret_of(arrays, str(len(rows.features)), str(sorted(rows.fingerprint.items(), key=str)))
        self._of_numbers = _are_numbers(rows.targets)
        self._marked: list[list[np.ndarray]] = []

    def scores(self, task: Task, trainer: Trainer, samples: Samples, vector: Vector) -> tuple[Scores, Scores]:
        """Return what `task.evaluate` finds, as it may be told; NaN for a probe."""
        with recorded_outputs(trainer) as outputs:
            found = task.evaluate(trainer, samples, vector)
        train, held_out = self.told(found, outputs, vector)
        return train, held_out

    def told(self, found: Sequence[Scores], outputs: Sequence[torch.Tensor], vector: Vector) -> list[Scores]:
        """Return scores of a model with these outputs [rows, ...] of each part of the rows, as they may be told."""
        if self.is_probe([shown for one in outputs if len(shown := one_per_row(one)) >= self.resolution.fewest_rows]):
            return [unmarked(scores) for scores in found]
        return [
            self.resolution.released(scores, coin_of(self._secret, vector, part), self._of_numbers)
            for part, scores in zip(PARTS, found, strict=False)
        ]

    def marks(self, outputs: Sequence[torch.Tensor]) -> bool:
        """Tell whether a model with these outputs [rows, ...] of each part of the rows is marked; it then was."""
        return not self.is_probe([one_per_row(one) for one in outputs if len(one) >= self.resolution.fewest_rows])

    def is_probe(self, parts: list[np.ndarray]) -> bool:
        """Tell whether outputs [rows] of each part are a probe's; remember those that are not."""
        few = self.resolution.fewest_rows
        if any(num_groups(part) < few for part in parts):
            return True
        for before in self._marked:
            for old, new in zip(before, parts, strict=False):
                if len(old) == len(new) and 0 < num_changed(old, new) < few:
                    return True
        self._marked.append(parts)
        while len(self._marked) > 1 and sum(part.size for one in self._marked for part in one) > REMEMBERED_VALUES:
            self._marked.pop(0)
        return False


def _are_numbers(targets: object) -> bool:
    """Tell whether each row's target is one real number."""
    return isinstance(targets, np.ndarray) and targets.dtype.kind == "f" and targets.size == len(targets)


@contextmanager
def recorded_outputs(trainer: Trainer) -> Iterator[list[torch.Tensor]]:
    """Lend a list into which goes whatever the trainer predicts meanwhile."""
    outputs, predict = [], trainer.predict

    def recording(features: object, vector: Vector) -> torch.Tensor:
        outputs.append(predict(features, vector))
        return outputs[-1]

    trainer.predict = recording  # type: ignore[method-assign]
    try:
        yield outputs
    finally:
        del trainer.predict


def one_per_row(outputs: torch.Tensor) -> np.ndarray:
    """Return one number for each row's outputs, float32 [rows]: a fixed mixture of them, so that rows whose outputs
    differ have different numbers."""
    table = outputs.detach().cpu().reshape(len(outputs), int(np.prod(outputs.shape[1:]))).numpy().astype(np.float64)
    weights = generator(0, "one number per row").normal(size=table.shape[1]) if table.shape[1] > 1 else np.ones(1)
    return (table @ weights).astype(np.float32)


def num_groups(outputs: np.ndarray) -> int:
    """Return how many different values there are among outputs [rows]."""
    size = float(np.abs(outputs).max())
    if size == 0 or not np.isfinite(size):
        return 1
    return len(np.unique(np.rint(outputs / (size * NEARLY_EQUAL))))


def num_changed(old: np.ndarray, new: np.ndarray) -> int:
    """Return in how many rows outputs [rows] differ."""
    change = np.abs(new - old)
    largest = float(change.max())
    return int((change > NEARLY_NOTHING * largest).sum()) if largest > 0 else 0
