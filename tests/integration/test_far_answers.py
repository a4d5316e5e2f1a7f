"""A large answer stays at the machine where it was made until it is fetched: it can be made, and then not come."""

from tests.commands import finished, start_module
from tests.integration.test_scale import ENVIRONMENT


def told(scene: str, folder) -> list[str]:
    """Return what a cohort hears in a scene; the scene needs a cluster of its own, so a process of its own."""
    done = finished(start_module("tests.integration.far_answers", scene, folder=folder, env=ENVIRONMENT))
    assert done.returncode == 0, done.stderr
    return [line.removeprefix("HEARD ") for line in done.stdout.splitlines() if line.startswith("HEARD ")]


def test_an_answer_that_is_lost_with_its_node_costs_a_silo_its_round_and_no_more(tmp_path):
    died = "its process died (killed, out of memory or crashed)"
    asked_on = f"{{'far': Raised(silo='far', server_round=0, reason='{died}')}}"
    assert told("lost", tmp_path) == [
        "Raised(silo='far', server_round=1, reason='its answer was lost with its node, before it was fetched')",
        f"Died(silo='far', reason='{died}')",
        f"{asked_on} {asked_on}",  # an evaluation, and a query
    ]


def test_an_answer_that_cannot_be_fetched_does_not_hold_up_those_of_others(tmp_path):
    assert told("held", tmp_path) == ["near answered", "None", "far answered"]
