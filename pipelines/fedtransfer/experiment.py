"""The stages of a run: generators learn, styles are exchanged, every method trains; each is resumed by itself."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from pipelines.fedtransfer.config import FedTransferConfig
from pipelines.fedtransfer.results import silo_losses, validation_losses
from pipelines.fedtransfer.setup import job_of, named_data
from ray_fed.federation.messages import Vector
from ray_fed.federation.rounds.job import EPSILON, Job, RoundRecord
from ray_fed.metrics import LOSS
from ray_fed.style_transfer.exchange import StyleFederation, total_bytes
from ray_fed.style_transfer.methods import Method, method_named
from ray_fed.style_transfer.task import FedTransferTask, session_name

Line = Mapping[str, Any]
"""A stage that is done, as a line of history.jsonl."""


class FedTransferListener(Protocol):
    """Told what happens while the experiment runs."""

    def on_stage_start(self, title: str, rounds: int) -> None: ...

    def on_round_end(self, record: RoundRecord) -> None: ...

    def trained(self, name: str, task: FedTransferTask, models: Mapping[str, Vector], line: Line) -> None:
        """Told the chosen models before the stage is done; only those that are whole without what silos keep."""
        ...

    def done(self, line: Line, seconds: float) -> None: ...


@dataclass
class Choice:
    """The best round so far of each model: that with the lowest loss (Algorithm 1, lines 30-34).

    The algorithm keeps w^t while the loss is that of w^(t+1); here both are of the same round.
    """

    losses: dict[str, float] = field(default_factory=dict)
    rounds: dict[str, int] = field(default_factory=dict)
    vectors: dict[str, Vector] = field(default_factory=dict)

    def sees(self, server_round: int, losses: Mapping[str, float], models: Mapping[str, Vector]) -> None:
        """Look at the models of a round; a loss that is not a number chooses nothing."""
        for name, vector in models.items():
            if losses[name] < self.losses.get(name, np.inf) or name not in self.rounds:
                self.losses[name], self.rounds[name] = losses[name], server_round
                self.vectors[name] = np.array(vector)


@dataclass
class FedTransferExperiment:
    """One fold on silos that stand."""

    config: FedTransferConfig
    fold: int
    task: FedTransferTask
    federation: StyleFederation
    listener: FedTransferListener
    finished: frozenset[str]
    """Keys of the stages that an earlier process has finished."""

    @property
    def silos(self) -> list[str]:
        return list(named_data(self.config))

    @property
    def methods(self) -> dict[str, Method]:
        return {name: method_named(name) for name in self.config.methods}

    def run(self) -> None:
        """Do what is not done yet. Generators and what was received stand in the silos' own folders; where they are
        still there, learning again is only reading."""
        missing = [
            (seed, method)
            for seed in range(self.config.seed, self.config.seed + self.config.repeats)
            for method in self.methods.values()
            if session_name(method, self.fold, seed) not in self.finished
        ]
        self.describe()
        if any(method.needs_generators for _, method in missing):
            self.learn()
            self.exchange()
        if any(method.pool == "amplitude" for _, method in missing):
            self.share_amplitudes()
        for seed, method in missing:
            self.train(method, seed)

    def describe(self) -> None:
        """Let every silo say what its micrographs are like, in counts and means."""
        started = time.perf_counter()
        said = self.federation.query(self.silos, "describe_data")
        self._done("data", started, facts={silo: dict(artifact.facts) for silo, artifact in said.items()})

    def learn(self) -> None:
        """Algorithm 1, line 9, in all silos at once."""
        self.listener.on_stage_start("generators", self.config.style_epochs)
        started = time.perf_counter()
        said = self.federation.query(self.silos, "learn_style")
        facts = {silo: dict(artifact.facts) for silo, artifact in said.items()}
        self._done("generators", started, facts=facts)

    def exchange(self) -> None:
        """Algorithm 1, lines 10-17: every generator to every other silo, once per codec."""
        for codec in dict.fromkeys(method.codec for method in self.methods.values() if method.needs_generators):
            started = time.perf_counter()
            sent = self.federation.exchange(self.silos, "style", "take_style", codec)
            self.federation.query(self.silos, "paint_styles", codec)
            tried = self.federation.query(self.silos, "try_styles", codec, self.config.learning_rate)
            trials = {silo: dict(artifact.facts) for silo, artifact in tried.items()}
            pairs = {f"{sender} -> {receiver}": size for (sender, receiver), size in sent.items()}
            self._done(f"exchange {codec}", started, sent=pairs, bytes=total_bytes(sent), trials=trials)

    def share_amplitudes(self) -> None:
        started = time.perf_counter()
        sent = self.federation.exchange(self.silos, "amplitudes", "take_amplitudes")
        pairs = {f"{sender} -> {receiver}": size for (sender, receiver), size in sent.items()}
        self._done("exchange amplitudes", started, sent=pairs, bytes=total_bytes(sent))

    def train(self, method: Method, seed: int) -> None:
        """Run a method, choose a round, and let every silo test the chosen models."""
        job = job_of(self.config, method, self.fold, seed)
        self.listener.on_stage_start(method.title, job.num_rounds)
        started, choice, records = time.perf_counter(), Choice(), []
        with self.federation.coordinator(self.task.of(method), every_state=True) as coordinator:
            coordinator.agree()
            for record in coordinator.run(job):
                self._choose(choice, job, method, record)
                records.append(record)
                self.listener.on_round_end(record)
            chosen = {name: (choice.rounds[name], vector) for name, vector in choice.vectors.items()}
            found = self._test(method, job, chosen, f"{method.name}-seed{seed}.png")
        line = {
            "method": method.name, "fold": self.fold, "seed": seed, "chosen": choice.rounds, "test": found,
            "losses": _curves(records), "bytes": sum(record.bytes_sent for record in records),
        }  # fmt: skip
        if job.account:
            line["epsilon"] = records[-1].metrics[EPSILON]
        if method.cooperation != "fed_bn":
            self.listener.trained(job.name, self.task.of(method), choice.vectors, line)
        self._done(job.name, started, **line)

    def _choose(self, choice: Choice, job: Job, method: Method, record: RoundRecord) -> None:
        assert record.state is not None
        models = job.strategy.models(record.state)
        if self.config.select_on == "test":
            current = {name: (record.server_round, vector) for name, vector in models.items()}
            found = self._test(method, job, current)
            losses = {name: float(np.mean([by[LOSS.name] for by in found[name].values()])) for name in models}
        elif method.cooperation == "alone":
            losses = validation_losses(record, models)
        else:
            losses = dict.fromkeys(models, float(np.mean(list(validation_losses(record, job.silos).values()))))
        choice.sees(record.server_round, losses, models)

    def _test(
        self, method: Method, job: Job, models: Mapping[str, tuple[int, Vector]], sheet: str = ""
    ) -> dict[str, dict[str, dict[str, float]]]:
        """Return model -> silo whose test set it is -> metric -> value. models: name -> (round it is of, vector)."""
        found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in models}
        if method.cooperation == "pooled":
            (pooled,) = job.silos
            facts = self.federation.query([pooled], "test_apart", job.name, models)[pooled].facts
            said = {silo: _below(f"{silo}.", facts) for silo in self.silos}
        else:
            answers = self.federation.query(self.silos, "test", job.name, models, sheet)
            said = {silo: dict(artifact.facts) for silo, artifact in answers.items()}
        for silo, facts in said.items():
            for name in models:
                found[name][silo] = _below(f"{name}.", facts)
        return found

    def _done(self, key: str, started: float, **line: Any) -> None:
        self.listener.done({"fold": self.fold, **line, "stage": key}, time.perf_counter() - started)


def _below(prefix: str, facts: Mapping[str, float]) -> dict[str, float]:
    """Return the facts whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in facts.items() if name.startswith(prefix)}


def _curves(records: list[RoundRecord]) -> dict[str, list[float]]:
    """Return silo -> validation loss after each round, from round 0 on."""
    by_round = [silo_losses(record) for record in records]
    silos = sorted({silo for losses in by_round for silo in losses})
    return {silo: [losses.get(silo, float("nan")) for losses in by_round] for silo in silos}
