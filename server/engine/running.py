"""The small members of a step at work: each on the requests that use it, and on prompts of its own where it has any."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from server.engine.reading import Reading
from server.engine.settings import BASE
from server.engine.stack import StackedMember
from server.engine.step import ForwardPass, MemberStates, has_whole_prompt
from server.engine.sub_batch import SubBatch, restrict

if TYPE_CHECKING:
    import torch

    from server.engine.member import SmallMember
    from server.engine.slots import SlotTable
    from server.engine.state import FusionModelState


def run_members(state: FusionModelState, step: ForwardPass, *, everyone: bool) -> None:
    """Run the members that the step's requests use, or `everyone` for all of them, and keep their hidden states."""
    batch, table = step.batch, state.table
    slots = batch.idx_mapping_np
    if step.dummy or everyone:
        used = np.ones((batch.num_reqs, len(state.members)), dtype=bool)
    else:
        used = table.members_run[slots]
    own = np.zeros_like(used) if step.dummy else used & table.own_prompt[slots]
    step.members = [None] * len(state.members)
    ready = table.undecided[slots] & has_whole_prompt(batch)
    if ready.any() and not step.dummy:
        step.members[BASE] = base = _run_base(state, step, used[:, BASE])
        rows = base.sampled()
        assert rows is not None
        state.choosing.choose(table, batch, ready, rows)
        used, own = table.members_run[slots], table.members_run[slots] & table.own_prompt[slots]
    # Requests that use one expert alone make the base's batch and the expert's the same.
    known: dict[bytes, SubBatch] = {}
    stacked: list[tuple[int, StackedMember, SubBatch]] = []
    for number, member in enumerate(state.members):
        column = used[:, number]
        if member is None or not column.any() or step.members[number] is not None:
            continue
        if own[:, number].any():
            step.members[number] = _run_own_prompts(state, step, number, member, column)
            continue
        key = column.tobytes()
        if key not in known:
            known[key] = restrict(batch, step.block_tables, step.slot_mappings, column)
        if isinstance(member, StackedMember):
            stacked.append((number, member, known[key]))
        else:
            hidden = member.run(known[key], state.metadata, step.kv_cache_config)
            step.members[number] = _kept(state, step, known[key], hidden, column)
    if stacked:
        runs = [(member, sub) for _, member, sub in stacked]
        states = stacked[0][1].stack.run(runs, state.metadata, step.kv_cache_config)
        for (number, _, sub), hidden in zip(stacked, states, strict=True):
            step.members[number] = _kept(state, step, sub, hidden, used[:, number])
    if not step.dummy:
        table.end_step(slots)


def _run_base(state: FusionModelState, step: ForwardPass, used: np.ndarray) -> MemberStates:
    """Run the base before the others, on the requests that use it, of which it reads some's end of the prompt."""
    base = state.members[BASE]
    assert base is not None
    if (used & state.table.own_prompt[step.batch.idx_mapping_np, BASE]).any():
        states = _run_own_prompts(state, step, BASE, base, used)
        assert states is not None
        return states
    sub = restrict(step.batch, step.block_tables, step.slot_mappings, used)
    return _kept(state, step, sub, base.run(sub, state.metadata, step.kv_cache_config), used)


def _run_own_prompts(
    state: FusionModelState, step: ForwardPass, number: int, member: SmallMember, used: np.ndarray
) -> MemberStates | None:
    """Run a member that reads another prompt than some of the requests that use it; `None`: it has nothing to read."""
    reading = Reading(step.batch, state.block_tables, state.table, number, used, state.max_num_tokens)
    passes = []
    for stretch in reading.stretches():
        sub = reading.sub_batch(stretch, step.block_tables, state.max_model_len)
        passes.append(_kept(state, step, sub, member.run(sub, state.metadata, step.kv_cache_config), used))
    return MemberStates.joined(passes) if passes else None


def _kept(
    state: FusionModelState, step: ForwardPass, sub: SubBatch, hidden: torch.Tensor, used: np.ndarray
) -> MemberStates:
    """What logits may be asked of, of a member's hidden states for the requests that `used` marks."""
    slots = step.batch.idx_mapping_np[used]
    return MemberStates.kept(sub, hidden, step.batch.has_prefill and _wants_prompt(state.table, slots))


def _wants_prompt(table: SlotTable, slots: np.ndarray) -> bool:
    """Whether any of the requests in these slots asks for its prompt's logprobs."""
    found = (table.slots[index] for index in slots)
    return any(slot is not None and slot.prompt_logprobs for slot in found)
