"""What documents name exists; decisions are numbered in a row; benchmark pages open with question, answer, command."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = sorted(path for path in (ROOT / "benchmarks").glob("*.md") if path.name != "README.md")
DECISIONS = sorted(path for path in (ROOT / "decisions").glob("*.md") if path.name != "README.md")
PLACES = ("*.md", "benchmarks/*.md", "cluster/*.md", "decisions/*.md")
DOCUMENTS = sorted(path for pattern in PLACES for path in ROOT.glob(pattern))
PACKAGES = ("actors", "pipelines", "ray_fed")
FOLDERS = (*PACKAGES, "benchmarks", "cluster", "decisions", "tests", "tutorials")
CODE = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
OPENING = ("- **Asked:** ", "- **Answer:** ", "- **Shown by:** ")
LONGEST_LINE = 160

LINK = re.compile(r"\]\(([^)\s#]+)")
FILE = re.compile(r"(?<![\w./~-])(?:\w[\w.-]*/)*\w[\w-]*\.(?:py|md)\b")
IN_A_FOLDER = re.compile(rf"(?<![\w./~-])(?:{'|'.join(FOLDERS)})/[\w./-]*\w")
MODULE = re.compile(rf"(?<![\w./-])(?:{'|'.join(PACKAGES)})(?:\.[a-z_]+)+\b(?!/)")
EXAMPLE = re.compile(r"^```python\n# (\S+\.py)$", re.MULTILINE)
"""First line of an example: the file that it makes, or is added to."""
PAGE = re.compile(r"\b(?:benchmarks/\w+\.md|decisions/\d{4})")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def exists(named: str, document: Path) -> bool:
    """A path from the root or from the document's folder, the number of a decision, or a name that some file has."""
    if any((folder / named).exists() for folder in (ROOT, document.parent)):
        return True
    if re.fullmatch(r"decisions/\d{4}", named):
        return len(list(ROOT.glob(f"{named}-*.md"))) == 1
    return "/" not in named and any(path.name == named for path in (*CODE, *DOCUMENTS))


def is_module(dotted: str) -> bool:
    """A package, a module, or a name that a module's text has."""
    path = ROOT / dotted.replace(".", "/")
    if path.is_dir() or path.with_suffix(".py").is_file():
        return True
    owners = (path.parent.with_suffix(".py"), path.parent / "__init__.py")
    texts = [owner.read_text(encoding="utf-8") for owner in owners if owner.is_file()]
    return any(re.search(rf"\b{path.name}\b", text) for text in texts)


def missing(document: Path) -> set[str]:
    """Return what a document names and nobody has, and none of its examples makes: links, files, paths in the project's
    folders, modules."""
    text = document.read_text(encoding="utf-8")
    made = set(EXAMPLE.findall(text))
    links = {target for target in LINK.findall(text) if "://" not in target}
    paths = {path for path in {*links, *FILE.findall(text), *IN_A_FOLDER.findall(text)} if not exists(path, document)}
    modules = {found for found in MODULE.findall(text) if not found.endswith((".py", ".md"))}
    modules -= {path.removesuffix(".py").replace("/", ".") for path in made}
    return (paths - made) | {module for module in modules if not is_module(module)}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_everything_that_a_document_names_exists(document):
    assert missing(document) == set()


def test_a_name_that_nobody_has_is_found_in_every_way_it_can_be_written(tmp_path):
    document = tmp_path / "page.md"
    gone = "[a](gone.png) `gone.py` benchmarks/gone.md `ray_fed/gone/` decisions/9999; python -m ray_fed.errors.gone"
    there = "[a](https://example.org/x.md) `errors.py` benchmarks/speed.md decisions/0001 pipelines.cli.main ~/own.py"
    document.write_text(f"{gone}\n{there}\n")
    named = {"gone.png", "gone.py", "benchmarks/gone.md", "ray_fed/gone", "decisions/9999", "ray_fed.errors.gone"}
    assert missing(document) == named


def test_a_file_that_an_example_makes_is_one_that_the_document_may_name(tmp_path):
    document = tmp_path / "page.md"
    document.write_text("`pipelines.own:run` of pipelines/own.py\n```python\n# pipelines/own.py\nrun = other.py\n```\n")
    assert missing(document) == {"other.py"}


def test_pages_and_decisions_that_code_names_exist():
    named = {(name(path), page) for path in CODE for page in PAGE.findall(path.read_text(encoding="utf-8"))}
    own = name(Path(__file__).resolve())
    assert {(path, page) for path, page in named if path != own and not exists(page, ROOT / path)} == set()


def test_decisions_are_numbered_in_a_row_and_say_their_number():
    assert [path.name[:4] for path in DECISIONS] == [f"{number:04d}" for number in range(1, len(DECISIONS) + 1)]
    for number, path in enumerate(DECISIONS, 1):
        assert path.read_text(encoding="utf-8").startswith(f"# {number}. ")


@pytest.mark.parametrize("pages", [DECISIONS, BENCHMARKS], ids=["decisions", "benchmarks"])
def test_an_index_links_every_page_of_its_folder_once(pages):
    links = LINK.findall((pages[0].parent / "README.md").read_text(encoding="utf-8"))
    assert sorted(links) == [path.name for path in pages]


@pytest.mark.parametrize("page", BENCHMARKS, ids=name)
def test_a_benchmark_page_opens_with_question_answer_and_command(page):
    title, gap, *opening, end = page.read_text(encoding="utf-8").split("\n")[:6]
    assert title.startswith("# ")
    assert gap == end == ""
    for line, start in zip(opening, OPENING, strict=True):
        assert line.startswith(start)
        assert len(line) <= LONGEST_LINE
    _, answer, shown_by = opening
    assert re.search(r"\d", answer), "an answer has its number"
    assert re.search(r"`[^`]*(?:python|ray-fed)[^`]*`", shown_by), "a command shows it"


def test_the_citation_is_of_this_version_and_names_the_four_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert citation["cff-version"] == "1.2.0"
    assert citation["message"]
    assert citation["authors"]
    assert (citation["title"], citation["version"]) == (project["name"], project["version"])
    assert citation["license"] == project["license"]
    assert len(citation["references"]) == 4
    for paper in citation["references"]:
        assert {"type", "title", "authors", "year", "doi"} <= set(paper)
        assert all(set(author) == {"family-names", "given-names"} for author in paper["authors"])
