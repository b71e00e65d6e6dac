"""Members as transformers models, and the folders they are saved in."""

from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from zoo.induction import ROPE_THETA, write_induction_head
from zoo.recipe import MemberSize, Recipe


def build_model(size: MemberSize, recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Make a freshly initialised float32 member, with the head start of `zoo.induction`."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        head_dim=size.head_dim,
        intermediate_size=size.intermediate,
        max_position_embeddings=recipe.max_position_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        dtype=torch.float32,
    )
    model = LlamaForCausalLM(config)  # type: ignore[no-untyped-call]
    write_induction_head(model)
    return model


def save_member(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write one Hugging Face folder: weights as bf16 safetensors, configuration, tokenizer, chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    saved = LlamaForCausalLM(model.config)  # type: ignore[no-untyped-call]
    saved.load_state_dict(model.state_dict())
    torch.nn.Module.to(saved, torch.bfloat16)
    saved.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    saved.save_pretrained(folder)
    # safetensors files come out readable by their owner alone; a shared installation needs more.
    (folder / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(folder)


def load_member(folder: Path) -> LlamaForCausalLM:
    """Load a saved member as float32, to train on."""
    model: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model
