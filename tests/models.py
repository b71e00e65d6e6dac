"""Tiny random models, adapters and tokenizers in the Hugging Face format, made in a folder in well under a second.

Everything is drawn from a seed, so a test that fails today fails tomorrow. The weights are scaled so that greedy
decoding wanders through the vocabulary instead of repeating one token: a test of generated tokens needs that.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Gemma2Config,
    Gemma3TextConfig,
    Gemma4TextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

Architecture = Literal["llama", "qwen2", "qwen3", "mistral", "mixtral", "gemma", "gemma2", "gemma3", "gemma4"]
DType = Literal["float32", "bfloat16", "float16"]

CONFIGS: dict[Architecture, type[PreTrainedConfig]] = {
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "mistral": MistralConfig,
    "mixtral": MixtralConfig,
    "gemma": GemmaConfig,
    "gemma2": Gemma2Config,
    "gemma3": Gemma3TextConfig,
    "gemma4": Gemma4TextConfig,
}
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>")
PAD, BOS, EOS = range(3)
LETTERS = "etaoinshrdlcumwfgypbvkjxqz" + "ETAOINSHRDLCUMWFGYPBVKJXQZ"
# How families call the norm after the last layer.
LAST_NORMS = (
    "model.norm.weight",
    "model.language_model.norm.weight",
    "model.text_model.norm.weight",
    "model.final_layernorm.weight",
    "model.decoder.final_layer_norm.weight",
    "gpt_neox.final_layer_norm.weight",
    "transformer.ln_f.weight",
)
MIN_VOCAB, MAX_VOCAB = 259, 259 + len(LETTERS) ** 2
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def make_tokenizer(folder: Path, vocab_size: int = 512, variant: int = 0) -> PreTrainedTokenizerFast:
    """Save a byte-level BPE tokenizer of exactly `vocab_size` ids: three special ones, the bytes, pairs of letters.

    Two tokenizers of one `variant` agree on every id that both have; those of two variants give the ids of the
    letter pairs to other pairs.

    Raises:
        ValueError: `vocab_size` is outside `MIN_VOCAB` to `MAX_VOCAB`.
    """
    if not MIN_VOCAB <= vocab_size <= MAX_VOCAB:
        raise ValueError(f"vocab_size {vocab_size} is not between {MIN_VOCAB} and {MAX_VOCAB}")
    letters = LETTERS[variant:] + LETTERS[:variant]
    # Pairs in order of growing rank, so that a short vocabulary is a prefix of a longer one.
    ranks = sorted((max(i, j), i, j) for i in range(len(letters)) for j in range(len(letters)))
    merges = [(letters[i], letters[j]) for _, i, j in ranks[: vocab_size - MIN_VOCAB]]
    tokens = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges)]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    # No byte is unknown, but transformers 5.19 loads Qwen2 folders by a class that adds an unknown token of its own.
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<eos>"}
    backend: Any = PreTrainedTokenizerFast
    fast: PreTrainedTokenizerFast = backend(tokenizer_object=tokenizer, chat_template=CHAT_TEMPLATE, **names)
    fast.save_pretrained(folder)
    return fast


def make_model(
    folder: Path,
    architecture: Architecture = "llama",
    *,
    vocab_size: int = 512,
    tokenizer_size: int | None = None,
    variant: int = 0,
    hidden_size: int = 64,
    layers: int = 2,
    heads: int = 2,
    kv_heads: int = 1,
    head_dim: int = 32,
    intermediate_size: int = 128,
    max_position_embeddings: int = 4096,
    sliding_window: int | None = None,
    tie_word_embeddings: bool | None = None,
    dtype: DType = "float32",
    seed: int = 0,
    scale: float = 1.5,
) -> Path:
    """Save a random decoder-only model with its tokenizer and return the folder.

    `tokenizer_size` below `vocab_size` makes a model with a padded vocabulary. `scale` is the standard deviation of
    a layer's outputs for inputs of unit variance. vLLM's attention on CPU takes a `head_dim` of 32, 64, 80, 96, 112,
    128, 160, 192, 224 or 256. `tie_word_embeddings` is the architecture's habit by default: true for Gemma, false for
    the others.

    Raises:
        ValueError: the sizes do not fit the architecture, or `tokenizer_size` is out of range.
    """
    gemma = architecture.startswith("gemma")
    if architecture == "qwen2" and hidden_size != heads * head_dim:
        raise ValueError("qwen2 has no head_dim of its own: hidden_size must be heads * head_dim")
    settings: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": max_position_embeddings,
        "tie_word_embeddings": gemma if tie_word_embeddings is None else tie_word_embeddings,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }
    if architecture != "qwen2":
        settings["head_dim"] = head_dim
    if architecture in ("mistral", "gemma2", "gemma3", "gemma4"):
        settings["sliding_window"] = sliding_window
    elif sliding_window is not None:
        raise ValueError(f"{architecture} has no sliding window here")
    if architecture == "mixtral":
        settings |= {"num_local_experts": 4, "num_experts_per_tok": 2}
    if architecture in ("gemma2", "gemma3"):
        settings["query_pre_attn_scalar"] = head_dim
        settings["sliding_window"] = sliding_window or max_position_embeddings
    if architecture == "gemma4":
        # The last layer sees everything, with heads of another size than the others'.
        settings["sliding_window"] = sliding_window or max_position_embeddings
        settings |= {"global_head_dim": 2 * head_dim, "hidden_size_per_layer_input": 16}
        settings |= {"vocab_size_per_layer_input": vocab_size}
    auto: Any = AutoModelForCausalLM
    model: PreTrainedModel = auto.from_config(CONFIGS[architecture](**settings), dtype=torch.float32)
    draw_weights(model, torch.Generator().manual_seed(seed), scale=scale, gemma=gemma)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    make_tokenizer(folder, tokenizer_size or vocab_size, variant)
    return folder


def load_model(folder: Path, **settings: Any) -> Any:
    """The model in a folder, multimodal ones with all their parts, by Transformers' class for it."""
    config = AutoConfig.from_pretrained(folder)
    text = config.get_text_config() is config
    auto: Any = AutoModelForCausalLM if text else AutoModelForImageTextToText
    return auto.from_pretrained(folder, **settings)


