"""Lets the site's pages link to files of the repository outside ``docs``.

Pages link to results, code and other files by relative paths, as every viewer of a repository
follows them. MkDocs knows only what lies in ``docs``: this hook adds each file that a page links
to, pages among them with what they link to, and turns the links to where they stand in the site.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)\s]*)?\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the README and all that pages link to, from page to page."""
    root = Path(config.config_file_path).parent
    seen = set()
    open_pages = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        files.append(File.generated(config, name, abs_src_path=str(root / name)))
        open_pages.append(name)
    while open_pages:
        page = open_pages.pop()
        if page in seen or not page.endswith(".md"):
            continue
        seen.add(page)
        for _, target, _ in _LINK.findall((root / page).read_text(encoding="utf-8")):
            found = _in_repository(page, target)
            if found is None or found.startswith("docs/") or not (root / found).is_file():
                continue
            if files.get_file_from_path(found) is None:
                files.append(File.generated(config, found, abs_src_path=str(root / found)))
                open_pages.append(found)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links that are relative in the repository to those of the site."""
    name = page.file.src_uri
    root = Path(config.config_file_path).parent
    source = f"docs/{name}" if (root / "docs" / name).is_file() else name

    def turned(match: re.Match[str]) -> str:
        found = _in_repository(source, match[2])
        if found is None:
            return match[0]
        site = found.removeprefix("docs/")
        return f"{match[1]}{posixpath.relpath(site, posixpath.dirname(name) or '.')}{match[3]}"

    return _LINK.sub(turned, markdown)


def _in_repository(page: str, target: str) -> str | None:
    """The path in the repository that a link means; ``None`` where it leads elsewhere."""
    if re.match(r"[a-z]+:", target):
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
