"""The small members of a step at work: each on the requests that use it, and on prompts of its own where it has any."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from server.engine.reading import Reading
from server.engine.step import ForwardPass, MemberStates
from server.engine.sub_batch import SubBatch, restrict

if TYPE_CHECKING:
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
    # Requests that use one expert alone make the base's batch and the expert's the same.
    known: dict[bytes, SubBatch] = {}
    for number, member in enumerate(state.members):
        column = used[:, number]
        if member is None or not column.any():
            step.members.append(None)
        elif own[:, number].any():
            step.members.append(_run_own_prompts(state, step, number, member, column))
        else:
            key = column.tobytes()
            if key not in known:
                known[key] = restrict(batch, step.block_tables, step.slot_mappings, column)
            wants_prompt = batch.has_prefill and _wants_prompt(table, slots[column])
            step.members.append(_run(state, step, member, known[key], wants_prompt))
    if not step.dummy:
        table.begun[slots] = True


def _run_own_prompts(
    state: FusionModelState, step: ForwardPass, number: int, member: SmallMember, used: np.ndarray
) -> MemberStates | None:
    """Run a member that reads another prompt than some of the requests that use it; `None`: it has nothing to read."""
    wants_prompt = step.batch.has_prefill and _wants_prompt(state.table, step.batch.idx_mapping_np[used])
    reading = Reading(step.batch, state.block_tables, state.table, number, used, state.max_num_tokens)
    passes = [
        _run(state, step, member, reading.sub_batch(stretch, step.block_tables, state.max_model_len), wants_prompt)
        for stretch in reading.stretches()
    ]
    return MemberStates.joined(passes) if passes else None


def _run(
    state: FusionModelState, step: ForwardPass, member: SmallMember, sub: SubBatch, wants_prompt: bool
) -> MemberStates:
    hidden = member.run(sub, state.metadata, step.kv_cache_config)
    return MemberStates.kept(sub, hidden, wants_prompt)


def _wants_prompt(table: SlotTable, slots: np.ndarray) -> bool:
    """Whether any of the requests in these slots asks for its prompt's logprobs."""
    found = (table.slots[index] for index in slots)
    return any(slot is not None and slot.prompt_logprobs for slot in found)
