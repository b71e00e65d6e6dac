"""What the app's routes share: the engine, the configuration, and vLLM's serving objects over them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Protocol, cast

from starlette.datastructures import State
from starlette.requests import Request
from vllm.entrypoints.openai.chat_completion.batch_serving import OpenAIServingChatBatch
from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
from vllm.entrypoints.serve.tokenize.serving import ServingTokenization
from vllm.renderers.online_renderer import OnlineRenderer

from server.api.admission import Admission
from server.api.anthropic_serving import MessagesServing
from server.api.presets import PresetModels
from server.api.stored import StoredResponses
from server.api.tool_calls import TOOL_PARSER, CutOffCalls
from server.config import Config
from server.engine.client import FusionEngine


class ServerState(Protocol):
    """`app.state`, typed. The names that vLLM's own routes read are vLLM's."""

    config: Config
    members: dict[str, Any]
    engine_client: FusionEngine
    admission: Admission
    openai_serving_models: PresetModels
    serving_tokenization: ServingTokenization
    chat: CutOffCalls
    batch: OpenAIServingChatBatch
    messages: MessagesServing
    completion: OpenAIServingCompletion
    responses: StoredResponses


def state_of(raw_request: Request) -> ServerState:
    """The state of the app that a request came to."""
    state: ServerState = raw_request.app.state
    return state


def fill(state: State, engine: FusionEngine, config: Config, members: dict[str, Any]) -> None:
    """Build vLLM's serving objects for one engine and put them where the routes look for them."""
    typed = cast(ServerState, state)
    typed.config, typed.members, typed.engine_client = config, members, engine
    typed.admission = Admission(config, engine.vllm_config, members)
    # vLLM's routes and handlers read these options of its command line.
    state.args = SimpleNamespace(log_error_stack=False)
    state.log_stats = engine.log_stats
    typed.openai_serving_models = models = PresetModels(engine, config)
    templates: dict[str, Any] = {"chat_template": None, "chat_template_content_format": "auto"}
    tools: dict[str, Any] = {
        "enable_auto_tools": True,
        "tool_parser": TOOL_PARSER,
        # Arguments follow the tool's schema also where the tool does not say `strict`.
        "tool_strict_level": "parameter",
    }
    renderer = OnlineRenderer(
        model_config=engine.model_config, renderer=engine.renderer, request_logger=None, **templates, **tools
    )
    renderer.warmup()
    serving: dict[str, Any] = {"online_renderer": renderer, "request_logger": None}
    typed.serving_tokenization = ServingTokenization(models, **serving, **templates)
    serving["enable_prompt_tokens_details"] = True
    typed.chat = CutOffCalls(engine, models, "assistant", **serving, **templates, **tools)
    typed.batch = OpenAIServingChatBatch(engine, models, "assistant", **serving, **templates, **tools)
    typed.messages = MessagesServing(engine, models, "assistant", **serving, **templates, **tools)
    typed.completion = OpenAIServingCompletion(engine, models, **serving)
    typed.responses = StoredResponses(engine, models, **serving, **templates, **tools, config=config)
    if config.limits.max_tokens is not None:
        for answering in (typed.chat, typed.batch, typed.messages, typed.completion, typed.responses):
            # What vLLM takes for requests that leave `max_tokens` out.
            answering.override_max_tokens = config.limits.max_tokens