def make_expert(folder: Path, base: Path, *, seed: int = 1, scale: float = 0.3) -> Path:
    """Save a copy of the model in `base` whose weights moved by `scale` of their own spread: a fine-tuned base."""
    shutil.copytree(base, folder, dirs_exist_ok=True)
    model = load_model(base)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                step = torch.randn(parameter.shape, generator=generator) * parameter.float().std() * scale
                parameter.add_(step.to(parameter.dtype))
    model.save_pretrained(folder)
    return folder


def make_adapter(
    folder: Path,
    base: Path,
    *,
    rank: int = 4,
    target_modules: Sequence[str] = ("q_proj", "v_proj"),
    seed: int = 1,
    scale: float = 0.5,
    everything: bool = False,
    **settings: Any,
) -> Path:
    """Save a random LoRA adapter over the model in `base`, in the PEFT format; `settings` go to `LoraConfig`.

    With `everything`, all that would be trained moves, and not the low-rank matrices alone.
    """
    from peft import LoraConfig, get_peft_model

    model = load_model(base)
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=list(target_modules), task_type="CAUSAL_LM", **settings
    )
    adapted = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        # PEFT starts with B at zero, which would make an adapter that changes nothing.
        for name, parameter in adapted.named_parameters():
            if "magnitude" in name:
                parameter.mul_(1 + 0.1 * torch.randn(parameter.shape, generator=generator))
            elif "lora_" in name:
                fan_in = parameter.shape[-1]
                draw = torch.randn(parameter.shape, generator=generator) * scale / math.sqrt(fan_in)
                parameter.copy_(draw.to(parameter.dtype))
            elif everything and parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    adapted.save_pretrained(str(folder))
    return folder


def make_family(folder: Path, *, dtype: DType = "float32", vocab_size: int = 512) -> Path:
    """Save a large model, a base and two experts `red` and `blue` over it, and return the configuration file."""
    make_model(
        folder / "large",
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=256,
        layers=3,
        heads=4,
        kv_heads=2,
        dtype=dtype,
    )
    make_model(folder / "base", vocab_size=vocab_size, dtype=dtype, seed=1)
    make_expert(folder / "red", folder / "base", seed=2)
    make_expert(folder / "blue", folder / "base", seed=3)
    config = folder / "fusion.yaml"
    config.write_text(
        f"""\
large: {{model: ./large}}
base: {{model: ./base}}
experts:
  red: {{model: ./red}}
  blue: {{model: ./blue}}
presets:
  giant: {{weighting: none}}
  giant-red: {{experts: [red], weighting: kl}}
  giant-blue: {{experts: [blue], weighting: static, alpha: 1.0}}
  giant-all: {{experts: [red, blue], weighting: kl-grid}}
engine: {{dtype: {dtype}, max_model_len: 256, max_num_seqs: 8, enforce_eager: true,
  kv_cache_memory_bytes: 67108864}}
"""
    )
    return config


def draw_weights(model: PreTrainedModel, generator: torch.Generator, *, scale: float, gemma: bool) -> None:
    """Fill the parameters so that logits have a standard deviation of about 2 and depend on the whole context.

    Embeddings are small, so that with tied embeddings the input token does not simply win again; the last norm makes
    up for it.
    """
    every: Any = model
    layers = (every.get_input_embeddings(), every.get_output_embeddings())
    embeddings = [layer.weight for layer in layers if layer is not None]
    config: Any = model.config.get_text_config()
    # Norms of Gemma 1 to 3 multiply by one plus their weight.
    norm_offset = 1.0 if gemma and config.model_type != "gemma4_text" else 0.0
    tied: bool = model.config.tie_word_embeddings
    embedding_scale = 0.05
    head_scale = embedding_scale if tied else 2.0 / math.sqrt(config.hidden_size)
    final_norm = 2.0 / (head_scale * math.sqrt(config.hidden_size))

    def normal(shape: torch.Size, std: float) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * std

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            shape = parameter.shape
            if parameter is embeddings[0]:
                parameter.copy_(normal(shape, embedding_scale))
            elif parameter is embeddings[-1]:
                parameter.copy_(normal(shape, head_scale))
            elif name in LAST_NORMS:
                parameter.copy_(normal(shape, 0.1) + final_norm - norm_offset)
            elif name.endswith(".bias"):
                parameter.copy_(normal(shape, 0.1))
            elif "norm" in name or ".ln_" in name:
                # Gemma scales its embeddings up and normalises what its layers add: let the layers be heard.
                gain = 3.0 if gemma and "post_" in name else 1.0
                parameter.copy_(normal(shape, 0.1) + gain - norm_offset)
            elif parameter.dim() == 1:
                parameter.copy_(normal(shape, 0.1))
            else:
                parameter.copy_(normal(shape, scale / math.sqrt(shape[-1])))
