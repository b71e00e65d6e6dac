"""`fuse_logits`, the face of the package: checks the arguments, then hands them to an implementation."""

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fusion_kernels.batch import Batch, Fused

# Each is a package with `fuse`, imported when first used: numba and triton take seconds, and only one is needed.
BACKENDS = ("reference", "torch", "cpu", "triton")
LOGITS = (torch.float32, torch.float16, torch.bfloat16)
"""The dtypes that logits may have."""


def fuse_logits(
    large: Tensor,
    against: Tensor | Sequence[Tensor],
    experts: Sequence[Tensor],
    *,
    kind: Tensor,
    use: Tensor,
    alpha: Tensor,
    alpha_max: Tensor,
    impl: str | None = None,
) -> Fused:
    """Fuse B rows of next-token logits; each row has its own kind of weighting, experts and bounds.

    Args:
        large: [B, V], the large model's logits; like all logits float32, float16 or bfloat16, computed with in float32.
        against: what the experts are compared with: one tensor [B, V_a] for all of them, such as the base's logits, or
            T tensors, one for each. Of a tensor that stands several times nothing is done twice. Rows may have stride
            0: zeros [1, V_a], expanded to B rows, compare an expert with nothing, the uniform distribution.
        experts: T tensors [B, V_t]. Vocabularies may be padded to different lengths; V_c below is the shortest of all.
        kind: [B] int8, a `Weighting` per row.
        use: [B, T] bool, the experts each row uses. Ignored by `NONE`; `ALONE` takes the first one.
        alpha: [B, T] float32, the weights of `STATIC` rows; finite, any sign.
        alpha_max: [B] float32, the largest weight that the searched kinds may choose; finite and not negative.
        impl: None picks by device: "triton" for GPUs, "cpu" (numba) for the CPU, "torch" where those are not installed.
            "reference" is the float64 oracle, and slow.

    Returns:
        `Fused`. With delta_t = expert_t - against_t on the first V_c ids and 0 beyond, the logits are
        large + sum_t alpha_t delta_t. A token that expert_t or against_t masks (-inf) has delta 0; one that large masks
        stays masked. `ALONE` rows hold the expert's own logits, -inf past its vocabulary. A `NONE` row, and a row
        without experts, is large unchanged. So is a row whose large logits hold NaN or +inf; it does not count as a
        fallback.

    Raises:
        ValueError: shapes or dtypes that do not fit together, or an unknown `impl`.
    """
    _check(large, against, experts, kind=kind, use=use, alpha=alpha, alpha_max=alpha_max)
    name = impl or _implementation(large.device.type)
    if name not in BACKENDS:
        raise ValueError(f"impl is {name!r}; the choices are {', '.join(BACKENDS)}")
    against = [against] if isinstance(against, Tensor) else list(against)
    return Fused(*_fuse(large, against, list(experts), kind, use, alpha, alpha_max, name))


def warm_up() -> None:
    """Compile the CPU code, or load it from the cache, so that the first request does not wait for it.

    A GPU's kernels are compiled at the first call with the dtypes, the vocabulary's size and the alignment in question:
    make one. More than eight experts, and more than sixteen, need others.
    """
    if _implementation("cpu") == "cpu":
        _backend("cpu").warm_up()


def _implementation(device: str) -> str:
    name, package = ("cpu", "numba") if device == "cpu" else ("triton", "triton")
    return name if importlib.util.find_spec(package) else "torch"


def _backend(name: str) -> Any:
    return importlib.import_module(f"fusion_kernels.{name}")


# A custom op, so that torch.compile takes the whole fusion as one opaque step where a user of the package compiles.
@torch.library.custom_op("fusion_kernels::fuse", mutates_args=())
def _fuse(
    large: Tensor,
    against: list[Tensor],
    experts: list[Tensor],
    kind: Tensor,
    use: Tensor,
    alpha: Tensor,
    alpha_max: Tensor,
    name: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    # One stands for all: T of it would be passed through torch's dispatcher one by one.
    against = against * (len(experts) // len(against))
    fused: Fused = _backend(name).fuse(Batch(large, against, experts, kind, use, alpha, alpha_max))
    return fused


@_fuse.register_fake
def _(
    large: Tensor,
    against: list[Tensor],
    experts: list[Tensor],
    kind: Tensor,
    use: Tensor,
    alpha: Tensor,
    alpha_max: Tensor,
    name: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    rows = large.shape[0]
    return (
        large.new_empty(large.shape, dtype=torch.float32),
        large.new_empty(use.shape, dtype=torch.float32),
        large.new_empty((rows, 2), dtype=torch.float32),
        large.new_empty((rows, 2), dtype=torch.float32),
        large.new_empty((rows,), dtype=torch.int8),
    )


def _check(large: Tensor, against: Tensor | Sequence[Tensor], experts: Sequence[Tensor], **per_row: Tensor) -> None:
    rows, number = large.shape[0], len(experts)
    if number == 0:
        raise ValueError("experts is empty; give at least one tensor [B, V_t]")
    if isinstance(against, Tensor):
        members = {"large": large, "against": against}
    elif len(against) == number:
        members = {"large": large} | {f"against[{t}]": against_t for t, against_t in enumerate(against)}
    else:
        raise ValueError(f"against has length {len(against)}; with these experts it must be one tensor, or {number}")
    members |= {f"experts[{t}]": expert for t, expert in enumerate(experts)}
    for name, member in members.items():
        if member.dim() != 2 or member.shape[0] != rows:
            raise ValueError(
                f"{name} has shape {tuple(member.shape)}; with {rows} rows it must be [{rows}, vocabulary]"
            )
        if member.dtype not in LOGITS:
            raise ValueError(f"{name} is {member.dtype}; it must be {', '.join(map(str, LOGITS))}")
    shapes = {"kind": (rows,), "use": (rows, number), "alpha": (rows, number), "alpha_max": (rows,)}
    dtypes = {"kind": torch.int8, "use": torch.bool, "alpha": torch.float32, "alpha_max": torch.float32}
    for name, value in per_row.items():
        if tuple(value.shape) != shapes[name] or value.dtype != dtypes[name]:
            found = f"{tuple(value.shape)} {value.dtype}"
            raise ValueError(f"{name} is {found}; with these logits it must be {shapes[name]} {dtypes[name]}")
