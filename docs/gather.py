"""Pages of the repository that are the site's as well: each stays where it is, and is written once."""

import ast
import re
from pathlib import Path
from posixpath import dirname, relpath

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("benchmarks", "cluster", "decisions")
PAGES = ("CONTRIBUTING.md", "CHANGELOG.md")
NAMED = re.compile(r"(?<![\w/\[(`.-])((?:(?:benchmarks|cluster|decisions)/[\w.-]+\.md)|decisions/\d{4})(?![\w/`-])")
"""A page that the text names without a link."""


def on_files(files, config):
    """Add what stands outside of docs/, under the path it has in the repository, and what is made from the code."""
    found = [ROOT / name for name in PAGES]
    for folder in FOLDERS:
        found += sorted((ROOT / folder).glob("*.md")) + sorted((ROOT / folder).glob("figures/*.png"))
    for path in found:
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    files.append(File.generated(config, "overview.md", abs_src_path=str(ROOT / "README.md")))
    files.append(File.generated(config, "tutorials.md", content=tutorials()))
    files.append(File.generated(config, "reference.md", content=reference()))
    return files


def on_page_markdown(markdown, page, config, files):  # noqa: ARG001
    """Make links of pages that are only named, outside of code."""
    here = dirname(page.file.src_uri)
    numbered = {Path(name).name[:4]: name for name in files.src_uris if name.startswith("decisions/0")}

    def linked(match):
        name = match[1]
        target = name if name.endswith(".md") else numbered.get(name[-4:], "")
        return f"[{name}]({relpath(target, here or '.')})" if target in files.src_uris else name

    parts = re.split(r"(```.*?```|`[^`\n]*`|\[[^\]\n]*\]\([^)\n]*\)|(?m:^(?: {4}|\t).*$))", markdown, flags=re.DOTALL)
    return "".join(part if number % 2 else NAMED.sub(linked, part) for number, part in enumerate(parts))


def tutorials() -> str:
    """Return one page of all tutorials: the tests run each, as it stands."""
    lines = ["# Tutorials", "", "Each is a file in `tutorials/` that the tests run as it stands here.", ""]
    for path in sorted((ROOT / "tutorials").glob("*.py")):
        code = path.read_text()
        said = (ast.get_docstring(ast.parse(code)) or path.stem).splitlines()[0]
        lines += [
            f"## {path.stem.replace('_', ' ')}",
            "",
            said,
            "",
            f'```python title="tutorials/{path.name}"',
            code,
            "```",
            "",
        ]
    return "\n".join(lines)


def reference() -> str:
    """Return the reference of the public names, from their docstrings and where they are defined."""
    lines = ["# Reference", "", "What `help(ray_fed)` and `help(pipelines)` list, from the docstrings.", ""]
    for package in ("pipelines", "ray_fed"):
        lines += [f"## {package}", ""]
        for name, home in sorted(homes(ROOT / package / "__init__.py").items()):
            lines += [f"::: {home}.{name}", ""]
    return "\n".join(lines)


def homes(path: Path) -> dict[str, str]:
    """Return public name -> module, as the imports for type checkers say."""
    tree = ast.parse(path.read_text())
    checked = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [node for block in checked for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}
