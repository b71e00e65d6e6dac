"""Which function stands for which of vLLM's Triton kernels."""

# Names below vllm.v1.worker -> module and function of this folder.
KERNELS = {
    "gpu.buffer_utils._apply_write_kernel": "blocks.apply_write",
    "gpu.block_table._gather_block_tables_kernel": "blocks.gather_block_tables",
    "gpu.block_table._compute_slot_mappings_kernel": "blocks.compute_slot_mappings",
    "gpu.input_batch._prepare_prefill_inputs_kernel": "inputs.prepare_prefill_inputs",
    "gpu.input_batch._prepare_pos_seq_lens_kernel": "inputs.prepare_pos_seq_lens",
    "gpu.input_batch._combine_sampled_and_draft_tokens_kernel": "inputs.combine_sampled_and_draft_tokens",
    "gpu.input_batch._expand_idx_mapping_kernel": "inputs.expand_idx_mapping",
    "gpu.mm.rope._prepare_rope_positions_kernel": "inputs.prepare_rope_positions",
    "gpu.model_states.prompt_embeds._apply_prompt_embeds_kernel": "inputs.apply_prompt_embeds",
    "gpu.input_batch._get_num_sampled_and_rejected_kernel": "results.get_num_sampled_and_rejected",
    "gpu.input_batch._post_update_kernel": "results.post_update",
    "gpu.input_batch._post_update_num_computed_tokens_kernel": "results.post_update_num_computed_tokens",
    "gpu.model_states.mamba_hybrid._scatter_num_accepted_kernel": "mamba.scatter_num_accepted",
    "gpu.model_states.mamba_hybrid._fill_num_accepted_kernel": "mamba.fill_num_accepted",
    "gpu.sample.trace_replay._trace_replay_kernel": "results.trace_replay",
    "gpu.sample.output._compact_sampling_mask_kernel": "results.compact_sampling_mask",
    "gpu.sample.gumbel._gumbel_sample_kernel": "sampling.gumbel_sample",
    "gpu.sample.gumbel._temperature_kernel": "sampling.temperature",
    "gpu.sample.min_p._min_p_kernel": "sampling.min_p",
    "gpu.sample.penalties._penalties_kernel": "penalties.penalties",
    "gpu.sample.penalties._bincount_kernel": "penalties.bincount",
    "gpu.sample.logit_bias._bias_kernel": "bias.bias",
    "gpu.sample.bad_words._bad_words_kernel": "bias.bad_words",
    "gpu.sample.thinking_budget._update_committed_marker_cache_kernel": "reasoning.update_committed_marker_cache",
    "gpu.sample.thinking_budget._thinking_budget_kernel": "reasoning.thinking_budget",
    "gpu.structured_outputs._apply_grammar_bitmask_kernel": "grammar.apply_grammar_bitmask",
    "gpu.metrics.logits._num_nans_kernel": "logprobs.num_nans",
    "gpu.sample.logprob._topk_log_softmax_kernel": "logprobs.topk_log_softmax",
    "gpu.sample.logprob._ranks_kernel": "logprobs.ranks",
    "gpu.sample.logprob._fill_logprob_token_ids_kernel": "logprobs.fill_logprob_token_ids",
    "gpu.sample.prompt_logprob._prompt_logprobs_token_ids_kernel": "logprobs.prompt_logprobs_token_ids",
    "gpu.spec_decode.rejection_sampler._gather_draft_sampled_kernel": "drafts.gather_draft_sampled",
    "gpu.spec_decode.rejection_sampler._flatten_sampled_kernel": "drafts.flatten_sampled",
    "gpu.spec_decode.standalone_ar.speculator._prepare_prefill_inputs_kernel": "drafts.prepare_prefill_inputs",
    "gpu.spec_decode.rejection_sampler_utils._compute_local_logits_stats_kernel": (
        "likelihoods.compute_local_logits_stats"
    ),
    "gpu.spec_decode.rejection_sampler_utils._rejection_kernel": "verification.rejection",
    "gpu.spec_decode.rejection_sampler_utils._resample_kernel": "verification.resample",
    "gpu.spec_decode.rejection_sampler_utils._insert_resampled_kernel": "verification.insert_resampled",
}

# Features whose kernels nothing here stands for, and these kernels.
_UNSUPPORTED = {
    "decode context parallelism": [
        "gpu.cp_utils._dcp_local_seq_lens_kernel",
    ],
    "recoverable states of KDA layers": [
        "gpu.model_states.recoverssm._postprocess_recoverssm_align_kernel",
    ],
    "enable_batch_sharded_sampling": [
        "gpu.sample.batch_shard._build_shard_plan_kernel",
        "gpu.sample.batch_shard._pack_logprobs_kernel",
        "gpu.sample.batch_shard._pack_sampler_output_kernel",
        "gpu.sample.batch_shard._unpack_gathered_output_kernel",
        "gpu.sample.batch_shard._unpack_logprobs_kernel",
    ],
    "watermarking": [
        "gpu.sample.watermark._philox_gumbel_kernel",
        "gpu.sample.watermark._repeated_context_mask_kernel",
    ],
    "adaptive verification of drafts": [
        "gpu.spec_decode.acceptance_estimator._accumulate_kernel",
        "gpu.spec_decode.acceptance_estimator._local_max_sumexp_kernel",
        "gpu.spec_decode.acceptance_estimator._predict_kernel",
        "gpu.spec_decode.acceptance_estimator._refit_kernel",
    ],
    "DFlash speculation": [
        "gpu.spec_decode.dflash.speculator._prepare_dflash_inputs_kernel",
        "gpu.spec_decode.dflash2.speculator._cache_draft_logits_kernel",
        "gpu.spec_decode.dflash2.speculator._selector_walk_kernel",
    ],
    "speculation by several MTP modules": [
        "gpu.spec_decode.multi_module_mtp.speculator._cache_inputs_kernel",
        "gpu.spec_decode.multi_module_mtp.speculator._pad_trailing_draft_slots_kernel",
        "gpu.spec_decode.multi_module_mtp.speculator._prepare_input_buffers_kernel",
        "gpu.spec_decode.multi_module_mtp.speculator._prepare_input_hidden_states_and_embeddings_kernel",
        "gpu.spec_decode.multi_module_mtp.speculator._shift_input_embeds_kernel",
        "gpu.spec_decode.multi_module_mtp.speculator._shift_input_ids_kernel",
    ],
    "n-gram speculation": [
        "gpu.spec_decode.ngram.speculator._ngram_finalize_kernel",
        "gpu.spec_decode.ngram.speculator._ngram_scan_kernel",
    ],
    'rejection_sample_method="block"': [
        "gpu.spec_decode.rejection_sampler_utils._compute_cumulative_log_p_kernel",
        "gpu.spec_decode.rejection_sampler_utils._compute_local_residual_mass_kernel",
    ],
    "EAGLE and MTP speculation": [
        "gpu.spec_decode.target_dependent_ar.speculator._prepare_decode_inputs_kernel",
        "gpu.spec_decode.target_dependent_ar.speculator._prepare_prefill_inputs_kernel",
        "gpu.spec_decode.target_dependent_ar.speculator._update_draft_inputs_kernel",
    ],
    "the prefix cache of Mamba layers": [
        "mamba_utils.get_aligned_state_indices_multi_group_kernel",
        "mamba_utils.postprocess_mamba_fused_kernel",
        "mamba_utils.precopy_mamba_align_fused_kernel",
        "mamba_utils.preprocess_mamba_align_fused_kernel",
    ],
}
UNSUPPORTED = {kernel: feature for feature, kernels in _UNSUPPORTED.items() for kernel in kernels}
