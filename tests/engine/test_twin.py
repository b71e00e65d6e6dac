"""A member once more: the same weights, whatever holds them, and attention layers of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

from server.engine.twin import twin_of


class Impl:
    """A backend's object, which holds what its layer was made with."""

    def __init__(self, sinks: torch.Tensor, project: nn.Module) -> None:
        self.sinks, self.project = sinks, project


class Attention(nn.Module, AttentionLayerBase):
    def __init__(self, sinks: torch.Tensor, project: nn.Module) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))
        self.impl: Any = Impl(sinks, project)

    def get_attn_backend(self) -> Any:
        raise NotImplementedError

    def get_kv_cache_spec(self, vllm_config: Any) -> Any:
        raise NotImplementedError


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sinks = nn.Parameter(torch.zeros(2))
        self.project = nn.Linear(3, 3)
        self.attention = Attention(self.sinks, self.project)
        self.mlp = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.layers = nn.ModuleList([Layer(), Layer()])
        self.missing = None


def test_all_but_attention_is_shared() -> None:
    model: Any = Model()
    twin: Any = twin_of(model, Model)
    assert twin.embed is model.embed
    for ours, theirs in zip(twin.layers, model.layers, strict=True):
        assert ours.mlp is theirs.mlp
        assert ours.attention is not theirs.attention
        assert ours.sinks is theirs.sinks is ours.attention.impl.sinks
        assert ours.attention.impl.project is theirs.project
        assert ours.attention.scale is theirs.attention.scale
    # Weights that come later, and what is made of them, are both models'.
    model.layers[0].mlp[0] = nn.Linear(3, 7)
    assert twin.layers[0].mlp[0].out_features == 7
    assert {name for name, _ in twin.named_parameters()} == {name for name, _ in model.named_parameters()}


class Hoarder(Model):
    """Keeps a tensor that its original has not."""

    def __init__(self) -> None:
        super().__init__()
        self.layers[0].register_buffer("table", torch.zeros(3))


def test_what_cannot_be_shared_is_refused() -> None:
    with pytest.raises(NotImplementedError, match=r"Layer \(layers\.0\) keeps table where it cannot be shared"):
        twin_of(Model(), Hoarder)


class Activation(nn.Module):
    """Reads a constant back while it is made, as Apertus' does."""

    def __init__(self) -> None:
        super().__init__()
        beta = torch.tensor(0.5)
        self.register_buffer("beta", beta)
        self.scale = float(beta)


class Active(Model):
    def __init__(self) -> None:
        super().__init__()
        self.active = nn.Sequential(Activation(), Attention(torch.zeros(2), nn.Linear(3, 3)))


def test_constants_may_be_read_while_a_twin_is_made() -> None:
    model: Any = Active()
    twin: Any = twin_of(model, Active)
    assert twin.active[0] is model.active[0]
