"""By introspection: every actor and task is known, and every question to a silo is answered through its gate."""

import ast
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

import ray_fed
from actors.tuned_silos import question
from ray_fed.errors import FedError
from ray_fed.federation.messages import SessionSpec
from ray_fed.federation.silo import Silo
from ray_fed.learning.layout import Layout
from ray_fed.model_library.guarded_search import GuardedSearch
from ray_fed.perimeter.guarded_evaluator import GuardedEvaluator
from ray_fed.perimeter.guarded_silo import GuardedSilo
from tests.boundaries import PLAN, guarded, vector_of

ACTORS = Path(ray_fed.__file__).parent.parent / "actors"
SILOS = {
    "silo.SiloActor": GuardedSilo, "silo.EvaluatorActor": GuardedEvaluator, "library.LibrarySilo": GuardedSearch,
}  # fmt: skip
NO_SILOS = {
    "coordinator.CoordinatorActor": "receives messages; holds no rows",
    "shared_silos.SiloBoard": "holds handles of silos",
    "tuned_silos.TuningBoard": "holds handles of silos, and what they agreed on",
    "tuned_silos.TunedOwnerActor": "has a guarded silo for each key, whose questions alone it passes on (below)",
    "cluster_check.Visitor": "describes a machine before there is a silo",
    "library._Predictor": "predicts rows that the caller sent",
    "library._build": "trains on tables of whoever builds the library",
    "library._draw": "a study on tables of the caller's own",
    "library._search": "draws of a library silo, on its node; its answers go to the silo's gate",
    "same_package.ask": "answers where a node's package is and how old",
    "leakage._attack": "attacks messages that were seen already",
}
"""Actors and tasks without rows of a silo, or whose answers another gate takes, and why."""
SILENT = {
    "prepare": "answers nothing",
    "restore": "answers nothing",
    "close_session": "answers nothing",
    "receive_model": "answers nothing",
    "open_session": "answers the digest it was sent",
    "take": "answers how many models it was sent",
    "collect_ledger": "answers the ledger, which holds names and hashes; hand_over_ledger=false keeps it",
}
"""Questions whose answers are no message, and why they need no check."""


