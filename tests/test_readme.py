"""What the README and the guides show works when pasted."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text("utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(len(blocks("README.md"))))
def test_the_readmes_code_runs_in_an_empty_folder(number: int, tmp_path: Path) -> None:
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


def test_the_first_screen_says_what_it_is_and_names_the_two_commands() -> None:
    first_screen = (ROOT / "README.md").read_text("utf-8").splitlines()[:30]
    assert "make demo" in "\n".join(first_screen)
    assert "make test" in "\n".join(first_screen)
    assert len(blocks("README.md")[0].splitlines()) <= 10


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text("utf-8")):
        assert ((ROOT / page).parent / target).exists(), target
