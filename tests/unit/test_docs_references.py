"""What the documentation refers to is there: links, files, names in the sources."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from doc_pages import PAGES, REPOSITORY, WRITTEN, code_spans, page_name, prose

ROOM = re.compile(r"(?:exporter|docs|tests|recipes|examples|benchmarks|device_tests)/[\w./-]+")


@pytest.fixture(scope="module")
def sources() -> str:
    """All code of the package, and the project file."""
    code = [path for room in ("exporter", "device_tests") for path in (REPOSITORY / room).rglob("*.py")]
    files = [*code, REPOSITORY / "Makefile", REPOSITORY / "pyproject.toml"]
    return "\n".join(path.read_text(encoding="utf-8") for path in files)


def slugs(path: Path) -> set[str]:
    """Anchors of a page's headings, as code hosts make them."""
    headings = re.findall(r"^#+ (.+)$", prose(path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_internal_links_resolve(path: Path) -> None:
    links = re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", prose(path.read_text(encoding="utf-8")))
    broken = []
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if not target.exists() or (anchor and anchor not in slugs(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("path", WRITTEN, ids=page_name)
def test_names_of_classes_and_constants_are_in_the_sources(path: Path, sources: str) -> None:
    spans = code_spans(path.read_text(encoding="utf-8"))
    names = [span for span in spans if re.fullmatch(r"[A-Z][A-Za-z]+[A-Z_a-z]*", span)]
    assert [name for name in names if not re.search(rf"\b{name}\b", sources)] == []


@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_files_that_are_named_exist(path: Path) -> None:
    spans = code_spans(path.read_text(encoding="utf-8"))
    named = [span for span in spans if ROOM.fullmatch(span)]
    assert [name for name in named if not (REPOSITORY / name).exists()] == []


def test_every_page_is_reached_from_the_readme() -> None:
    reached, waiting = set(), [REPOSITORY / "README.md"]
    while waiting:
        path = waiting.pop()
        if path in reached:
            continue
        reached.add(path)
        for link in re.findall(r"\]\(([^)\s#]+\.md)", path.read_text(encoding="utf-8")):
            if "://" not in link:
                waiting.append((path.parent / link).resolve())
    assert [page_name(path) for path in PAGES if path not in reached] == []
