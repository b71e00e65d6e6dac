"""Fields that nothing reads: named in a header, refused, or passed over, as the configuration says."""

from __future__ import annotations

import pytest

from server.api.errors import RequestError
from server.api.requests import FusionChatCompletionRequest
from server.api.unknown_fields import HEADER, warn_of_unknown_fields


def request(**fields: object) -> FusionChatCompletionRequest:
    return FusionChatCompletionRequest.model_validate({"messages": [{"role": "user", "content": "a"}], **fields})


def test_a_misspelt_field_is_named_with_the_nearest() -> None:
    header = warn_of_unknown_fields(request(temprature=0, service_tiers="x"), "warn")[HEADER]
    assert header.startswith("299 logit-fusion \"'temprature' is ignored; did you mean 'temperature'?, 'service_tiers'")


def test_known_fields_go_without_a_word() -> None:
    known = request(temperature=0, fusion={"weighting": "none"}, top_k=3, tools=None, model="giant")
    assert warn_of_unknown_fields(known, "warn") == {}
    assert warn_of_unknown_fields(known, "refuse") == {}


def test_as_vllm_does() -> None:
    assert warn_of_unknown_fields(request(temprature=0), "ignore") == {}


def test_it_is_refused_where_that_is_asked_for() -> None:
    with pytest.raises(RequestError, match="temprature: there is no such field; did you mean 'temperature'") as raised:
        warn_of_unknown_fields(request(temprature=0), "refuse")
    assert raised.value.param == "temprature"


def test_no_name_breaks_the_header() -> None:
    names = {f"k{number}": 0 for number in range(20)}
    header = warn_of_unknown_fields(request(**{'a"\r\nSet-Cookie: x': 1, "ü€" * 50: 2}, **names), "warn")[HEADER]
    assert header.isascii()
    assert header.isprintable()
    assert len(header) < 2000
    assert header.count('"') == 2
    assert header.endswith('and 14 more"')
