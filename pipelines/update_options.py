"""What the training pipelines share of their options: how updates are combined, noised, coded and masked.

A configuration inherits from `UpdateOptions` and has these names as fields, each documented for its own --help. What
brings torch is imported where it is needed.
"""

from math import isfinite
from typing import TYPE_CHECKING, Literal

from ray_fed.config import require
from ray_fed.privacy.accounting import PrivacyAccount
from ray_fed.privacy.compression import Compression

if TYPE_CHECKING:
    from ray_fed.federation.strategies import Strategy
    from ray_fed.learning.private_steps import PrivateSteps

AUTO = "auto"
"""What an option says that leaves a choice to what else is known."""
Coding = Literal["none", "fp16", "bf16", "int8", "top_k"]


class UpdateOptions:
    """Fields and what is made of them. ConfigError says the value and the remedy."""

    strategy: str
    strategy_options: tuple[str, ...]
    max_update_norm: float | None = None
    dp_noise_multiplier: float | None
    dp_clip: float
    dp_delta: float
    dp_budget: float | None = None
    compression: Coding
    top_k_share: float
    secure_aggregation: bool
    secure_threshold: int | None

    @property
    def is_private(self) -> bool:
        """Whether noise hides single examples, or whole silos."""
        return self.dp_noise_multiplier is not None or self.strategy == "dp_fed_avg"

    def check_updates(self) -> None:
        """Raise ConfigError for options that make no sense or do not go together."""
        self._check_noise()
        self.make_compression()
        self.make_strategy()
        self._check_masks()

    def _check_noise(self) -> None:
        noise = self.dp_noise_multiplier
        require(noise is None or (isfinite(noise) and noise > 0), f"dp_noise_multiplier={noise} must be positive")
        require(isfinite(self.dp_clip) and self.dp_clip > 0, f"dp_clip={self.dp_clip} must be positive")
        require(0 < self.dp_delta < 1, f"dp_delta={self.dp_delta} must lie between 0 and 1")
        require(self.dp_budget is None or self.dp_budget > 0, f"dp_budget={self.dp_budget} must be positive")
        require(self.is_private or self.dp_budget is None, f"dp_budget={self.dp_budget} needs dp_noise_multiplier")
        both = noise is not None and self.strategy == "dp_fed_avg"
        require(not both, "dp_noise_multiplier and strategy=dp_fed_avg are two guarantees; ask for one of them")
        asynchronous = "a fast silo takes more steps than the account counts"
        require(noise is None or self.strategy != "fed_buff", f"dp_noise_multiplier with fed_buff: {asynchronous}")

    def _check_masks(self) -> None:
        if not self.secure_aggregation:
            require(self.secure_threshold is None, "secure_threshold needs secure_aggregation=yes")
            return
        from ray_fed.federation.rounds.secure_driver import require_sums_only

        require_sums_only(self.make_strategy(), self.max_update_norm)
        coded = f"compression={self.compression} does not go with secure_aggregation"
        require(self.compression == "none", f"{coded}: masked numbers have no shorter form; use none")

    def threshold(self, num_silos: int) -> int:
        """Return how many silos a masked sum needs, 0 without secure aggregation; ConfigError for a number that cannot
        be met."""
        if not self.secure_aggregation:
            return 0
        from ray_fed.federation.rounds.secure_driver import default_threshold
        from ray_fed.privacy.secure_sum.member import FEWEST

        require(num_silos >= FEWEST, f"secure_aggregation needs at least {FEWEST} silos; there is {num_silos}")
        asked = self.secure_threshold if self.secure_threshold is not None else default_threshold(num_silos)
        least = max(FEWEST, num_silos // 2 + 1)  # of two different lists of silos only one can have so many
        require(least <= asked <= num_silos, f"secure_threshold={asked} must lie between {least} and {num_silos}")
        return asked

    def make_compression(self) -> Compression | None:
        """Return how updates are coded; ConfigError for a share of nothing."""
        return None if self.compression == "none" else Compression(self.compression, self.top_k_share)

    def private_steps(self) -> "PrivateSteps | None":
        """Return the noise of the silos' steps, None where none is asked for."""
        if self.dp_noise_multiplier is None:
            return None
        from ray_fed.learning.private_steps import PrivateSteps

        return PrivateSteps(self.dp_noise_multiplier, self.dp_clip)

    def account(self, steps_per_epoch: int) -> PrivacyAccount | None:
        """Return the account of the run's noise, None where there is no noise."""
        if self.dp_noise_multiplier is not None:
            share = 1 / steps_per_epoch
            return PrivacyAccount("example", self.dp_noise_multiplier, share, self.dp_delta, self.dp_budget)
        from ray_fed.federation.strategies import DPFedAvg

        strategy = self.make_strategy()
        return strategy.account(self.dp_delta, self.dp_budget) if isinstance(strategy, DPFedAvg) else None

    def make_strategy(self) -> "Strategy":
        """Return the strategy, by its name or as MODULE:CLASS; ConfigError where there is none."""
        from ray_fed.federation.strategies import make_strategy

        given = {name: value for name, _, value in (text.partition("=") for text in self.strategy_options)}
        return make_strategy(self.chosen_strategy(), **self.fitting_options(), **given)

    def fitting_options(self) -> dict[str, float]:
        """Return options of the strategy that follow from others, and that the user has not given."""
        return {}

    def chosen_strategy(self) -> str:
        """Return the name of the strategy, where the options leave it open that of the best one that goes with them."""
        if self.strategy != AUTO:
            return self.strategy
        return "fed_avg" if self.against_common_moments() else "scaffold_adam"

    def against_common_moments(self) -> list[str]:
        """Return the options that do not go with scaffold_adam, as NAME=VALUE."""
        return []


def require_own_code(named: object, given: object, where: object, option: str = "strategy") -> None:
    """ConfigError where a folder's configuration names code, MODULE:CLASS, and the user has not named it, too: such a
    folder may come from somebody else, and the code would be that of the current folder."""
    names_code = isinstance(named, str) and ":" in named
    said = f"{where}: {option}={named!r} is code that is not ray-fed's; if it is yours"
    require(not names_code or named == given, f"{said}, say so: --{option} {named}")
    other = f"{where}: {option}={named!r} is that of the run; --{option} {given} cannot change it"
    require(given is None or named == given, other)


def privacy_statement(account: PrivacyAccount, epsilon: float, not_covered: str) -> dict[str, object]:
    """Return what a run guarantees, for its summary: `privacy.level`, `.epsilon`, `.delta` and what they leave out."""
    return {
        "privacy.level": account.level,
        "privacy.epsilon": epsilon,
        "privacy.delta": account.delta,
        "privacy.noise_multiplier": account.noise_multiplier,
        "privacy.not_covered": not_covered,
    }
