"""Code, size, links and wording of the README and of the pages in docs/."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
UNCLEAR_WORDS = r"\b(somebody|nobody|whoever|told|tells?|anew|refuse[sd]?|refusal)\b"


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text("utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(len(blocks("README.md"))))
def test_readme_code_runs_in_empty_folder(number: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", blocks("README.md")[number]],
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
        env={key: value for key, value in os.environ.items() if not key.startswith("VIBEFORGE_")},
    )
    assert (done.returncode, done.stderr) == (0, "")
    if number == 0:
        assert re.fullmatch(r"[0-9a-f-]{36} EXECUTION 2 1\n", done.stdout)


def test_readme_fits_on_two_screens_and_names_make_commands_early() -> None:
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    assert len(lines) <= 120
    assert "make demo" in "\n".join(lines[:50])
    assert "make test" in "\n".join(lines[:50])
    assert len(blocks("README.md")[0].splitlines()) <= 10


def prose(path: Path) -> str:
    """Return a page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_existing_pages_and_headings(page: str) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", (ROOT / page).read_text("utf-8")):
        path = ((ROOT / page).parent / target).resolve() if target else ROOT / page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), f"{target}#{anchor}"


def test_index_lists_every_page() -> None:
    listed = set(re.findall(r"\]\(([^)]+)\)", (ROOT / "docs" / "index.md").read_text("utf-8")))
    assert {Path(page).name for page in PAGES} - listed == {"README.md", "index.md"}


@pytest.mark.parametrize("page", PAGES)
def test_pages_name_actors_and_have_no_contractions(page: str) -> None:
    text = re.sub(r"`[^`]*`", "", prose(ROOT / page))
    assert re.findall(UNCLEAR_WORDS, text, re.IGNORECASE) == []
    assert re.findall(r"\b\w+n't\b|\b(?:it|that|there|what)'s\b|\b\w+'(?:re|ve|ll)\b", text, re.IGNORECASE) == []
