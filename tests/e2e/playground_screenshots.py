"""Takes the documentation's pictures of the playground: `python -m tests.e2e.playground_screenshots`.

Starts the demo models and writes `docs/images/playground*.png`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page

from tests.e2e.chromium import open_browser
from tests.server_process import ServerProcess

IMAGES = Path(__file__).parents[2] / "docs" / "images"
EXTRACTION = "Extract name, count, item and city: In Sydney, Liam bought 28 tickets."
PROBLEM = (
    "Adam buys 6 packs of pens with 3 pens in each pack. Adam gives 5 pens to Emma. How many pens does Adam have left?"
)
NORWAY = "What is the two-letter code of Norway?"
SETTLED_MS = 400
# Enough for what the page draws, at a third of the bytes.
COLOURS = 256
ANSWER_MS = 120_000


def side_by_side(page: Page) -> None:
    """The large model alone, and steered by an expert."""
    page.get_by_label("Side by side").check()
    page.locator(".lane .preset").nth(0).select_option("giant-text")
    page.locator(".lane .preset").nth(1).select_option("giant")
    ask(page, EXTRACTION)


def all_experts(page: Page) -> None:
    """Three experts that take turns, after other questions."""
    page.locator(".lane .preset").select_option("giant-all")
    for prompt in (EXTRACTION, NORWAY, PROBLEM):
        ask(page, prompt)
    page.locator("#history-panel summary").click()
    page.locator(".answer").evaluate("answer => answer.scrollIntoView({block: 'start'})")


def ask(page: Page, prompt: str) -> None:
    page.fill("#prompt", prompt)
    page.click("#run")
    page.locator("#run").wait_for(state="visible", timeout=ANSWER_MS)


PICTURES: dict[str, tuple[Callable[[Page], None], dict[str, Any]]] = {
    "playground": (side_by_side, {"viewport": {"width": 1440, "height": 900}}),
    "playground-experts": (all_experts, {"viewport": {"width": 1440, "height": 900}}),
    "playground-dark": (side_by_side, {"viewport": {"width": 1280, "height": 720}, "color_scheme": "dark"}),
    "playground-phone": (
        all_experts,
        {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True},
    ),
}


def take(browser: Browser, url: str, name: str) -> None:
    """Store one picture."""
    act, options = PICTURES[name]
    page = browser.new_context(**options).new_page()
    page.goto(url)
    page.locator("#examples button").first.wait_for()
    act(page)
    shoot(page, name)


def shoot(page: Page, name: str) -> None:
    """Store what a page shows, and close it."""
    # Off the page, so that no token is pointed at.
    page.mouse.move(0, 0)
    page.wait_for_timeout(SETTLED_MS)
    path = IMAGES / f"{name}.png"
    page.screenshot(path=path)
    page.context.close()
    Image.open(path).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    """Take all pictures."""
    IMAGES.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        ServerProcess(None, Path(folder) / "server.log") as server,
        open_browser() as browser,
    ):
        # The first answer compiles the kernels; a picture should show what the others take.
        for name in ("playground-experts", *PICTURES):
            take(browser, server.url, name)


if __name__ == "__main__":
    main()
