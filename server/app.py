"""The FastAPI app: vLLM's own routes where they fit as they are, ours where a request carries `fusion`."""

from __future__ import annotations

from importlib.metadata import version

import vllm
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from vllm.entrypoints.launchers.utils.server_utils import lifespan
from vllm.entrypoints.serve.instrumentator.metrics import attach_router as attach_metrics

from server import metrics, playground
from server.api import (
    anthropic_routes,
    catalogue,
    documentation,
    errors,
    load,
    probes,
    routes,
    state,
    stored_routes,
    tokenize,
    unknown_fields,
    usage_routes,
)
from server.api.adapters import Adapters
from server.api.adapters import routes as adapter_routes
from server.api.middleware import (
    AllowedHosts,
    AnthropicErrors,
    Authentication,
    BodyLimits,
    Draining,
    RateHeaders,
    RequestLine,
    RequestLog,
    RootPath,
    log,
    rates,
)
from server.api.routing import RouteCounts
from server.api.shadow import Shadows
from server.api.split import SplitCounts
from server.api.usage import Usage
from server.auth import Keys
from server.config import Config
from server.engine.checks import Report
from server.engine.client import FusionEngine

METRICS_PATH = "/metrics"
DESCRIPTION = "One large language model, steered at every token by small expert models in the same engine."


def build_app(engine: FusionEngine, report: Report, keys: Keys) -> FastAPI:
    """Assemble the app over a running engine of the members that the checks reported on."""
    config = report.config
    app = FastAPI(
        title="logit-fusion",
        version=version("logit-fusion"),
        description=DESCRIPTION,
        lifespan=lifespan,
        root_path=config.http.root_path or "",
        docs_url=None,
        redoc_url=None,
    )
    state.fill(app.state, engine, report)
    app.include_router(routes.router)
    app.include_router(stored_routes.router)
    app.include_router(anthropic_routes.router)
    app.include_router(tokenize.router)
    app.include_router(probes.router)
    app.include_router(load.router)
    app.include_router(catalogue.router)
    app.include_router(adapter_routes.router)
    app.include_router(usage_routes.router)
    attach_metrics(app)
    documentation.attach(app, keys)
    playground.attach(app)
    app.state.usage = Usage()
    app.state.routes = RouteCounts()
    app.state.splits = SplitCounts(config)
    app.state.shadows = Shadows(engine, app.state.admission, config)
    recount = metrics.attach(app, engine, config)
    app.state.adapters = Adapters(engine, report, recount, app.state.openai_serving_models.list_presets)
    errors.register(app)
    _add_middleware(app, config, keys)

    @app.get("/version")
    async def show_version() -> dict[str, str]:
        """Versions of this server and of vLLM."""
        return {"version": app.version, "vllm": vllm.__version__}

    return app


def build_metrics_app(app: FastAPI, config: Config, keys: Keys) -> FastAPI:
    """Move `/metrics` from `app` to an app of its own, for another port."""
    metrics_app = FastAPI(openapi_url=None)
    for route in [route for route in app.routes if getattr(route, "path", None) == METRICS_PATH]:
        app.router.routes.remove(route)
        metrics_app.router.routes.append(route)
    errors.register(metrics_app)
    metrics_app.add_middleware(Authentication, keys=keys)
    _add_outer_middleware(metrics_app, config, keys)
    return metrics_app


def _add_middleware(app: FastAPI, config: Config, keys: Keys) -> None:
    # The last one added sees a request first.
    app.add_middleware(BodyLimits, limits=config.limits)
    app.add_middleware(RateHeaders, rates=app.state.admission.rates)
    app.add_middleware(Authentication, keys=keys)
    app.add_middleware(Draining, gate=app.state.admission.gate)
    app.add_middleware(AnthropicErrors)
    if config.http.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.http.cors_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            allow_private_network=True,
            expose_headers=[log.HEADER, unknown_fields.HEADER, "retry-after", *rates.HEADERS],
        )
    if config.http.root_path is not None:
        app.add_middleware(RootPath, root_path=config.http.root_path)
    _add_outer_middleware(app, config, keys)


def _add_outer_middleware(app: FastAPI, config: Config, keys: Keys) -> None:
    app.add_middleware(RequestLine)
    # Who needs a key is not helped by another name.
    if config.http.allowed_hosts is not None or not keys.required:
        app.add_middleware(AllowedHosts, names=config.http.allowed_hosts or ())
    app.add_middleware(RequestLog)
