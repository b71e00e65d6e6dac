"""The playground's page for tests: to ask, and to find what it shows."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, Page, Route, expect

# The first answer of a fresh machine compiles the kernels.
ANSWER_MS = 120_000

Open = Callable[..., Page]


def ask(page: Page, prompt: str, preset: str | None = None) -> None:
    """Run a prompt and wait until all lanes have ended."""
    start(page, prompt, preset)
    expect(page.locator("#run")).to_be_visible(timeout=ANSWER_MS)


def start(page: Page, prompt: str, preset: str | None = None) -> None:
    if preset is not None:
        lane(page).get_by_label("Preset").select_option(preset)
    page.fill("#prompt", prompt)
    page.click("#run")


def lane(page: Page, index: int = 0) -> Locator:
    return page.locator(".lane").nth(index)


def tokens(page: Page, index: int = 0) -> Locator:
    return lane(page, index).locator(".token")


def sent_body(sent: Any) -> dict[str, Any]:
    body: dict[str, Any] | None = sent.value.post_data_json
    assert body is not None
    return body


def answered_with(texts: list[str]) -> Callable[[Route], None]:
    """Makes every answer one of these tokens; the expert "facts" moves every second one."""

    def answer(route: Route) -> None:
        chunks = [
            {
                "delta": {"content": text},
                "logprobs": {"content": [{"token": text, "logprob": -0.1}]},
                "fusion": {
                    "token_ids": [i], "alpha": {"facts": [0.5 * (i % 2)]}, "kl_target": [[0.1, 0.2]],
                    "kl_fused": [[0.3 * (i % 2), 0.4]], "fallback": [False],
                    "lens": {"fused": [{"top": [{"id": i, "token": text, "p": 0.9}], "p": 0.9}]},
                },
            }
            for i, text in enumerate(texts)
        ]  # fmt: skip
        events = [json.dumps({"choices": [chunk]}) for chunk in chunks]
        body = "".join(f"data: {event}\n\n" for event in [*events, "[DONE]"])
        route.fulfill(content_type="text/event-stream", body=body)

    return answer


def assert_accessible(page: Page) -> None:
    results = Axe().run(page)
    assert results.violations_count == 0, results.generate_report()
