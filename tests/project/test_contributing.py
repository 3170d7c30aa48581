"""Pages for contributors: existence of the named paths, targets and modules, and the form of the pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support import ROOT

MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):.*## ", MAKEFILE, re.MULTILINE))
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
PAGES = [
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "docs" / "glossary.md",
    ROOT / "docs" / "decisions" / "README.md",
    ROOT / ".github" / "pull_request_template.md",
    *DECISIONS,
]
FOLDERS = {".ci", ".github", "benchmarks", "docs", "examples", "migrations", "tests", "vibeforge_sessions"}
HEADINGS = ["Context", "Decision", "Consequences", "Figures"]

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
each_decision = pytest.mark.parametrize("page", DECISIONS, ids=lambda page: page.stem)


def code(text: str) -> list[str]:
    """Return the code blocks and the inline code of a page."""
    block = re.compile(r"^```[a-z]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [*block.findall(text), *re.findall(r"`([^`\n]+)`", block.sub("", text))]


def paths_in(text: str) -> set[str]:
    """Return the paths of the repository that a page names."""
    words = {word.strip("'\",;()").split("::")[0] for part in code(text) for word in part.split()}
    return {
        word
        for word in words
        if (word.split("/")[0] in FOLDERS and "/" in word)
        or re.fullmatch(r"\.?[\w-]+\.(md|py|toml|txt|yaml)|Makefile", word)
    }


def test_paths_are_found_in_a_page() -> None:
    text = "see `tests/x.py::TestX`, [it](y.md) and `a/b`\n```sh\npytest tests/y.py\n```\n`noxfile.py` and `z`"
    assert paths_in(text) == {"tests/x.py", "tests/y.py", "noxfile.py"}


@each_page
def test_named_paths_exist(page: Path) -> None:
    missing = {path for path in paths_in(page.read_text("utf-8")) if not (ROOT / path).exists()}
    assert missing == set()


@each_page
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text("utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@each_page
def test_named_make_targets_exist(page: Path) -> None:
    commands = "\n".join(code(page.read_text("utf-8")))
    assert set(re.findall(r"\bmake ([a-z-]+)", commands)) <= TARGETS


@each_page
def test_named_modules_exist(page: Path) -> None:
    for module in set(re.findall(r"python -m ([\w.]+)", page.read_text("utf-8"))) - {"pytest"}:
        path = ROOT.joinpath(*module.split("."))
        assert path.with_suffix(".py").exists() or (path / "__init__.py").exists(), module


def test_contributing_names_every_target_of_the_makefile() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    assert {name for name in TARGETS - {"help"} if f"`make {name}`" not in text} == set()


@each_decision
def test_decision_has_its_number_and_headings(page: Path) -> None:
    text = page.read_text("utf-8")
    assert text.startswith(f"# {int(page.name[:4])}. ")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == HEADINGS


def test_index_lists_every_decision_in_order() -> None:
    index = (ROOT / "docs" / "decisions" / "README.md").read_text("utf-8")
    assert re.findall(r"^\| \d+ \| \[.*\]\((.*)\)", index, re.MULTILINE) == [page.name for page in DECISIONS]
    assert [int(page.name[:4]) for page in DECISIONS] == list(range(1, len(DECISIONS) + 1))


def test_glossary_is_alphabetical() -> None:
    text = (ROOT / "docs" / "glossary.md").read_text("utf-8")
    terms = re.findall(r"^- \*\*(.+?)\*\*: \S.*\.$", text, re.MULTILINE)
    assert len(terms) == len(re.findall(r"^- ", text, re.MULTILINE)) >= 40
    assert terms == sorted(set(terms), key=str.casefold)


def test_fast_tests_exist() -> None:
    (block,) = re.findall(r"^FAST_TESTS := \\\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    for node in block.replace("\\", "").split():
        path, _, name = node.partition("::")
        assert not name or re.search(rf"^class {name}\b", (ROOT / path).read_text("utf-8"), re.MULTILINE), node


def test_ci_runs_each_exhaustive_test_in_turn() -> None:
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    groups = re.findall(r"tests/\S+", script.split("groups=(")[1].split("\n)")[0].replace('"', " "))
    marked = re.compile(r"mark\.(exhaustive|cluster|variant)|\bcases\(|params=ALL_DRIVERS")
    for path in (ROOT / "tests").rglob("test_*.py"):
        name = path.relative_to(ROOT).as_posix()
        if marked.search(path.read_text("utf-8")) and path != Path(__file__):
            assert any(name == group or name.startswith(f"{group}/") for group in groups), name
