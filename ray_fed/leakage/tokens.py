"""Token recovery: the rows of an embedding's gradient name the tokens of a batch, and positions put them in order.

A row of the table gets a gradient only where its token stands, dL/dE_t = sum over places i with token t of dL/dh_i. So
the rows that are not zero are the tokens. Where a learned position is added to each place, dL/dp_i = dL/dh_i is in the
message, too, and E = A P with a matrix A of zeros and ones says which token stands at which place (batch of one).

    code     shape
    rows     [tokens, features]   dL/dE, rows that are not zero
    pull     [places, features]   dL/dp
"""

from dataclasses import dataclass

import torch

from ray_fed.config import require
from ray_fed.leakage.layer_inversion import trace_of
from ray_fed.leakage.observation import AttackObservation
from ray_fed.leakage.targets import trainable

TIED_SHARE = 0.9
"""Share of the table's rows with a gradient above which the table must be the output layer, too."""
SURE = 0.1
"""Distance from zero or one, and from a whole number, that still counts as one."""


@dataclass(frozen=True)
class TokenGuess:
    """What a message says of the tokens behind it."""

    tokens: torch.Tensor
    """Distinct tokens [k], ascending."""
    counts: torch.Tensor | None
    """How often each stands there [k]; None where the gradients do not say."""
    sequence: torch.Tensor | None
    """Tokens in their order [length]; None where nothing says the order."""
    why_no_order: str = ""


def recover_tokens(observation: AttackObservation) -> TokenGuess:
    """Read tokens from a message; ConfigError, with the reason, where they cannot be read."""
    recorded, names, knows = trace_of(observation), trainable(observation.network), observation.knows
    require(bool(recorded.embedding), "the network does not look its inputs up in a table that is trained")
    require(recorded.embedding in names, f"the table '{recorded.embedding}' is not trained: its gradient is not sent")
    table = observation.message[names.index(recorded.embedding)].double()
    sizes = table.norm(dim=1)
    tokens = torch.nonzero(sizes > 1e-9 * sizes.max()).flatten()
    places = knows.batch_size * int(torch.Size(knows.input_shape).numel())
    require(len(tokens) <= max(places, TIED_SHARE * len(table)), f"{len(tokens):,} of {len(table):,} rows of the table "
            f"have a gradient, for {places} places: the table is the output layer, too, or noise was added, and the "
            "rows do not name the tokens")  # fmt: skip
    sequence, reason = _ordered(observation, table[tokens], tokens)
    if sequence is not None:
        return TokenGuess(tokens, torch.stack([(sequence == token).sum() for token in tokens]), sequence)
    return TokenGuess(tokens, _counts(sizes[tokens], places), None, reason)


def _counts(sizes: torch.Tensor, places: int) -> torch.Tensor | None:
    """Return counts where every place pulls alike, as before a mean over places."""
    shares = places * sizes / sizes.sum()
    rounded = shares.round()
    return rounded.long() if bool(((shares - rounded).abs() < SURE).all() and (rounded >= 1).all()) else None


def _ordered(
    observation: AttackObservation, rows: torch.Tensor, tokens: torch.Tensor
) -> tuple[torch.Tensor | None, str]:
    recorded, names, knows = trace_of(observation), trainable(observation.network), observation.knows
    if knows.batch_size > 1:
        return None, "the positions' gradient is the sum over a batch"
    if recorded.positions not in names:
        return None, "no learned position is added to each place"
    pull = observation.message[names.index(recorded.positions)].double().reshape(-1, rows.shape[1])
    pull = pull[: knows.input_shape[0]]
    places = torch.linalg.lstsq(pull.T, rows.T).solution.T
    sure = ((places - places.round()).abs() < SURE).all() and (places.round().sum(0) == 1).all()
    return (tokens[places.argmax(0)], "") if bool(sure) else (None, "the places do not pull in different directions")
