"""What the large model's chat template does with a conversation that has tools, told without an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TOOL = "a_tool_that_a_template_shows"
CONVERSATION = [{"role": "user", "content": "Hello"}]


def template_remarks(folder: Path) -> list[str]:
    """What whoever serves chats with this model should know; nothing if all is well."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    if not tokenizer.chat_template:
        return ["large: its tokenizer has no chat template, so only /v1/completions can be asked"]
    tool = {"name": TOOL, "description": "", "parameters": {"type": "object", "properties": {}}}
    try:
        text = tokenizer.apply_chat_template(
            CONVERSATION, tools=[{"type": "function", "function": tool}], tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # a template may raise anything
        reason = " ".join(str(error).split())[:200]
        return [f"large: its chat template fails where a request has tools: {reason}"]
    if TOOL in text:
        return []
    return [
        "large: its chat template does not show tools, so the model cannot know what it may call; calls that a request "
        "requires still follow the tools' schemas"
    ]
