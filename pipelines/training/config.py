"""Every choice of `ray-fed train` and of its preset `ray-fed formation-energy`, with its default and its unit.

The command line reads this file before anything else, so what brings torch is imported where it is needed.

One flat class on purpose: a name here is at once an option, a key of config.yaml, a key under `training:` of a
federation file and a field that a sweep varies, and half of the checks join fields of two groups.
"""

from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, ClassVar, Literal

from pipelines.update_options import AUTO, Coding, UpdateOptions
from ray_fed.config import PathText, require, require_gpus, unknown_name
from ray_fed.materials.databases.addresses import check_address
from ray_fed.materials.units import UNKNOWN_UNIT

if TYPE_CHECKING:
    from ray_fed.federation.rounds.machine import RoundRules
    from ray_fed.materials.databases.source import Access
    from ray_fed.materials.graphs.chgnet_network import ChgnetSettings
    from ray_fed.trees.settings import TreeSettings


MODELS = ("mlp", "boosted_trees", "crystal_graph", "chgnet")
GRAPH_MODELS = ("crystal_graph", "chgnet")
"""Models that need the places of atoms."""


OF_NETWORKS = (
    "strategy", "strategy_options", "proximal_mu", "personal_bias", "compression", "max_update_norm", "dp_clip",
    "communication_frequency", "rounds", "epochs", "batch_size", "learning_rate", "optimizer", "optimizer_state",
    "hidden",
)  # fmt: skip
"""Options that say nothing of boosted trees, whose exchanges are the levels of the trees."""


