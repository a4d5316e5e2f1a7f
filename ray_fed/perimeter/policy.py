"""What the owner of a silo lets out of it: a file on the owner's machine, read inside the silo's process.

    ledger: /var/lib/ray-fed         where this site's silos keep their ledgers and keys
    receive_models: ~/models         where the final models of runs are put; without it none is taken
    perimeter:                       for every silo of this site; any field of `Policy`
      min_examples: 20
    silos:
      north-institute:               for one silo; these fields count before those of the site
        max_bytes_per_run: 2000000000
    partners:                        the other silos' public keys (`ray-fed ledger key SILO` at theirs); with any named,
      south-institute: 3fa1...       secure aggregation masks with these silos only; by these keys, and by that of
      coordinator: 77c0...           the coordinator, `ray-fed ledger verify` knows who signed

A site that its owner runs (`ray-fed site start`) has further keys in the same file: ray_fed/sites/site_file.py.

The file is `site.yaml` in the folder that RAY_FED_SITE names, or in .config/ray-fed of the account's home. Nothing that
a coordinator sends is read into it, so a coordinator cannot widen it; in an actor, not even by an environment variable
(actors/owned.py). With a file that cannot be read, or that another account can write, nothing leaves.
"""

import hashlib
import json
import os
import pwd
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from ray_fed.config import at_home, coerce, from_mapping, require, unknown_name
from ray_fed.errors import ConfigError
from ray_fed.metrics import Resolution
from ray_fed.perimeter.owner_file import read_owned

COORDINATOR = "coordinator"
"""Its name among the partners, and as a writer of ledgers."""
SITE_VARIABLE = "RAY_FED_SITE"
SITE_FOLDER = ".config/ray-fed"
SITE_FILE = "site.yaml"
AGENT_KEYS = ("name", "hub", "datasets", "tasks", "own_tasks", "device", "state", "relay")
"""Of a site that its owner runs, or of a hub that is one."""
SITE_KEYS = ("ledger", "perimeter", "silos", "partners", "receive_models", *AGENT_KEYS)
PUBLIC_KEY = re.compile(r"[0-9a-f]{64}")
KINDS = (
    "description", "moments", "update", "masked", "metrics", "artifact", "counts", "observation", "search",
    "predictions", "reply",
)  # fmt: skip
"""Kinds of message that leave a silo if its owner says nothing. Any other kind leaves only where the owner lists it."""
COUNTED = ("errors", "spreads", "confidences", "elements", "places")
"""Questions that are answered with counts of rows: of errors, of how far the silos' models are apart, of how sure they
are of classes (intervals and chances of predictions), of elements, of distances from the mean (flags of inputs that are
unlike the rows)."""
DECLARED = "declared"
"""Among the names of metrics: those that a task declares when it opens its data."""
GIB = 2**30


