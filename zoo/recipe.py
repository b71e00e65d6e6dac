"""The recipe: sizes of the members, the training runs in their order, and what each reads."""

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
    # Peak learning rate of the hidden matrices (Muon; adapters leave it out) and of everything else (AdamW).
    other_lr: float
    matrix_lr: float = 0.0
    warmup: float = 0.03

    def rate(self, read: int) -> float:
        """Share of the peak rates after so many tokens (batches differ in size): warm-up, then linearly to nothing."""
        share = min(1.0, read / self.tokens)
        return max(0.01, min(share / self.warmup, (1 - share) / (1 - self.warmup)))


@dataclass(frozen=True)
class AnchorRecipe:
    """What holds an expert to its base outside its task: how firmly, and on which text."""

    weight: float = 1.0
    # Read over and over, in batches of so many tokens, one beside each batch of the task's.
    corpus: int = 400_000
    window: int = 256
    batch_tokens: int = 1024
    # By tokens; every other task has a share for its practice and one for its own questions and answers.
    shares: dict[str, float] = field(default_factory=lambda: {"prose": 0.25, "echoes": 0.05})
    practice_share: float = 0.15
    answers_share: float = 0.2


def _experts() -> dict[str, Schedule]:
    return {
        "math": Schedule(tokens=1_500_000, batch_tokens=2048, matrix_lr=0.012, other_lr=0.0035),
        # More would teach it by heart the facts that it is asked in training, and to be sure where it only guesses.
        "facts": Schedule(tokens=60_000, batch_tokens=1536, matrix_lr=0.008, other_lr=0.0025),
        "text": Schedule(tokens=1_500_000, batch_tokens=1536, matrix_lr=0.012, other_lr=0.0035),
    }


def _adapters() -> dict[str, Schedule]:
    return {
        "math": Schedule(tokens=800_000, batch_tokens=1536, other_lr=0.004),
        "facts": Schedule(tokens=60_000, batch_tokens=768, other_lr=0.003),
        "text": Schedule(tokens=500_000, batch_tokens=1024, other_lr=0.003),
    }


def _practice_shares() -> dict[str, float]:
    return {"prose": 0.14, "echoes": 0.03, "math": 0.29, "facts": 0.30, "text": 0.24}


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
    # The second stage of pretraining: questions of the tasks' kinds, answered in many styles.
    # Its corpus, of which a model reads the first so many tokens that its schedule names.
    practice_tokens: int = 4_000_000
    large_practice: Schedule = Schedule(tokens=2_200_000, batch_tokens=3072, matrix_lr=0.015, other_lr=0.005)
    base_practice: Schedule = Schedule(tokens=1_500_000, batch_tokens=2048, matrix_lr=0.015, other_lr=0.005)
    practice_shares: dict[str, float] = field(default_factory=_practice_shares)
    expert_schedules: dict[str, Schedule] = field(default_factory=_experts)
    anchor: AnchorRecipe = AnchorRecipe()
    # The upper bounds: LoRA adapters of that rank over the large model (AdamW alone).
    adapter_rank: int = 16
    adapter_schedules: dict[str, Schedule] = field(default_factory=_adapters)
    # Pretraining in stages of (share of the tokens, window): most of it in short windows, which are cheap, the end in
    # windows as long as the context that zoo.yaml serves.
    stages: tuple[tuple[float, int], ...] = ((0.8, 256), (0.2, 1024))
    # What the pretraining corpus is made of, by tokens.
    shares: dict[str, float] = field(default_factory=_shares)


def _micro_tasks() -> dict[str, Schedule]:
    return {name: Schedule(tokens=4000, batch_tokens=1024, matrix_lr=0.01, other_lr=0.003) for name in EXPERTS}


# Runs in seconds and teaches nothing: for tests, and for a look at what training does.
MICRO = Recipe(
    vocabulary=512,
    tokenizer_characters=100_000,
    large=MemberSize(hidden=96, layers=2, heads=1, intermediate=64),
    base=MemberSize(hidden=80, layers=2, heads=1, intermediate=32),
    large_schedule=Schedule(tokens=20_000, batch_tokens=2048, matrix_lr=0.02, other_lr=0.006),
    base_schedule=Schedule(tokens=20_000, batch_tokens=2048, matrix_lr=0.02, other_lr=0.006),
    practice_tokens=8000,
    large_practice=Schedule(tokens=8000, batch_tokens=1024, matrix_lr=0.02, other_lr=0.006),
    base_practice=Schedule(tokens=8000, batch_tokens=1024, matrix_lr=0.02, other_lr=0.006),
    expert_schedules=_micro_tasks(),
    anchor=AnchorRecipe(corpus=4000),
    adapter_rank=2,
    adapter_schedules=_micro_tasks(),
)
