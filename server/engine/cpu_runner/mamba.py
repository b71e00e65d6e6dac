"""How many tokens of the last step each request kept: what recurrent layers (Mamba) go on from."""

# mypy: disable-error-code="untyped-decorator"
from typing import Any

from server.engine.cpu_runner.arrays import compiled


@compiled("void(int64[:], int32[:], int32[:])")
def scatter_num_accepted(idx_mapping: Any, num_sampled: Any, num_accepted: Any) -> None:
    """model_states.mamba_hybrid._scatter_num_accepted_kernel: at least 1, what a step without drafts keeps.

    Args:
        idx_mapping: [B] int64, slots; rows of -1 are skipped.
        num_sampled: [B] int32.
        num_accepted: [slots] int32, the result.
    """
    for i in range(idx_mapping.size):
        if idx_mapping[i] >= 0:
            num_accepted[idx_mapping[i]] = max(num_sampled[i], 1)


@compiled("void(int64[:], int32[:], int64)")
def fill_num_accepted(idx_mapping: Any, num_accepted: Any, num_sampled: int) -> None:
    """model_states.mamba_hybrid._fill_num_accepted_kernel: the same number for all.

    Args:
        idx_mapping: [B] int64, slots; rows of -1 are skipped.
        num_accepted: [slots] int32, the result.
        num_sampled: the number.
    """
    for i in range(idx_mapping.size):
        if idx_mapping[i] >= 0:
            num_accepted[idx_mapping[i]] = num_sampled
