"""The attacks as data: each is one combination of labels, start, distance, prior and optimiser.

Algebraic ones solve linear systems and look at the objective once; iterative ones descend. Compare each with its kind.

name             labels         start            objective                            optimiser
analytic         closed form    dW/db            (L2, once)                           none
rgap             closed form    layer by layer   (L2, once)                           none
layers           closed form    layer by layer   (L2, once)                           none
ours             closed form    layer by layer   L2 (batches: TV first)               L-BFGS, line search
dlg              optimised      N(0, 1)          L2                                   L-BFGS, fixed step
idlg             row sign       N(0, 1)          L2                                   L-BFGS, fixed step
idlg_adam        row sign       N(0, 1)          L2                                   Adam
idlg_descent     row sign       N(0, 1)          L2                                   plain descent
wdlg             bias sign      N(0, 1)          Sinkhorn over rows                   L-BFGS, fixed step
wdlg_descent     bias sign      N(0, 1)          Sinkhorn over rows                   plain descent
wdlg_anchored    bias sign      grey             rows, kept at their places           L-BFGS, line search
wdlg_normalised  bias sign      grey             rows, layers of one size             L-BFGS, line search
wdlg_debiased    bias sign      grey             the same less each set's own         L-BFGS, line search
wdlg_filters     bias sign      grey             kernel rows per filter, debiased     L-BFGS, line search
cosine           closed form    N(0, 1)          cosine + total variation             signed Adam
sorted           closed form    grey             exact 1-D Wasserstein                L-BFGS, line search
l2_grey          closed form    grey             L2                                   L-BFGS, line search
"""

from dataclasses import dataclass, field, replace
from typing import Literal

from ray_fed.config import require, unknown_name
from ray_fed.leakage.distances import SinkhornSettings

Optimizer = Literal["none", "descent", "lbfgs", "lbfgs_wolfe", "adam", "signed_adam"]
Start = Literal["normal", "grey", "layers", "recursive", "ratio"]


@dataclass(frozen=True)
class Attack:
    """One way to turn an observation into samples."""

    name: str
    source: str
    """Paper, equation."""
    labels: str = "closed_form"
    """joint: optimised with the inputs (DLG); bias_sign | row_sign | closed_form: see labels.py."""
    start: Start = "grey"
    """normal: N(0, 1); grey: the middle of the value range with a little noise; layers: inverted layer by layer where
    the network is a chain, else grey; recursive, ratio: see recursive.py."""
    distance: str = "l2"
    """l2 | scaled | cosine | sorted | rows"""
    sinkhorn: SinkhornSettings = field(default_factory=SinkhornSettings)
    """Options of distance=rows."""
    total_variation: float = 0.0
    """Weight of the total variation of images."""
    batch_total_variation: float = 0.0
    """The same, for the first half of the budget on messages of 8 samples or more; the other half does without."""
    fits_scale: bool = False
    """Against a clipped message, which has lost its length: fit it, distance=scaled."""
    optimizer: Optimizer = "lbfgs_wolfe"
    learning_rate: float = 1.0
    history: int = 50
    """Pairs L-BFGS remembers."""
    tolerance: float = 0.0
    """Stop when the objective falls below this share of its value for a message of zeros; float32 ends near 1e-13."""
    stop_below: float = 0.0
    """Stop when the objective falls below this value."""
    stops_as_torch: bool = False
    """Stop where torch.optim.LBFGS, called again and again, makes no step any more."""
    clamp: bool = False
    """Put inputs back into the value range after each Adam step."""

    def __post_init__(self) -> None:
        require(self.learning_rate > 0, f"learning_rate={self.learning_rate} must be positive")
        require(self.history >= 1, f"history={self.history} must be at least 1")

    @property
    def is_algebra(self) -> bool:
        """Whether nothing is optimised."""
        return self.optimizer == "none"

    @property
    def family(self) -> str:
        """algebraic: it begins with linear systems; iterative: it only descends."""
        return "algebraic" if self.start in ("layers", "recursive", "ratio") else "iterative"


