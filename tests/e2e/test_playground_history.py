"""The playground's past conversations: kept in the browser alone, listed, continued, deleted, whatever is stored."""

from __future__ import annotations

import json
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.e2e.chromium import CHROMIUM
from tests.e2e.playground_page import Open, answered_with, ask, assert_accessible, lane, sent_body, tokens

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"needs Debian's chromium package ({CHROMIUM})")

CODE = "Which two letters stand for Mexico?"


def listed(page: Page) -> Locator:
    return page.locator("#history-panel li")


def open_panel(page: Page) -> None:
    page.locator("#history-panel summary").click()


def transaction(page: Page, act: str) -> Any:
    """Do something to what the browser keeps."""
    return page.evaluate(
        f"""() => new Promise((resolve) => {{
            indexedDB.open("logit-fusion").onsuccess = ({{ target }}) => {{
                const database = target.result;
                const stores = database.transaction(["entries", "texts"], "readwrite");
                const [entries, texts] = [stores.objectStore("entries"), stores.objectStore("texts")];
                const asked = {act};
                stores.oncomplete = () => {{ database.close(); resolve(asked?.result); }};
            }};
        }})"""
    )


def test_a_conversation_survives_a_reload_and_goes_on(open_page: Open) -> None:
    asked: list[str] = []
    page = open_page(prepare=lambda page: page.on("request", lambda request: asked.append(request.method)))
    page.get_by_label("API key").fill("secret-key")
    page.get_by_label("Side by side").check()
    page.get_by_label("System prompt").fill("Be brief.")
    ask(page, CODE, "giant-facts")
    expect(listed(page)).to_have_count(1)
    lanes, inspector = page.locator(".transcript"), lane(page).locator(".inspector")
    shown, inspected = [text.inner_html() for text in lanes.all()], inspector.inner_html()
    assert asked.count("POST") == 2

    page.reload()
    expect(page.locator(".turn")).to_have_count(2)
    assert [text.inner_html() for text in lanes.all()] == shown
    assert inspector.inner_html() == inspected
    assert asked.count("POST") == 2
    assert "secret-key" not in json.dumps(transaction(page, "texts.getAll()"))
    expect(lane(page).get_by_label("Preset")).to_have_value("giant-facts")
    expect(page.get_by_label("System prompt")).to_have_value("Be brief.")

    page.get_by_role("button", name="Clear").click()
    page.reload()
    expect(page.locator("#welcome")).to_be_visible()
    page.get_by_label("System prompt").fill("")
    open_panel(page)
    listed(page).get_by_role("button", name=CODE).first.click()
    expect(page.locator("#prompt")).to_be_focused()
    with page.expect_request("**/v1/chat/completions") as sent:
        ask(page, "And of Norway?")
    roles = [message["role"] for message in sent_body(sent)["messages"]]
    assert roles == ["system", "user", "assistant", "user"]
    expect(page.locator(".turn")).to_have_count(4)
    expect(listed(page)).to_have_count(1)


def test_conversations_are_listed_and_deleted_by_keyboard(open_page: Open) -> None:
    page = open_page(width=390, height=844, bypass_csp=True)
    page.route("**/v1/chat/completions", answered_with(["a", " b"]))
    open_panel(page)
    hint = page.locator("#history-panel > .hint")
    expect(hint).to_have_text("Nothing yet. Kept in this browser alone, the latest 50.")
    for number in range(3):
        ask(page, f"Question {number}")
        expect(listed(page)).to_have_count(number + 1)
    expect(page.locator("#history-panel .title")).to_have_text(["Question 2", "Question 1", "Question 0"])
    expect(page.locator("#history-panel [aria-current]")).to_contain_text("Question 2")
    assert_accessible(page)
    listed(page).nth(1).get_by_role("button", name="Delete").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#history-panel .title")).to_have_text(["Question 2", "Question 0"])
    expect(page.locator(".delete:focus")).to_have_count(1)
    expect(page.locator(".turn")).to_have_count(1)
    page.once("dialog", lambda dialog: dialog.dismiss())
    page.get_by_role("button", name="Delete all").click()
    expect(listed(page)).to_have_count(2)
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete all").click()
    expect(listed(page)).to_have_count(0)
    assert transaction(page, "texts.count()") == 0
    page.reload()
    expect(page.locator("#welcome")).to_be_visible()


def test_what_is_stored_breaks_nothing(open_page: Open) -> None:
    page = open_page()
    page.route("**/v1/chat/completions", answered_with(["a", " b"]))
    ask(page, CODE)
    expect(listed(page)).to_have_count(1)
    (kept,) = transaction(page, "texts.getAll()")
    broken = json.loads(kept)
    broken["lanes"][0]["turns"][0]["answer"]["tokens"][0]["klFused"] = "far"
    stored = {"no JSON": "{", "null": "null", "number": 7, "token": json.dumps(broken), "gone": None}
    for name, text in stored.items():
        entry = json.dumps({"id": name, "title": name, "made": "", "when": 1, "size": 1})
        transaction(page, f"(entries.put({entry}), texts.put({json.dumps(text)}, {json.dumps(name)}))")
    transaction(page, 'entries.put({"id": "no entry"})')
    page.evaluate("sessionStorage.setItem('logit-fusion-open', '{')")
    page.reload()
    open_panel(page)
    expect(listed(page)).to_have_count(1 + len(stored))
    for name in stored:
        page.locator(f'#history-panel [data-id="{name}"] .open').click()
        expect(page.locator("#history-panel > .hint")).to_contain_text("This conversation cannot be read again")
    listed(page).get_by_role("button", name=CODE).first.click()
    expect(tokens(page)).to_have_count(2)

    page.add_init_script("Object.defineProperty(window, 'indexedDB', {value: undefined})")
    page.reload()
    ask(page, CODE)
    expect(tokens(page)).to_have_count(2)
    expect(page.locator("#history-panel > .hint")).to_contain_text("This conversation is not kept")


def test_the_oldest_conversations_make_room(open_page: Open) -> None:
    page = open_page()
    ids = page.evaluate(
        """async () => {
            const { list, put } = await import("./playground/store.js");
            const entry = (when) => ({ id: `c${when}`, title: "", made: "", when });
            for (let when = 1; when <= 52; when += 1) await put(entry(when), "short");
            const many = (await list()).map(({ id }) => id);
            for (const when of [53, 54, 55]) await put(entry(when), "x".repeat(20_000_000));
            const large = (await list()).map(({ id }) => id);
            const { write } = await import("./playground/conversation.js");
            const long = write({ lens: "x".repeat(6_000_000), text: "kept" });
            return [many, large, long, write({ text: "x".repeat(6_000_000) })];
        }"""
    )
    assert ids[0] == [f"c{when}" for when in range(52, 2, -1)]
    assert ids[1] == ["c55", "c54"]
    assert json.loads(ids[2]) == {"lens": {}, "text": "kept"}
    assert ids[3] is None
