"""What the engine package leans on in vLLM, said one by one: after an upgrade, the one that broke fails by name."""

from __future__ import annotations

import dataclasses
import inspect
from importlib.metadata import entry_points
from typing import Any

import pytest
import torch
import vllm
import vllm.v1.worker.cpu.shm
from vllm import SamplingParams
from vllm.config import CacheConfig, ModelConfig, ParallelConfig, VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
from vllm.forward_context import ForwardContext, create_forward_context, override_forward_context
from vllm.model_executor.layers.attention.attention import Attention
from vllm.model_executor.model_loader import DefaultModelLoader
from vllm.plugins import DEFAULT_PLUGINS_GROUP
from vllm.utils.torch_utils import LayerNameType, _encode_layer_name, _resolve_layer_name, direct_register_custom_op
from vllm.v1.core import kv_cache_utils
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.sample import logits_processor
from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.structured_output.backend_guidance import serialize_guidance_grammar
from vllm.v1.worker.cpu_worker import CPUWorker
from vllm.v1.worker.gpu import cudagraph_utils
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor, CudaGraphManager
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.model_runner import GPUModelRunner, sort_batch_req_ids
from vllm.v1.worker.gpu.model_states import resolve_model_state_cls
from vllm.v1.worker.gpu.sample import prompt_logprob
from vllm.v1.worker.gpu.sample.prompt_logprob import PromptLogprobsWorker
from vllm.v1.worker.utils import AttentionGroup, allocate_kv_cache

from evaluation.decoding import GREEDY
from server.engine.checks.generation import NAMES
from server.engine.extension import FusionWorkerExtension
from server.engine.member import RESOLVED_LATE, SmallMember
from server.engine.plugin import register


def source(thing: Any) -> str:
    return " ".join(inspect.getsource(thing).split())


def in_order(text: str, *parts: str) -> bool:
    places = [text.find(part) for part in parts]
    return -1 not in places and places == sorted(places)


def test_the_version_that_all_this_was_read_in() -> None:
    assert vllm.__version__.startswith("0.32.0"), "read this file's claims in the new version, then change this line"


def test_a_model_may_name_its_state() -> None:
    assert "return model.get_model_state_cls()" in source(resolve_model_state_cls)


def test_requests_enter_and_leave_slots_through_the_state() -> None:
    added = source(GPUModelRunner.add_requests)
    assert in_order(
        added, "self.model_state.add_request(req_index, new_req_data)", "self.model_state.apply_staged_writes("
    )
    assert in_order(
        source(GPUModelRunner._remove_request),
        "self.model_state.remove_request(req_id)",
        "self.req_states.remove_request(req_id)",
    )
    fields = {field.name for field in dataclasses.fields(NewRequestData)}
    assert {"req_id", "sampling_params", "prefill_token_ids"} <= fields
    assert isinstance(NewRequestData.prompt_len, property)


def test_a_preempted_request_leaves_its_slot_and_comes_back_as_a_new_one() -> None:
    assert "finished_req_ids.union(preempted_req_ids)" in source(GPUModelRunner.finish_requests)


def test_the_state_is_asked_in_this_order() -> None:
    step = source(GPUModelRunner.execute_model)
    assert in_order(
        step,
        "self.finish_requests(scheduler_output)",
        "self.add_requests(scheduler_output)",
        "attn_metadata = self.model_state.prepare_attn(",
        "**self.model_state.prepare_inputs(input_batch, self.req_states)",
        "self.cudagraph_manager.run_fullgraph(batch_desc)",
        "model_output = self.model(**model_inputs)",
    )
    # Without attention metadata, when memory is profiled, `prepare_inputs` alone is called.
    assert "elif not (dummy_run and skip_attn_for_dummy_run):" in step
    # A connector would transfer a step's KV cache after the members have written theirs.
    assert in_order(step, "self.model_state.prepare_inputs(", "self.kv_connector.pre_forward(")


def test_sampled_tokens_are_in_the_table_when_the_state_hears_of_them() -> None:
    assert in_order(source(GPUModelRunner.sample_tokens), "= self.sample(", "self.postprocess_sampled(")
    told = source(GPUModelRunner.postprocess_sampled)
    assert in_order(told, "post_update(", "self.req_states.all_token_ids.gpu", "self.model_state.postprocess_state(")


