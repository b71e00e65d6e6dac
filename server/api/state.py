"""What the app's routes share: the engine, the configuration, and vLLM's serving objects over them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Protocol, cast

from starlette.datastructures import State
from starlette.requests import Request
from vllm.entrypoints.openai.chat_completion.batch_serving import OpenAIServingChatBatch
from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
from vllm.entrypoints.serve.tokenize.serving import ServingTokenization
from vllm.renderers import renderer_from_config
from vllm.renderers.online_renderer import OnlineRenderer

from server.api.adapters import Adapters
from server.api.admission import Admission
from server.api.anthropic_serving import MessagesServing
from server.api.completions import Completions
from server.api.presets import PresetModels
from server.api.routing import RouteCounts
from server.api.shadow import Shadows
from server.api.split import SplitCounts
from server.api.stored import StoredResponses
from server.api.structures import Structures
from server.api.texts import Renderer
from server.api.tool_calls import TOOL_PARSER, CutOffCalls
from server.api.usage import Usage
from server.config import Config
from server.engine.checks import Report
from server.engine.client import FusionEngine
from server.engine.structures.compiler import Compiler


class ServerState(Protocol):
    """`app.state`, typed. The names that vLLM's own routes read are vLLM's."""

    config: Config
    report: Report
    engine_client: FusionEngine
    adapters: Adapters
    admission: Admission
    usage: Usage
    routes: RouteCounts
    splits: SplitCounts
    shadows: Shadows
    structures: Structures
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


def fill(state: State, engine: FusionEngine, report: Report) -> None:
    """Build vLLM's serving objects for one engine and put them where the routes look for them."""
    typed = cast(ServerState, state)
    config = report.config
    typed.config, typed.report, typed.engine_client = config, report, engine
    typed.admission = Admission(report, engine.vllm_config)
    tokenizer = engine.get_tokenizer()
    compact = engine.vllm_config.structured_outputs_config.disable_any_whitespace
    compiler = Compiler(tokenizer, engine.model_config.get_vocab_size(), config.structures.compile_cpu_s, compact)
    typed.structures = Structures(config, tokenizer, compiler)
    # vLLM's routes and handlers read these options of its command line.
    state.args = SimpleNamespace(log_error_stack=False)
    state.log_stats = engine.log_stats
    typed.openai_serving_models = models = PresetModels(engine, config)
    templates: dict[str, Any] = {"chat_template": None, "chat_template_content_format": "auto"}
    parsing: dict[str, Any] = {
        "enable_auto_tools": True,
        "tool_parser": TOOL_PARSER,
        # Arguments follow the tool's schema also where the tool does not say `strict`.
        "tool_strict_level": "parameter",
        "reasoning_parser": engine.vllm_config.structured_outputs_config.reasoning_parser,
    }
    rendering: dict[str, Any] = {"model_config": engine.model_config, "request_logger": None, **templates, **parsing}
    long = OnlineRenderer(renderer=renderer_from_config(engine.vllm_config), **rendering)
    renderer = Renderer(long, typed.admission.gate, config.admission, renderer=engine.renderer, **rendering)
    for either in (renderer, long):
        either.warmup()
    serving: dict[str, Any] = {"online_renderer": renderer, "request_logger": None}
    typed.serving_tokenization = ServingTokenization(models, **serving, **templates)
    serving["enable_prompt_tokens_details"] = True
    typed.chat = CutOffCalls(engine, models, "assistant", **serving, **templates, **parsing)
    typed.batch = OpenAIServingChatBatch(engine, models, "assistant", **serving, **templates, **parsing)
    typed.messages = MessagesServing(engine, models, "assistant", **serving, **templates, **parsing)
    typed.completion = Completions(engine, models, **serving)
    typed.responses = StoredResponses(engine, models, **serving, **templates, **parsing, config=config)
    if config.limits.max_tokens is not None:
        for answering in (typed.chat, typed.batch, typed.messages, typed.completion, typed.responses):
            # What vLLM takes for requests that leave `max_tokens` out.
            answering.override_max_tokens = config.limits.max_tokens
