"""What the engine package leans on in vLLM, said one by one: after an upgrade, the one that broke fails by name."""

from __future__ import annotations

import dataclasses
import inspect
from importlib.metadata import entry_points
from typing import Any

import pytest
import torch
import vllm
from vllm.config import CacheConfig, ModelConfig, ParallelConfig, VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.model_executor.layers.attention.attention import Attention
from vllm.model_executor.model_loader import DefaultModelLoader
from vllm.plugins import DEFAULT_PLUGINS_GROUP
from vllm.v1.attention.backends.cpu_attn import CPUAttentionMetadata
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.sample import logits_processor
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.interface import AddedRequest, MovedRequest
from vllm.v1.worker.cpu_worker import CPUWorker
from vllm.v1.worker.gpu_input_batch import InputBatch
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from evaluation.decoding import GREEDY
from server.engine.batch import FusionSettingsTracker
from server.engine.checks.generation import NAMES
from server.engine.cpu_worker import FusionCPUWorker
from server.engine.extension import FusionWorkerExtension
from server.engine.plugin import register


def source(thing: Any) -> str:
    return " ".join(inspect.getsource(thing).split())


def in_order(text: str, *parts: str) -> bool:
    places = [text.find(part) for part in parts]
    return -1 not in places and places == sorted(places)


def test_the_version_that_all_this_was_read_in() -> None:
    assert vllm.__version__.startswith("0.32.0"), "read this file's claims in the new version, then change this line"


def test_batch_update_and_the_order_of_its_parts() -> None:
    assert [field.name for field in dataclasses.fields(BatchUpdate)] == ["batch_size", "removed", "added", "moved"]
    assert "- removed, added, moved" in inspect.getsource(BatchUpdate)
    assert len(AddedRequest.__args__) == 4  # type: ignore[attr-defined]
    assert len(MovedRequest.__args__) == 3  # type: ignore[attr-defined]


def test_logits_processor_interface() -> None:
    assert {"update_state", "is_argmax_invariant", "apply", "__init__"} == LogitsProcessor.__abstractmethods__
    assert list(inspect.signature(LogitsProcessor.__init__).parameters)[1:] == [
        "vllm_config",
        "device",
        "is_pin_memory",
    ]
    assert callable(LogitsProcessor.validate_params)


def test_processors_hear_of_the_batch_before_the_forward_pass() -> None:
    assert in_order(source(GPUModelRunner.execute_model), "self._update_states(", "self._model_forward(")
    update = source(GPUModelRunner._update_states)
    assert in_order(update, "add_request(", "condense()", "_may_reorder_batch(", "refresh_metadata()")
    assert "logit_proc.update_state(batch_update)" in source(InputBatch.refresh_metadata)


def test_logits_come_from_slices_of_the_forward_pass() -> None:
    assert "self.model.compute_logits(sample_hidden_states)" in source(GPUModelRunner.execute_model)
    assert "self.model.compute_logits(prompt_hidden_states)" in source(GPUModelRunner._get_prompt_logprobs_dict)


def test_attention_metadata_has_the_layout_of_the_step() -> None:
    assert "query_start_loc" in {field.name for field in dataclasses.fields(CPUAttentionMetadata)}


def test_loader_streams_secondary_weights() -> None:
    fields = {field.name for field in dataclasses.fields(DefaultModelLoader.Source)}
    assert {"model_or_path", "revision", "prefix"} <= fields
    assert 'getattr(model, "secondary_weights", ())' in source(DefaultModelLoader.get_all_weights)


def test_attention_takes_a_uniform_window_from_the_cache_configuration() -> None:
    assert "sliding_window = cache_config.sliding_window" in source(Attention.__init__)
    assert "sliding_window" in {field.name for field in dataclasses.fields(CacheConfig)}


def test_a_members_text_configuration_is_left_as_the_large_models() -> None:
    made = source(VllmConfig.with_hf_config)
    assert "model_config.hf_config = hf_config" in made
    assert "model_config.hf_text_config" not in made, "no longer needed in composite._member_config?"


def test_entry_points_are_vllms_and_load_ours() -> None:
    assert DEFAULT_PLUGINS_GROUP == "vllm.general_plugins"
    assert logits_processor.LOGITSPROCS_GROUP == "vllm.logits_processors"
    (plugin,) = entry_points(group=DEFAULT_PLUGINS_GROUP, name="logit_fusion")
    assert plugin.load() is register
    (processor,) = entry_points(group=logits_processor.LOGITSPROCS_GROUP, name="logit_fusion")
    assert processor.load() is FusionSettingsTracker


def test_workers_can_be_chosen_and_extended() -> None:
    assert {"worker_cls", "worker_extension_cls"} <= {field.name for field in dataclasses.fields(ParallelConfig)}
    assert {"worker_cls", "worker_extension_cls"} <= {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    for name in vars(FusionWorkerExtension):
        assert name.startswith("__") or not hasattr(FusionCPUWorker, name), "vLLM refuses an extension that overrides"


def test_engine_client_methods() -> None:
    assert list(inspect.signature(AsyncLLM.generate).parameters)[1:4] == ["prompt", "sampling_params", "request_id"]
    assert {"timeout", "args"} <= set(inspect.signature(AsyncLLM.collective_rpc).parameters)
    assert isinstance(AsyncLLM.errored, property)


def test_what_a_request_may_take_from_generation_config() -> None:
    listed = source(ModelConfig.get_diff_sampling_param).partition("available_params = [")[2].partition("]")[0]
    assert [name.strip().strip('"') for name in listed.split(",") if name.strip()] == list(NAMES)
    assert set(CompletionRequest(prompt="a")._DEFAULT_SAMPLING_PARAMS) == set(GREEDY), (
        "the evaluation must name them all"
    )


class TestGeneratorsOnCPU:
    """Why `FusionCPUWorker` is there, and what it leans on."""

    def test_vllm_takes_generators_back_and_cpus_cannot(self) -> None:
        assert "gen.set_offset(gen.get_offset() - 4)" in source(GPUModelRunner._bookkeeping_sync), "no longer needed?"
        with pytest.raises(RuntimeError, match="does not use offset"):
            torch.Generator().get_offset()

    def test_vllm_reads_them_in_sample_tokens_from_the_batch(self) -> None:
        assert "self.model_runner.sample_tokens(grammar_output)" in source(CPUWorker.sample_tokens)
        assert "generators=self.generators" in source(InputBatch._make_sampling_metadata)
        assert "self.input_batch.generators.get(" in source(GPUModelRunner._bookkeeping_sync)
        assert "self.discard_request_mask.np" in source(GPUModelRunner._prepare_inputs)
        assert "_bookkeeping_sync(" in source(GPUModelRunner.sample_tokens)
