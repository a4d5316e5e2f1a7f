"""The attacks as data: each is one combination of labels, start, distance, prior and optimiser.

name      labels         start              objective                          optimiser
dlg       optimised      N(0, 1)            L2                                 L-BFGS, fixed step
idlg      row sign       N(0, 1)            L2                                 L-BFGS, fixed step
wdlg      bias sign      N(0, 1)            Sinkhorn over rows                 L-BFGS, fixed step
cosine    closed form    N(0, 1)            cosine + total variation           signed Adam
sorted    closed form    grey               exact 1-D Wasserstein              L-BFGS, line search
ours      closed form    layer by layer     L2 (batches: TV first)             L-BFGS, line search
"""

from dataclasses import dataclass, field, replace
from typing import Literal

from ray_fed.config import require, unknown_name
from ray_fed.leakage.distances import SinkhornSettings

Optimizer = Literal["lbfgs", "lbfgs_wolfe", "adam", "signed_adam"]
Start = Literal["normal", "grey", "layers"]


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
    the network is a chain, else grey."""
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
    clamp: bool = False
    """Put inputs back into the value range after each Adam step."""

    def __post_init__(self) -> None:
        require(self.learning_rate > 0, f"learning_rate={self.learning_rate} must be positive")
        require(self.history >= 1, f"history={self.history} must be at least 1")


DLG = Attack("dlg", "Zhu, Liu & Han 2019, Eq. (4)", labels="joint", start="normal", optimizer="lbfgs", history=100)
IDLG = replace(DLG, name="idlg", source="Zhao, Mopuri & Bilen 2020, Eq. (4), (7)", labels="row_sign")
WDLG = replace(DLG, name="wdlg", source="WDLG 2022, Eq. (3), (5), Algorithms 1-2", labels="bias_sign", distance="rows")
WDLG_BEST = replace(
    WDLG, name="wdlg_best", source="WDLG 2022, the most favourable variant found", start="grey",
    optimizer="lbfgs_wolfe", sinkhorn=SinkhornSettings(epsilon=0.01),
)  # fmt: skip
COSINE = Attack(
    "cosine", "Geiping et al. 2020, Eq. (4)", start="normal", distance="cosine", total_variation=1e-4,
    optimizer="signed_adam", learning_rate=0.1, clamp=True,
)  # fmt: skip
SORTED = Attack("sorted", "exact 1-D Wasserstein, Peyre & Cuturi 2019, Remark 2.28", distance="sorted")
L2_GREY = Attack("l2_grey", "iDLG with a grey start and a line search", tolerance=1e-12)
OURS = Attack("ours", "decisions/0005", start="layers", batch_total_variation=1e-2, tolerance=1e-12, fits_scale=True)

ATTACKS = {one.name: one for one in (DLG, IDLG, WDLG, WDLG_BEST, COSINE, SORTED, L2_GREY, OURS)}


def attack_named(name: str) -> Attack:
    """Return a known attack; ConfigError with the nearest name otherwise."""
    if name not in ATTACKS:
        raise unknown_name("attack", name, ATTACKS)
    return ATTACKS[name]
