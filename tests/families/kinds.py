"""Which families are tried, and what makes a tiny checkpoint of each; sizes that are not named are `SIZES`."""

from __future__ import annotations

from typing import Any

SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
ROUTED: dict[str, Any] = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
LATENT: dict[str, Any] = {
    "num_key_value_heads": 2,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32,
    "v_head_dim": 32,
}
# As published: vLLM's latent attention on CPUs takes these sizes alone.
WIDE: dict[str, Any] = {"kv_lora_rank": 512, "qk_rope_head_dim": 64}
MAMBA: dict[str, Any] = {
    "mamba_n_heads": 4,
    "mamba_d_head": 32,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
}

DENSE: dict[str, dict[str, Any]] = {
    "apertus": {},
    "arcee": {},
    "bloom": {"n_head": 2, "n_layer": 2},
    "cohere": {"logit_scale": 1.0},
    "cohere2": {"sliding_window": 24, "logit_scale": 1.0},
    "cwm": {"sliding_window": 24},
    "ernie4_5": {},
    "exaone4": {"sliding_window": 24},
    "gemma": {},
    "gemma2": {"sliding_window": 24, "query_pre_attn_scalar": 32},
    "gemma3_text": {"sliding_window": 24, "query_pre_attn_scalar": 32},
    "gemma4_text": {
        "sliding_window": 24,
        "global_head_dim": 64,
        "hidden_size_per_layer_input": 16,
        "vocab_size_per_layer_input": 512,
    },
    "glm": {},
    "glm4": {},
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neox": {},
    "gptj": {"rotary_dim": 16},
    "granite": {},
    "hunyuan_v1_dense": {},
    "llama": {},
    "ministral3": {},
    "mistral": {"sliding_window": 24},
    "nemotron": {},
    "olmo": {},
    "olmo2": {},
    "olmo3": {"sliding_window": 24},
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64},
    "phi": {},
    "phi3": {},
    "qwen2": {},
    "qwen3": {},
    "seed_oss": {},
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {},
    "vaultgemma": {"sliding_window": 24, "query_pre_attn_scalar": 32},
}
SPARSE: dict[str, dict[str, Any]] = {
    "cohere2_moe": {"num_experts": 4, "num_experts_per_tok": 2, "sliding_window": 24, "logit_scale": 1.0},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 64},
    "flex_olmo": {"num_experts": 4, "num_experts_per_tok": 2},
    "glm4_moe": ROUTED,
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 24},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "granitemoeshared": {"num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 64},
    "hunyuan_v1_moe": {"num_experts": 4, "moe_topk": 2},
    "minimax_m2": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": EXPERTS | {"shared_expert_intermediate_size": 64},
    "qwen3_moe": EXPERTS,
}
LATENTS: dict[str, dict[str, Any]] = {
    "deepseek_v2": ROUTED | LATENT | WIDE,
    "deepseek_v3": ROUTED | LATENT | WIDE | {"topk_method": "noaux_tc", "scoring_func": "sigmoid"},
    "minicpm3": LATENT | {"dim_model_base": 64},
}
# After a "-" stands what sets one entry of a type apart from another.
HYBRID: dict[str, dict[str, Any]] = {
    "granitemoehybrid-attention": MAMBA | {"num_local_experts": 0, "layer_types": ["attention"]},
    "falcon_h1": MAMBA | {"mamba_d_ssm": 128},
    "granitemoehybrid": MAMBA | {"num_local_experts": 0, "layer_types": ["mamba", "attention"]},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "qwen3_5_text": {},
}
MULTIMODAL = ("gemma3", "gemma4", "internvl", "llava", "mistral3", "qwen2_5_vl", "qwen3_vl", "smolvlm")
# Where vLLM 0.32 computes something else than Transformers; Transformers' models are made to do the same.
SEES_ONE_MORE = "layers with a sliding window see one token more in vLLM, as these models are trained, it says"
DEVIATIONS = {
    "apertus": "vLLM has two numbers of each activation in bfloat16, whatever the model is in",
    "bloom": "the activation is GELU itself in vLLM, and its approximation by tanh in Transformers",
    "cohere2": SEES_ONE_MORE,
    "cohere2_moe": SEES_ONE_MORE,
}
# Which formats each of these is quantised in.
QUANTISED: dict[str, tuple[str, ...]] = {
    "llama": ("int8", "int4", "AWQ", "GPTQ", "FP8 by row"),
    "qwen3": ("int8", "AWQ"),
    "gemma3_text": ("int8", "GPTQ"),
    "phi3": ("int8", "AWQ"),
    "qwen3_moe": ("int8",),
}

KINDS = [*DENSE, *SPARSE, *LATENTS, *HYBRID, *MULTIMODAL]
SETTINGS = DENSE | SPARSE | LATENTS | HYBRID
