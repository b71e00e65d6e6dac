"""`check` says what a chat template does with tools."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.chat_template import template_remarks
from tests.models import make_tokenizer

PLAIN = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
WITH_TOOLS = PLAIN + "{% if tools %}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% endif %}"
FAILING = PLAIN + "{% if tools %}{{ raise_exception('no tools, please') }}{% endif %}"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (WITH_TOOLS, None),
        (PLAIN, "does not show tools"),
        (FAILING, "fails where a request has tools: no tools, please"),
        (None, "has no chat template, so only /v1/completions"),
    ],
)
def test_remarks(tmp_path: Path, template: str | None, words: str | None) -> None:
    tokenizer = make_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path)
    remarks = template_remarks(tmp_path)
    assert len(remarks) == (words is not None)
    if words is not None:
        assert words in remarks[0]
        assert remarks[0].startswith("large: ")
