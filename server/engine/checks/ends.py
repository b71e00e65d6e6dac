"""At which tokens answers end: the large model's, and those of the experts that steer them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from vllm.transformers_utils.config import try_get_generation_config

from server.config import Config
from server.engine.checks.vocabulary import Vocabulary
from server.engine.members import Member, Members


def find_ends(config: Config, members: Members, vocabularies: Mapping[str, Vocabulary]) -> tuple[Members, list[str]]:
    """Return the members with the experts' `end_ids`, and remarks on those at which the large model's do not end."""
    large = vocabularies[members.large.name]
    usual = _own_ends(members.large, members, vocabularies)
    experts, remarks = [], []
    for expert in members.experts:
        if expert.spare:
            experts.append(expert)
            continue
        ends = _own_ends(expert, members, vocabularies)
        switch = f"experts.{expert.name}.stop_at_eos"
        stops = config.experts[expert.name].stop_at_eos
        further = sorted(ends - usual)
        sampled = [token_id for token_id in further if token_id < members.large.vocabulary_rows]
        if sampled and stops:
            listed = " and ".join(map(large.show, sampled))
            remarks.append(f"{expert.name}: what it steers ends at its own {listed} too ({switch}: false turns it off)")
        if lost := sorted(set(further) - set(sampled)):
            listed = ", ".join(map(str, lost))
            remarks.append(
                f"{expert.name}: {members.large.name} has no logit for its end token {listed}, so no answer ends there"
            )
        experts.append(replace(expert, end_ids=tuple(sampled) if stops else ()))
    return replace(members, experts=tuple(experts)), remarks


def _own_ends(member: Member, members: Members, vocabularies: Mapping[str, Vocabulary]) -> set[int]:
    """A member's `eos_token` and the `eos_token_id` of its generation_config.json; of a merge, those of its parts."""
    if member.of is not None:
        return _own_ends(member.of, members, vocabularies)
    if member.parts:
        return set().union(*(_own_ends(part, members, vocabularies) for _, part in member.parts))
    if member.kind == "adapter" and member.name not in vocabularies:
        return _own_ends(members.needed_base, members, vocabularies)
    eos = vocabularies[member.name].special["eos"]
    ends = set() if eos is None else {eos}
    if (member.folder / "config.json").is_file():
        # As vLLM does for the model that it serves.
        generation = try_get_generation_config(str(member.folder), trust_remote_code=False)
        found = None if generation is None else generation.eos_token_id
        ends |= {found} if isinstance(found, int) else set(found or ())
    return ends
