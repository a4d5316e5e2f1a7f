"""Every choice of `ray-fed audit`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ray_fed.config import PathText, require

if TYPE_CHECKING:
    from ray_fed.leakage.audit import TrainingChange


@dataclass(frozen=True)
class AuditConfig:
    """What the messages of a federation's silos give away, replayed inside the silos."""

    policy: PathText | None = None
    """The data owner's site file on this machine; the one of `RAY_FED_SITE`, else ~/.config/ray-fed/site.yaml, if not
    given. It must say 'audit: true' for a silo whose messages are replayed and attacked: nothing is allowed by
    default."""
    silos: tuple[str, ...] = ()
    """Silos to audit; all if not given. Each must be allowed."""
    defences: tuple[str, ...] = (
        "clip:1", "silo_dp:1000", "silo_dp:100", "noise:0.1", "noise:1", "fp16", "int8", "prune:0.9", "prune:0.99",
    )  # fmt: skip
    """Defences to try on every kind of message: clip:NORM, silo_dp:EPSILON (clipped to 1, Gaussian noise added by the
    silo, epsilon at delta 1e-5 over the whole run), noise:SHARE of the message's root mean square, fp16, int8,
    prune:SHARE."""
    changes: tuple[str, ...] = (
        "batch:8", "steps:1", "steps:1+sgd", "batch:8+steps:1+sgd", "int8", "top_k", "dp:50", "dp:8",
    )  # fmt: skip
    """Other ways to train the same rows: batch:ROWS of a silo per step, steps:STEPS per message, dp:EPSILON of DP-SGD
    (example level, at delta 1e-5 over the whole run; needs dp-accounting), sgd, and compression by fp16, bf16, int8 or
    top_k (1 %) with error feedback; joined by '+'."""
    rounds: int = 4
    """Rounds replayed as the federation is set up, all of them attacked, and trained under each defence and change to
    measure what it costs."""
    costs: bool = True
    """Whether to measure what each defence and change costs in accuracy; no only attacks."""
    max_leak: float | None = None
    """Largest allowed share of a silo's records, 0 to 1, that one of its messages as the federation is set up may give
    away; an audit that finds more ends with exit code 1. Not checked if not given."""
    out: PathText | None = None
    """Folder of the audit; runs/audit-DATE-TIME if not given."""

    def __post_init__(self) -> None:
        from ray_fed.leakage.defences import parse_defence

        require(self.rounds >= 1, f"rounds={self.rounds} must be at least 1")
        for text in self.defences:
            parse_defence(text)
            require(text != "no_output_bias", "defence no_output_bias stops the training of a regression network")
        self.parsed_changes()
        limit = self.max_leak
        require(limit is None or 0 <= limit <= 1, f"max_leak={limit} must be a share between 0 and 1")

    def parsed_changes(self) -> "tuple[TrainingChange, ...]":
        from ray_fed.leakage.audit import parse_change

        return tuple(parse_change(text) for text in self.changes)
