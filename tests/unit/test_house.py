"""The house can be entered: one round is few files, and a name means one thing."""

import ast
from collections import Counter
from pathlib import Path

from tests.trace_round import functions_of_a_round

ROOT = Path(__file__).parents[2]
PRODUCT = [path for part in ("ray_fed", "actors", "pipelines") for path in sorted((ROOT / part).rglob("*.py"))]


def test_one_guarded_round_enters_at_most_twenty_files(tmp_path):
    files = {file for file, _ in functions_of_a_round(str(tmp_path))}
    assert len(files) <= 20, sorted(files)


def test_no_two_classes_have_one_name():
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in PRODUCT]
    names = Counter(node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef))
    assert len(names) > 300
    assert [name for name, count in names.items() if count > 1] == []


def test_what_is_called_can_be_searched_for():
    """No method is looked up by a name that is put together."""
    assert [path for path in PRODUCT if 'getattr(self, f"' in path.read_text(encoding="utf-8")] == []