DLG = Attack(
    "dlg", "Zhu, Liu & Han 2019, Eq. (4)", labels="joint", start="normal", optimizer="lbfgs", history=100,
    stops_as_torch=True,
)  # fmt: skip
IDLG = replace(
    DLG, name="idlg", source="Zhao, Mopuri & Bilen 2020, Eq. (4), (7)", labels="row_sign", stop_below=1e-6
)  # fmt: skip
IDLG_ADAM = replace(IDLG, name="idlg_adam", optimizer="adam", learning_rate=0.1)
IDLG_DESCENT = replace(IDLG, name="idlg_descent", optimizer="descent")
WDLG = replace(
    DLG, name="wdlg", source="WDLG 2022, Eq. (3), (5), Algorithm 2, with DLG's optimiser", labels="bias_sign",
    distance="rows",
)  # fmt: skip
WDLG_DESCENT = replace(WDLG, name="wdlg_descent", source="WDLG 2022, Algorithms 1-2", optimizer="descent")
_GREY = replace(WDLG, start="grey", optimizer="lbfgs_wolfe", stops_as_torch=False)
WDLG_ANCHORED = replace(
    _GREY, name="wdlg_anchored", source="WDLG 2022, rows kept at their places", sinkhorn=SinkhornSettings(anchor=10.0)
)  # fmt: skip
WDLG_NORMALISED = replace(
    _GREY, name="wdlg_normalised", source="WDLG 2022, layers of one size", sinkhorn=SinkhornSettings(normalise=True)
)  # fmt: skip
WDLG_DEBIASED = replace(
    _GREY, name="wdlg_debiased", source="WDLG 2022, layers of one size, Sinkhorn divergence",
    sinkhorn=SinkhornSettings(normalise=True, debias=True),
)  # fmt: skip
WDLG_FILTERS = replace(
    _GREY, name="wdlg_filters", source="WDLG 2022, kernel rows inside each filter, Sinkhorn divergence",
    sinkhorn=SinkhornSettings(points="filters", normalise=True, debias=True),
)  # fmt: skip
COSINE = Attack(
    "cosine", "Geiping et al. 2020, Eq. (4)", start="normal", distance="cosine", total_variation=1e-4,
    optimizer="signed_adam", learning_rate=0.1, clamp=True,
)  # fmt: skip
SORTED = Attack("sorted", "exact 1-D Wasserstein, Peyre & Cuturi 2019, Remark 2.28", distance="sorted")
L2_GREY = Attack("l2_grey", "iDLG with a grey start and a line search", tolerance=1e-12)
ANALYTIC = Attack("analytic", "Phong et al. 2018; Geiping et al. 2020, Prop. 3.1", start="ratio", optimizer="none")
RGAP = Attack("rgap", "Zhu & Blaschko 2021", start="recursive", optimizer="none")
LAYERS = Attack("layers", "decisions/0005, its algebra alone", start="layers", optimizer="none")
OURS = Attack("ours", "decisions/0005", start="layers", batch_total_variation=1e-2, tolerance=1e-12, fits_scale=True)

WDLG_FAMILY = (WDLG, WDLG_DESCENT, WDLG_ANCHORED, WDLG_NORMALISED, WDLG_DEBIASED, WDLG_FILTERS)
"""Readings of WDLG, the literal ones first."""
ALGEBRAIC = (ANALYTIC, RGAP, LAYERS, OURS)
ITERATIVE = (DLG, IDLG, IDLG_ADAM, IDLG_DESCENT, *WDLG_FAMILY, COSINE, SORTED, L2_GREY)
ATTACKS = {one.name: one for one in (*ALGEBRAIC, *ITERATIVE)}


def attack_named(name: str) -> Attack:
    """Return a known attack; ConfigError with the nearest name otherwise."""
    if name not in ATTACKS:
        raise unknown_name("attack", name, ATTACKS)
    return ATTACKS[name]
