"""Training steps replayed as CUDA graphs: at these sizes a GPU step is launch time, and a graph launches once.

One graph per batch size (two occur per run: rows are dealt into batches that differ by one). All work on one stream of
the process, so that cuBLAS keeps one workspace, and the graphs of a trainer share one pool of memory.
"""

import functools
import os
import sys
import warnings
from collections.abc import Callable

import torch

from ray_fed.config import require

Step = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(x, y) -> loss: one training step on a batch."""
SWITCH = "RAY_FED_CUDA_GRAPHS"
"""Environment variable: "off" takes every step by itself; "on", or nothing, captures where it can be."""
SYNCHRONISES = "synchronizing CUDA operation"
"""What torch's warning of one says."""


def wants_graphs(device: torch.device) -> bool:
    """Whether steps on a device are to be captured; ConfigError for a word that is neither on nor off."""
    word = os.environ.get(SWITCH, "on").strip().lower()
    require(word in ("on", "off"), f"{SWITCH}={word!r} must be on or off")
    return device.type == "cuda" and word == "on"


class GraphedSteps:
    """Captures a step at the second batch of a size and replays it afterwards.

    A step that reads a number back from the GPU (`.item()`, a boolean mask, a branch on a value, BatchNorm without
    momentum) cannot be captured: the first batch tells, and each step is taken by itself, which the silo's log says
    once. It holds no trainer: the graphs are freed with the trainer that holds them, without the garbage collector.
    """

    def __init__(self, whose: str):
        self.whose = whose
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor, torch.Tensor]] = {}
        self.seen: set[int] = set()
        self.can_capture = True
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, step: Step, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Take a step; it must be the same one in every call, on tensors that keep their place."""
        rows = len(x)
        if rows in self.graphs:
            return self._replay(rows, x, y)
        if rows not in self.seen:  # the first batch of a size runs eagerly: it warms up cuBLAS for this shape
            self.seen.add(rows)
            return self._watched(step, x, y) if self.can_capture else _eager(step, x, y)
        if not self.can_capture:
            return _eager(step, x, y)
        try:
            self.graphs[rows] = self._capture(step, x, y)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:  # nothing of the step has been done: a capture only writes down
            self._give_up(str(error).strip().splitlines()[0])
            return _eager(step, x, y)
        return self._replay(rows, x, y)

    def _watched(self, step: Step, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Take a step; if it waits for the GPU, no capture is tried: one that fails leaves CUDA in disorder."""
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                loss = _eager(step, x, y)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        waits = [one for one in caught if SYNCHRONISES in str(one.message)]
        for one in caught:
            if one not in waits:
                warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
        if waits:
            self._give_up(f"it waits for the GPU, at {waits[0].filename}:{waits[0].lineno}")
        return loss

    def _replay(self, rows: int, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        graph, static_x, static_y, loss = self.graphs[rows]
        static_x.copy_(x)
        static_y.copy_(y)
        graph.replay()
        return loss

    def _capture(self, step: Step, x: torch.Tensor, y: torch.Tensor):
        graph, static_x, static_y = torch.cuda.CUDAGraph(), x.clone(), y.clone()
        with torch.cuda.graph(graph, pool=self.pool, stream=side_stream()):
            loss = step(static_x, static_y)
        return graph, static_x, static_y, loss

    def _give_up(self, why: str) -> None:
        self.can_capture = False
        self.graphs.clear()
        print(
            f"note: {self.whose}: its training step cannot be captured as a CUDA graph ({why}); each is taken by "
            f"itself, with the same results, more slowly where the network is small ({SWITCH}=off: without this note)",
            file=sys.stderr,
        )


def _eager(step: Step, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    side, current = side_stream(), torch.cuda.current_stream()
    side.wait_stream(current)
    with torch.cuda.stream(side):
        loss = step(x, y)
    current.wait_stream(side)
    return loss


@functools.cache
def side_stream() -> torch.cuda.Stream:
    """Return the one stream of this process that steps are warmed up and captured on."""
    return torch.cuda.Stream()
