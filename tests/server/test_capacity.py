"""How many tokens and requests are said to fit into memory."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from server.devices import CARDS, devices
from server.engine.checks.capacity import GIB, format_bytes, logit_bytes, measure_capacity, relative_speed
from server.errors import ConfigError
from tests.server.family import check

SHARE = "engine.kv_cache_memory_bytes=null"


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    monkeypatch.setattr("server.engine.checks.capacity._memory", lambda cpu: (10 * GIB, 8 * GIB))


def test_a_share_of_memory(family: Path) -> None:
    report = check(family, SHARE, "engine.gpu_memory_utilization=0.5", "engine.max_num_seqs=100")
    capacity = measure_capacity(report)
    # Float32 logits of all members, and the fused ones.
    logits = 100 * report.vocabulary * 4 * (len(report.reports) + 1)
    assert capacity.kv_bytes == 5 * GIB - report.weight_bytes - logits - GIB
    assert "of logits and about 1.00 GiB to work in" in capacity.budget
    tokens = capacity.kv_bytes // report.kv_bytes_per_token // 128 * 128
    assert (capacity.kv_tokens, capacity.requests) == (tokens, tokens // 256)


def test_memory_that_is_not_free(family: Path) -> None:
    with pytest.raises(ConfigError, match=r"reserves 0\.92 of 10\.00 GiB, but 8\.00 GiB are free; 0\.8 is the largest"):
        measure_capacity(check(family, SHARE))


def test_a_fixed_cache(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    capacity = measure_capacity(check(family, "engine.kv_cache_memory_bytes=10000000"))
    assert (capacity.kv_bytes, capacity.kv_tokens) == (10_000_000, 10_000_000 // 3072 // 128 * 128)
    with pytest.raises(ConfigError, match=r"8\.00 GiB are free"):
        measure_capacity(check(family, f"engine.kv_cache_memory_bytes={9 * GIB}"))
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "2")
    assert measure_capacity(check(family)).kv_bytes == 2 * GIB


def test_not_even_one_request(family: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"one request of 256 tokens takes .*; set engine\.max_model_len to 128 or less"
    ):
        measure_capacity(check(family, "engine.kv_cache_memory_bytes=500000"))


def test_tensor_parallel_devices_share(family: Path) -> None:
    whole = check(family, "engine.kv_cache_memory_bytes=10000000")
    split = check(family, "engine.kv_cache_memory_bytes=10000000", "engine.tensor_parallel_size=2")
    one, two = measure_capacity(whole), measure_capacity(split)
    assert two.weight_bytes == one.weight_bytes // 2
    # The large model's two KV heads are divided; the small members' single one is on both devices.
    assert two.kv_bytes_per_token == one.kv_bytes_per_token - 3 * 2 * 32 * 4


def test_speed_is_what_is_read(family: Path) -> None:
    report = check(family, "engine.kv_cache_memory_bytes=10000000")
    large = report.reports[0]
    assert large.member.role == "large"
    assert relative_speed(report, 0) == pytest.approx(large.weight_bytes / report.weight_bytes)
    # With a cache far larger than the weights, only the cache counts.
    assert relative_speed(report, 10**12) == pytest.approx(large.kv_bytes_per_token / report.kv_bytes_per_token)
    capacity = measure_capacity(report)
    assert capacity.speed_idle == relative_speed(report, 0)
    assert capacity.speed_full == relative_speed(report, capacity.kv_tokens)


def test_speed_of_shared_devices(family: Path) -> None:
    """The small members' single KV head is on both devices, so their cache weighs more there."""
    whole, split = check(family), check(family, "engine.tensor_parallel_size=2")
    assert relative_speed(split, 0) == pytest.approx(relative_speed(whole, 0))
    assert relative_speed(split, 10**12) < relative_speed(whole, 10**12)


def test_cards_that_are_not_there(family: Path) -> None:
    report = check(family, SHARE, "engine.tensor_parallel_size=2")
    capacity = measure_capacity(report, devices("2xh100-80gb"))
    assert capacity.device == "2xH100-80GB"
    rows = int(report.config.engine.get("max_num_seqs") or 1024)
    assert capacity.kv_bytes == math.ceil(80 * GIB * 0.92) - capacity.weight_bytes - logit_bytes(report, rows) - GIB
    assert capacity.kv_tokens == capacity.kv_bytes // capacity.kv_bytes_per_token // 16 * 16
    assert capacity.tokens_idle == pytest.approx(3350e9 / capacity.weight_bytes)
    read = capacity.weight_bytes + capacity.requests * 256 * capacity.kv_bytes_per_token
    assert capacity.tokens_full == pytest.approx(capacity.requests * 3350e9 / read)


@pytest.mark.parametrize("spelled", ["8xH100", "H100-80", "0xH100-80GB", "x"])
def test_a_card_that_is_not_known(spelled: str) -> None:
    with pytest.raises(ConfigError, match=f"--device {spelled}: there is no card"):
        devices(spelled)


@pytest.mark.parametrize("name", CARDS)
def test_the_page_names_every_card(name: str) -> None:
    assert devices(name).card == CARDS[name]
    assert name in (Path(__file__).parents[2] / "docs" / "capacity.md").read_text()


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 20, "3.0 MiB"), (5 << 30, "5.00 GiB")]
)
def test_bytes_in_words(count: int, text: str) -> None:
    assert format_bytes(count) == text
