"""A hook of mkdocs: what pages link to outside docs/ becomes part of the site.

The README is the site's front page and benchmarks/README.md a page of it. Other files of the repository, such as
pictures and configurations, are copied under files/, so that the links that work on GitHub work here too.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"README.md": "index.md", "benchmarks/README.md": "benchmarks.md"}  # place in the repository: page


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that lie elsewhere."""
    for place, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / place)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Points links at where their targets lie in the site."""
    places = {page: place for place, page in PAGES.items()}
    here = Path(places.get(page.file.src_uri, f"docs/{page.file.src_uri}")).parent

    def moved(found: re.Match[str]) -> str:
        place = os.path.normpath(here / found.group(1))
        if not (ROOT / place).is_file():
            return found.group()  # a web address, a place in the page, or something that mkdocs is to complain about
        inside = re.fullmatch(r"docs/(.+\.md)", place)
        target = PAGES.get(place) or (inside.group(1) if inside else f"files/{place}")
        if files.get_file_from_path(target) is None:
            files.append(File.generated(config, target, abs_src_path=str(ROOT / place)))
        return f"]({os.path.relpath(target, os.path.dirname(page.file.src_uri) or '.')}{found.group(2) or ''})"

    return re.sub(r"\]\(([^)#\s]+)(#[^)\s]*)?\)", moved, markdown)