@dataclass(frozen=True)
class TrainConfig(UpdateOptions):
    """Multi-source training of a network for any property."""

    PIPELINE: ClassVar[str] = "train"
    """Name of the command."""
    UNIT_IF_UNKNOWN: ClassVar[str] = UNKNOWN_UNIT
    """Unit of a column whose name is not known, where none is given."""
    OPTION_GROUPS: ClassVar = {
        "data": "data",
        "split": "who gets which rows (ignored with --federation)",
        "epochs": "training",
        "strategy": "rounds",
        "dp_noise_multiplier": "privacy",
        "seed": "run",
    }

    data: PathText = "embedded"
    """What the silos are cut from: 'embedded' (model crystals, no download), a parquet/CSV/JSON file, a folder of
    CIF/POSCAR files with id_prop.csv, or the address of a database: postgresql://USER@HOST/NAME, sqlite:///FILE,
    ase:///FILE, optimade+https://HOST/PATH, mongodb://HOST/NAME. Its password stands in the environment: write
    ${RAY_FED_PASSWORD}."""
    query: str = ""
    """Of a database: a SELECT statement; for OPTIMADE and MongoDB a filter, for ASE a selection."""
    table: str = ""
    """Of a database, instead of a statement: a table or view; for MongoDB the collection."""
    query_timeout: float = 600.0
    """Seconds in which all rows of a database must have come."""
    target: tuple[str, ...] = ()
    """Columns to learn, one or several; rows without some of them are used for the others. formation_energy_per_atom
    of the embedded data."""
    unit: tuple[str, ...] = ()
    """Unit in which each target is learned and shown, e.g. eV, meV/atom, W/(m K), log10(GPa); silos with another
    compatible one are converted. Known column names bring theirs; an unknown one without is shown as 'unknown
    unit'."""
    transform: tuple[str, ...] = ("none",)
    """none | log10 | log1p | sqrt | asinh, one for all targets or one for each: done before training, undone in every
    number that is shown. Rows without a value under it are counted."""
    task: Literal["auto", "regression", "classification"] = "auto"
    """Numbers or classes. auto: classes where the column holds true and false, text, or at most ten whole numbers, and
    says so; in a federation of sites numbers, unless --classes are given."""
    classes: tuple[str, ...] = ()
    """Labels of the classes, which all silos share; found in the data in a study, false and true elsewhere. With
    several targets one list each, as a|b|c, and - for numbers."""
    standardise_target: bool = True
    """Learn numbers of mean 0 and deviation 1, by moments of all silos together, so that no unit matters. The training
    loss is then of these numbers; every other number that is shown is in the target's unit."""
    where: tuple[str, ...] = ()
    """Keep only rows with COLUMN=VALUE, e.g. source=OQMD."""
    rows: int | None = None
    """Rows taken from the data by a seeded choice; all of them if not given (the embedded set then has 12,897)."""
    features: str = "auto"
    """auto: rich+structure, or rich where the data of a study have formulas only, with a note; rich: a large element
    set; rich+structure: with cell and space group; guo73: 13 element properties x 5 statistics + cell and space group
    (Guo et al. 2022); guo65: without structure; guo73_literal: the paper's list to the letter (also guo73_variance,
    guo73_youngs: one change each)."""
    impute: Literal["median", "matminer"] = "median"
    """Missing element properties: median over the elements (log10 first where marked), or matminer's mean."""
    symmetry: Literal["given", "check", "spglib", "moyopy"] = "given"
    """Space group: the number given in the data, else spglib; check: the same, and count where spglib finds another; or
    always computed by spglib or moyopy."""
    cell: Literal["standard", "given"] = "standard"
    """Cell and space group of the standardised primitive cell, so that no prediction depends on how a crystal is
    written down; or as the data have them."""
    structures: str = ""
    """Which of several structures in one file: all, first, or a number from 1; if not given, all where each has its
    own label, otherwise the file is counted as not usable."""
    federation: PathText | None = None
    """YAML file of real sites (silos, sites, sources, GPUs); replaces --data and --silos."""
    folds: str = ""
    """Train once per fold, and tell mean and spread: matbench (its five folds, rows as they come), or a number of folds
    that cut no group. Of a study only; one run directory per fold."""
    fold: int | None = None
    """Only this fold, from 1."""
    group: Literal["formula", "chemical_system"] = "formula"
    """What grouped splits and folds do not cut: all polymorphs of a formula, or all compounds of the same elements."""
    silos: tuple[int, ...] = (1000, 2000, 3000, 4000)
    """Training rows of each silo; scaled in proportion when the data have more or fewer."""
    split: Literal["grouped", "random"] = "grouped"
    """grouped: all polymorphs of a formula on one side; random: rows, as in the paper's figures."""
    test_rows: int | None = None
    """Rows of the common test set; the paper's share (2,897 of 12,897) if not given."""
    partition: str = "size"
    """size | anion | chemical_system | sorted_target | dirichlet | column:NAME."""
    alpha: float = 0.5
    """Concentration of the Dirichlet partition; smaller is more uneven."""
    test_fraction: float = 0.2
    """With --federation and no common test set: share of formulas each site holds out."""
    calibration_fraction: float = 0.1
    """Share of formulas in each silo that no model is trained on: its errors there, counted in each silo and added up,
    make the intervals of predictions. 0 trains on all rows and predicts without intervals; so does noise (DP)."""
    epochs: int = 100
    """Passes of every silo over its rows (the paper's iteration steps)."""
    communication_frequency: float | Literal["batch"] = 0.25
    """Exchanges per epoch, 0.01 to 1.0; 0.25 is one exchange every 4 epochs; 'batch' exchanges after every
    mini-batch."""
    rounds: int | None = None
    """Number of exchanges; overrides --communication-frequency."""
    batch_size: int = 200
    """Rows of one global mini-batch, shared among the silos in proportion to their rows."""
    learning_rate: float = 1.5e-3
    """Step size of the local optimiser; where it decays, that of the first step."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """Local optimiser."""
    optimizer_state: Literal["keep", "reset", "average"] = "keep"
    """Adam's moments at an exchange: keep the silo's own, reset to zero, or average like parameters (3x the bytes)."""
    decay: Literal["none", "cosine"] = "cosine"
    """How the learning rate falls over the steps of a run, federated or alone: not at all, or to 0 along a cosine, with
    exchanges that come more often as it falls. Where silos are unlike each other, much hangs on it."""
    hidden: tuple[int, ...] = (200, 200)
    """Widths of the hidden layers."""
    model: str = "mlp"
    """mlp: a network on features; boosted_trees: gradient-boosted trees with the bits of pooled training on any
    partition, which take none of the options of a network (epochs to hidden) and no strategy; crystal_graph: a network
    on the atoms and their neighbours, for data with structures; chgnet: a pretrained potential, fine-tuned (pip
    install 'ray-fed[chgnet]'); MODULE:CLASS: a torch module of your own (CONTRIBUTING.md)."""
    model_options: tuple[str, ...] = ()
    """Options of the network as NAME=VALUE. crystal_graph: width=64,depth=3,hidden=128,descriptors=yes (whether
    --features go in beside the graph). chgnet: train=head (or all: every layer), references=shared (own: energies of
    elements stay in each silo; none). Of a network of your own its arguments."""
    tree_options: tuple[str, ...] = ()
    """Options of the trees as NAME=VALUE, e.g. trees=300,learning_rate=0.1,depth=6,leaves=31,bins=63,min_rows=20,l2=0,
    feature_fraction=0.5,patience=20,loss=quantile:0.9."""
    baselines: bool = True
    """Also train each silo alone, and all training rows pooled where they have one source (the models of Fig. 3)."""
    alone: Literal["network", "best"] = "best"
    """With --baselines: what each silo, and who had all rows, does alone: the same network; or the best of it, a random
    forest and gradient boosting, chosen by cross-validation inside the silo, no formula on both sides."""
    early_stopping: Literal["no", "baselines", "all"] = "baselines"
    """baselines: the networks alone and pooled first find out on --validation-share of their formulas how long to
    train, and then train on all rows so long; twice the work, and no straw man where longer is worse. all: the
    federation, too: silos keep that share of their formulas back from every model and count its errors there, and the
    rounds end when it gets no better; its best exchange is kept."""
    validation_share: float = 0.1
    """Share of the formulas that is kept back for it, at most 0.5."""
    analysis: bool = True
    """After training: errors by element and chemistry, worst rows (of a public test set here, else in the owner's own
    log), importances of the properties. Without a common test set each silo then marks 200 models more."""
    strategy: str = AUTO
    """How updates are combined. auto: scaffold_adam, with which silos may be as unlike as they are and three times as
    many bytes travel as with fed_avg; or fed_avg, with a note, beside options that do not go with it. Else
    scaffold_adam, fed_avg, fed_avg_m, fed_prox, fed_adagrad, fed_adam, fed_yogi, scaffold, fed_nova,
    fed_buff (asynchronous), median, trimmed_mean, krum, multi_krum, geometric_median, centred_clipping, norm_clipping,
    dp_fed_avg (differential privacy of whole silos), or MODULE:CLASS of your own. fed_bn needs a network with
    normalisation layers: see the Python API."""
    strategy_options: tuple[str, ...] = ()
    """Options of the strategy as NAME=VALUE, e.g. eta=0.01,tau=0.001."""
    proximal_mu: float = 0.0
    """FedProx: pull of local training towards the received parameters; 0 is none."""
    personal_bias: bool = False
    """Each silo keeps its own output bias, which absorbs the reference energy of its database."""
    personal: Literal["none", "offsets", "tuned", "stacked", "mixture"] = "mixture"
    """What each silo makes of the federation's model for itself after training, on its own rows, and keeps: offsets per
    element; a network tuned further; trees that see its predictions; or a mixture of all these with what the silo has
    learned alone, weighed on calibration rows. The report says of each member whether that beats going alone."""
    max_update_norm: float | None = None
    """Refuse updates that moved the parameters further than this (2-norm)."""
    fraction_fit: float = 1.0
    """Share of the silos asked in each round."""
    round_timeout: float | None = None
    """Seconds after which a round closes without the silos that are late; none waits for ever."""
    min_fit_clients: int = 1
    """Updates without which a round does not count and the run stops."""
    accept_failures: bool = True
    """Go on without a silo that failed; 'no' stops at the first failure."""
    max_restarts: int = 3
    """How often a silo whose process died is started again."""
    start_timeout: float = 0.0
    """Seconds to wait for sites of a federation file that have no machine yet, or no connection (of those ten minutes
    if 0); then the run is refused, or begins without them (--late-silos)."""
    late_silos: bool = False
    """Begin without silos whose site has no machine yet, if --min-fit-clients are there; each takes part from the round
    after its machine appeared. The scaler, and the steps of an epoch, come from the silos that were there."""
    dp_noise_multiplier: float | None = None
    """Example-level differential privacy: standard deviation of the noise on every local step, in units of --dp-clip.
    For whole silos use --strategy dp_fed_avg. Needs pip install 'ray-fed[privacy]'."""
    dp_clip: float = 1.0
    """Longest gradient of one example that counts in full (2-norm)."""
    dp_delta: float = 1e-5
    """Chance that the guarantee of epsilon fails; keep it well below one over the number of rows."""
    dp_budget: float | None = None
    """Stop before the round in which epsilon would pass this."""
    compression: Coding = "none"
    """How a silo codes its update; what a code leaves out goes along with the next one."""
    top_k_share: float = 0.01
    """Share of the values that top_k sends."""
    secure_aggregation: bool = False
    """Let the coordinator learn sums alone, of updates, losses, steps, moments and metrics (masks that cancel,
    Bonawitz et al. 2017); the model comes out bit for bit the same. For strategies that need only sums."""
    secure_threshold: int | None = None
    """Silos that must answer for a sum to be shown, and that together could unmask one; more than half, two thirds if
    not given."""
    share_model: bool = False
    """Hand the final model with its card to the owner of every silo whose site file takes one (receive_models)."""
    seed: int = 0
    """Seed of split, initial weights and shuffles."""
    repeats: int = 1
    """Training runs with seeds seed, seed+1, ... on the same split; results are mean and standard deviation."""
    cohort: Literal["ray", "local"] = "ray"
    """ray: every silo is an actor; local: all silos in this process, bit-equal results."""
    num_gpus: float | None = None
    """GPUs per silo: 1 pins each to one, 0.25 shares one among four, 0 uses the CPU; an even share of the cluster's if
    not given. A cluster without GPUs trains on CPU and says so once."""
    address: str = "local"
    """Ray cluster: 'local' starts a private one; 'auto' or HOST:PORT joins a running one, with the ray-fed installed
    there (RAY_FED_SHIP_CODE=yes: with this machine's)."""
    out: PathText | None = None
    """Folder of the run; runs/COMMAND-DATE-TIME if not given."""

    def __post_init__(self) -> None:
        for name in ("target", "unit"):  # a run of before there were several names one as text
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        if [label.lower() for label in self.classes] == ["false", "true"]:  # as YAML says them, they are no text
            object.__setattr__(self, "classes", ("false", "true"))
        self._check_targets()
        check_address(self.data, only_ours=True)
        self.access()
        for name in ("epochs", "batch_size", "repeats", "learning_rate", "alpha"):
            value = getattr(self, name)
            require(isfinite(value) and value > 0, f"{name}={value} must be positive")
        for name in ("rows", "test_rows", "rounds"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{name}={value} must be positive")
        require(
            len(self.silos) > 0 and min(self.silos, default=0) > 0,
            f"silos={self.silos} must be positive numbers of rows",
        )
        require(min(self.hidden, default=1) > 0, f"hidden={self.hidden} must be positive widths")
        require_gpus(self.num_gpus)
        require(0 < self.test_fraction < 1, f"test_fraction={self.test_fraction} must lie between 0 and 1")
        share = self.calibration_fraction
        require(0 <= share <= 0.5, f"calibration_fraction={share} must lie between 0 and 0.5")
        require(self.seed >= 0, f"seed={self.seed} must not be negative")
        self._check_stopping()
        self._check_folds()
        averages = self.optimizer_state == "average"
        require(
            not averages or self.optimizer == "adam", "optimizer_state=average needs optimizer=adam: sgd has no state"
        )
        self._check_features()
        self._check_frequency()
        self._check_partition()
        self.check_updates()
        self._check_privacy()
        self._check_model()
        self.rules()
        self._check_late()
        require(self.proximal_mu >= 0, f"proximal_mu={self.proximal_mu} must not be negative")
        require((self.max_update_norm or 1) > 0, f"max_update_norm={self.max_update_norm} must be positive")
        for condition in self.where:
            require("=" in condition, f"where={condition!r} must be COLUMN=VALUE, e.g. source=OQMD")

    def _check_targets(self) -> None:
        """What can be known to be wrong before any data are read."""
        count = len(self.target)
        require(len(set(self.target)) == count and all(self.target), f"target={self.target} must be different names")
        fits = not self.unit or len(self.unit) == max(1, count)
        require(fits, f"unit={','.join(self.unit)} must be one unit for each of the {max(1, count)} targets")
        fits = len(self.transform) in (1, max(1, count))
        require(fits, f"transform={','.join(self.transform)} must be one for all targets, or one for each")
        fits = count < 2 or len(self.classes) in (0, count)
        require(fits, f"classes={','.join(self.classes)} must be one list for each target, as a|b|c, or - for numbers")
        both = f"classes={','.join(self.classes)} need task=classification"
        require(not self.classes or self.task != "regression", both)

    def _check_features(self) -> None:
        from ray_fed.materials.features.feature_sets import FEATURE_SETS

        if self.features not in (AUTO, *FEATURE_SETS):
            raise unknown_name("feature set", self.features, (AUTO, *FEATURE_SETS))

    def _check_stopping(self) -> None:
        share = self.validation_share
        require(0 < share <= 0.5, f"validation_share={share} must lie between 0 and 0.5")
        held_out = 0.0 if self.federation is None else self.test_fraction
        parts = f"test_fraction={held_out}, calibration_fraction={self.calibration} and validation_share={share}"
        fits = held_out + self.calibration + self.validation < 1
        require(fits, f"{parts} leave no rows to train on")
        if self.early_stopping != "all":
            return
        looks = "early_stopping=all looks at errors on rows kept back"
        require(not self.is_private, f"{looks}, which have no noise; choose no, and fewer rounds")
        require(self.strategy != "fed_buff", f"{looks} between rounds, and fed_buff has none; choose another strategy")
        require(self.model != "boosted_trees", f"{looks} of a network; trees stop by --tree-options patience=LOOKS")

    def _check_folds(self) -> None:
        count = self.num_folds
        require(self.folds in ("", "matbench") or count > 1, f"folds={self.folds!r} must be matbench, or 2 or more")
        given = f"fold={self.fold}"
        require(self.fold is None or bool(self.folds), f"{given} needs --folds matbench or --folds K")
        require(self.fold is None or 1 <= self.fold <= count, f"{given} must lie between 1 and {count}")
        both = "its sites hold out rows of their own; leave --folds out, or use --data"
        require(not self.folds or self.federation is None, f"folds={self.folds}: {both}")
        whole = "matbench's folds are of all rows; leave --rows out"
        require(self.folds != "matbench" or self.rows is None, f"rows={self.rows}: {whole}")
        require(not self.folds or self.test_rows is None, f"test_rows={self.test_rows}: the fold is the test set")

    @property
    def num_folds(self) -> int:
        """How many folds there are; 0 without."""
        return 5 if self.folds == "matbench" else int(self.folds) if self.folds.isdecimal() else 0

    def _check_frequency(self) -> None:
        frequency = self.communication_frequency
        if frequency == "batch":
            return
        require(
            0 < float(frequency) <= 1,
            f"communication_frequency={frequency} must lie in (0, 1], or be 'batch' (after every mini-batch)",
        )

    def _check_partition(self) -> None:
        known = ("size", "anion", "chemical_system", "sorted_target", "dirichlet")
        fits = self.partition in known or self.partition.startswith("column:")
        require(fits, f"partition={self.partition!r} must be one of {', '.join(known)} or column:NAME")

    def _check_privacy(self) -> None:
        """What private and masked updates forbid beside them."""
        alone = "the models of silos alone and of the pooled rows carry no noise; add --baselines no"
        require(not self.is_private or not self.baselines, f"differential privacy: {alone}")
        once = not self.is_private or self.repeats == 1
        require(once, f"repeats={self.repeats} would spend epsilon as often; use 1")
        alone = "the models of silos alone would leave without masks; add --baselines no"
        require(not self.secure_aggregation or not self.baselines, f"secure_aggregation: {alone}")

    def _check_model(self) -> None:
        """What a kind of model forbids beside it."""
        if self.model not in MODELS and not self.has_own_network:
            raise unknown_name("model", self.model, MODELS)
        has_trees = self.model == "boosted_trees"
        require(has_trees or not self.tree_options, f"tree_options={self.tree_options} need model=boosted_trees")
        has_options = self.model in GRAPH_MODELS or self.has_own_network
        require(has_options or not self.model_options, f"model_options={self.model_options} need a network on graphs")
        require(
            not (self.has_own_network and self.personal_bias), f"personal_bias: {self.model} has none that is known"
        )
        if self.is_on_graphs:
            self._check_graphs()
        if has_trees:
            self._check_trees()

    def _check_graphs(self) -> None:
        from ray_fed.materials.graphs.crystal_graph_network import graph_settings

        if self.model == "crystal_graph":
            graph_settings(self.model_options)
        if self.model == "chgnet":
            bias = "chgnet has energies of elements that stay in each silo: model_options references=own"
            require(not self.personal_bias, f"personal_bias: {bias}")
            self.chgnet()
        embedded = "the embedded data have no atoms' places; give --data with structures"
        require(self.data != "embedded" or self.federation is not None, f"model={self.model}: {embedded}")
        clipped = "gradients of single crystals are not clipped; use --strategy dp_fed_avg, or model=mlp"
        require(self.dp_noise_multiplier is None, f"dp_noise_multiplier with model={self.model}: {clipped}")

    def _check_trees(self) -> None:
        """What boosted trees forbid beside them."""
        settings = self.trees()
        trees = "boosted_trees add up sums of whole numbers"
        for name in OF_NETWORKS:
            value = getattr(self, name)
            its_own = "trees have an option of that name (--tree-options)" if name == "learning_rate" else trees
            remedy = "leave it out, or choose model=mlp"
            require(value == getattr(type(self), name), f"{name}={value}: {its_own}; {remedy}")
        stops = "patience needs the loss of rows to stop by, which has no noise; leave it out"
        require(not (self.is_private and settings.patience), f"tree_options={self.tree_options}: {stops}")
        share = f"fraction_fit={self.fraction_fit}: the same silos must be in all sums of a tree"
        require(self.fraction_fit == 1, f"{share}; leave it out, or choose model=mlp")

    @property
    def has_own_network(self) -> bool:
        """Whether the network is the user's code."""
        return ":" in self.model

    @property
    def is_on_graphs(self) -> bool:
        """Whether the network takes the places of atoms."""
        if not self.has_own_network:
            return self.model in GRAPH_MODELS
        from ray_fed.materials.own_network import own_network, wants_graphs

        return wants_graphs(own_network(self.model))

    def chgnet(self) -> "ChgnetSettings":
        """Return what of the potential is trained."""
        from ray_fed.materials.graphs.chgnet_network import chgnet_settings

        return chgnet_settings(self.model_options)

    def trees(self) -> "TreeSettings":
        """Return what the trees are to be; ConfigError names the option that is none, or the value that is wrong."""
        from ray_fed.trees.settings import DEFAULTS, tree_settings

        return tree_settings((*DEFAULTS, *self.tree_options))

    def _check_late(self) -> None:
        from ray_fed.federation.rounds.machine import StartRules

        StartRules(self.start_timeout)
        given = "late_silos: a silo that is not there yet is missing from its rounds"
        require(self.accept_failures or not self.late_silos, f"{given}; accept_failures=no stops at the first of them")
        asynchronous = "fed_buff counts on all silos from the start"
        require(self.strategy != "fed_buff" or not self.late_silos, f"late_silos: {asynchronous}; choose another one")

    @property
    def calibration(self) -> float:
        """The share of formulas that is held out for calibration: none where nothing is counted, as it would need
        noise."""
        return 0.0 if self.is_private else self.calibration_fraction

    @property
    def makes_personal(self) -> bool:
        """Whether silos make personal models: with noise or masks nothing is told of single silos."""
        return self.personal != "none" and not self.is_private and not self.secure_aggregation

    @property
    def validation(self) -> float:
        """The share of formulas that silos keep back for early stopping of the federation."""
        return self.validation_share if self.early_stopping == "all" else 0.0

    def access(self) -> "Access":
        """Return how a database is asked; ConfigError where that makes no sense."""
        from ray_fed.materials.databases.source import Access

        return Access(self.query, self.table, self.query_timeout)

    def against_common_moments(self) -> list[str]:
        """Return the options that are meant for moments that silos keep, for parameters alone, or for another way."""
        base = {
            "optimizer": "adam", "optimizer_state": "keep", "compression": "none", "proximal_mu": 0.0,
            "dp_noise_multiplier": None,
        }  # fmt: skip
        against = [f"{name}={getattr(self, name)}" for name, usual in base.items() if getattr(self, name) != usual]
        # Each silo begins from references of its own, where gradients at the common model say nothing.
        from_references = self.model == "chgnet" and self.chgnet().references != "none"
        return [*against, *(["model=chgnet with references"] if from_references else [])]

    def fitting_options(self) -> dict[str, float]:
        each_step = self.communication_frequency == "batch" and self.rounds is None
        given = any(text.startswith("momentum=") for text in self.strategy_options)
        common = self.chosen_strategy() == "scaffold_adam"
        # One step a round needs no momentum beside Adam's own: exchanged so, the model is pooled training's.
        return {"momentum": 0.0} if common and each_step and not given else {}

    def rules(self) -> "RoundRules":
        """Return the round rules; ConfigError where they make no sense."""
        from ray_fed.federation.rounds.machine import RoundRules

        return RoundRules(
            fraction_fit=self.fraction_fit,
            min_fit_clients=self.min_fit_clients,
            min_available_clients=self.min_fit_clients,
            accept_failures=self.accept_failures,
            round_timeout=self.round_timeout,
            max_restarts=self.max_restarts,
        )

    def num_rounds(self, steps_per_epoch: int) -> int:
        """Return the number of exchanges of a run with `steps_per_epoch` mini-batches per epoch."""
        if self.rounds is not None:
            return self.rounds
        if self.communication_frequency == "batch":
            return self.epochs * steps_per_epoch
        return max(1, round(float(self.communication_frequency) * self.epochs))


@dataclass(frozen=True)
class FormationEnergyConfig(TrainConfig):
    """Multi-source training of a formation-energy network (Guo et al. 2022)."""

    PIPELINE: ClassVar[str] = "formation-energy"
    UNIT_IF_UNKNOWN: ClassVar[str] = "eV/atom"
    target: tuple[str, ...] = ("formation_energy_per_atom",)
    """Column to learn; in eV/atom, unless its name or --unit says another unit. For other properties: ray-fed train."""
    task: Literal["auto", "regression", "classification"] = "regression"
    """Numbers or classes; auto: as the column looks."""
    strategy: str = "fed_avg"
    """How updates are combined; the paper averages parameters. The others: ray-fed train --help."""
    learning_rate: float = 1e-3
    """Step size of the local optimiser."""
    decay: Literal["none", "cosine"] = "none"
    """How the learning rate falls over the steps of a run: not at all, or to 0 along a cosine; the paper names none."""
    features: str = "guo73"
    """guo73: 13 element properties x 5 statistics + cell and space group; guo65: without structure, for data that have
    only formulas; rich: a larger element set; rich+structure: with cell and space group; auto: as in ray-fed train."""
    standardise_target: bool = False
    """Learn numbers of mean 0 and deviation 1; the paper learns eV/atom."""
    calibration_fraction: float = 0.0
    """Share of formulas in each silo that no model is trained on, for intervals of predictions; the paper has none."""
    alone: Literal["network", "best"] = "network"
    """With --baselines: what each silo, and who had all rows, does alone: the same network, as in the paper; or the
    best of it, a random forest and gradient boosting, chosen by cross-validation inside the silo."""
    early_stopping: Literal["no", "baselines", "all"] = "no"
    """baselines: the networks alone and pooled first find out on --validation-share of their formulas how long to
    train; the paper trains to the end."""
    personal: Literal["none", "offsets", "tuned", "stacked", "mixture"] = "none"
    """What each silo makes of the federation's model for itself after training; the paper has nothing of the kind."""
    analysis: bool = False
    """After training: errors by element and chemistry, worst rows (of a public test set here, else in the owner's own
    log), importances of the properties."""
    cell: Literal["standard", "given"] = "given"
    """Cell and space group as the data have them, as in the paper; or of the standardised primitive cell."""


CONFIGS: dict[str, type[TrainConfig]] = {each.PIPELINE: each for each in (TrainConfig, FormationEnergyConfig)}
"""Command -> its configuration."""
