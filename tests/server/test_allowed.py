"""What a key with presets of its own may use: those, their experts and their weightings, and nothing by another way."""

from __future__ import annotations

from typing import Any

import pytest

from fusion_kernels.weighting import NAMES
from server.api.allowed import Allowed
from server.api.cache import cache_salt
from server.api.errors import RequestError
from server.api.field import FusionField
from server.api.fusion import resolve
from server.auth import ANYBODY, Client
from server.config import Config

CONFIG = Config.model_validate(
    {
        "large": {"model": "a/large"},
        "base": {"model": "a/base"},
        "experts": {name: {"model": f"a/{name}"} for name in ("red", "blue", "green")},
        "presets": {
            "giant": {"weighting": "none"},
            "giant-red": {"experts": ["red"]},
            "giant-blue": {"experts": ["blue"], "weighting": "static", "alpha": 1.0},
            "giant-all": {"experts": ["red", "blue", "green"], "weighting": "kl-safe"},
        },
    }
)


def allowed(*presets: str) -> Allowed:
    return Allowed.to(Client(name="a", presets=presets), CONFIG)


def ask(allowed: Allowed, preset: str | None, **fusion: Any) -> None:
    resolve(FusionField(**fusion), CONFIG.presets[allowed.preset(preset, CONFIG)], CONFIG, allowed)


def test_a_key_without_presets_may_all() -> None:
    assert Allowed.to(ANYBODY, CONFIG) == Allowed(tuple(CONFIG.presets), ("red", "blue", "green"), NAMES)


def test_a_key_may_what_its_presets_are_made_of() -> None:
    some = allowed("giant-blue", "giant-red")
    assert some == Allowed(("giant-red", "giant-blue"), ("red", "blue"), ("static", "kl"))
    ask(some, "giant-red")
    ask(some, "giant-red", experts=["blue"])
    ask(some, "giant-blue", experts=["red", "blue"], weighting="kl", alpha_max=1)
    ask(some, "giant-red", weighting="static", alpha=-3)


@pytest.mark.parametrize(
    ("preset", "fusion", "status", "param", "message"),
    [
        ("giant-blue", {}, 403, "model", "your key does not allow preset 'giant-blue'; it allows: giant-red"),
        ("giant-rad", {}, 404, "model", "there is no preset 'giant-rad'; did you mean 'giant-red'?"),
        ("giant-al", {}, 404, "model", "there is no preset 'giant-al'; did you mean 'giant-red'?"),
        ("giant-red", {"experts": ["blue"]}, 403, "fusion.experts", "does not allow expert 'blue'; it allows: red"),
        ("giant-red", {"experts": ["red", "green"]}, 403, "fusion.experts", "expert 'green'; it allows: red"),
        ("giant-red", {"experts": ["gren"]}, 404, "fusion.experts", "there is no expert 'gren'; valid names: red"),
        ("giant-red", {"weighting": "alone"}, 403, "fusion.weighting", "allow weighting 'alone'; it allows: kl"),
        ("giant-red", {"weighting": "none"}, 403, "fusion.weighting", "allow weighting 'none'; it allows: kl"),
        ("giant-red", {"weighting": "static", "alpha": 1}, 403, "fusion.weighting", "weighting 'static'"),
        ("giant-red", {"experts": []}, 400, "fusion.experts", "needs at least one expert"),
    ],
)
def test_and_no_more(preset: str, fusion: dict[str, Any], status: int, param: str, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        ask(allowed("giant-red"), preset, **fusion)
    assert (caught.value.status, caught.value.param) == (status, param)
    assert message in str(caught.value)


def test_its_first_preset_answers_when_none_is_named() -> None:
    assert allowed("giant-blue", "giant-red").preset(None, CONFIG) == "giant-red"
    assert allowed("giant-blue").preset("", CONFIG) == "giant-blue"
    with pytest.raises(RequestError, match="your key's presets are none of this server's") as caught:
        allowed("gone").preset(None, CONFIG)
    assert caught.value.status == 403


def test_it_sees_no_more() -> None:
    everything = {
        "dtype": "float32",
        "members": [{"name": name} for name in ("large", "base", "red", "blue", "green")],
        "presets": dict.fromkeys(CONFIG.presets),
    }
    shown = allowed("giant-red").members(everything)
    assert [member["name"] for member in shown["members"]] == ["large", "base", "red"]
    assert list(shown["presets"]) == ["giant-red"]
    assert [row["name"] for row in shown["weightings"]] == ["kl"]
    assert len(everything["members"]) == 5, "what others are shown is as it was"


class TestCacheSalt:
    RED, BLUE = Client(name="red"), Client(name="blue")

    def test_each_key_has_its_own(self) -> None:
        salts = {cache_salt(client, given, False) for client in (self.RED, self.BLUE) for given in (None, "a", "b")}
        assert len(salts) == 6
        assert cache_salt(self.RED, "a", False) == cache_salt(Client(name="red", weight=2), "a", False)

    def test_nobody_can_give_anothers(self) -> None:
        stolen = cache_salt(self.RED, None, False)
        assert cache_salt(self.BLUE, stolen, False) != stolen

    @pytest.mark.parametrize(("client", "shared"), [(ANYBODY, False), (RED, True)])
    def test_shared(self, client: Client, shared: bool) -> None:
        assert cache_salt(client, None, shared) is None
        assert cache_salt(client, "mine", shared) == "mine"

    def test_half_a_character(self) -> None:
        assert cache_salt(self.RED, "\ud800", False)
