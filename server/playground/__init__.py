"""The playground: a static page at `/` that shows which expert moved which token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import FileResponse
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

STATIC = Path(__file__).parent / "static"

# The page loads from this server alone, runs no code that is written into its markup, and builds no HTML from text.
HEADERS = {
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    # Asked again at every visit, so that a page and its modules are always of one version; unchanged ones cost a 304.
    "Cache-Control": "no-cache",
}


def attach(app: FastAPI) -> None:
    """Serve the page at `/` and what it loads under `/playground/`."""

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def show_playground() -> FileResponse:
        return FileResponse(STATIC / "index.html", headers=HEADERS)

    app.mount("/playground", _StaticFiles(directory=STATIC), name="playground")


class _StaticFiles(StaticFiles):
    """Files with the page's headers."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(HEADERS)
        return response
