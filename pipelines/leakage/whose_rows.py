"""Whose rows were named in the sums of an audit."""

from collections.abc import Sequence

import numpy as np

from pipelines.leakage.audited_federation import AuditedFederation
from ray_fed.leakage.attribution import KNOWN, Attributed, attributed
from ray_fed.leakage.listed_records import LEAST_SQUARES, named
from ray_fed.leakage.replay import Replay, in_sum
from ray_fed.learning.layout import load_vector


def whose_rows(audited: AuditedFederation, replays: Sequence[Replay]) -> list[Attributed]:
    """Return how many of the records named in the sum of a kind of message are given to the right silo; nothing without
    a list, or of one silo. replays: one per silo; the last records of each are those that the attacker knows."""
    listed = audited.knows.suspects
    if listed is None or len(replays) < 2:
        return []
    whole = in_sum(replays)[0]
    network = load_vector(audited.coordinator.task.model(0), whole.sent)
    strengths, _ = listed.strengths(whole.messages[0], network, whole.together)
    owner_of = {int(place): one.silo for one in replays for place in listed.positions(one.rows[one.behind(0)]).tolist()}
    behind = np.array(sorted(owner_of), np.intp)
    known = {one.silo: one.rows[-KNOWN:] for one in replays}
    given = np.concatenate([listed.positions(rows) for rows in known.values()])
    right = np.setdiff1d(named(strengths[LEAST_SQUARES], behind, behind)[1], given)
    return [attributed(whole.kind, listed.rows[right], [owner_of[int(place)] for place in right], known)]
