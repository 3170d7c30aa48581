"""Code blocks of the pages in docs/."""

from __future__ import annotations

import re

from tests.support import ROOT


def blocks(page: str, language: str) -> list[str]:
    """Return the code blocks of a page in this language, in order."""
    text = (ROOT / "docs" / page).read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
