"""Where a member that reads a prompt of its own keeps its tokens.

All members of a request keep their KV cache in the same blocks, by place. With P tokens in the request's prompt and p
in the member's, the member reads the request's token j as its own token q = j - shift, shift = P - p: both prompts end
in the same step, and every generated token is a token of both. It lies at the request's place

    g = q + start = j + ahead,    start = max(shift, 0) rounded up to whole blocks,    ahead = start - shift >= 0,

so to the member's attention its tokens begin at block start / size of the request. A member that is never behind

- writes into no block that is full, which a request with the same prompts may be reading at the same time;
- has written its part of a block by the time that vLLM takes the block as full and lets other requests find it;
- reads nothing that a sliding window has freed, as windows are counted in places j.

It costs room for `ahead` places more, and `ahead` tokens more in the first step of a request.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from vllm.v1.kv_cache_interface import ChunkedLocalAttentionSpec, KVCacheConfig, SlidingWindowSpec


@dataclass(frozen=True, slots=True)
class Alignment:
    """A member's prompt against the request's."""

    shift: int
    """P - p: the request's token j is the member's token j - shift."""
    start: int
    """The request's place at which the member's first token lies."""

    @classmethod
    def of(cls, prompt: int, own: int, block_size: int) -> Self:
        """The alignment of `own` prompt tokens with the request's `prompt`."""
        shift = prompt - own
        return cls(shift, -(-max(shift, 0) // block_size) * block_size)

    @property
    def ahead(self) -> int:
        """By how many places the member is further than the request."""
        return self.start - self.shift


def places_ahead(prompts: Mapping[int, Any], prompt: int, block_size: int) -> int:
    """How many places more than its tokens a request needs whose members read `prompts`, by their numbers."""
    return max((Alignment.of(prompt, len(own), block_size).ahead for own in prompts.values()), default=0)


class Room(NamedTuple):
    """What an engine has for members that are ahead."""

    block_size: int
    most_ahead: int
    frees: bool = False
    """Whether some layers free what lies before their window while a request runs."""

    @classmethod
    def of(cls, kv_cache_config: KVCacheConfig, max_model_len: int, max_num_batched_tokens: int) -> Self:
        """Where layers have sliding windows, the KV cache is sized for their windows and what one step reads."""
        windows = any(isinstance(group.kv_cache_spec, SlidingWindowSpec) for group in kv_cache_config.kv_cache_groups)
        most = max_num_batched_tokens if windows else max_model_len
        specs = [group.kv_cache_spec for group in kv_cache_config.kv_cache_groups]
        frees = windows or any(isinstance(spec, ChunkedLocalAttentionSpec) for spec in specs)
        return cls(block_size_of(kv_cache_config), most, frees)


def block_size_of(kv_cache_config: KVCacheConfig) -> int:
    """The places of one block; where layers differ, of as many as are whole blocks of all."""
    return math.lcm(*(group.kv_cache_spec.block_size for group in kv_cache_config.kv_cache_groups))