def test_graphs_are_captured_around_the_state() -> None:
    assert in_order(
        source(GPUModelRunner.capture_model),
        "self.cudagraph_manager.capture(",
        "self.model_state.capture_inner_cudagraphs(",
    )
    # By then every layer has its part of the KV cache.
    assert in_order(
        source(GPUModelRunner.initialize_kv_cache), "init_kv_cache(", "self.model_state.initialize_kv_cache("
    )
    assert "runner.capture_model(profile_only=True)" in source(cudagraph_utils.profile_cudagraph_memory)
    # The large model's capture makes metadata of dummy batches, and runs no `prepare_inputs`.
    assert "model_state.prepare_inputs(" not in source(cudagraph_utils)


def test_a_graph_manager_can_be_used_for_a_member() -> None:
    parameters = list(inspect.signature(CudaGraphManager.__init__).parameters)
    assert parameters[1:5] == ["vllm_config", "device", "cudagraph_mode", "decode_query_len"]
    capture = source(CudaGraphManager.capture)
    # Once to warm up, once more before what is captured.
    assert in_order(
        capture, "create_forward_fn(desc, warmup=True)", "create_forward_fn(desc, warmup=False)", "torch.cuda.graph("
    )
    names = [field.name for field in dataclasses.fields(BatchExecutionDescriptor)]
    assert names[:4] == ["cg_mode", "num_tokens", "num_reqs", "uniform_token_count"]


def test_sampled_rows_come_first_and_prompt_rows_are_cut_out_of_the_forward_pass() -> None:
    assert in_order(
        source(GPUModelRunner.sample_tokens),
        "= self.sample( hidden_states, input_batch, grammar_output )",
        "self.prompt_logprobs_worker.compute_prompt_logprobs( self.model.compute_logits, hidden_states,",
    )
    sample = source(GPUModelRunner.sample)
    assert "sample_hidden_states = hidden_states[input_batch.logits_indices]" in sample
    assert sample.count("self.model.compute_logits(") == 1
    assert "logits_fn(hidden_states[base + a : base + b])" in source(
        PromptLogprobsWorker.compute_prompt_token_id_logprobs
    )
    assert "hidden_states[start_idx:end_idx]" in source(prompt_logprob.compute_prompt_logprobs_with_chunking)
    assert "hidden_states[: input_batch.num_tokens]" in source(PromptLogprobsWorker.compute_prompt_logprobs)


def test_a_batch_tells_its_layout_on_the_host() -> None:
    fields = {field.name for field in dataclasses.fields(InputBatch)}
    assert {
        "idx_mapping_np",
        "query_start_loc_np",
        "cu_num_logits_np",
        "num_scheduled_tokens",
        "num_computed_tokens_np",
        "prefill_len_np",
        "is_prefilling_np",
        "seq_lens_cpu_upper_bound",
    } <= fields
    assert "prefill_len_np=np.zeros(" in source(InputBatch.make_dummy), "a dummy batch is known by its empty prompts"


def test_builders_of_metadata_can_be_copied_for_some_layers() -> None:
    fields = {field.name for field in dataclasses.fields(AttentionGroup)}
    assert {"layer_names", "metadata_builders", "kernel_block_size"} <= fields
    assert list(inspect.signature(AttentionGroup.create_metadata_builders).parameters)[1:4] == [
        "vllm_config",
        "device",
        "kernel_block_size",
    ]


def test_the_layers_of_the_cache_lie_in_one_allocation() -> None:
    said = inspect.getdoc(allocate_kv_cache) or ""
    assert "Every KVCacheTensor places its layers in the same backing allocation" in said
    # Decodes lead a batch, of one member or of several.
    assert "relies on decode-like requests leading" in source(sort_batch_req_ids)


def test_an_operator_may_name_its_layer() -> None:
    encoded = _encode_layer_name("large.layer")
    assert isinstance(encoded, LayerNameType)
    assert _resolve_layer_name(encoded) == "large.layer"
    parameters = list(inspect.signature(direct_register_custom_op).parameters)
    assert parameters[:5] == ["op_name", "op_func", "mutates_args", "fake_impl", "target_lib"]


