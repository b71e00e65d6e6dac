"""The one description of every configuration key, for `logit-fusion serve --help` and docs/configuration.md.

`python -m server.config.reference > docs/configuration.md` writes the page again.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic.fields import FieldInfo

from fusion_kernels.weighting import markdown_table
from server.config.adapters import AdaptersConfig
from server.config.engine import OWNED
from server.config.http import HttpConfig
from server.config.presets import PresetConfig
from server.config.prompts import PromptWay, SidePrompts
from server.config.rollout import ShadowConfig
from server.config.schema import Config, ExpertConfig, MemberConfig
from server.config.section import Section
from server.config.source import RULE
from server.config.speculation import SpeculationConfig
from server.config.structures import StructuresConfig
from server.config.traffic import AdmissionConfig, AuthConfig, LimitsConfig

if TYPE_CHECKING:
    from rich.table import Table

SECTIONS: tuple[tuple[str, type[Section]], ...] = (
    ("", Config),
    ("large.", MemberConfig),
    ("base.", MemberConfig),
    ("experts.NAME.", ExpertConfig),
    ("experts.NAME.prompt.", SidePrompts),
    ("experts.NAME.prompt.with.", PromptWay),
    ("presets.NAME.", PresetConfig),
    ("presets.NAME.shadow.", ShadowConfig),
    ("admission.", AdmissionConfig),
    ("limits.", LimitsConfig),
    ("structures.", StructuresConfig),
    ("speculation.", SpeculationConfig),
    ("adapters.", AdaptersConfig),
    ("auth.", AuthConfig),
    ("http.", HttpConfig),
)
TYPE_NAMES: dict[Any, str] = {str: "text", float: "number", int: "integer", bool: "true or false", Any: "value"}

PAGE = """\
# Configuration

<!-- Written by `python -m server.config.reference`; the descriptions are those of server/config/schema.py. -->

One YAML file says which models are served and under which names. `logit-fusion serve --config FILE` serves it,
`logit-fusion check --config FILE` checks it, and the models that it names, without starting the engine. Without
`--config` both take the embedded models' `zoo/zoo.yaml`.

```yaml
large: {{model: ./models/large}}
base: {{model: ./models/base}}
experts:
  math: {{model: ./models/math}}                     # a fine-tuned model
  trivia: {{adapter: ./models/trivia-lora}}          # a LoRA adapter over the base
  blend: {{merge: {{math: 0.5, trivia: 0.5}}}}         # a weighted sum of what fine-tuning changed in both
presets:                                           # the names that clients pass as `model`
  giant: {{weighting: none}}
  giant-math: {{experts: [math], weighting: kl}}
  giant-half: {{experts: [math], weighting: static, alpha: 0.5}}
engine: {{max_model_len: 4096, max_num_seqs: 64}}
admission: {{max_queued: 512, queue_timeout_s: 20}}
auth: {{keys_file: ./keys.yaml}}
```

Any key can be changed for one run: `--set engine.max_num_seqs=128 --set presets.giant-math.alpha_max=3`. The value is
YAML. Unknown keys are refused, and the nearest valid one is named.

## Keys

{keys}

## Weightings

{weightings}

## Folders and ids

{rule} Relative folders are taken from the configuration file's own folder.

## Names

An expert's name is a letter followed by letters, digits, `_` or `-`, 32 characters at most; `large`, `base`,
`none` and `fused` are taken. A preset's name may also start with a digit and hold dots, and has 64 characters at most.

## Engine arguments

`engine` takes the arguments of vLLM's `AsyncEngineArgs` by their Python names, and checks their names and types. These
are not yours to set:

{owned}

## Sampling settings that requests leave out

What a request does not say comes from the large model's `generation_config.json`, as in vLLM's own server:
`temperature`, `top_p`, `top_k`, `min_p`, the three penalties, and `max_new_tokens` as `max_tokens`. The other members'
files are not read, whatever the weighting. Penalties hold at `temperature: 0` too, whose answers are then not the
likeliest tokens. `check` says what was found, the server logs it at its start, and `GET /v1/fusion/experts` has it as
`sampling_defaults`.

| `engine.generation_config` | |
|---|---|
| `auto` (default) | the large model's file |
| `vllm` | none: vLLM's own defaults (temperature 1, nothing cut, no penalties) |
| a folder | that folder's file; its `max_new_tokens` also bounds what requests may ask |

`engine.override_generation_config: {{temperature: 0.7}}` is laid over it.

## Where answers end

At the large model's `eos_token` and the `eos_token_id` of its `generation_config.json`, and at those of the experts
that steer the answer: an instruct expert over a pretrained base ends its answers by a token of its own, which the
models beside it never write. An adapter without tokenizer files ends where the base ends, a merge where its parts do.
`check` shows what an expert adds; `experts.NAME.stop_at_eos: false` takes the large model's ends alone, `ignore_eos` in
a request none.
"""


@dataclass(frozen=True)
class Row:
    """One key of the file."""

    key: str
    type: str
    default: str
    description: str


def rows() -> Iterator[Row]:
    """Yield every key of the configuration file, in the order of the file."""
    for prefix, section in SECTIONS:
        for name, field in section.model_fields.items():
            yield Row(
                prefix + (field.alias or name), _type_name(field.annotation), _default(field), field.description or ""
            )


def rich_table() -> Table:
    """Return the keys as a table for a terminal."""
    from rich.table import Table

    table = Table(title="Configuration file", title_justify="left", title_style="bold", pad_edge=False)
    table.add_column("key", style="cyan", overflow="fold")
    table.add_column("value")
    table.add_column("default")
    table.add_column("meaning", ratio=1)
    for row in rows():
        table.add_row(row.key, row.type, row.default, row.description.replace("`", ""))
    return table


def markdown() -> str:
    """Return the whole page docs/configuration.md."""
    lines = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for row in rows():
        kind = row.type.replace("|", "\\|")
        lines.append(f"| `{row.key}` | {kind} | {row.default} | {row.description} |")
    owned = ["| argument | why |", "|---|---|", *(f"| `{name}` | {reason} |" for name, reason in OWNED.items())]
    return PAGE.format(keys="\n".join(lines), weightings=markdown_table(), rule=RULE, owned="\n".join(owned))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if value is None or value in ((), {}) or isinstance(value, Section):
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _type_name(hint: Any) -> str:
    """Say a type in the words of a YAML file."""
    if isinstance(hint, type) and issubclass(hint, Section):
        return "mapping"
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _type_name(arguments[0])
    if origin is typing.Literal:
        return "one of " + ", ".join(arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_name(part) for part in arguments if part is not type(None))
    if origin is dict:
        return f"mapping of name to {_type_name(arguments[1])}"
    if origin is tuple:
        return "list of names"
    return TYPE_NAMES[hint]


if __name__ == "__main__":
    print(markdown(), end="")
