"""A Flower ClientApp in a silo, unchanged: it answers messages, and its silo's gate sees each answer.

    ClientApp: (Message, Context) -> Message      @app.train, @app.evaluate, @app.query, or a client_fn of clients

Global generators (random, NumPy's, torch's) are seeded anew before each message from (seed, silo, number of the
message): a message has the same answer in every cohort, and when it is asked again.
"""

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from ray_fed.errors import SiloFailed
from ray_fed.federation.messages import Reply, reply_problem
from ray_fed.federation.silo import Silo
from ray_fed.federation.task import LocalRows, SiloSpec, Task
from ray_fed.flower.package import flower
from ray_fed.flower.records import Letter, message_of, plain_records
from ray_fed.flower.states import ClientStates
from ray_fed.randomness import derived_seed

ANSWER = "flower_message"
"""Name of the question that a silo answers with what its ClientApp says."""


@dataclass(frozen=True)
class FlowerAppTask(Task):
    """A ClientApp, for silos that a Flower ServerApp sends messages to (`pipelines.flower_app`)."""

    client_app: Callable[[Any, Any], Any]
    """A `flwr.clientapp.ClientApp`."""
    run_config: Mapping[str, Any] = field(default_factory=dict)
    """The context's `run_config`."""
    seed: int = 0
    """Of the clients' global generators."""

    def load(self, spec: SiloSpec) -> LocalRows:  # noqa: ARG002
        """The client opens its own data; the silo knows of no rows."""
        unknown, none = np.zeros((0, 0)), np.zeros((0, 0))
        return LocalRows(unknown, unknown, none, none, {}, {"client": "flower"}, self.agreement())

    def model(self, seed: int) -> nn.Module:  # noqa: ARG002
        return nn.Module()

    def agreement(self) -> Mapping[str, str]:
        return {"task": "flower app"}

    def silo(self, spec: SiloSpec, device: str = "cpu") -> "FlowerSilo":
        return FlowerSilo(spec, self, device)


class FlowerSilo(Silo):
    """Answers a ServerApp's messages."""

    def __init__(self, spec: SiloSpec, task: FlowerAppTask, device: str = "cpu"):
        super().__init__(spec, task, device)
        self.app_task = task
        self.states = ClientStates(spec.state_folder, spec.name)

    def queries(self) -> Mapping[str, Callable[..., Reply]]:
        return {ANSWER: self.answer}

    def answer(self, number: int, metadata: bytes, content: np.ndarray) -> Reply:
        """Let the ClientApp answer a message; number: which of this silo's messages it is, from 1. SiloFailed for what
        is no answer of Flower's."""
        asked = message_of(Letter(metadata, content))
        kind = asked.metadata.message_type
        context = self._context(asked, number)
        with seeded(derived_seed(self.app_task.seed, "flower client", self.spec.name, number)):
            reply = self.app_task.client_app(asked, context)
        if not isinstance(reply, flower("app").Message):
            raise SiloFailed(self.spec.name, f"answering '{kind}'", f"a {type(reply).__name__} is no Message")
        if reply.has_error():
            raise SiloFailed(self.spec.name, f"answering '{kind}'", str(reply.error.reason))
        records = plain_records(reply.content)
        if problem := reply_problem(records):
            raise SiloFailed(self.spec.name, f"answering '{kind}'", problem)
        self.states.remember(number, context.state)
        return Reply(self.spec.name, ANSWER, records)

    def _context(self, asked: Any, number: int) -> Any:
        source = self.spec.source
        node = dict(source) if isinstance(source, Mapping) else {"source": source}
        return flower("app").Context(
            asked.metadata.run_id, asked.metadata.dst_node_id, node, self.states.before(number),
            dict(self.app_task.run_config),
        )  # fmt: skip


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators for a block; afterwards they are where they were."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002  # they are the users'
    seed_all(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)