def test_what_a_cache_configuration_learns_late() -> None:
    """A member's copy is made before, and its attention backend reads it after."""
    assert set(RESOLVED_LATE) <= {field.name for field in dataclasses.fields(CacheConfig)}
    with pytest.raises(ValueError, match="not been resolved"):
        CacheConfig().get_resolved_kv_cache_layout()


def test_a_members_builders_know_the_engines_cache() -> None:
    engine, own = CacheConfig(), CacheConfig(block_size=32, sliding_window=7)
    engine.kv_cache_layout, engine.num_gpu_blocks, engine.block_size = "NHD", 99, 16
    model: Any = None
    config = VllmConfig(cache_config=own)
    member = SmallMember("base.", model, config, None)
    member.take_groups([], engine, torch.device("cpu"))
    assert (own.kv_cache_layout, own.num_gpu_blocks, own.block_size, own.sliding_window) == ("NHD", 99, 16, 7)


def test_a_forward_context_can_be_put_around_a_member() -> None:
    assert {"attn_metadata", "vllm_config", "slot_mapping"} <= set(inspect.signature(create_forward_context).parameters)
    assert "slot_mapping" in {field.name for field in dataclasses.fields(ForwardContext)}
    assert callable(override_forward_context)


def test_a_salt_is_part_of_a_prompts_first_block() -> None:
    assert 'cache_salt=decoder_input.get("cache_salt")' in source(InputProcessor.process_inputs)
    assert "request.cache_salt" in source(kv_cache_utils.generate_block_hash_extra_keys)


def test_a_request_can_have_room_past_its_tokens() -> None:
    parameters = inspect.signature(KVCacheManager.allocate_slots).parameters
    assert list(parameters)[:3] == ["self", "request", "num_new_tokens"]
    assert parameters["num_lookahead_tokens"].default == 0
    allocate = source(KVCacheManager.allocate_slots)
    assert "num_tokens_main_model + num_lookahead_tokens, self.max_model_len" in allocate
    # What was only made room for is not offered to others.
    assert "num_lookahead_tokens" not in allocate[allocate.index("allocate_new_blocks") :]
    schedule = source(Scheduler.schedule)
    assert (
        schedule.count("allocate_slots( request, num_") == schedule.count("self.kv_cache_manager.allocate_slots(") == 2
    )


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
    (plugin,) = entry_points(group=DEFAULT_PLUGINS_GROUP, name="logit_fusion")
    assert plugin.load() is register


def test_nothing_stands_in_the_way_of_a_plain_vllm_serve() -> None:
    """Model Runner V2 refuses to start beside a logits processor written for the runner before it."""
    assert not [point for point in entry_points(group=logits_processor.LOGITSPROCS_GROUP) if "server" in point.value]


def test_workers_can_be_extended() -> None:
    assert "worker_extension_cls" in {field.name for field in dataclasses.fields(ParallelConfig)}
    assert "worker_extension_cls" in {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    for name in vars(FusionWorkerExtension):
        assert name.startswith("__") or not hasattr(CPUWorker, name), "vLLM refuses an extension that overrides"


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


class TestStructuredOutputs:
    """Why the API tries constraints itself, and what it leans on."""

    def test_one_backend_for_all_requests_named_by_the_first(self) -> None:
        made = source(StructuredOutputManager.grammar_init)
        assert in_order(made, "if self.backend is None:", "structured_outputs._backend", "GuidanceBackend(")

    def test_vllms_own_check_is_skipped_without_a_configuration(self) -> None:
        assert "self.structured_outputs_config, self.tokenizer" in source(InputProcessor._validate_params)
        skipped = "if structured_outputs_config is None or self.structured_outputs is None: return"
        assert skipped in source(SamplingParams._validate_structured_outputs)

    def test_its_backend_knows_the_older_structural_tag_alone(self) -> None:
        assert 's_tag["triggers"]' in source(serialize_guidance_grammar)
        assert '"format"' not in source(serialize_guidance_grammar), "no longer needed: server.engine.structures.tags?"

    def test_stream_of_text_completions_asks_for_the_prompt_at_each_choice(self) -> None:
        streamed = source(OpenAIServingCompletion.completion_stream_generator)
        assert in_order(streamed, "prompt_logprobs = res.prompt_logprobs", "has_echoed[i]", "*(prompt_logprobs or [])")
        whole = source(OpenAIServingCompletion.request_output_to_completion_response)
        assert "num_generated_tokens += len(output.token_ids)" in whole
