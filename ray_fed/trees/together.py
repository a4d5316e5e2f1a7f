"""A forest grown by members in one process, without any engine: the reference of what an engine must give."""

from collections.abc import Callable, Sequence

import numpy as np

from ray_fed.trees.growth import Grower, Growth
from ray_fed.trees.member import Member
from ray_fed.trees.question import Step, TreeQuestion


def grown(
    grower: Grower,
    members: Sequence[Member],
    on_answers: Callable[[TreeQuestion, list[np.ndarray]], object] | None = None,
) -> Growth:
    """Return the finished growth over these members. on_answers: is shown each question with its answers."""
    growth = Growth.begin(grower.num_features)
    while growth.at is not Step.DONE:
        question = grower.question(growth)
        answers = [member.answer(question) for member in members]
        if on_answers:
            on_answers(question, answers)
        growth = grower.after(growth, np.stack(answers).sum(axis=0))
    return growth
