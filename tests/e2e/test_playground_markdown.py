"""The playground's answers as formatted text: what it makes of Markdown, of which tokens, and what it never makes."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.chromium import CHROMIUM
from tests.e2e.playground_page import Open, answered_with, ask, assert_accessible, lane, tokens

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"needs Debian's chromium package ({CHROMIUM})")

TEXT = """\
# Primes ##

The **only *even* one** is `2`, see [this](https://example.org/p_(1)).
Not 2 * 3 * 4, nor snake_case, \\*nor this\\*.

1. odd
   - three
   - five
2. even

| n | prime |
|---|:-----:|
| 9 | ~~yes~~ |
| `a` | b \\| c |

> quoted

```html
<b>not **bold**</b>
```

***
"""
FORMATTED = """\
<h2>Primes</h2><p>The <strong>only <em>even</em> one</strong> is <code>2</code>, see <a>this</a>.
Not 2 * 3 * 4, nor snake_case, *nor this*.</p><ol><li><p>odd</p><ul><li><p>three</p></li><li><p>five</p></li></ul></li>\
<li><p>even</p></li></ol><table><thead><tr><th>n</th><th>prime</th></tr></thead><tbody><tr><td>9</td><td><del>yes</del>\
</td></tr><tr><td><code>a</code></td><td>b | c</td></tr></tbody></table><blockquote><p>quoted</p></blockquote><pre>\
<code>&lt;b&gt;not **bold**&lt;/b&gt;</code></pre><hr>"""
HOSTILE = """\
<img src=x onerror=alert(1)> <script>alert(1)</script> [a](javascript:alert(1)) [b](data:text/html,x) [c](/v1/models)
![picture](https://example.org/spy.png) ![](https://example.org/spy2.png) <https://example.org/"onclick=alert(1)>
[d](https://example.org/ "t\\" onmouseover=alert(1)")
"""


def markup(page: Page) -> str:
    """The formatted answer without what makes it one of tokens."""
    html: str = page.locator(".formatted").inner_html()
    return re.sub(r"</?span[^>]*>", "", re.sub(r"<(a|ol|h2) [^>]*>", r"<\1>", html))


def split(text: str) -> list[str]:
    """Into tokens, some of which reach over marks and ends of lines."""
    return re.findall(r"(?s).{1,5}", text)


def test_markdown_is_an_option_that_keeps_the_tokens(open_page: Open) -> None:
    page = open_page(width=1280, height=720)
    page.route("**/v1/chat/completions", answered_with(split(TEXT)))
    page.get_by_label("Markdown").check()
    ask(page, "What is a prime?", "giant-facts")
    assert markup(page) == FORMATTED
    for piece in page.locator(".formatted .token").all():
        index = int(piece.get_attribute("data-index") or "")
        assert piece.inner_text().strip() in split(TEXT)[index].replace("\\", "")
        assert piece.get_attribute("data-mover") == ("facts" if index % 2 else "large")

    inspector = lane(page).locator(".inspector")
    count = len(split(TEXT))
    page.locator(".formatted li .token", has_text="thr").click()
    index = next(i for i, text in enumerate(split(TEXT)) if "thr" in text)
    expect(inspector).to_contain_text(f"Token {index + 1} of {count}")
    expect(page.locator(".formatted .token[aria-pressed=true]").first).to_have_attribute("data-index", str(index))
    page.keyboard.press("ArrowRight")
    expect(inspector).not_to_contain_text(f"Token {index + 1} of {count}")
    # A token in two pieces is one for the keyboard.
    seen = [page.locator(".token:focus").get_attribute("data-index")]
    page.keyboard.press("Home")
    for _ in range(20):
        seen.append(page.locator(".token:focus").get_attribute("data-index"))
        page.keyboard.press("ArrowRight")
    assert seen[1:] == sorted(set(seen[1:]), key=lambda number: int(number or ""))
    page.locator("#by-weight").check()
    page.get_by_label("Markdown").uncheck()
    assert "".join(tokens(page).all_text_contents()) == TEXT
    expect(page.locator(".token[aria-selected=true]")).to_have_count(1)


def test_the_text_of_a_model_becomes_no_code_and_no_request(open_page: Open) -> None:
    page = open_page(color_scheme="dark", width=390, height=844, bypass_csp=True)
    page.route("**/v1/chat/completions", answered_with([HOSTILE]))
    page.get_by_label("Markdown").check()
    ask(page, "?", "giant-facts")
    formatted = page.locator(".formatted")
    made = set(formatted.evaluate("place => [...place.querySelectorAll('*')].map((made) => made.localName)"))
    assert made == {"p", "span", "a"}
    assert "<script>alert(1)</script>" in formatted.inner_text()
    links = formatted.locator("a").evaluate_all("links => links.map((link) => link.href)")
    assert all(link.startswith("https://example.org/") for link in links)
    names = formatted.evaluate("place => [...place.querySelectorAll('*')].flatMap((made) => made.getAttributeNames())")
    assert not [name for name in names if name.startswith("on")]
    assert {link.get_attribute("rel") for link in formatted.locator("a").all()} == {"noopener noreferrer"}
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.route("**/v1/chat/completions", answered_with(split(TEXT)))
    ask(page, "?")
    assert_accessible(page)


def test_long_and_broken_markdown_is_read_in_time(open_page: Open) -> None:
    worst = open_page().evaluate(
        """async () => {
            const { parse } = await import("./playground/markdown.js");
            const inline = ["*a ", "a* ", "*a _b ", "`a ``b ", "[", "![](", "](     ", "https://", "<"];
            const parts = [...inline, "> ", "- ", "|a", "\\n- a"];
            return Math.max(...parts.map((part) => {
                const started = performance.now();
                parse(part.repeat(30000 / part.length));
                return performance.now() - started;
            }));
        }"""
    )
    assert worst < 1500
