"""Each case of values is rendered once."""

from __future__ import annotations

import pytest

from tests.deploy.chart import CASES, Release, rendered_cases


@pytest.fixture(params=list(CASES))
def release(request: pytest.FixtureRequest) -> Release:
    """The chart with one of the cases' values."""
    return rendered_cases()[request.param]


@pytest.fixture
def default() -> Release:
    return rendered_cases()["default"]
