"""A silo: holds its rows, trains sessions on them, answers with typed messages. Actors give it a place.

The evaluator, who holds the common test set, stands beside it.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ray_fed.errors import SiloFailed, Trouble
from ray_fed.federation.messages import MaskedUpdate, Metrics, SessionSpec, SiloDescription, Update, Vector
from ray_fed.federation.secure_client import QUERIES as SECURE_QUERIES
from ray_fed.federation.secure_client import SecureClient
from ray_fed.federation.silo_state import SiloState
from ray_fed.federation.task import LocalRows, Samples, SiloSpec, Task
from ray_fed.learning.private_steps import Spent
from ray_fed.learning.standardisation import ColumnMoments, Standardizer
from ray_fed.learning.trainer import Trainer
from ray_fed.metrics import Scores

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
        self._spent: dict[str, Spent] = {}
        self.secure = SecureClient(spec.name)
        self.secure_sessions: set[str] = set()
        """Those whose updates leave under masks only."""
        self._rows: LocalRows | None = None
        self._samples: Samples | None = None

    def __repr__(self) -> str:
        return f"Silo({self.spec.name})"

    def open(self) -> SiloDescription:
        """Read and featurise the rows (DataError when that fails) and describe them."""
        rows = self._rows = self.task.load(self.spec)
        return SiloDescription(
            self.spec.name,
            len(rows.features),
            len(rows.held_out_features),
            rows.unreadable,
            rows.agreement,
            rows.fingerprint,
            self.device,
            metrics=tuple(metric.name for metric in self.task.metrics),
        )

    @property
    def rows(self) -> LocalRows:
        if self._rows is None:
            reason = "its data are not open yet; call open() first"
            raise SiloFailed(self.spec.name, "answering", reason, failure=Trouble.NOT_OPEN)
        return self._rows

    def moments(self) -> ColumnMoments:
        """Return count, mean and M2 of each feature column of the training rows."""
        return ColumnMoments.of(self.rows.features)

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
        self.sessions[spec.session] = trainer
        if spec.plan.private:
            self._spent[spec.session] = Spent(spec.plan.private, self.spec.state_folder, self.spec.name, spec.session)
        self.secure_sessions.discard(spec.session)
        if spec.secure_threshold:
            self.secure_sessions.add(spec.session)
        self.secure.open(spec)
        self._last_round[spec.session] = 0
        self._states[spec.session] = SiloState(self.spec.state_folder, self.spec.name, spec.session, spec.kept_states)
        return digest

    def make_trainer(self, spec: SessionSpec) -> Trainer:
        return self.task.trainer(self.samples, spec, self.spec)

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
        state = self._states[session]
        fresh_or_again = self._last_round[session] == 0 or self._last_round[session] >= server_round
        if fresh_or_again and not state.recall(server_round, trainer.local_state()):
            trainer.forget()
        if session in self._spent:
            self._spent[session].take(len(trainer.plan.steps_of_round(server_round)))
        result_vector, result = trainer.fit_round(vector, server_round)
        code = trainer.compress(vector, result_vector)
        state.remember(server_round, trainer.local_state())
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

    def leaving(self, update: Update) -> Update | MaskedUpdate:
        """Return an answer of `fit` as it may leave the silo: under masks, in a session of secure aggregation."""
        return self.secure.masked(update) if update.session in self.secure_sessions else update

    def evaluate(self, session: str, models: Mapping[str, Vector]) -> dict[str, Metrics]:
        """Return each model's errors on the silo's training and held-out rows, as sums."""
        trainer, samples = self._session(session), self.samples
        return {
            name: Metrics(self.spec.name, *self.task.evaluate(trainer, samples, vector))
            for name, vector in models.items()
        }

    def query(self, query: str, *given: object) -> Any:
        """Answer one of the further queries of this kind of silo; SiloFailed for one it does not know."""
        if query in SECURE_QUERIES:
            return self.secure.answer(query, len(self.rows.features), *given)  # type: ignore[arg-type]
        queries = self.queries()
        if query not in queries:
            known = f"it knows {sorted(queries)}"
            raise SiloFailed(self.spec.name, f"answering '{query}'", known, failure=Trouble.UNKNOWN_QUERY)
        return queries[query](*given)

    def queries(self) -> Mapping[str, Callable[..., Any]]:
        """Return the further queries of this kind of silo: name -> what answers it, with an `Artifact` or another kind
        of message that answers queries."""
        return {}

    def _session(self, session: str) -> Trainer:
        if session not in self.sessions:
            reason = f"no session '{session}'; open: {sorted(self.sessions)}"
            raise SiloFailed(self.spec.name, "answering", reason, failure=Trouble.NO_SESSION)
        return self.sessions[session]


def make_silo(spec: SiloSpec, task: Task, device: str = "cpu") -> Silo:
    """Return the silo that does the task: its own kind, where it has one."""
    own_kind = getattr(task, "silo", None)
    return own_kind(spec, device) if own_kind else Silo(spec, task, device)


class Evaluator:
    """Holds the common test set of a study and scores models on it; takes no part in training or standardisation. Its
    owner publishes it, so, unlike a silo, an evaluator shows single predictions."""

    def __init__(self, spec: SiloSpec, task: Task):
        self.spec, self.task = spec, task

    def open(self) -> dict[str, object]:
        """Read the test samples; returns their fingerprint with `num_examples`."""
        self.rows, self._predict = self.task.load(self.spec), self.task.predictor()
        return {**self.rows.fingerprint, "num_examples": len(self.rows.targets)}

    def prepare(self, standardizer: Standardizer | None) -> None:
        self.features = self.task.prepare(self.rows, standardizer, "cpu").features

    def evaluate(self, models: Mapping[str, Vector]) -> dict[str, Scores]:
        """Return the scores of each model on the test samples."""
        found = {name: self._predict(vector, self.features) for name, vector in models.items()}
        return {name: self.task.score(self.rows.targets, outputs) for name, outputs in found.items()}

    def predict(self, models: Mapping[str, Vector]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return (true values [rows], model -> predictions [rows]) for parity plots, in the target's unit."""
        return self.rows.targets, {name: self._predict(vector, self.features)[:, 0] for name, vector in models.items()}
