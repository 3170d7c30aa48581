"""Hooks of MkDocs for this documentation: links to files outside docs/ are kept within the site.

The pages are also read in the repository, where they link to programs and results beside docs/. Such a file becomes
part of the site, below ``repository/``, so that ``mkdocs build --strict`` checks each of these links.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

COPIES = "repository"
_LINK = re.compile(r"(?<=\]\()(\.\./[^)#\s]+)")
_FENCE_WITH_DATABASE = re.compile(r"^(```\w+) \w+$", re.MULTILINE)


def _outside(source: str, link: str) -> str | None:
    """Return a link's target as a path in the repository; None if the target is in docs/."""
    target = posixpath.normpath(posixpath.join("docs", posixpath.dirname(source), link))
    return None if target.startswith("docs/") else target


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside docs/ to which pages link."""
    root = Path(config.config_file_path).parent
    targets = {
        target
        for page in files.documentation_pages()
        for link in _LINK.findall(page.content_string)
        if (target := _outside(page.src_uri, link)) is not None and (root / target).is_file()
    }
    for target in sorted(targets):
        files.append(File.generated(config, f"{COPIES}/{target}", abs_src_path=str(root / target)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Let links to these files lead to their copies, and remove the database from the fences of code blocks.

    A fence such as ``sh postgresql`` names the database that the tests run the block on; Markdown does not know it.
    """

    def copied(link: re.Match[str]) -> str:
        target = _outside(page.file.src_uri, link[0])
        if target is None:
            return link[0]
        return posixpath.relpath(f"{COPIES}/{target}", posixpath.dirname(page.file.src_uri) or ".")

    return _FENCE_WITH_DATABASE.sub(r"\1", _LINK.sub(copied, markdown))
