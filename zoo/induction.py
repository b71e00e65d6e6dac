"""A head start in copying: members begin with a working induction head, and keep it.

An induction head finds the last place where the current token stood and predicts what followed it then; copying words
and numbers from a question is made of that. Transformers find the circuit by themselves, but only after some tens of
millions of tokens (Olsson et al. 2022, arXiv 2209.11895), several times what this family reads in all. So the half of
it that finds the place is written into the initial weights. The residual stream sets dimensions aside for it:

- the first holds the same value for every token, which gives attention something that is always there;
- the next ones hold a random code of the token;
- the last ones receive the code of the token before: layer 0, head 0 looks one back, by rotary position alone.

Layer 1, head 0 compares a token's code with the codes before every other place. What it does with the token found is
learned, though it begins by copying it into the output. The circuit is kept from gradients: text that copies nothing
would wash it out within a few hundred steps, before anything is built on it. The output never reads its dimensions.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

ROPE_THETA = 10000.0
EMBEDDING_STD = 0.3
# The circuit's values are well above the embeddings', so that its scores hold when training makes those grow.
CONSTANT = 4.0
CODE = 2.0
LOOK_BACK = 1.7
MATCH = 2.3
COPY = 2.0
OUTPUT_GAIN = 0.5
# So many rotary pairs turn fast enough to tell the previous token from its neighbours.
FAST = 8


@dataclass(frozen=True)
class Layout:
    """Where things are in a residual stream of that width and in heads of that size."""

    hidden: int
    head: int

    @classmethod
    def of(cls, model: LlamaForCausalLM) -> "Layout":
        """Read a model's layout from its configuration."""
        return cls(int(model.config.hidden_size), int(model.config.head_dim or 0))

    @property
    def width(self) -> int:
        """Dimensions of a token's code."""
        return min(32, self.hidden // 12 * 2)

    @property
    def code(self) -> slice:
        """The current token's code."""
        return slice(1, 1 + self.width)

    @property
    def previous(self) -> slice:
        """The code of the token before."""
        return slice(self.hidden - self.width, self.hidden)

    @property
    def content(self) -> slice:
        """All that the circuit leaves free."""
        return slice(1 + self.width, self.hidden - self.width)

    @property
    def circuit(self) -> tuple[slice, slice]:
        """All that the circuit takes."""
        return slice(0, 1 + self.width), self.previous


@torch.no_grad()
def write_induction_head(model: LlamaForCausalLM) -> None:
    """Write the circuit into a freshly initialised model of two layers or more; head 0 of both layers is replaced."""
    layout = Layout.of(model)
    size, width = layout.head, layout.width
    angles = ROPE_THETA ** (-torch.arange(0, size, 2) / size)

    embedding = model.model.embed_tokens.weight
    embedding.normal_(std=EMBEDDING_STD)
    embedding[:, 0] = CONSTANT
    embedding[:, layout.code] = CODE * width**0.5 * nn.functional.normalize(torch.randn(len(embedding), width))
    embedding[:, layout.previous] = 0.0
    model.model.norm.weight[:] = OUTPUT_GAIN

    back, copy = (layer.self_attn for layer in model.model.layers[:2])
    for attention in (back, copy):
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            projection.weight[:size] = 0.0
        attention.o_proj.weight[:, :size] = 0.0
    for layer_output in (back.o_proj, model.model.layers[0].mlp.down_proj):
        for where in layout.circuit:
            layer_output.weight[where] = 0.0
    for where in layout.circuit:
        model.model.norm.weight[where] = 0.0

    fast = torch.arange(FAST)
    # Rotated by positions m and n, q and k agree best where m - n = 1.
    back.k_proj.weight[fast, 0] = LOOK_BACK
    back.q_proj.weight[fast, 0] = LOOK_BACK * torch.cos(angles[:FAST])
    back.q_proj.weight[fast + size // 2, 0] = -LOOK_BACK * torch.sin(angles[:FAST])
    back.v_proj.weight[:width, layout.code] = torch.eye(width)
    back.o_proj.weight[layout.previous, :width] = torch.eye(width)

    # Pairs that turn so slowly that a match a hundred tokens away still counts.
    pairs = torch.arange(size // 2 - width // 2, size // 2)
    slow = torch.cat([pairs, pairs + size // 2])
    copy.q_proj.weight[slow, layout.code] = MATCH * torch.eye(width)
    copy.k_proj.weight[slow, layout.previous] = MATCH * torch.eye(width)
    taken = _orthonormal(size, layout.hidden - 2 * width - 1)
    copy.v_proj.weight[: len(taken), layout.content] = taken
    copy.o_proj.weight[layout.content, : len(taken)] = COPY * taken.T


def keep_induction_head(model: LlamaForCausalLM) -> Callable[[], None]:
    """Keep the circuit from gradients; returns what lifts that again."""
    layout = Layout.of(model)
    head, everything = slice(0, layout.head), slice(None)
    first, second = model.model.layers[0], model.model.layers[1]
    kept: list[tuple[nn.Parameter, tuple[slice, ...]]] = [
        (projection.weight, (head,))
        for attention in (first.self_attn, second.self_attn)
        for projection in (attention.q_proj, attention.k_proj)
    ]
    kept += [(first.self_attn.v_proj.weight, (head,)), (first.self_attn.o_proj.weight, (everything, head))]
    for where in layout.circuit:
        kept += [(model.model.embed_tokens.weight, (everything, where)), (model.model.norm.weight, (where,))]
        kept += [(output.weight, (where,)) for output in (first.self_attn.o_proj, first.mlp.down_proj)]
        kept += [(layer.input_layernorm.weight, (where,)) for layer in (first, second)]
    handles = [parameter.register_hook(_without(where)) for parameter, where in kept]  # type: ignore[no-untyped-call]

    def lift() -> None:
        for handle in handles:
            handle.remove()

    return lift


def _without(where: tuple[slice, ...]) -> Callable[[Tensor], Tensor]:
    def hook(gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        gradient[where] = 0.0
        return gradient

    return hook


def _orthonormal(most: int, columns: int) -> Tensor:
    """Draw orthonormal rows, as many as there are columns but at most `most`."""
    basis: Tensor = torch.linalg.qr(torch.randn(columns, min(most, columns))).Q
    return basis.T
