"""The API's description: how keys are sent is part of it where there are keys."""

from __future__ import annotations

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from server.api import documentation
from server.auth import Keys


def schema() -> dict[str, object]:
    app = FastAPI()
    documentation.attach(app, Keys(None))

    @app.get("/v1/models")
    async def models() -> dict[str, str]:
        return {}

    described: dict[str, object] = TestClient(app).get("/openapi.json").json()
    return described


def test_with_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGIT_FUSION_API_KEY", "secret")
    described = schema()
    assert described["security"] == [{"bearer": []}, {"header": []}]
    assert described["components"] == {
        "securitySchemes": {
            "bearer": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
        }
    }


def test_without_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOGIT_FUSION_API_KEY", raising=False)
    assert "security" not in schema()
