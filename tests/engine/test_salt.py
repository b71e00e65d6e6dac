"""Prefixes are shared between requests that run the same members, and a client cannot claim another set."""

from __future__ import annotations

import itertools

from fusion_kernels import Weighting
from server.engine.client import _salted
from server.engine.settings import FusionSettings, Route

SETTINGS = [
    FusionSettings(),
    FusionSettings(Weighting.ALONE, (0,)),
    FusionSettings(Weighting.KL, (0,)),
    FusionSettings(Weighting.KL, (0, 1)),
]
CLIENTS = [None, "", "a", "/members=", "/members=0,1", "a/members=0,1", "/members=0,1/members="]


def salt(
    client: str | None, settings: FusionSettings, puts: dict[int, int] | None = None, *, mixed: bool = False
) -> str:
    prompt = {"prompt_token_ids": [1]} if client is None else {"prompt_token_ids": [1], "cache_salt": client}
    found: str = _salted(prompt, settings, puts or {}, mixed=mixed)["cache_salt"]
    return found


def test_one_salt_for_each_client_and_set_of_members() -> None:
    named = [client for client in CLIENTS if client is not None]
    salts = {
        (client, settings.members_used): salt(client, settings)
        for client, settings in itertools.product(named, SETTINGS)
    }
    assert len(set(salts.values())) == len(salts)
    assert salt(None, SETTINGS[2]) == salt("", SETTINGS[2])


def test_what_members_read_is_part_of_it() -> None:
    read = [{}, {1: [5]}, {1: [5, 6]}, {0: [5]}, {0: [5], 1: [5]}]
    asked = [FusionSettings(Weighting.KL, (0,), prompts=prompts) for prompts in read]
    assert len({salt("a", settings) for settings in asked}) == len(read)
    assert salt("a", asked[1]) == salt("a", FusionSettings(Weighting.STATIC, (0,), (1.0,), prompts={1: [5]}))
    # Where a member's tokens lie follows from the length of the request's prompt.
    one, two = (
        _salted({"prompt_token_ids": [1] * length}, asked[1], {}, mixed=False)["cache_salt"] for length in (1, 2)
    )
    assert one != two


def test_the_weighting_does_not_matter() -> None:
    static = FusionSettings(Weighting.STATIC, (1, 0), (0.3, 2.0), preset=2)
    assert salt("a", static) == salt("a", FusionSettings(Weighting.KL_SAFE, (0, 1)))


def test_an_adapter_is_not_the_one_before_it() -> None:
    counts = [None, {1: 1}, {1: 2}, {2: 1}]
    assert len({salt("a", SETTINGS[3], puts) for puts in counts}) == len(counts)
    assert salt("a", SETTINGS[2]) == salt("a", SETTINGS[2], {2: 1})


def test_routed_requests_share_unless_each_has_a_mixture_of_its_own() -> None:
    first, other = (FusionSettings(Weighting.KL, (0, 1), route=Route(0, 1, name)) for name in ("one/0", "other/0"))
    assert salt("a", first) == salt("a", other)
    assert len({salt("a", first, mixed=True), salt("a", other, mixed=True), salt("a", first)}) == 3
    # The choices of one prompt have one mixture, whatever else they ask.
    again = FusionSettings(Weighting.STATIC, (0, 1), (1.0, 2.0), route=Route(0, 1, "one/0"))
    assert salt("a", first, mixed=True) == salt("a", again, mixed=True)


def test_a_mixture_that_is_named_is_shared_by_who_names_the_same() -> None:
    named = [{}, {0: [0.1, 0.9]}, {0: [0.9, 0.1]}, {1: [0.1, 0.9]}]
    asked = [FusionSettings(Weighting.KL, (0, 1), shares=shares) for shares in named]
    assert len({salt("a", settings, mixed=True) for settings in asked}) == len(named)
    assert salt("a", asked[1], mixed=True) == salt("a", FusionSettings(Weighting.KL, (0, 1), shares={0: [0.1, 0.9]}))
