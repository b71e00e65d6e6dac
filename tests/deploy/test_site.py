"""The docs' site: built strictly, and read in Chromium from the disk."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.e2e.chromium import Watch, open_browser

ROOT = Path(__file__).parents[2]
PHONE = 390
# Of a copy: what is not read, and large.
LEFT_OUT = shutil.ignore_patterns(".*", "build", "models", "__pycache__")

pytestmark = pytest.mark.long


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    command = ["make", "docs", f"VENV={sys.prefix}"]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)


@pytest.fixture(scope="module")
def site() -> Path:
    done = build(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return ROOT / "build" / "docs"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


def test_the_site_is_whole_without_a_network(site: Path, browser: Browser) -> None:
    """Every page, on a phone's width: nothing from elsewhere, no complaint, nothing wider than the screen."""
    page = browser.new_page(viewport={"width": PHONE, "height": 844})
    watch = Watch(page)
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > len([*(ROOT / "docs").rglob("*.md")])
    for file in pages:
        page.goto(file.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE, file
    assert watch.strangers("file://") == []
    assert watch.complaints == []


def test_a_reader_finds_what_she_searches(site: Path, browser: Browser) -> None:
    page = browser.new_page()
    page.goto((site / "index.html").as_uri())
    page.get_by_placeholder("Search").first.fill("twin-merging router")
    page.keyboard.press("Enter")
    page.locator("#search-results li a").get_by_text("Routing").first.click()
    page.wait_for_url("**/docs/routing.html*")
    page.goto((site / "docs" / "architecture.html").as_uri())
    assert page.locator(".diagram svg").get_by_text("fusion_kernels/").first.is_visible()


def test_what_leads_nowhere_ends_the_build(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
    (copy / "docs" / "alone.md").write_text("# In no index\n")
    with (copy / "docs" / "api.md").open("a") as page:
        page.write("\n[page](gone.md), [anchor](routing.md#gone), [file](../bench/gone.csv)\n")
        page.write("\n```mermaid\nflowchart TB\n    a --> [\n```\n")
    done = build(copy)
    assert done.returncode != 0
    for fault in ("alone.md", "'gone.md'", "'docs/routing': 'gone'", "'../bench/gone.csv'", "mermaid: "):
        assert fault in done.stderr
