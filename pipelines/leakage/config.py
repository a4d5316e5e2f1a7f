"""Every choice of `ray-fed leakage`."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from ray_fed.config import PathText, require

Study = Literal["compare", "learning_rate", "labels", "networks", "batch", "defence", "tabular"]


@dataclass(frozen=True)
class LeakageConfig:
    """Gradient-leakage attacks side by side (WDLG, Int. J. Intell. Syst. 2022, against DLG, iDLG and others)."""

    OPTION_GROUPS: ClassVar = {
        "data": "what is attacked",
        "attacks": "how",
        "studies": "which experiments",
        "seed": "run",
    }

    data: tuple[PathText, ...] = ("digits", "faces", "photos")
    """Image sets: digits (8x8), faces (25x25), photos (32x32 colour), which need no download; an .npz with arrays
    images and labels; or a folder of pictures with one subfolder per class."""
    images: int = 32
    """Images attacked per set."""
    model: Literal["lenet", "lenet_relu", "mlp", "resnet", "unet"] = "lenet"
    """Network whose gradient is seen: DLG's LeNet with sigmoids, the same with ReLU, an MLP, a small ResNet, or a small
    U-Net (segmentation into bright and dark)."""
    output_bias: bool = True
    """Whether the output layer has a bias, which the paper's label rule reads."""
    attacks: tuple[str, ...] = ("dlg", "idlg", "wdlg", "wdlg_best", "cosine", "sorted", "ours")
    """Attacks to compare: dlg, idlg, wdlg (as published), wdlg_best (its most favourable variant found), cosine (with
    total variation), sorted (exact 1-D Wasserstein), l2_grey, ours."""
    budget: int = 200
    """Gradient evaluations per attack, the same for every method."""
    restarts: int = 1
    """Starts per attack; each has the whole budget, the lowest objective counts."""
    learning_rates: tuple[float, ...] = (0.1, 0.5, 1.0, 2.0)
    """Step sizes of the learning-rate study (the paper's Fig. 5)."""
    epsilon: float = 0.1
    """Entropic regularisation of wdlg's Sinkhorn iterations."""
    sinkhorn_iterations: int = 100
    """Most Sinkhorn iterations of wdlg."""
    sinkhorn_threshold: float = 0.1
    """Change of the potentials at which wdlg's Sinkhorn iterations stop."""
    defences: tuple[str, ...] = (
        "clip:1", "fp16", "int8", "noise:0.001", "noise:0.01", "noise:0.1", "noise:1", "prune:0.5", "prune:0.9",
        "prune:0.99", "no_output_bias",
    )  # fmt: skip
    """Defences of the defence study; noise is a share of the message's root mean square. Join two with +."""
    batch_sizes: tuple[int, ...] = (1, 2, 4, 8)
    """Batch sizes of the batch study."""
    local_steps: tuple[int, ...] = (1, 2, 4)
    """Local SGD steps of the batch study; the attack unrolls them."""
    studies: tuple[Study, ...] = ("compare", "learning_rate", "labels", "networks", "batch", "defence", "tabular")
    """Experiments to run; networks: LeNet with ReLU, an MLP, a small ResNet, a small U-Net. Those besides compare use
    the first data set, the learning rate faces or the last."""
    tasks: int = 32
    """Attacks per task: one batched computation."""
    seed: int = 0
    """Seed of networks, images and starts."""
    num_gpus: float = 0.0
    """GPUs per task; 0 computes on CPU."""
    cohort: Literal["ray", "local"] = "ray"
    """ray: tasks on all cores; local: one after another in this process, same results."""
    address: str = "local"
    """Ray cluster: 'local' starts a private one; 'auto' or HOST:PORT joins a running one, with the ray-fed installed
    there (RAY_FED_SHIP_CODE=yes: with this machine's)."""
    out: PathText | None = None
    """Folder of the run; runs/leakage-DATE-TIME if not given. An interrupted run there with the same options is
    resumed."""

    def __post_init__(self) -> None:
        from ray_fed.leakage.attacks import attack_named
        from ray_fed.leakage.defences import parse_defence

        for name in ("images", "budget", "restarts", "tasks", "epsilon", "sinkhorn_iterations"):
            require(getattr(self, name) > 0, f"{name}={getattr(self, name)} must be positive")
        for name in ("data", "attacks", "studies", "batch_sizes", "local_steps", "learning_rates"):
            require(len(getattr(self, name)) > 0, f"{name} must name at least one")
        for name in ("batch_sizes", "local_steps", "learning_rates"):
            require(min(getattr(self, name)) > 0, f"{name}={getattr(self, name)} must be positive")
        require(self.seed >= 0, f"seed={self.seed} must not be negative")
        require(self.num_gpus >= 0, f"num_gpus={self.num_gpus} must not be negative")
        for name in self.attacks:
            attack_named(name)
        for text in self.defences:
            for part in text.split("+"):
                parse_defence(part)
