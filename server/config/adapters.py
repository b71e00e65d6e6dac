"""The `adapters` section: how many experts may be loaded while the server serves, from where, and by whom."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo

from server.config.section import Section
from server.config.source import beside
from server.config.traffic import Whole

MAX_ADAPTERS = 64
MAX_RANK = 512


def _folder(text: str, info: ValidationInfo) -> str:
    path = beside(text, info)
    if not path.is_dir():
        raise ValueError(f"there is no folder {path}")
    return str(path)


def _file_to_be(text: str, info: ValidationInfo) -> str:
    path = beside(text, info)
    if path.is_dir() or not path.parent.is_dir():
        why = "it is a folder" if path.is_dir() else "its folder is missing"
        raise ValueError(f"{path} cannot be a file: {why}")
    return str(path)


class AdaptersConfig(Section):
    """LoRA adapters over the base, loaded and unloaded over HTTP. Each is a preset and an expert of its own name."""

    max: Annotated[Whole, Field(le=MAX_ADAPTERS)] = Field(
        8,
        description=f"How many there is room for at once, {MAX_ADAPTERS} at most. Each takes KV cache like an expert.",
    )
    max_rank: Annotated[Whole, Field(le=MAX_RANK)] = Field(
        64,
        description="The largest rank of an adapter that is loaded. Every adapter takes the room and time of it.",
    )
    folder: Annotated[str, AfterValidator(_folder)] = Field(description="The folder under which adapters may lie.")
    admin: Literal["key", "anyone"] = Field(
        "key",
        description="Who may load and unload: clients whose key says `admin: true` in `auth.keys_file`, or, for "
        "servers without keys, `anyone`.",
    )
    hub: Annotated[bool, Field(strict=True)] = Field(
        False, description="Whether an adapter may also be an id on the hub, which the server then downloads."
    )
    loaded: Annotated[str, AfterValidator(_file_to_be)] | None = Field(
        None,
        description="A file that the server keeps the names of loaded adapters in. They are loaded again when it "
        "starts; servers that share the file have the same adapters a second later.",
    )


def spare_name(number: int) -> str:
    """What an expert is called for which an adapter may be loaded: no name that a configuration or a client may say."""
    return f"spare adapter {number}"


def is_spare(name: str) -> bool:
    """Whether it is a `spare_name`."""
    return " " in name
