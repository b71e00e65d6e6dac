"""Whether vLLM computes with a quantised member on this CPU: one linear layer of its kind is made and run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from vllm.config import CompilationConfig, CompilationMode, LoadConfig, ModelConfig, VllmConfig, set_current_vllm_config
from vllm.distributed import parallel_state
from vllm.model_executor.layers.linear import ColumnParallelLinear
from vllm.platforms import current_platform
from vllm.utils.torch_utils import set_default_torch_dtype

from server.engine.checks.tensors import Tensor
from server.engine.members import Member
from server.errors import ConfigError

# What stands beside a linear layer's weight once it is quantised, or in its place.
QUANTISED = ("qweight", "weight_packed", "weight_scale", "weight_scale_inv")
HINT = (
    "serve the checkpoint as it was before, or one in compressed-tensors' int8 or FP8 with a scale a row, in AWQ or in "
    "GPTQ"
)


def check_quantised(member: Member, tensors: Mapping[str, Tensor], dtype: str) -> None:
    """Check that the engine's number format and this CPU's instructions serve a member's quantised weights.

    vLLM finds out while it loads them, layer by layer and sometimes in the first pass, when its processes end.

    Raises:
        ConfigError: they do not.
    """
    if member.quantisation is None or not current_platform.is_cpu():
        return
    names = (name.rpartition(".") for name in tensors if ".experts." not in name)
    layer = next((module for module, _, part in names if part in QUANTISED), None)
    try:
        _run(member, layer, dtype)
    except Exception as error:  # of the format's library, of vLLM, of a kernel
        reason = _reason(error)
        if dtype == "float32" and _runs(member, layer, "bfloat16"):
            raise ConfigError(
                f"{member.where}: it is quantised ({member.quantisation}), and engine.dtype is float32; bfloat16 is "
                f"right ({reason})"
            ) from None
        raise ConfigError(
            f"{member.where}: it is quantised ({member.quantisation}), and vLLM cannot compute with it on this CPU: "
            f"{reason}; {HINT}"
        ) from None


def _runs(member: Member, layer: str | None, dtype: str) -> bool:
    try:
        _run(member, layer, dtype)
    except Exception:  # as above
        return False
    return True


def _run(member: Member, layer: str | None, dtype: str) -> None:
    """Make a layer of that name, of made-up weights, and send a few tokens through it."""
    model_config = ModelConfig(model=str(member.folder), dtype=dtype, hf_overrides=lambda _: member.hf_config)  # type: ignore[arg-type]
    quant_config = VllmConfig.get_quantization_config(model_config, LoadConfig())
    if layer is None:
        return
    config = VllmConfig(compilation_config=CompilationConfig(mode=CompilationMode.NONE))
    config.model_config = model_config
    # Kernels ask what divides their sizes; the sizes themselves need not be large for that.
    number: Any = model_config.dtype
    width, out = (256 + size % 256 for size in (_size(member, "hidden_size"), _size(member, "intermediate_size")))
    with set_current_vllm_config(config), _alone(), set_default_torch_dtype(number), torch.device("cpu"):
        linear: Any = ColumnParallelLinear(
            width, out, bias=False, quant_config=quant_config, prefix=layer, disable_tp=True
        )
        for name, parameter in linear.named_parameters():
            parameter.data.fill_(1 if "scale" in name else 0)
        linear.quant_method.process_weights_after_loading(linear)
        linear(torch.ones(2, width, dtype=number))


@contextmanager
def _alone() -> Iterator[None]:
    """Layers of vLLM 0.32 ask for their rank even where they are not divided, and only workers have one."""
    before = parallel_state._TP
    parallel_state._TP = before or SimpleNamespace(rank_in_group=0, world_size=1)  # type: ignore[assignment]
    try:
        yield
    finally:
        parallel_state._TP = before


def _size(member: Member, name: str) -> int:
    return int(getattr(member.text_config, name, None) or 0)


def _reason(error: Exception) -> str:
    text = str(error)
    if missing := re.match(r"_C::(\w+)\(\) expected at most 0", text):  # declared, without a body
        return f"its CPU kernels lack {missing[1]}"
    text = text.partition("Reasons:")[2] or text
    return " ".join(text.replace("..", ".").split())[:300].rstrip(".")
