"""Takes the documentation's picture of a real model in the playground: `python -m tests.e2e.real_screenshots`.

Serves SmolLM2-135M-Instruct (`make setup-real`) and writes `docs/images/real.png`: one question under a system
message, answered with guidance and by the model alone.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from playwright.sync_api import Browser, ViewportSize

from tests.e2e.chromium import open_browser
from tests.e2e.playground_screenshots import ask, shoot
from tests.server_process import ServerProcess
from zoo import FAMILY
from zoo.smollm2 import gguf_file

SYSTEM = "You are a sailor. Whatever you are asked, you talk about the sea."
QUESTION = "Why is the sky blue?"
ALPHA, NEW_TOKENS = 1.0, 48
VIEWPORT: ViewportSize = {"width": 1360, "height": 940}


def take(browser: Browser, url: str) -> None:
    """Store the picture: guidance beside the model alone."""
    page = browser.new_context(viewport=VIEWPORT, color_scheme="light").new_page()
    page.goto(url)
    page.locator("#examples button").first.wait_for()
    page.get_by_label("Side by side").check()
    for lane, preset in enumerate(("smollm2-guided", "smollm2")):
        page.locator(".lane .preset").nth(lane).select_option(preset)
    page.get_by_label("Alpha of guide").first.fill(str(ALPHA))
    page.fill("#system", SYSTEM)
    page.fill("#max-tokens", str(NEW_TOKENS))
    ask(page, QUESTION)
    shoot(page, "real")


def main() -> None:
    """Take the picture."""
    environment = {"SMOLLM2": str(gguf_file())}
    with (
        tempfile.TemporaryDirectory() as folder,
        ServerProcess(FAMILY / "smollm2.yaml", Path(folder) / "server.log", environment=environment) as server,
        open_browser() as browser,
    ):
        # The first answer compiles the kernels; a picture should show what the others take.
        for _ in range(2):
            take(browser, server.url)


if __name__ == "__main__":
    main()
