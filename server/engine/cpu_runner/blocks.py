"""Block tables: staged writes into them, their rows in the batch's order, and the KV slot of each token."""

# mypy: disable-error-code="untyped-decorator"
from typing import Any

import numpy as np
from torch import Tensor

from server.engine.cpu_runner.arrays import array, compiled, integers


def apply_write(
    output: Tensor,
    output_stride: Any,
    write_indices: Tensor,
    write_starts: Tensor,
    write_contents: Tensor,
    write_cu_lens: Tensor,
    write_group_ids: Tensor | None,
    multi_group: bool,
) -> None:
    """buffer_utils._apply_write_kernel: write stretches of `write_contents` into rows of one tensor, or of several.

    Args:
        output: [rows, columns] int32 or float32; with `multi_group` [G] uint64, the addresses of int32 tensors.
        output_stride: elements from row to row; with `multi_group` [G] int64.
        write_indices, write_starts: [W] int32, row and first column of each write.
        write_contents: the values, one write after the other.
        write_cu_lens: [W] int32, where each write's values end.
        write_group_ids: [W] int32, which tensor, with `multi_group`.
        multi_group: several tensors at once.
    """
    where = [array(part) for part in (write_indices, write_starts, write_contents, write_cu_lens)]
    if multi_group:
        assert write_group_ids is not None
        write_groups(array(output), array(output_stride), *where, array(write_group_ids))
    else:
        write_rows(array(output.view(-1)), output_stride, *where)


@compiled(
    "void(int32[:], int64, int32[:], int32[:], int32[:], int32[:])",
    "void(float32[:], int64, int32[:], int32[:], float32[:], int32[:])",
)
def write_rows(output: Any, stride: int, rows: Any, starts: Any, contents: Any, ends: Any) -> None:
    """`apply_write` into one tensor, as one dimension."""
    first = 0
    for w in range(rows.size):
        index = np.int64(rows[w]) * stride + starts[w]
        for i in range(first, ends[w]):
            output[index + i - first] = contents[i]
        first = ends[w]


@compiled("void(uint64[:], int64[:], int32[:], int32[:], int32[:], int32[:], int32[:])")
def write_groups(addresses: Any, strides: Any, rows: Any, starts: Any, contents: Any, ends: Any, groups: Any) -> None:
    """`apply_write` into several tensors."""
    first = 0
    for w in range(rows.size):
        index = np.int64(rows[w]) * strides[groups[w]] + starts[w]
        output = integers(np.int64(addresses[groups[w]]) + 4 * index, ends[w] - first)
        for i in range(first, ends[w]):
            output[i - first] = contents[i]
        first = ends[w]


@compiled("void(int64[:], uint64[:], uint64[:], int64[:], int32[:,:])")
def gather_block_tables(
    batch_idx_to_req_idx: Any, src_block_table_ptrs: Any, dst_block_table_ptrs: Any, block_table_strides: Any,
    num_blocks: Any,
) -> None:  # fmt: skip
    """block_table._gather_block_tables_kernel: the rows of the batch's requests, one after the other.

    The kernel also zeroes rows that pad the batch. Nothing pads it on CPUs, where there are no graphs.

    Args:
        batch_idx_to_req_idx: [B] int64, the slot of each request of the batch.
        src_block_table_ptrs, dst_block_table_ptrs: [G] uint64, addresses of int32 tables, for each group of KV caches.
        block_table_strides: [G] int64, elements from row to row.
        num_blocks: [G, slots] int32, how long each row is.
    """
    for group in range(block_table_strides.size):
        stride = block_table_strides[group]
        for i in range(batch_idx_to_req_idx.size):
            slot = batch_idx_to_req_idx[i]
            length = num_blocks[group, slot]
            source = integers(np.int64(src_block_table_ptrs[group]) + 4 * stride * slot, length)
            target = integers(np.int64(dst_block_table_ptrs[group]) + 4 * stride * i, length)
            for block in range(length):
                target[block] = source[block]


def compute_slot_mappings(
    max_num_tokens: int,
    idx_mapping: Tensor,
    query_start_loc: Tensor,
    pos: Tensor,
    block_table_ptrs: Tensor,
    block_table_strides: Tensor,
    block_sizes: Tensor,
    slot_mapping_enabled: Tensor,
    slot_mappings: Tensor,
    cp_size: int,
    pad_id: int,
) -> None:
    """block_table._compute_slot_mappings_kernel: where each token's keys and values go.

    Args:
        max_num_tokens: N, so many slots are written; those after the batch's tokens are `pad_id`.
        idx_mapping: [B] int64, slots; -1 owns no blocks.
        query_start_loc: [B + 1] int32.
        pos: [tokens] int64, positions.
        block_table_ptrs: [G] uint64, addresses of int32 tables.
        block_table_strides, block_sizes: [G] int64, [G] int32.
        slot_mapping_enabled: [G] bool.
        slot_mappings: [G, N] int64, the result.
        cp_size: how many ranks share a sequence.
        pad_id: the slot of tokens that are kept nowhere.

    Raises:
        NotImplementedError: `cp_size` is not 1.
    """
    if cp_size != 1:
        raise NotImplementedError("decode context parallelism is not supported on CPUs")
    tables = [array(part) for part in (block_table_ptrs, block_table_strides, block_sizes, slot_mapping_enabled)]
    batch = [array(part) for part in (idx_mapping, query_start_loc, pos)]
    map_slots(max_num_tokens, *batch, *tables, array(slot_mappings), pad_id)


@compiled("void(int64, int64[:], int32[:], int64[:], uint64[:], int64[:], int32[:], boolean[:], int64[:,:], int64)")
def map_slots(
    limit: int, slots: Any, starts: Any, positions: Any, addresses: Any, strides: Any, sizes: Any, enabled: Any,
    out: Any, pad: int,
) -> None:  # fmt: skip
    """`compute_slot_mappings`."""
    for group in range(strides.size):
        size = np.int64(sizes[group])
        for i in range(slots.size):
            slot = slots[i]
            if slot < 0 or not enabled[group]:
                out[group, starts[i] : starts[i + 1]] = pad
                continue
            table = integers(np.int64(addresses[group]) + 4 * strides[group] * slot, strides[group])
            for token in range(starts[i], starts[i + 1]):
                position = positions[token]
                out[group, token] = table[position // size] * size + position % size
        out[group, starts[slots.size] : limit] = pad