def remote_definitions():
    """(module.name, syntax tree) of everything that Ray can be asked to run."""
    for path in sorted(ACTORS.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                said = [ast.unparse(each.func if isinstance(each, ast.Call) else each) for each in node.decorator_list]
                if "ray.remote" in said:
                    yield f"{path.stem}.{node.name}", node
            if isinstance(node, ast.Assign | ast.AnnAssign) and "ray.remote(" in ast.unparse(node):
                [name] = (
                    [ast.unparse(node.target)] if isinstance(node, ast.AnnAssign) else map(ast.unparse, node.targets)
                )
                yield f"{path.stem}.{name}", node


def methods(node):
    return [each for each in node.body if isinstance(each, ast.FunctionDef) and not each.name.startswith("__")]


def test_every_actor_and_task_is_a_silo_or_on_the_list_with_a_reason():
    assert {name for name, _ in remote_definitions()} == set(SILOS) | set(NO_SILOS)


@pytest.mark.parametrize("name", SILOS)
def test_a_method_of_a_silo_actor_puts_questions_to_its_guarded_silo_and_looks_at_nothing_behind_it(name):
    node = dict(remote_definitions())[name]
    queries = {each for each in dir(SILOS[name]) if not each.startswith("_")}
    assert methods(node)
    for method in methods(node):
        uses = [each for each in ast.walk(method) if isinstance(each, ast.Name) and each.id == "self"]
        called = [each.func for each in ast.walk(method) if isinstance(each, ast.Call)]
        asked = [
            each.attr for each in called if isinstance(each, ast.Attribute) and ast.unparse(each.value) == "self.silo"
        ]
        assert len(uses) == len(asked) > 0, f"{method.name} looks at something behind the boundary"
        assert set(asked) <= queries, method.name


@pytest.mark.parametrize("guarded_class", SILOS.values())
def test_every_answer_of_a_guarded_silo_goes_through_its_gate_or_is_on_the_list_with_a_reason(guarded_class):
    source = ast.parse(Path(__import__(guarded_class.__module__, fromlist=["x"]).__file__).read_text())
    [node] = [each for each in source.body if isinstance(each, ast.ClassDef) and each.name == guarded_class.__name__]
    by_name = {method.name: method for method in methods(node)}
    for name in by_name:
        if not (name.startswith("_") or name in SILENT or name == "leaving"):
            assert list(past_the_gate(by_name, name)) == []


def past_the_gate(by_name, name):
    """Yield the answers of a method that do not go through the gate; one that is a method's of the class is its."""
    for answer in (each for each in ast.walk(by_name[name]) if isinstance(each, ast.Return)):
        text = ast.unparse(answer)
        if re.search(r"self\._(run_and_)?release\(", text):
            continue
        inner = re.match(r"return self\.(_\w+)\(", text)
        if inner and inner[1] in by_name:
            yield from past_the_gate(by_name, inner[1])
        else:
            yield f"{name}: {text}"


@pytest.mark.parametrize("name", ["silo", "_release", "gate", "__class__", "nothing"])
def test_an_owner_of_silos_for_trials_passes_on_no_question_but_those_of_a_guarded_silo(tmp_path, name):
    boundary = guarded(tmp_path)
    assert question(boundary, "moments") == boundary.moments
    with pytest.raises(FedError, match="GuardedSilo answers no question of this name"):
        question(boundary, name)


class Leaking(Silo):
    """Answers its rows to every question."""

    def queries(self):
        return {"spectra": self._spectra}

    def _spectra(self):
        return self._rows


def answer_rows(self, *_):
    return self._rows


LEAKS = (
    "open",
    "moments",
    "prepare",
    "open_session",
    "restore",
    "close_session",
    "fit",
    "evaluate",
    "query",
    "leaving",
)


@pytest.fixture
def leaking(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_FED_SITE", str(tmp_path / "site"))
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "site.yaml").write_text("perimeter: {audit: true}")
    boundary = guarded(tmp_path, Leaking)
    for name in LEAKS:
        monkeypatch.setattr(Leaking, name, answer_rows)
    return boundary


def questions(boundary):
    spec = SessionSpec("s", PLAN, 0, Layout.of(boundary.silo.task.model(0)).digest)
    vector = vector_of(boundary)
    return {
        "open": (), "moments": (), "prepare": (None,), "open_session": (spec,), "restore": (None, [spec]),
        "close_session": ("s",), "fit": ("s", 1, vector), "evaluate": ("s", {"m": vector}), "query": ("spectra",),
        "observe": (vector, 4), "collect_ledger": (), "leaving": (None, None),
        "receive_model": (np.zeros(1, np.uint8), np.zeros(1, np.uint8)),
    }  # fmt: skip


def test_no_question_brings_the_rows_of_a_silo_that_answers_nothing_else(leaking):
    asked = questions(leaking)
    public = {name for name in dir(GuardedSilo) if not name.startswith("_") and callable(getattr(GuardedSilo, name))}
    assert set(asked) == public, "a new question needs a line in `questions`"
    rows = leaking.silo._rows.features
    crossed, refused = b"", []
    for name, given in asked.items():
        try:
            crossed += pickle.dumps(getattr(leaking, name)(*given))
        except FedError as error:
            refused.append(name)
            crossed += pickle.dumps(error)
    assert rows[0].tobytes() not in crossed
    assert rows[0].astype(np.float32).tobytes() not in crossed
    assert str(rows[0, 0]).encode() not in crossed
    assert set(refused) == {"open", "moments", "open_session", "restore", "fit", "evaluate", "query", "receive_model"}
