"""How answers are decoded: greedily, with every setting named that a server could have a default of its own for."""

from __future__ import annotations

from typing import Any

# A server takes what a request leaves out from its large model's generation_config.json, and penalties hold at
# temperature 0 too. The upper bound's server has another file: unlike decoders would be compared.
GREEDY: dict[str, Any] = {
    "temperature": 0.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
"""The fields of a request that make its answer the likeliest token at every step; `top_k` 0 means all ids."""
