"""A loaded model once more, with a KV cache of its own: the same weights under another prefix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase


def twin_of(original: nn.Module, build: Callable[[], nn.Module]) -> nn.Module:
    """What `build` makes, attention layers of its own and all else the modules of `original`.

    Modules rather than tensors are shared, so what quantisation makes of weights once they are loaded holds for both.

    Raises:
        NotImplementedError: a part of the model keeps tensors where they cannot be shared.
    """
    known = _Known(torch.get_default_device())
    with torch.device("meta"), known:  # it needs no memory
        twin = build()
    _share(original, twin)
    for name, module in twin.named_modules():
        lost = [key for key, tensor in _tensors(module).items() if tensor.is_meta]
        if lost:
            raise NotImplementedError(f"{type(module).__name__} ({name}) keeps {lost[0]} where it cannot be shared")
    return twin


class _Known(TorchFunctionMode):
    """Makes tensors of given numbers where they are, as some layers (Apertus' activation) read them back at once."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See torch."""
        given = {"device": self._device} if func is torch.tensor else {}
        return func(*args, **given | (kwargs or {}))


def _share(original: nn.Module, twin: nn.Module) -> None:
    for name, child in twin._modules.items():
        own = original._modules[name]
        if child is None or own is None:
            continue
        if any(isinstance(module, AttentionLayerBase) for module in child.modules()):
            _share(own, child)
        else:
            twin._modules[name] = own
    twin._parameters.update(original._parameters)
    twin._buffers.update(original._buffers)
    # What layers keep beside: attention sinks and projections stand in the backend's object too.
    for theirs, ours in ((original, twin), (getattr(original, "impl", None), getattr(twin, "impl", None))):
        for key, value in vars(ours).items() if ours is not None else ():
            if _is_empty(value):
                setattr(ours, key, getattr(theirs, key))


def _is_empty(value: object) -> bool:
    if isinstance(value, nn.Module):
        return any(tensor.is_meta for tensor in (*value.parameters(), *value.buffers()))
    return isinstance(value, torch.Tensor) and value.is_meta


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    kept = {**module._parameters, **module._buffers, **vars(module), **vars(getattr(module, "impl", module))}
    return {key: value for key, value in kept.items() if isinstance(value, torch.Tensor)}