@dataclass(frozen=True)
class Policy:
    """What may leave a silo. The defaults let the messages of federated training out and nothing else."""

    kinds: tuple[str, ...] = KINDS
    """Kinds of message that may leave."""
    metrics: tuple[str, ...] = (DECLARED,)
    """Names that a metric may have; `declared` stands for those that the task declares when it opens its data, before
    it trains. A name that is made up later could be a row."""
    counts: tuple[str, ...] = COUNTED
    """Questions that may be answered with counts of rows, none smaller than `min_examples`. Without `elements` it is
    not told which elements the rows have; without `errors` the predictions of a run have no intervals."""
    min_examples: int = 5
    """Fewest rows behind a mean, a sum or any other statistic; what has fewer stays inside."""
    min_examples_per_update: int = 1
    """Fewest rows behind an update. The gradient of one row gives that row away (`ray-fed audit`); an exchange after
    every small batch needs 1."""
    min_rows_per_bin: int = 1
    """Fewest of this silo's rows in a bin, or a leaf, of boosted trees whose sums leave in clear; empty ones tell
    nothing. Above 1 few trees fit without masks or noise, under which single silos' bins are not seen."""
    max_update_norm: float | None = None
    """Longest move of an update from the parameters it was trained from."""
    max_bytes_per_round: int | None = None
    """Bytes that may leave in one round; if not given, four times the parameters the silo received and 64 KiB."""
    max_bytes_per_run: int = 64 * GIB
    """Bytes that may leave in one run."""
    max_bytes_per_dataset: int = 1024 * GIB
    """The same for all runs on a data set together, whatever they are called. Counted in the owner's book, in portions,
    which needs a folder that lasts (`ledger` in this file); without one a process counts its own run only."""
    max_description_bytes: int = 1 << 16
    """Bytes of the description besides its counts: what all must agree on, names of metrics, the fingerprint."""
    error_texts: Literal["none", "kind", "full"] = "kind"
    """What an error in the silo says outside of it: `none` only that it failed; `kind` its class and one of a few fixed
    phrases (`ray_fed.errors.Trouble`); `full` its own words, which may hold values, columns and paths. Each comes with
    a number under which the silo's own log has all of it."""
    test_set: Literal["scores", "public"] = "scores"
    """What leaves of a test set that stands here: scores over all of it, or, where it is public, its true values and
    single predictions, too. Whoever shows that it has the same files already gets both anyway."""
    max_steps_per_round: int = 1_000_000
    """Training steps that a coordinator may ask for in one round: a call must end."""
    audit: bool = False
    """Whether the silo's messages may be replayed and attacked by `ray-fed audit`, and single gradients leave as
    observations to be attacked elsewhere."""
    source_errors: bool = False
    """Whether the answer to a search in a model library holds the error of every single source on the silo's rows. A
    thousand errors of known models on twenty rows are a thousand equations for twenty values."""
    max_evaluations_per_run: int = 1000
    """Models that a silo marks in one run, each part of each call counted: a run evaluates about 100 times."""
    max_evaluations_per_dataset: int = 10_000
    """The same for all runs on a data set together, whatever they are called. Counted in the owner's book, which needs
    a folder that lasts (`ledger` in this file); without one a process counts from 0 when it starts."""
    max_splits_per_dataset: int = 20
    """Ways in which a coordinator may have the rows dealt into those for training and those held out, over all runs:
    how many rows each part has is told, and who chooses who is held out learns a little of who is there."""
    metric_bits: int = 7
    """Binary digits after the first that a metric has at least; 7 are steps of 0.4 to 0.8 per cent. It has more where
    a step is then still as large as the share of `min_examples` rows: from 128 times `min_examples` rows on."""
    metric_bits_of_numbers: int = 3
    """The same where the target of each row is one number (a regression): sums of errors can be solved for numbers."""
    masks: Literal["allowed", "required"] = "allowed"
    """`required`: what is learned from the rows leaves under the masks of secure aggregation or not at all, and only
    with the partners named in this file."""
    noise: Literal["allowed", "required"] = "allowed"
    """`required`: updates leave with noise in every step (DP-SGD) or not at all, at least `min_noise_multiplier`."""
    min_noise_multiplier: float = 1.0
    """Least noise where noise is required, in units of the clip."""
    max_clip: float | None = None
    """Longest gradient of one row that may count in full, where noise is required; none leaves it to the run."""
    epsilon_budget: float | None = None
    """Largest epsilon that all runs on a data set may reach together, at `epsilon_delta`; noise is then required.
    Counted in the owner's book, which needs a folder that lasts (`ledger` in this file)."""
    epsilon_delta: float = 1e-5
    """Chance that the promise of `epsilon_budget` does not hold: well below one over the number of rows."""
    hand_over_ledger: bool = True
    """Whether the coordinator gets a copy of the ledger at the end of a run. It holds no data."""

    def __post_init__(self) -> None:
        for name in (
            "min_examples", "min_examples_per_update", "min_rows_per_bin", "max_bytes_per_run", "max_bytes_per_dataset",
            "max_description_bytes", "metric_bits", "metric_bits_of_numbers", "max_evaluations_per_run",
            "max_evaluations_per_dataset", "max_steps_per_round", "max_splits_per_dataset",
        ):  # fmt: skip
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be 1 or more")
        require(self.min_noise_multiplier > 0, f"min_noise_multiplier={self.min_noise_multiplier} must be above 0")
        require(0 < self.epsilon_delta < 1, f"epsilon_delta={self.epsilon_delta} must lie between 0 and 1")
        both = self.audit and (self.masks == "required" or self.needs_noise)
        require(not both, "audit: true shows single gradients as they are, but masks or noise are required, too")
        for name in ("max_bytes_per_round", "max_update_norm", "max_clip", "epsilon_budget"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{name}={value} must be above 0, or none")

    @property
    def resolution(self) -> Resolution:
        """How exactly metrics are told."""
        return Resolution(self.min_examples, self.metric_bits, self.metric_bits_of_numbers)

    @property
    def needs_noise(self) -> bool:
        """Whether an update without noise stays inside: a budget is no budget where something leaves uncounted."""
        return self.noise == "required" or self.epsilon_budget is not None

    @cached_property
    def version(self) -> str:
        """The first 16 digits of the SHA-256 of all fields: a ledger says by which policy its messages left."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Site:
    """What the owner's file says about one silo."""

    policy: Policy
    ledger_folder: str
    """Folder for ledgers and keys; "" where the owner names none."""
    path: Path
    """The file, whether or not it exists."""
    partners: Mapping[str, str] = field(default_factory=dict)
    """Silo -> its public key, 64 hexadecimal digits."""
    model_folder: Path | None = None
    """Where final models of runs are kept; None takes none."""
    key_file: Path | None = None
    """The key of a site that its owner runs: one for all its silos. Elsewhere each has its own."""


def require_site_file(path: Path) -> Path:
    """Return the path; ConfigError for another name: a silo's process finds the file by its folder."""
    require(path.name == SITE_FILE, f"{path}: the owner's file must be called {SITE_FILE}")
    return path.absolute()


def site_path(environment: Mapping[str, str] = os.environ) -> Path:
    """Return where this account's site file is expected, by the given environment. The home is the account's, whatever
    HOME says."""
    named = environment.get(SITE_VARIABLE)
    return (Path(named).expanduser() if named else _home() / SITE_FOLDER) / SITE_FILE


def _home() -> Path:
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:  # an account without an entry, as in some containers
        return Path.home()


def read_site(silo: str, path: Path | None = None) -> Site:
    """Return what the owner's file says about a silo; the defaults where there is no file.

    ConfigError names the file, the key, the value and what it must be.
    """
    path = path or site_path()
    content = read_owned(path, is_secret=False) if path.exists() else {}
    check_keys(content, path)
    silos = mapping_of(content.get("silos"), f"{path}: silos")
    policy = policy_of(content, path, silos.get(silo), f"{path}: silos: {silo}")
    models = model_folder_of(content, path)
    return Site(policy, ledger_folder_of(content, path), path, partners_of(content, path), models)


def check_keys(content: Mapping[str, Any], path: Path) -> None:
    """ConfigError for a key that a site file does not have."""
    for key in content:
        if key not in SITE_KEYS:
            raise ConfigError(f"{path}: {unknown_name('key', str(key), list(SITE_KEYS))}")


def policy_of(content: Mapping[str, Any], path: Path, own: Any, where: str) -> Policy:
    """Return the site's policy with what one silo or data set has of its `own`; `where` that stands."""
    of_site = _policy(mapping_of(content.get("perimeter"), f"{path}: perimeter"), f"{path}: perimeter")
    changes = mapping_of(own, where)
    changed = _policy(changes, where)  # names the key that is wrong
    try:
        return replace(of_site, **{key: getattr(changed, key) for key in changes})
    except ConfigError as error:
        raise ConfigError(f"{where}: with what {path} says of the site: {error}") from error


def _policy(values: Mapping[str, Any], where: str) -> Policy:
    """Return a policy of some of its fields; whatever is wrong, the message begins with where they stand."""
    try:
        return from_mapping(Policy, values, where)
    except ConfigError as error:
        raise (error if str(error).startswith(where) else ConfigError(f"{where}: {error}")) from None


def ledger_folder_of(content: Mapping[str, Any], path: Path) -> str:
    folder = coerce(content.get("ledger", ""), str, f"{path}: ledger")
    return str(at_home(folder)) if folder else ""


def model_folder_of(content: Mapping[str, Any], path: Path) -> Path | None:
    folder = coerce(content.get("receive_models") or "", str, f"{path}: receive_models")
    return at_home(folder) if folder else None


def partners_of(content: Mapping[str, Any], path: Path) -> dict[str, str]:
    partners = mapping_of(content.get("partners"), f"{path}: partners")
    for silo, key in partners.items():
        fits = isinstance(key, str) and PUBLIC_KEY.fullmatch(key)
        wanted = "must be a public key in quotes, 64 digits 0-9 a-f; its owner's `ray-fed ledger key` prints it"
        require(bool(fits), f"{path}: partners: {silo}={key!r} {wanted}")
    return {str(silo): key for silo, key in partners.items()}


def mapping_of(value: Any, where: str) -> Mapping[str, Any]:
    """Return a mapping, an empty one for None; ConfigError for anything else."""
    require(value is None or isinstance(value, Mapping), f"{where}: must be a mapping, not {value!r}")
    return value or {}
