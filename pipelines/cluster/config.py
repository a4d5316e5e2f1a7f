"""What `ray-fed doctor` can be told."""

from dataclasses import dataclass

from ray_fed.config import PathText, require


@dataclass(frozen=True)
class DoctorConfig:
    """Check this machine, or with --address a running cluster, before a run."""

    address: str | None = None
    """Ray cluster: 'auto' finds the one this machine belongs to; HOST:PORT; 'local' starts a private one. Without it
    this machine alone is looked at, and no Ray is started."""
    federation: PathText | None = None
    """Federation file whose silos must find their site, their GPUs and their data."""
    megabytes: float = 8.0
    """Size of the messages that are timed, in MB; 8 is a model of two million parameters."""
    timeout: float = 60.0
    """Seconds after which a node that does not answer is given up."""

    def __post_init__(self) -> None:
        alone = "federation=: whether silos find their place only a cluster can tell; give --address auto, or HOST:PORT"
        require(self.federation is None or self.address is not None, alone)
        for name in ("megabytes", "timeout"):
            require(getattr(self, name) > 0, f"{name}={getattr(self, name)} must be positive")
