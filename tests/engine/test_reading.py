"""What a member with prompts of its own reads, step by step: its KV cache holds its own text, whatever is shared."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
import vllm.v1.worker.cpu.shm  # noqa: F401 (as vLLM's CPU worker does, before the runner's modules)

from fusion_kernels import Weighting
from server.engine.own_prompts import Alignment, places_ahead
from server.engine.reading import Reading
from server.engine.settings import FusionSettings
from server.engine.slots import Slot, SlotTable
from server.engine.step import MemberStates
from tests.engine.test_sub_batch import draw_batch

SLOTS, BLOCKS, SIZE, MAX_LEN, MEMBER = 6, 26, 4, 104, 1
Entry = tuple[int, int]
"""A token in the member's KV cache: its position and its id."""


@dataclass
class Simulated:
    """One request as the scheduler sees it."""

    prompt: list[int]
    own: list[int] | None
    answer: list[int]
    salt: object
    computed: int = 0
    blocks: list[int] = field(default_factory=list)

    @property
    def known(self) -> list[int]:
        return [*self.prompt, *self.answer]

    @property
    def text(self) -> list[int]:
        """What the member reads in all."""
        return [*(self.prompt if self.own is None else self.own), *self.answer]


class FakeTables:
    """The block tables, with vLLM's arithmetic of places."""

    block_sizes = (SIZE,)
    num_kv_cache_groups = 1

    def __init__(self) -> None:
        self.rows = torch.zeros(SLOTS, BLOCKS, dtype=torch.int32)

    def compute_slot_mappings(
        self, slots: torch.Tensor, starts: torch.Tensor, places: torch.Tensor, number: int, out: torch.Tensor
    ) -> None:
        owners = torch.repeat_interleave(slots, starts.diff().long())
        out[0] = self.rows[owners, places // SIZE].long() * SIZE + places % SIZE


class Engine:
    """Slots, blocks and prefix cache: what matters of vLLM's scheduler and runner."""

    def __init__(self, rng: random.Random, most: int) -> None:
        self.rng, self.most = rng, most
        self.table, self.tables = SlotTable(SLOTS, 1, torch.device("cpu")), FakeTables()
        self.running: dict[int, Simulated] = {}
        self.found: dict[object, int] = {}
        """Full blocks by the text up to their ends, and salt."""
        self.fresh = 1
        self.cache: dict[int, Entry] = {}

    def admit(self, request: Simulated, generated: int) -> None:
        slot = next(slot for slot in range(SLOTS) if slot not in self.running)
        prompts = {} if request.own is None else {MEMBER: request.own}
        settings = FusionSettings(Weighting.STATIC, (0,), (1.0,), prompts=prompts)
        self.table.add(slot, Slot(settings, len(request.prompt), request.answer[:generated]), SIZE)
        self.running[slot] = request

    def _find(self, slot: int) -> None:
        """Blocks that others have filled, or fill in this very step."""
        request = self.running[slot]
        hit: list[int] = []
        known = request.known[: self._known_at(slot)]
        while (len(hit) + 1) * SIZE < len(known):
            block = self.found.get((request.salt, tuple(known[: (len(hit) + 1) * SIZE])))
            if block is None:
                break
            hit.append(block)
        request.blocks, request.computed = hit, len(hit) * SIZE

    def step(self) -> None:
        slots = list(self.running)
        scheduled: dict[int, tuple[int, bool, int]] = {}
        for slot in slots:
            request, known = self.running[slot], self._known_at(slot)
            if not self.table.begun[slot]:
                self._find(slot)
            left = known - request.computed
            length = min(left, self.rng.randint(1, 9)) if left > 1 else 1
            # Drafts, which are right here: behind a generated token, and now and then behind a prompt's last one.
            drafts = 0
            if left <= 0 or (left == 1 and self.rng.random() < 0.3):
                drafts = min(self.rng.randint(0, 4), len(request.known) - request.computed - 1)
            length += drafts
            scheduled[slot] = length, left > 0, 1 + drafts
            self._make_room(slot, request.computed + length)
            self._offer(request, request.computed + length)
        self.rng.shuffle(slots)
        lengths, prefilling = [scheduled[slot][0] for slot in slots], [scheduled[slot][1] for slot in slots]
        logits = [scheduled[slot][2] for slot in slots]
        batch = self._batch(slots, lengths, prefilling, logits)
        used = np.ones(len(slots), dtype=bool)
        reading = Reading(batch, self.tables, self.table, MEMBER, used, self.most)  # type: ignore[arg-type]
        tables = (self.tables.rows[torch.tensor(slots)],)
        passes = []
        for stretch in reading.stretches():
            sub = reading.sub_batch(stretch, tables, MAX_LEN)
            assert sub.batch.num_tokens <= self.most
            self._read(sub, slots)
            hidden = sub.batch.positions[:, None].float()
            passes.append(MemberStates.kept(sub, hidden, wants_prompt=False))
        self.table.begun[slots] = True
        rows = {}
        if passes and (sampled := MemberStates.joined(passes).sampled()) is not None:
            assert sampled.rows is not None
            rows = dict(zip(sampled.rows.tolist(), sampled.hidden[:, 0].tolist(), strict=True))
        for place, (slot, length) in enumerate(zip(slots, lengths, strict=True)):
            request = self.running[slot]
            request.computed += length
            if request.computed >= self._known_at(slot):  # it samples: both have read all that there is
                own = len(request.prompt) if request.own is None else len(request.own)
                newest = request.computed - len(request.prompt) + own - 1
                last = sum(logits[: place + 1])
                for back in range(logits[place]):
                    assert rows[last - 1 - back] == newest - back

    def _known_at(self, slot: int) -> int:
        """How many tokens the request had when it came to its slot."""
        found = self.table.slots[slot]
        assert found is not None
        return found.num_prompt_tokens + len(found.generated)

    def _make_room(self, slot: int, tokens: int) -> None:
        request = self.running[slot]
        prompts = {} if request.own is None else {MEMBER: request.own}
        tokens += places_ahead(prompts, len(request.prompt), SIZE)
        while len(request.blocks) * SIZE < tokens:
            request.blocks.append(self.fresh)
            self.fresh += 1
        self.tables.rows[slot, : len(request.blocks)] = torch.tensor(request.blocks, dtype=torch.int32)

    def _offer(self, request: Simulated, computed: int) -> None:
        """As vLLM does when it schedules a step: the blocks that it fills may be found at once."""
        for number in range(computed // SIZE):
            text = (request.salt, tuple(request.known[: (number + 1) * SIZE]))
            self.found.setdefault(text, request.blocks[number])

    def _batch(self, slots: list[int], lengths: list[int], prefilling: list[bool], logits: list[int]) -> object:
        template = draw_batch(self.rng, drafts=False, padded=False)
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        computed = np.array([self.running[slot].computed for slot in slots], dtype=np.int32)
        ids = [t for s, c, n in zip(slots, computed, lengths, strict=True) for t in self.running[s].known[c : c + n]]
        positions = np.concatenate([c + np.arange(n) for c, n in zip(computed, lengths, strict=True)])
        seq_lens = torch.from_numpy(computed + np.array(lengths, dtype=np.int32)).int()
        return replace(
            template,
            num_reqs=len(slots),
            idx_mapping=torch.tensor(slots),
            idx_mapping_np=np.array(slots, dtype=np.intp),
            num_scheduled_tokens=np.array(lengths, dtype=np.int32),
            num_tokens=int(starts[-1]),
            query_start_loc=torch.from_numpy(starts),
            query_start_loc_np=starts,
            seq_lens=seq_lens,
            seq_lens_cpu_upper_bound=seq_lens.clone(),
            num_computed_tokens_np=computed,
            is_prefilling_np=np.array(prefilling),
            input_ids=torch.tensor(ids, dtype=torch.int32),
            positions=torch.from_numpy(positions).long(),
            cu_num_logits_np=np.concatenate([[0], np.cumsum(logits)]).astype(np.int32),
        )

    def _read(self, sub: object, slots: list[int]) -> None:
        """One pass: all write, then all read, as attention layers do."""
        batch = sub.batch  # type: ignore[attr-defined]
        (mapping,) = sub.slot_mappings  # type: ignore[attr-defined]
        for place, position, token in zip(
            mapping.tolist(), batch.positions.tolist(), batch.input_ids.tolist(), strict=True
        ):
            # What is written already, by whoever shares the block, is the same.
            assert self.cache.setdefault(place, (position, token)) == (position, token)
        for row, slot in enumerate(batch.idx_mapping_np):
            request, length = self.running[int(slot)], int(batch.seq_lens[row])
            assert length == int(batch.seq_lens_cpu_upper_bound[row])
            blocks = sub.block_tables[0][row].tolist()  # type: ignore[attr-defined]
            seen = [self.cache[blocks[q // SIZE] * SIZE + q % SIZE] for q in range(length)]
            assert seen == list(enumerate(request.text[:length]))


@pytest.mark.parametrize("seed", range(60))
def test_a_member_sees_its_own_text(seed: int) -> None:
    rng = random.Random(seed)
    engine = Engine(rng, most=rng.choice([30, 36, 64]))
    prompts = [[rng.randrange(500) for _ in range(rng.randint(1, 30))] for _ in range(3)]
    owns = [None, *([rng.randrange(500) for _ in range(rng.randint(1, 50))] for _ in range(3))]
    for _ in range(60):
        if len(engine.running) < SLOTS and rng.random() < 0.5:
            prompt, own = rng.choice(prompts), rng.choice(owns)
            answer = [rng.randrange(3) for _ in range(rng.randint(1, 8))]
            salt = (len(prompt), None if own is None else tuple(own))
            engine.admit(Simulated(prompt, own, answer, salt), generated=rng.choice([0, 0, len(answer) - 1]))
        if engine.running:
            engine.step()
        for slot, request in list(engine.running.items()):
            if request.computed >= len(request.known) or rng.random() < 0.02:
                del engine.running[slot]
                engine.table.remove(slot)
    assert engine.cache


def test_a_member_is_never_behind() -> None:
    for prompt in range(1, 20):
        for own in range(1, 20):
            alignment = Alignment.of(prompt, own, SIZE)
            assert alignment.ahead >= 0
            assert alignment.start % SIZE == 0
            assert alignment.shift == prompt - own
