"""The FastAPI app: vLLM's own routes where they fit as they are, ours where a request carries `fusion`."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import vllm
from fastapi import FastAPI
from vllm.entrypoints.launchers.utils.server_utils import lifespan
from vllm.entrypoints.openai.models.api_router import attach_router as attach_models
from vllm.entrypoints.serve.instrumentator.metrics import attach_router as attach_metrics
from vllm.entrypoints.serve.tokenize.api_router import attach_router as attach_tokenize

from server import metrics, playground
from server.api import anthropic_routes, errors, load, models, probes, routes, state, stored_routes
from server.api.middleware import AnthropicErrors, Authentication, BodyLimits, RequestLog
from server.auth import Keys
from server.config import Config
from server.engine.client import FusionEngine

DESCRIPTION = "One large language model, steered at every token by small expert models in the same engine."


def build_app(engine: FusionEngine, config: Config, members: dict[str, Any], keys: Keys) -> FastAPI:
    """Assemble the app over a running engine; `members` is what `/v1/fusion/experts` answers."""
    app = FastAPI(title="logit-fusion", version=version("logit-fusion"), description=DESCRIPTION, lifespan=lifespan)
    state.fill(app.state, engine, config, members)
    app.include_router(routes.router)
    app.include_router(stored_routes.router)
    app.include_router(anthropic_routes.router)
    app.include_router(probes.router)
    app.include_router(load.router)
    attach_models(app)
    app.include_router(models.router)
    attach_tokenize(app)
    attach_metrics(app)
    playground.attach(app)
    metrics.attach(app, engine, config)
    errors.register(app)
    # The last one added sees a request first.
    app.add_middleware(BodyLimits, limits=config.limits)
    app.add_middleware(Authentication, keys=keys)
    app.add_middleware(AnthropicErrors)
    app.add_middleware(RequestLog)

    @app.get("/version")
    async def show_version() -> dict[str, str]:
        """Versions of this server and of vLLM."""
        return {"version": app.version, "vllm": vllm.__version__}

    return app
