"""The recipe: sizes of the members, lengths of the training runs, shares of the corpus."""

from dataclasses import dataclass, field

EXPERTS = ("math", "facts", "text")


@dataclass(frozen=True)
class MemberSize:
    """Shape of one Llama model with tied embeddings."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    # 64 is a head size that every attention backend supports, on CPU and on GPU.
    head_dim: int = 64


@dataclass(frozen=True)
class Schedule:
    """One training run: how many tokens it reads, in batches of how many, and how fast it learns."""

    tokens: int
    batch_tokens: int
    # Peak learning rate of the hidden matrices (Muon) and of everything else (AdamW).
    matrix_lr: float
    other_lr: float
    warmup: float = 0.03


def _experts() -> dict[str, Schedule]:
    return {
        "math": Schedule(tokens=2_000_000, batch_tokens=3072, matrix_lr=0.01, other_lr=0.003),
        "facts": Schedule(tokens=1_800_000, batch_tokens=2048, matrix_lr=0.02, other_lr=0.006),
        "text": Schedule(tokens=1_500_000, batch_tokens=2048, matrix_lr=0.015, other_lr=0.004),
    }


def _shares() -> dict[str, float]:
    return {"prose": 0.25, "echoes": 0.12, "math": 0.19, "facts": 0.26, "text": 0.18}


@dataclass(frozen=True)
class Recipe:
    """Everything that `zoo train` needs besides data and a seed."""

    vocabulary: int = 2048
    tokenizer_characters: int = 4_000_000
    max_position_embeddings: int = 2048
    large: MemberSize = MemberSize(hidden=320, layers=4, heads=4, intermediate=896)
    base: MemberSize = MemberSize(hidden=96, layers=3, heads=2, intermediate=256)
    large_schedule: Schedule = Schedule(tokens=3_500_000, batch_tokens=3072, matrix_lr=0.02, other_lr=0.008)
    base_schedule: Schedule = Schedule(tokens=4_500_000, batch_tokens=2048, matrix_lr=0.03, other_lr=0.01)
    expert_schedules: dict[str, Schedule] = field(default_factory=_experts)
    # Pretraining in stages of (share of the tokens, window): most of it in short windows, which are cheap, the end in
    # windows as long as the context that zoo.yaml serves.
    stages: tuple[tuple[float, int], ...] = ((0.8, 256), (0.2, 1024))
    # What the pretraining corpus is made of, by tokens.
    shares: dict[str, float] = field(default_factory=_shares)


def _micro_experts() -> dict[str, Schedule]:
    return {name: Schedule(tokens=4000, batch_tokens=1024, matrix_lr=0.01, other_lr=0.003) for name in EXPERTS}


# Runs in seconds and teaches nothing: for tests, and for a look at what training does.
MICRO = Recipe(
    vocabulary=512,
    tokenizer_characters=100_000,
    large=MemberSize(hidden=96, layers=2, heads=1, intermediate=64),
    base=MemberSize(hidden=80, layers=2, heads=1, intermediate=32),
    large_schedule=Schedule(tokens=20_000, batch_tokens=2048, matrix_lr=0.02, other_lr=0.006),
    base_schedule=Schedule(tokens=20_000, batch_tokens=2048, matrix_lr=0.02, other_lr=0.006),
    expert_schedules=_micro_experts(),
)
