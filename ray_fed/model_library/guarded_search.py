"""A silo that searches a model library for its small target, behind its boundary."""

import contextlib
from collections.abc import Callable, Sequence

import numpy as np

from ray_fed.errors import FedError
from ray_fed.federation.task import SiloSpec
from ray_fed.model_library.cards import PackedModel
from ray_fed.model_library.search_findings import SearchFindings
from ray_fed.model_library.selection import Protocol, SourceFeatures, Target
from ray_fed.model_library.silo_search import SearchingSilo, SiloErrors, SiloTarget
from ray_fed.perimeter.boundary import EgressBlock, EgressBoundary
from ray_fed.perimeter.gate import Request

Search = Callable[[tuple[Target, SourceFeatures], bool], Sequence[SiloErrors | FedError]]
"""Carries out the draws: (target and sources, whether to tell the errors of single sources) -> one outcome a draw."""
LEAST_HELD_OUT = 5
"""Rows that a draw by clusters holds out at least."""


class GuardedSearch(EgressBoundary):
    """See `SearchingSilo` for what the questions mean."""

    silo: SearchingSilo

    def __init__(
        self, name: str, target: SiloTarget, block: EgressBlock = contextlib.nullcontext, takes_output: bool = False
    ):
        super().__init__(SiloSpec(name, target), block, takes_output)
        self._target, self._models = target, ()
        self._start(lambda: setattr(self, "silo", SearchingSilo(name, target)))

    def take(self, models: Sequence[PackedModel], layers: str = "last") -> int:
        """Keep source models; returns how many were sent."""
        self._call("taking models", lambda: self.silo.take(models, layers))
        self._models = tuple(str(model.id) for model in models)
        target, _ = self.silo.prepared
        self.gate.row_matcher.watch("values", np.asarray(target.values, np.float64))
        self.gate.row_matcher.watch("descriptor", np.asarray(target.descriptor, np.float64))
        return len(models)

    def search(self, protocol: Protocol, run: Search) -> list[SiloErrors]:
        """Return the errors of each draw. `run` is the runtime's own code, not blocked: it starts tasks."""
        findings = self._call("searching", lambda: self._findings(protocol, run), is_blocked=False)
        request = Request("search", models=self._models, per_source=self._tells_sources())
        return list(self._send("searching", findings, request).draws)

    def _findings(self, protocol: Protocol, run: Search) -> SearchFindings:
        prepared, draws = self.silo.prepared, []
        for outcome in run(prepared, self._tells_sources()):
            if isinstance(outcome, FedError):
                raise outcome
            draws.append(outcome)
        return SearchFindings(self.spec.name, _rows_behind(prepared[0], protocol), tuple(draws))

    def _tells_sources(self) -> bool:
        """Whoever asks may want the errors of single sources; for rows of its own the owner must allow it."""
        is_public = self._target.source == "embedded"
        return self.silo.shares_source_errors and (is_public or self.site.policy.source_errors)


def _rows_behind(target: Target, protocol: Protocol) -> int:
    """Return the fewest rows that any error of a draw can be a mean over."""
    held_out = LEAST_HELD_OUT if protocol.clusters else len(np.unique(target.groups)) - protocol.rows
    return int(min(protocol.rows, max(held_out, LEAST_HELD_OUT), protocol.max_held_out))
