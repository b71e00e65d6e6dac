"""Several fine-tuned models or adapters of one base as one expert: task arithmetic, and what tames it.

Each expert is its task vector tau_i = W_i - W_base (Ilharco et al. 2023, arXiv 2212.04089). PEFT's functions merge
them, tensor by tensor:

    linear            sum_i w_i tau_i
    magnitude-prune   the same, of each tau_i the largest values alone
    ties              also without the values whose sign most others outweigh (Yadav et al. 2023, arXiv 2306.01708)
    dare-linear       of each tau_i random values, scaled up in their place (Yu et al. 2024, arXiv 2311.03099)
    dare-ties         the same, then as ties
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from server.errors import ConfigError
from training.compress import Compressed, check_same, load, refuse_full, write_adapter

Merge = Callable[[list[torch.Tensor], torch.Tensor], torch.Tensor]


def merge(
    base: Path,
    experts: Sequence[tuple[Path, float]],
    out: Path,
    *,
    method: str = "linear",
    density: float = 0.2,
    seed: int = 0,
    rank: int | None = None,
) -> Compressed | None:
    """Write the merge to `out`: a whole model, or with a `rank` the nearest adapter of it (`training.compress`).

    Args:
        base: the folder of the model that all experts were fine-tuned from.
        experts: folders of models or adapters, and how much each counts.
        out: a new folder.
        method: one of those above.
        density: the share of values that is kept of each, but with `linear`.
        seed: of what dare draws.
        rank: of the adapter.

    Raises:
        ConfigError: an expert is not the base's, or `out` holds other things.
    """
    refuse_full(out)
    model = load(base)
    before = {name: tensor.float() for name, tensor in model.state_dict().items()}
    states = [state_of(base, folder, model) for folder, _ in experts]
    weights = torch.tensor([weight for _, weight in experts])
    torch.manual_seed(seed)
    merged = _function(method, density)
    after = {
        name: tensor + merged([state[name].float() - tensor for state in states], weights)
        for name, tensor in before.items()
    }
    if rank is not None:
        return write_adapter(base, model, after, out, rank)
    model.load_state_dict({name: tensor.to(model.dtype) for name, tensor in after.items()})
    model.save_pretrained(out)
    _copy_tokenizer(base, out)
    return None


def _function(method: str, density: float) -> Merge:
    from peft.utils import merge_utils

    if method == "linear":
        return merge_utils.task_arithmetic
    return partial(getattr(merge_utils, method.replace("-", "_")), density=density)


def state_of(base: Path, folder: Path, model: Any) -> dict[str, torch.Tensor]:
    """The tensors of an expert in `folder`; of an adapter, those of the base, which `model` is, with it.

    Raises:
        ConfigError: it is not the base's.
    """
    if (folder / "adapter_config.json").is_file():
        from peft import PeftModel

        try:
            adapted: Any = PeftModel.from_pretrained(load(base).float(), str(folder))
        except (RuntimeError, ValueError) as error:
            raise ConfigError(f"{folder} is no adapter of the base: {str(error).splitlines()[0]}") from None
        state: dict[str, torch.Tensor] = adapted.merge_and_unload().state_dict()
        return state
    expert = load(folder)
    check_same(model, expert, folder)
    return dict(expert.state_dict())


def _copy_tokenizer(base: Path, out: Path) -> None:
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(base, local_files_only=True).save_pretrained(out)
