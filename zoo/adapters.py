"""LoRA adapters over the large model: what fine-tuning it for a task would give."""

from collections.abc import Iterable
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from zoo.recipe import Schedule
from zoo.training import GRADIENT_NORM, Progress, answer_loss

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def adapt(model: LlamaForCausalLM, rank: int) -> PeftModel:
    """Put a fresh adapter of that rank on every projection; the model's own weights take no gradients from then on."""
    adapted = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=PROJECTIONS))
    assert isinstance(adapted, PeftModel)
    return adapted


def train_adapter(
    adapted: PeftModel, batches: Iterable[tuple[Tensor, Tensor]], schedule: Schedule, progress: Progress
) -> None:
    """Train the adapter in place on batches of inputs and targets."""
    weights = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=schedule.other_lr, betas=(0.9, 0.95), weight_decay=0.0)
    model = adapted.get_base_model()
    assert isinstance(model, LlamaForCausalLM)
    model.train()
    read = 0
    for inputs, targets in batches:
        for group in optimizer.param_groups:
            group["lr"] = schedule.other_lr * schedule.rate(read + inputs.numel())
        loss = answer_loss(model, inputs, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(weights, GRADIENT_NORM)
        optimizer.step()
        optimizer.zero_grad()
        read += inputs.numel()
        progress(inputs.numel(), loss.item())
    model.train(False)


def save_adapter(adapted: PeftModel, folder: Path) -> None:
    """Write an adapter folder in PEFT's format, in bf16."""
    torch.nn.Module.to(adapted, torch.bfloat16)
    # None would be filled in with a path of this machine.
    adapted.peft_config["default"].base_model_name_or_path = ""
    adapted.save_pretrained(str(folder))
    (folder / "adapter_model.safetensors").chmod(0o644)
    (folder / "README.md").unlink(missing_ok=True)
