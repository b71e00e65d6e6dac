"""The presets as the models that clients see."""

from __future__ import annotations

from contextvars import ContextVar

from vllm.entrypoints.openai.models.protocol import BaseModelPath
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.lora.request import LoRARequest

from server.config import Config
from server.engine.client import FusionEngine

_answering: ContextVar[str] = ContextVar("_answering")


class PresetModels(OpenAIServingModels):
    """vLLM's model list, holding the presets.

    vLLM signs every answer with the first of its names; here it is the preset that the request named.
    """

    def __init__(self, engine: FusionEngine, config: Config) -> None:
        super().__init__(engine, [])
        self._config = config
        self.list_presets()

    def list_presets(self) -> None:
        """Take the presets' names anew: adapters come and go."""
        # In the list that vLLM's registry holds too. The second argument is shown as the model's `root`; a path of this
        # machine is nobody's business.
        self.base_model_paths[:] = [BaseModelPath(name, name) for name in self._config.named_presets]

    def model_name(self, lora_request: LoRARequest | None = None) -> str:
        """The preset that answers the current request."""
        return _answering.get()

    def answer_as(self, preset: str) -> None:
        """Sign the answer of the request that runs in this task with `preset`."""
        _answering.set(preset)
