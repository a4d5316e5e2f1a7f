"""Every choice of `ray-fed leakage`."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from ray_fed.config import PathText, require, require_gpus, unknown_name

Study = Literal["compare", "learning_rate", "labels", "networks", "trained", "batch", "defence", "frequency", "tabular"]
OWN_STUDIES: tuple[Study, ...] = ("compare", "labels")
"""Of a network of the user's, where no others are asked for."""
OWN_ATTACKS = ("analytic", "rgap", "layers", "ours", "idlg", "cosine", "l2_grey")
FULL_IMAGES = 32
FULL_BUDGETS = (1000, 6000)
"""Besides the budget: 6,000 are the 300 x 20 of the published DLG loop."""


@dataclass(frozen=True)
class LeakageConfig:
    """Gradient-leakage attacks side by side (WDLG, Int. J. Intell. Syst. 2022, against DLG, iDLG and others)."""

    OPTION_GROUPS: ClassVar = {
        "data": "what is attacked",
        "model": "the network, your own as well, and what it sends",
        "attacks": "how",
        "studies": "which experiments",
        "seed": "run",
    }

    data: tuple[PathText, ...] = ("digits", "faces", "photos")
    """Image sets: digits (8x8), faces (25x25), photos (32x32 colour), which need no download; an .npz with arrays
    images (or tokens) and labels; SVHN's .mat; CIFAR-10's or CIFAR-100's .bin; or a folder of pictures with one
    subfolder per class, as LFW's."""
    images: int = 16
    """Images attacked per set; 32 with --full, unless given."""
    model: str = "lenet"
    """Network whose gradient is seen: lenet (DLG's, with sigmoids), lenet_relu, mlp, resnet (a small one) or unet (a
    small one, segmentation into bright and dark); or your own, MODULE:CLASS of torch, attacked in this process."""
    checkpoint: PathText | None = None
    """Weights of your own network: what torch.save(network.state_dict()) wrote, or .safetensors."""
    model_options: tuple[str, ...] = ()
    """NAME=VALUE of arguments of your own class."""
    mode: Literal["eval", "train"] = "eval"
    """Of your own network: BatchNorm with its stored statistics, or with those of the batch."""
    statistics: Literal["stored", "unknown"] = "stored"
    """BatchNorm's running statistics: known to the attacker, or kept by the silo and looked for by the attack."""
    output_bias: bool = True
    """Whether the output layer has a bias, which the paper's label rule reads."""
    batch_size: int = 1
    """Samples behind each message of the comparison."""
    local_epochs: int = 1
    """Passes over them before the silo sends."""
    minibatch: int = 0
    """Samples per local step; 0: all of them."""
    local_optimizer: Literal["sgd", "adam"] = "sgd"
    """Of the local steps."""
    local_rate: float = 0.1
    """Learning rate of the local steps."""
    attacks: tuple[str, ...] = ()
    """Attacks to compare; empty: all, of your own network those that suit it. Algebraic: analytic (dW/db), rgap, layers
    (our algebra alone), ours. Iterative: dlg, idlg, idlg_adam, idlg_descent, wdlg (literal, by L-BFGS), wdlg_descent
    (the paper's line 7), wdlg_anchored, wdlg_normalised, wdlg_debiased, wdlg_filters, cosine (with total variation),
    sorted (exact 1-D Wasserstein), l2_grey (grey start, line search)."""
    budget: int = 200
    """Gradient evaluations per attack, the same for every method."""
    more_budgets: tuple[int, ...] = ()
    """More budgets for the comparison; with --full 1000 and 6000 (the published loop's 300 x 20), unless given."""
    full: bool = False
    """Everything: 32 images, three budgets, all studies at their full size. An hour on two cores."""
    restarts: int = 1
    """Starts per attack; each has the whole budget, the lowest objective counts."""
    learning_rates: tuple[float, ...] = (0.1, 0.5, 1.0, 2.0)
    """Step sizes of L-BFGS in the learning-rate study (the paper's Fig. 5)."""
    descent_rates: tuple[float, ...] = (1.0, 10.0, 100.0, 1000.0)
    """The same for plain descent, which the paper's Algorithm 1 writes down."""
    epsilon: float = 0.1
    """Entropic regularisation of wdlg's Sinkhorn iterations."""
    sinkhorn_iterations: int = 100
    """Most Sinkhorn iterations of wdlg."""
    sinkhorn_threshold: float = 0.1
    """Change of the potentials at which wdlg's Sinkhorn iterations stop."""
    sinkhorn_power: float = 2.0
    """Power of wdlg's cost, sum |a - b|^p."""
    anchor: float = 0.0
    """Added to wdlg's cost between different places: large values keep every row at its own."""
    points: Literal["rows", "filters"] = "rows"
    """Wdlg's points: a layer's rows, or the kernel rows inside each filter."""
    normalise: bool = False
    """Divide each layer by the root mean square of the gradient seen, in wdlg."""
    debias: bool = False
    """Sinkhorn divergence in wdlg: equal gradients get distance zero."""
    unrolled: bool = True
    """Differentiate through wdlg's Sinkhorn iterations; no: take the plan as constant."""
    wdlg_optimizer: Literal["lbfgs", "lbfgs_wolfe", "descent", "adam"] = "lbfgs"
    """Of wdlg."""
    wdlg_start: Literal["normal", "grey"] = "normal"
    """Of wdlg."""
    wdlg_rate: float = 1.0
    """Step size of wdlg."""
    defences: tuple[str, ...] = (
        "clip:1", "fp16", "int8", "noise:0.001", "noise:0.01", "noise:0.1", "noise:1", "prune:0.5", "prune:0.9",
        "prune:0.99", "no_output_bias",
    )  # fmt: skip
    """Defences of the defence study; noise is a share of the message's root mean square. Join two with +."""
    batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Batch sizes of the batch study."""
    local_steps: tuple[int, ...] = (1, 2, 4)
    """Local SGD steps of the batch study; the attack unrolls them."""
    studies: tuple[Study, ...] = ()
    """Experiments to run; empty: all, of your own network compare and labels. networks: LeNet with ReLU, an MLP, a
    small ResNet, a small U-Net; trained: networks that have learned; frequency: fewer, larger exchanges. Those besides
    compare use the first data set, the learning rate faces or the last."""
    trained_steps: int = 200
    """Steps of Adam of the trained study."""
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
        from ray_fed.leakage.targets import TARGETS

        for name in ("images", "budget", "restarts", "tasks", "epsilon", "sinkhorn_iterations", "local_epochs",
                     "local_rate", "trained_steps", "wdlg_rate", "batch_size"):  # fmt: skip
            require(getattr(self, name) > 0, f"{name}={getattr(self, name)} must be positive")
        for name in ("data", "batch_sizes", "local_steps", "learning_rates", "descent_rates"):
            require(len(getattr(self, name)) > 0, f"{name} must name at least one")
            positive = name == "data" or min(getattr(self, name)) > 0
            require(positive, f"{name}={getattr(self, name)} must be positive")
        require(min(self.more_budgets, default=1) > 0, f"more_budgets={self.more_budgets} must be positive")
        require(self.batch_size <= self.images, f"batch_size={self.batch_size} is more than images={self.images}")
        require(0 <= self.minibatch <= self.batch_size, f"minibatch={self.minibatch} must lie between 0 and batch_size="
                f"{self.batch_size}")  # fmt: skip
        require(self.seed >= 0, f"seed={self.seed} must not be negative")
        require_gpus(self.num_gpus)
        if not self.is_own and self.model not in TARGETS:
            raise unknown_name("model", self.model, TARGETS)
        for name in ("checkpoint", "model_options"):
            require(
                self.is_own or not getattr(self, name), f"{name} belongs to a network of your own: --model MODULE:CLASS"
            )
        for name in self.attacks:
            attack_named(name)
        for text in self.defences:
            for part in text.split("+"):
                parse_defence(part)

    @property
    def is_own(self) -> bool:
        """Whether the network is the user's."""
        return ":" in self.model

    @property
    def wanted_attacks(self) -> tuple[str, ...]:
        from ray_fed.leakage.attacks import ATTACKS

        return self.attacks or (OWN_ATTACKS if self.is_own else tuple(ATTACKS))

    @property
    def wanted_studies(self) -> tuple[str, ...]:
        return self.studies or (OWN_STUDIES if self.is_own else get_args(Study))

    @property
    def wanted_budgets(self) -> tuple[int, ...]:
        """Of the comparison, ascending."""
        more = self.more_budgets or (FULL_BUDGETS if self.full else ())
        return tuple(sorted({self.budget, *more}))

    @property
    def wanted_images(self) -> int:
        return FULL_IMAGES if self.full and self.images == type(self).images else self.images

    @property
    def steps(self) -> int:
        """Local steps of the comparison."""
        return self.local_epochs * (-(-self.batch_size // self.minibatch) if self.minibatch else 1)
