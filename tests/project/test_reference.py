"""API reference: each public name is described in one place, and the built pages describe exactly the public names."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

import vibeforge_sessions
from tests.support import ROOT

OURS = "vibeforge_sessions"
PUBLIC = [OURS, *re.findall(r"^- `(.+)`$", vibeforge_sessions.__doc__ or "", re.MULTILINE)]
DESCRIBED_ELSEWHERE = {
    f"{OURS}.compat": {"Session", "SessionPhase"},
    f"{OURS}.sql": {"AsyncSQLAlchemySessionRepository", "SQLAlchemySessionRepository"},
    f"{OURS}.sql.migrate": {"SchemaStatus", "check_schema"},
}
"""Names that a public module exports, and that the page of another public module describes."""
REFERENCE = ROOT / "docs" / "reference"
PAGES = {path.stem: path.read_text("utf-8") for path in REFERENCE.glob("*.md") if path.stem != "index"}


def home_names(module: str) -> set[str]:
    """Return the names that the page of a public module describes."""
    return set(importlib.import_module(module).__all__) - DESCRIBED_ELSEWHERE.get(module, set())


def test_each_public_name_is_described_in_one_place() -> None:
    homes = Counter(name for module in PUBLIC for name in home_names(module))
    assert [name for name, count in homes.items() if count > 1] == []
    for module, names in DESCRIBED_ELSEWHERE.items():
        for name in names:
            assert homes[name] == 1, (module, name)


def test_reference_has_a_page_for_each_public_module() -> None:
    shown = {stem: re.findall(r"^::: (\S+)$", text, re.MULTILINE) for stem, text in PAGES.items()}
    assert shown == {module.removeprefix(f"{OURS}."): [module] for module in PUBLIC}


def test_index_and_navigation_list_each_page_of_the_reference() -> None:
    index = (REFERENCE / "index.md").read_text("utf-8")
    assert dict(re.findall(r"^\| \[(.+?)\]\((.+?)\.md\) \|", index, re.MULTILINE)) == {
        module: module.removeprefix(f"{OURS}.") for module in PUBLIC
    }
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
    (pages,) = (section["API reference"] for section in site["nav"] if "API reference" in section)
    assert [path for page in pages for path in page.values()] == [
        "reference/index.md",
        *(f"reference/{module.removeprefix(f'{OURS}.')}.md" for module in PUBLIC),
    ]


@pytest.mark.parametrize("module", PUBLIC)
def test_page_with_a_list_of_names_lists_all_of_them(module: str) -> None:
    text = PAGES[module.removeprefix(f"{OURS}.")]
    listed = re.findall(r"^ {8}- (\w+)$", text, re.MULTILINE)
    assert listed == list(dict.fromkeys(listed))
    assert set(listed) in ([set(), home_names(module)] if module not in DESCRIBED_ELSEWHERE else [home_names(module)])
    for name in DESCRIBED_ELSEWHERE.get(module, ()):
        assert f"`{name}`" in text


def test_built_reference_describes_exactly_the_public_names(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    # the inventory: four lines of text, then a compressed line "name role priority address title" for each object
    lines = zlib.decompress((tmp_path / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode().splitlines()
    described = {name: address for name, _role, _priority, address, _title in (line.split(" ", 4) for line in lines)}
    for module in PUBLIC:
        page = f"reference/{module.removeprefix(f'{OURS}.')}.html#$"
        names = {name for name, address in described.items() if address == page and name.rpartition(".")[0] == module}
        assert names - set(PUBLIC) == {f"{module}.{name}" for name in home_names(module)}


def test_names_in_the_documentation_are_public() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    docstrings = [importlib.import_module(module).__doc__ or "" for module in PUBLIC]
    text = "\n".join([*(page.read_text("utf-8") for page in pages), *docstrings])
    imported = re.findall(rf"^from ({OURS}[\w.]*) import (?:\(([^)]*)\)|([^\n]*))", text, re.MULTILINE)
    assert len(imported) > 20
    for module, several, one in imported:
        for name in re.sub(r"#.*|\s", "", several or one).strip(",").split(","):
            is_name = name == "*" or (module in PUBLIC and name in importlib.import_module(module).__all__)
            assert is_name or f"{module}.{name}" in PUBLIC, f"from {module} import {name}"
    for dotted in re.findall(rf"`({OURS}(?:\.\w+)+)`", text):
        module, _, name = dotted.rpartition(".")
        is_name = module in PUBLIC and name in importlib.import_module(module).__all__
        assert is_name or any(f"{public}.".startswith(f"{dotted}.") for public in PUBLIC), dotted


def test_types_in_public_signatures_are_public() -> None:
    public = {name for module in PUBLIC for name in importlib.import_module(module).__all__}
    ours = {
        name
        for module in sys.modules.copy().values()
        if module.__name__.startswith(f"{OURS}.")
        for name, value in vars(module).items()
        if inspect.isclass(value) and value.__module__.startswith(f"{OURS}.")
    }
    missing = {
        (f"{module}.{name}", used)
        for module in PUBLIC
        for name in home_names(module)
        for annotation in _annotations(getattr(importlib.import_module(module), name))
        for used in re.findall(r"\w+", str(annotation))
        if used in ours and used not in public and not used.startswith("_")
    }
    assert missing == set()


def _annotations(value: Any) -> list[object]:
    """Return the annotations of a function, or of a class's public attributes and methods."""
    if not inspect.isclass(value):
        return list(getattr(inspect.unwrap(value), "__annotations__", {}).values()) if callable(value) else []
    members = [member for name, member in vars(value).items() if name == "__init__" or not name.startswith("_")]
    functions = [getattr(member, "__func__", getattr(member, "fget", member)) for member in members]
    fields = [note for name, note in vars(value).get("__annotations__", {}).items() if not name.startswith("_")]
    return [*fields, *(note for each in functions if inspect.isfunction(each) for note in _annotations(each))]
