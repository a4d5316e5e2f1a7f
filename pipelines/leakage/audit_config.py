"""Every choice of `ray-fed audit`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.leakage.threats import LISTED, MARGINALS, MODELS, THREAT_MODELS
from ray_fed.config import PathText, require, unknown_name

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
    batches: tuple[int, ...] = (8,)
    """Sizes of batches of which one gradient is attacked, besides single rows and the batch that the federation has."""
    rounds: int = 8
    """Rounds of which the messages are attacked, spread from the first of the run to its last."""
    whole_run: bool = True
    """Whether to replay the run to its end; no: its first rounds alone, and the verdict is of these."""
    cost_rounds: int = 4
    """Rounds trained under each defence and change, to measure what it costs and attack what leaves under it."""
    costs: bool = True
    """Whether to measure what each defence and change costs in accuracy; no only attacks."""
    candidates: PathText = "embedded"
    """Public crystals that an attacker with a list suspects: a file or folder as training reads it, or 'embedded'. The
    silo's own records stand among them, as on the list of an attacker who has the right databases. 'no' leaves this
    threat model out."""
    list_length: int = 2000
    """Records on that list, half of them the silos' own where they have so many; of a network with several outputs
    fewer by that factor. The time grows with its third power."""
    shadows: int = 8
    """Models that an attacker trains to learn how training shows: for membership, and silos for properties of the rows.
    0 leaves both out; an even number."""
    exposed_records: PathText | None = None
    """File (.csv) for the owners alone: how exposed each record of the silos is, in bits, by its owner's name. Not
    written if not given; nothing else that an audit leaves has a record in it."""
    max_leak: tuple[str, ...] = ()
    """Largest allowed share, 0 to 1, that the attacks of a threat model may find in what is really sent: one SHARE for
    all, or MODEL:SHARE with nothing, marginals (rows reconstructed), list, models, silos (rows named beyond chance or
    reconstructed), membership (2 AUC - 1), property (variance explained) or coordinator (rows reconstructed from
    answers to crafted models). An audit that finds more, or cannot try a model that is named, ends with exit code 1.
    Not checked if not given."""
    out: PathText | None = None
    """Folder of the audit; runs/audit-DATE-TIME if not given."""

    def __post_init__(self) -> None:
        from ray_fed.leakage.defences import parse_defence

        for name in ("rounds", "cost_rounds"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1")
        require(min(self.batches, default=1) >= 1, f"batches={self.batches} must be 1 or more")
        require(self.shadows >= 0 and self.shadows % 2 == 0, f"shadows={self.shadows} must be even, 0 or more")
        for text in self.defences:
            parse_defence(text)
            require(text != "no_output_bias", "defence no_output_bias stops the training of a regression network")
        self.parsed_changes()
        require(self.list_length >= 100, f"list_length={self.list_length} must be at least 100")
        for model in (LISTED, MARGINALS, MODELS):
            asked = any(text.startswith(f"{model}:") for text in self.max_leak)
            require(self.has_list or not asked, f"max_leak: {model}:SHARE needs a list, and candidates is 'no'")
        self.limits()

    @property
    def has_list(self) -> bool:
        return self.candidates != "no"

    def limits(self) -> dict[str, float]:
        """Return threat model -> largest allowed share; ConfigError for another text."""
        found: dict[str, float] = {}
        for text in self.max_leak:
            model, _, number = text.rpartition(":")
            if model and model not in THREAT_MODELS:
                raise unknown_name("max_leak: threat model", model, THREAT_MODELS)
            share = _number(number)
            require(0 <= share <= 1, f"max_leak={text} must be a share between 0 and 1")
            found |= dict.fromkeys([model] if model else THREAT_MODELS, share)
        return found

    def models_named(self) -> set[str]:
        """Return the threat models that `max_leak` names: each must be tried."""
        return {text.rpartition(":")[0] for text in self.max_leak} - {""}

    def parsed_changes(self) -> "tuple[TrainingChange, ...]":
        from ray_fed.leakage.audit import parse_change

        return tuple(parse_change(text) for text in self.changes)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return -1.0
