"""Every choice of a library build, with its default and its unit."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ray_fed.config import PathText, require

if TYPE_CHECKING:
    from ray_fed.model_library.selection import Protocol


@dataclass(frozen=True)
class BuildConfig:
    """Train many models with random hyperparameters over properties x descriptors x methods."""

    library: PathText = "library"
    """Folder of the library; made if there is none, filled up if there is."""
    source: PathText = "embedded"
    """'embedded' (model crystals, no file), a folder with the project's open data sets, or a table of your own (CSV,
    TSV, parquet, JSON, XLSX with a column of formulas or SMILES); --target and --unit go with a table."""
    target: str | None = None
    """Column of your own table to learn."""
    unit: str | None = None
    """Unit of that column."""
    transform: Literal["identity", "log10", "ln"] = "identity"
    """What is done to that column before it is learned; the models' unit says so."""
    material_column: str | None = None
    """Column of formulas or SMILES, where it has no usual name."""
    property_name: str | None = None
    """Name of the property on the cards (default: the column's)."""
    properties: tuple[str, ...] = ()
    """Only these properties, data sets, or DATASET/PROPERTY pairs (default: all)."""
    descriptors: tuple[str, ...] = ("guo65", "rich")
    """guo65, guo73, rich, rich+structure, xenon290, rdf; for molecules morgan, features, atom_pairs, torsions, paths,
    maccs. A descriptor is used for every property whose table it can read."""
    element_table: PathText | None = None
    """CSV of element properties for xenon290 (XenonPy's elements_completed)."""
    networks: int = 64
    """Pyramid networks per property and descriptor."""
    forests: int = 1
    """Random forests per property and descriptor."""
    boosted: int = 2
    """Gradient-boosted trees per property and descriptor."""
    linear: int = 4
    """Elastic nets per property and descriptor."""
    crystal_graphs: int = 0
    """Crystal-graph networks (CGCNN) per property with structures."""
    max_rows: int = 1200
    """Rows used of each table, by a seeded choice: 65 % to learn, 15 % to stop by, 20 % to test."""
    seed: int = 0
    """Seed of everything."""
    address: str = "local"
    """Ray cluster to train on: 'local' starts a private one."""

    def __post_init__(self) -> None:
        for name in ("networks", "forests", "boosted", "linear", "crystal_graphs"):
            require(getattr(self, name) >= 0, f"{name}={getattr(self, name)} must be 0 or more")
        require(self.max_rows >= 50, f"max_rows={self.max_rows} must be 50 or more")
        require(bool(self.descriptors), "descriptors is empty; name one, e.g. guo65")

    @property
    def methods(self) -> list[tuple[str, int]]:
        """Return (method, models per property and descriptor)."""
        counts = (
            ("mlp", self.networks), ("random_forest", self.forests), ("gradient_boosting", self.boosted),
            ("elastic_net", self.linear),
        )  # fmt: skip
        return [(method, count) for method, count in counts if count]


SHARE_LEARNED = 0.7
"""Of a table with fewer than 72 materials."""


@dataclass(frozen=True)
class TransferConfig:
    """Transfer from a library to a small target, by the paper's protocol and by an honest one, side by side."""

    library: PathText = "library"
    """Folder of the library."""
    sources: str = ""
    """Query that chooses the source models; all models of the library if not given."""
    most_per_table: int = 8
    """Of each data set, property, descriptor and method at most so many models, the best on their own property."""
    allow_related: bool = False
    """Also use sources of the target's own quantity (other names of it are known), and those whose values rank shared
    formulas as the target does: the right choice for a model, the wrong one for a study of transfer."""
    threshold: float = 0.9
    """Rank correlation on shared formulas from which a source is taken for the target's own quantity."""
    exclude: tuple[str, ...] = ()
    """Properties, data sets or DATASET/PROPERTY that are no sources."""
    same_dataset: bool = False
    """Also use sources of other properties of the target's own data set: they have seen the same materials."""
    source: PathText = "embedded"
    """Where the target property comes from; as for build."""
    target: str = "model_pnictides/formation_energy"
    """Target property, data set, or DATASET/PROPERTY; with a table of your own: its column."""
    unit: str | None = None
    """Unit of the target of a table of your own."""
    property_name: str | None = None
    """What the target of a table of your own is called elsewhere, e.g. band_gap (default: the column's name)."""
    transform: Literal["identity", "log10", "ln"] = "identity"
    """What is done to the target of a table of your own before it is learned."""
    material_column: str | None = None
    """Column of formulas or SMILES of a table of your own, where it has no usual name."""
    tables: PathText | None = None
    """Folder of the open data sets, to compare the sources' rows with a table of your own; without it what the sources
    predict is compared."""
    save: PathText | None = None
    """Write the model that is learned from all rows here, MODEL.safetensors and MODEL.card.json; it predicts with
    `ray-fed predict`, and enters a library with `ray-fed library add`."""
    rows: int | None = None
    """Target rows to learn from; all others are held out (default: 50, or 70 % of a smaller table)."""
    draws: int = 20
    """Repetitions with other rows; 0: no study, only --save."""
    folds: int = 5
    """Folds of the cross-validation that chooses the source."""
    clusters: int = 0
    """Extrapolation: divide the materials into this many clusters of the descriptor, hold one out in turn, and keep
    clusters together in the folds; 0 draws at random."""
    head: Literal["ridge", "random_forest", "gradient_boosting"] = "ridge"
    """What learns on the frozen features, for the rules of the paper."""
    layers: Literal["last", "all"] = "last"
    """Hidden layers that are the features: the last (TL setup 1), or all (TL setup 2 takes some of them)."""
    ensemble: int = 10
    """Sources of the ensemble: the best by cross-validation."""
    permutations: int = 20
    """Shuffled targets per study for the permutation baseline."""
    max_held_out: int = 1000
    """Held-out rows that are predicted."""
    num_trees: int = 100
    """Trees of each forest."""
    element_table: PathText | None = None
    """As for build."""
    seed: int = 0
    """Seed of draws, folds and permutations."""
    out: PathText | None = None
    """Run directory (default: runs/library-transfer-DATE-TIME)."""
    address: str = "local"
    """Ray cluster for the draws."""

    def __post_init__(self) -> None:
        require(self.rows is None or self.rows >= 8, f"rows={self.rows} must be 8 or more")
        require(2 <= self.folds <= (self.rows or 8), f"folds={self.folds} must be 2 to {self.rows or 8}")
        for name in ("ensemble", "most_per_table", "num_trees"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be 1 or more")
        require(self.draws >= 1 or bool(self.save), f"draws={self.draws} must be 1 or more, or give --save MODEL")
        require(0 < self.threshold <= 1, f"threshold={self.threshold} must be above 0 and up to 1")
        require(self.clusters == 0 or self.clusters >= 3, f"clusters={self.clusters} must be 0, or 3 or more")
        require(self.permutations >= 0, f"permutations={self.permutations} must be 0 or more")

    def protocol(self, num_materials: int) -> "Protocol":
        """Return how each draw goes, for a target with so many different materials."""
        from ray_fed.model_library.selection import Protocol

        rows = self.rows or min(50, max(8, int(SHARE_LEARNED * num_materials)))
        return Protocol(
            rows, self.folds, self.ensemble, self.permutations, self.max_held_out, self.seed, self.num_trees,
            self.clusters,
        )  # fmt: skip
