"""Every choice of `ray-fed audit`."""

from dataclasses import dataclass

from ray_fed.config import require

POLICY = "~/.config/ray-fed/policy.yaml"


@dataclass(frozen=True)
class AuditConfig:
    """What the messages of a federation's silos give away, replayed inside the silos."""

    policy: str = POLICY
    """The data owner's policy file on this machine: a YAML mapping with the key 'audit', a list of the silos whose
    messages may be replayed and attacked. Nothing is allowed by default."""
    silos: tuple[str, ...] = ()
    """Silos to audit; all if not given. Each must be allowed."""
    defences: tuple[str, ...] = (
        "fp16", "int8", "clip:1", "noise:0.01", "noise:0.1", "noise:1", "prune:0.9", "prune:0.99",
    )  # fmt: skip
    """Defences to try, see `ray-fed leakage`."""
    cost_rounds: int = 10
    """Rounds trained under each defence to measure what it costs; 0 measures nothing."""
    out: str | None = None
    """Folder of the audit; runs/audit-DATE-TIME if not given."""

    def __post_init__(self) -> None:
        from ray_fed.leakage.defences import parse_defence

        require(self.cost_rounds >= 0, f"cost_rounds={self.cost_rounds} must not be negative")
        for text in self.defences:
            parse_defence(text)
            require(text != "no_output_bias", "defence no_output_bias stops the training of a regression network")
