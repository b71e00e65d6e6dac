"""`/docs`: Swagger's page of the API, from files that vLLM brings along, so that it needs no other host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import vllm
from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

from server.api.middleware.authentication import KEY_HEADER
from server.auth import Keys

# Where vLLM 0.32 has them for its own `--enable-offline-docs`.
FILES = Path(vllm.__file__).parent / "entrypoints" / "serve" / "instrumentator" / "static"
PATH, ASSETS = "/docs", "/docs/assets"
ICON = "/playground/icon.svg"


def attach(app: FastAPI, keys: Keys) -> None:
    """Serve the page, and what it loads; where there are keys, the schema says how they are sent."""
    if keys.required:
        _describe_keys(app)
    app.mount(ASSETS, StaticFiles(directory=FILES), name="docs-assets")

    @app.get(PATH, include_in_schema=False)
    async def show_documentation(raw_request: Request) -> HTMLResponse:
        root = raw_request.scope.get("root_path", "").rstrip("/")
        return get_swagger_ui_html(
            openapi_url=f"{root}{app.openapi_url}",
            title=f"{app.title}: API",
            swagger_js_url=f"{root}{ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{root}{ASSETS}/swagger-ui.css",
            swagger_favicon_url=f"{root}{ICON}",
        )


def _describe_keys(app: FastAPI) -> None:
    """Give the schema its security schemes: clients made from it ask for a key, and the page has a field for one."""
    plain = app.openapi

    def described() -> dict[str, Any]:
        schema = plain()
        schema.setdefault("components", {})["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": KEY_HEADER},
        }
        schema["security"] = [{"bearer": []}, {"header": []}]  # either will do
        return schema

    app.openapi = described  # type: ignore[method-assign]  # as FastAPI's documentation extends a schema
