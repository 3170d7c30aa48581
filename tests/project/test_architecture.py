"""Architecture of the package: import layers, cycles, third-party imports, and sizes."""

from __future__ import annotations

import graphlib
from pathlib import Path

import grimp
import pytest

import vibeforge_sessions

PACKAGE = "vibeforge_sessions"
FOLDER = Path(vibeforge_sessions.__file__).parent
NOT_COUNTED = {"__init__.py", "__main__.py", "py.typed", "alembic.ini", "migrations", "__pycache__"}
"""Entries that every package has, and entries that the wheel build copies into the package."""

LAYERS = [
    {"pytest_plugin"},
    {"cli", "compat", "integrations", "testing"},
    {"settings"},
    {"retention"},
    {"archive"},
    {"memory", "sql"},
    {"repository"},
    {"model"},
    {"errors"},
]
"""Import layers from the highest to the lowest; a layer imports only lower layers."""


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph(
        PACKAGE, exclude_type_checking_imports=True, include_external_packages=True, cache_dir=None
    )


def entry_of(module: str) -> str:
    """Return the entry of the top level that a module belongs to."""
    return module.split(".")[1]


def test_top_level_has_few_entries() -> None:
    entries = {path.name.removesuffix(".py") for path in FOLDER.iterdir() if path.name not in NOT_COUNTED}
    assert entries == set().union(*LAYERS)
    assert len(entries) <= 16


def test_layers_import_lower_layers_only(graph: grimp.ImportGraph) -> None:
    level = {entry: number for number, layer in enumerate(LAYERS) for entry in layer}
    upward = [
        (module, imported)
        for module in sorted(graph.modules)
        if module.startswith(f"{PACKAGE}.") and entry_of(module) in level
        for imported in sorted(graph.find_modules_directly_imported_by(module))
        if imported.startswith(f"{PACKAGE}.")
        and level[entry_of(imported)] <= level[entry_of(module)]
        and entry_of(imported) != entry_of(module)
    ]
    assert upward == []


def test_imports_have_no_cycles(graph: grimp.ImportGraph) -> None:
    modules = [module for module in graph.modules if module.split(".")[0] == PACKAGE]
    imports = {module: graph.find_modules_directly_imported_by(module) for module in modules}
    order = list(graphlib.TopologicalSorter(imports).static_order())
    assert set(modules) <= set(order)


def test_only_sql_imports_sqlalchemy_and_alembic(graph: grimp.ImportGraph) -> None:
    users = {
        entry_of(module)
        for external in ("sqlalchemy", "alembic")
        for module in graph.find_modules_that_directly_import(external)
    }
    assert users == {"sql", "testing"}  # testing creates and drops databases


def test_package_imports_neither_tests_nor_pytest(graph: grimp.ImportGraph) -> None:
    for external in ("pytest", "hypothesis"):
        if external in graph.modules:
            users = {entry_of(module) for module in graph.find_modules_that_directly_import(external)}
            assert users <= {"testing", "pytest_plugin"}
    assert "tests" not in graph.modules
    assert "migrations" not in graph.modules


def test_files_have_at_most_360_lines() -> None:
    root = FOLDER.parent
    files = [*FOLDER.rglob("*.py"), *(root / "migrations").rglob("*.py")]
    assert any(path.name == "env.py" for path in files)
    lines = {str(path.relative_to(root)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {name: count for name, count in lines.items() if count > 360} == {}
