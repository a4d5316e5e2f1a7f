"""What trains trees in a session of a silo: each round answers one question of the coordinator's."""

from collections import deque
from functools import lru_cache

import numpy as np
import torch

from ray_fed.learning.layout import Layout
from ray_fed.learning.trainer import FitResult, TrainingPlan
from ray_fed.privacy.compression import encode_whole
from ray_fed.trees.forest import Forest, ForestPredictor
from ray_fed.trees.member import Member
from ray_fed.trees.question import TreeQuestion
from ray_fed.trees.settings import TreeSettings


class TreeTrainer:
    """A silo's member of a forest as a `Trainer`: the vector that comes is a question, the one that goes its sums."""

    def __init__(self, member: Member, plan: TrainingPlan, layout: Layout):
        self.member, self.plan, self.layout = member, plan, layout
        self._predictors: deque[tuple[np.ndarray, ForestPredictor]] = deque(maxlen=2)
        """Of training and held-out rows."""

    def fit_round(self, vector: np.ndarray, server_round: int) -> tuple[np.ndarray, FitResult]:  # noqa: ARG002
        """Answer the question in `vector`; LostRounds when it builds on rounds that were not seen here."""
        answer = self.member.answer(_asked(vector.tobytes())).astype(np.float32)
        return answer, FitResult(1, max(1, self.member.num_rows), self.member.mean_loss)

    def predict(self, features: np.ndarray, vector: np.ndarray) -> torch.Tensor:
        """Return the outputs of the forest at `vector`, float32 [rows, outputs]: values, logits or quantiles."""
        known = [predictor for inputs, predictor in self._predictors if inputs is features]
        if not known:
            known = [ForestPredictor(self.member.settings)]
            self._predictors.append((features, known[0]))
        return torch.from_numpy(outputs_of(known[0], vector, features))

    def compress(self, received: np.ndarray, vector: np.ndarray) -> np.ndarray | None:  # noqa: ARG002
        """Return the sums in about an eighth of their bytes; nothing is left out."""
        return encode_whole(vector) if self.plan.compression else None

    def local_state(self) -> dict[str, torch.Tensor]:
        """Nothing: what the member keeps is a cache, which a whole question fills again."""
        return {}

    def forget(self) -> None:
        """Nothing to forget: each question says what it builds on."""


@lru_cache(maxsize=2)
def _asked(vector: bytes) -> TreeQuestion:
    """Return the question behind a vector, which silos in one process are all asked."""
    return TreeQuestion.of(np.frombuffer(vector, np.float32))


def outputs_of(predictor: ForestPredictor, vector: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Return what the forest of a vector gives for features [rows, columns], float32 [rows, outputs]."""
    settings: TreeSettings = predictor.settings
    scores = predictor.scores(Forest.of(vector, settings), features)
    return np.ascontiguousarray(scores.T, dtype=np.float32)
