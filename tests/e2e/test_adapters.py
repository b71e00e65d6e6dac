"""Adapters that are loaded and unloaded while the server serves, by vLLM's two routes and the official SDK."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
import torch
import yaml
from openai import AsyncOpenAI, OpenAI
from peft import PeftModel
from prometheus_client.parser import text_string_to_metric_families
from safetensors.torch import load_file, save_file

from tests.engine.families import PROJECTIONS
from tests.engine.pair_loop import PairLoop
from tests.hf_loop import Settings
from tests.models import load_model, make_adapter, make_family, make_model
from tests.server_process import ServerProcess

PROMPT = [7, 99, 300, 12, 45, 6, 200, 31]
MAX_TOKENS = 10
GOOD = {"warm": 2, "cold": 5, "wild": 8}
"""Adapters that fit, and their ranks: at most what there is room for."""
ADMIN, USER = "key-of-the-operator", "key-of-a-user"


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family with a full expert and an adapter, beside good adapters in a folder and bad ones of every kind."""
    config = make_family(tmp_path_factory.mktemp("loaded"))
    folder, base = config.parent, config.parent / "base"
    adapters = folder / "adapters"
    make_adapter(folder / "fixed-lora", base, rank=3, target_modules=PROJECTIONS, seed=9)
    for seed, (name, rank) in enumerate(GOOD.items(), start=20):
        make_adapter(adapters / name, base, rank=rank, target_modules=PROJECTIONS, seed=seed, scale=0.8)
    for name, path in (("fixed", folder / "fixed-lora"), *((name, adapters / name) for name in GOOD)):
        merged: Any = PeftModel.from_pretrained(load_model(base, dtype=torch.float32), str(path))
        merged.merge_and_unload().save_pretrained(folder / name)
    _make_bad(folder, adapters, base)
    entries = [
        {"name": name, "sha256": hashlib.sha256(key.encode()).hexdigest(), **more}
        for name, key, more in (("operator", ADMIN, {"admin": True}), ("user", USER, {}))
    ]
    (folder / "keys.yaml").write_text(yaml.safe_dump({"keys": entries}))
    settings = yaml.safe_load(config.read_text())
    settings["experts"] = {"red": {"model": "red"}, "fixed": {"adapter": "fixed-lora"}}
    settings["presets"] = {"giant": {"weighting": "none"}, "giant-red": {"experts": ["red"]}}
    settings["adapters"] = {"max": 2, "max_rank": 8, "folder": "adapters", "loaded": "loaded.yaml"}
    settings["auth"] = {"keys_file": "keys.yaml"}
    config.write_text(yaml.safe_dump(settings, sort_keys=False))
    return config


def _make_bad(folder: Path, adapters: Path, base: Path) -> None:
    make_adapter(adapters / "wide", base, rank=9, seed=30)
    make_adapter(adapters / "dora", base, rank=2, seed=31, use_dora=True)
    make_adapter(adapters / "saved", base, rank=2, seed=32, modules_to_save=["embed_tokens"])
    make_model(folder / "stranger", vocab_size=512, hidden_size=96, seed=33)
    make_adapter(adapters / "strange", folder / "stranger", rank=2, seed=34)
    shutil.copytree(adapters / "warm", adapters / "halved")
    file = adapters / "halved" / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors.pop(next(name for name in tensors if "lora_B" in name))
    save_file(tensors, file)
    shutil.copytree(adapters / "warm", adapters / "torn")
    (adapters / "torn" / "adapter_model.safetensors").write_bytes(b"no tensors at all")
    (adapters / "empty").mkdir()
    make_adapter(folder / "outside", base, rank=2, seed=35)
    (adapters / "link").symlink_to(folder / "outside")


@pytest.fixture(scope="module")
def server(family: Path) -> Iterator[ServerProcess]:
    with ServerProcess(family, family.parent / "server.log") as process:
        yield process
        process.end()


@pytest.fixture(autouse=True)
def nothing_loaded(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "server" in request.fixturenames:
        server: ServerProcess = request.getfixturevalue("server")
        for name in set(models(server)) - {"giant", "giant-red"}:
            unload(server, name)


@pytest.fixture
def client(server: ServerProcess) -> OpenAI:
    return OpenAI(base_url=server.url + "/v1", api_key=USER, max_retries=0)


class Expected:
    """What whole models answer in a plain loop; each answer is computed once."""

    def __init__(self, folder: Path) -> None:
        names = ("red", "fixed", *GOOD)
        self._loop = PairLoop(folder, {name: (name, "base") for name in names})
        self._known: dict[Any, list[int]] = {}

    def __call__(self, *experts: str, prompt: tuple[int, ...] = tuple(PROMPT)) -> list[int]:
        """The greedy tokens under `static` with each expert's weight 1, of the large model alone without any."""
        key = experts, prompt
        if key not in self._known:
            settings = Settings("static", experts, (1.0,) * len(experts)) if experts else Settings("none", ())
            self._known[key] = self._loop.greedy(list(prompt), settings, MAX_TOKENS)
        return self._known[key]


@pytest.fixture(scope="module")
def expected(family: Path) -> Expected:
    return Expected(family.parent)


def post(server: ServerProcess, route: str, key: str = ADMIN, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/{route}", json=body, headers={"Authorization": f"Bearer {key}"}, timeout=60)


def load(server: ServerProcess, name: str, path: str | None = None, **more: Any) -> None:
    answer = post(server, "load_lora_adapter", lora_name=name, lora_path=path or name, **more)
    assert answer.status_code == 200, answer.text
    assert "added successfully" in answer.text


def unload(server: ServerProcess, name: str) -> None:
    answer = post(server, "unload_lora_adapter", lora_name=name)
    assert answer.status_code == 200, answer.text
    assert "removed successfully" in answer.text


def models(server: ServerProcess) -> list[str]:
    with OpenAI(base_url=server.url + "/v1", api_key=USER) as client:
        return [model.id for model in client.models.list()]


def fields(model: str, *experts: str, **more: Any) -> dict[str, Any]:
    fusion = {"weighting": "static", "alpha": 1.0, "experts": list(experts)} if experts else {}
    extra = {"ignore_eos": True, "return_token_ids": True, **({"fusion": fusion | more} if experts else {})}
    return {"model": model, "max_tokens": MAX_TOKENS, "temperature": 0, "extra_body": extra}


def ask(client: OpenAI, model: str, *experts: str) -> list[int]:
    """The tokens of a greedy answer: of `experts` in equal parts, or as the model has it."""
    answer: Any = client.completions.create(prompt=PROMPT, **fields(model, *experts))
    tokens: list[int] = answer.choices[0].token_ids
    return tokens


def test_a_loaded_adapter_is_a_model_and_an_expert(server: ServerProcess, client: OpenAI, expected: Expected) -> None:
    assert models(server) == ["giant", "giant-red"]
    load(server, "warm")
    assert models(server) == ["giant", "giant-red", "warm"]
    assert ask(client, "warm", "warm") == expected("warm")
    assert ask(client, "giant", "warm", "red", "fixed") == expected("warm", "red", "fixed")
    answer: Any = client.completions.create(
        prompt=PROMPT, model="warm", max_tokens=4, temperature=0, extra_body={"fusion": {"trace": True}}
    )
    assert set(answer.choices[0].fusion["alpha"]) == {"warm"}
    listed = httpx.get(server.url + "/v1/fusion/experts", headers={"Authorization": f"Bearer {USER}"}).json()
    assert [member["name"] for member in listed["members"]] == ["large", "base", "red", "fixed", "warm"]
    assert listed["presets"]["warm"]["experts"] == ["warm"]
    assert listed["members"][-1]["kind"] == "adapter"
    file = server_folder(server) / "adapters" / "warm" / "adapter_model.safetensors"
    assert 0.8 < listed["members"][-1]["weight_bytes"] / file.stat().st_size <= 1
    unload(server, "warm")
    assert models(server) == ["giant", "giant-red"]
    with pytest.raises(openai.NotFoundError, match="no preset 'warm'"):
        ask(client, "warm")
    with pytest.raises(openai.NotFoundError, match="no expert 'warm'"):
        ask(client, "giant", "warm")


def server_folder(server: ServerProcess) -> Path:
    return Path(server.log).parent


def test_another_adapter_in_the_same_place(server: ServerProcess, client: OpenAI, expected: Expected) -> None:
    """With the same prompt: what the first one left in the prefix cache is not the second one's."""
    load(server, "cold")
    for name in ("warm", "wild", "warm"):
        load(server, name)
        assert ask(client, name, name) == expected(name)
        assert ask(client, "giant", name, "cold") == expected(name, "cold")
        unload(server, name)
    assert ask(client, "cold", "cold") == expected("cold")


def test_in_place(server: ServerProcess, client: OpenAI, expected: Expected) -> None:
    load(server, "new", "warm")
    again = post(server, "load_lora_adapter", lora_name="new", lora_path="wild")
    assert again.status_code == 400
    assert "load_inplace" in again.json()["error"]["message"]
    load(server, "new", "wild", load_inplace=True)
    assert models(server) == ["giant", "giant-red", "new"]
    assert ask(client, "new", "new") == expected("wild")


async def test_a_request_keeps_the_adapter_that_it_began_with(server: ServerProcess, expected: Expected) -> None:
    load(server, "warm")
    load(server, "cold")
    async with AsyncOpenAI(base_url=server.url + "/v1", api_key=USER, max_retries=0) as client:
        asked = fields("warm", "warm") | {"max_tokens": 150}
        stream: Any = await client.completions.create(prompt=PROMPT, stream=True, **asked)
        tokens = [token async for chunk in _first(stream, 3) for token in chunk.choices[0].token_ids]
        unload(server, "warm")
        with pytest.raises(openai.NotFoundError):
            await client.completions.create(prompt=PROMPT, **fields("warm"))
        full = post(server, "load_lora_adapter", lora_name="wild", lora_path="wild")
        assert full.status_code == 409, full.text
        assert "still in use" in full.json()["error"]["message"]
        tokens += [token async for chunk in stream for token in chunk.choices[0].token_ids]
        assert len(tokens) == 150
        assert tokens[:MAX_TOKENS] == expected("warm")
        deadline = time.monotonic() + 10
        while post(server, "load_lora_adapter", lora_name="wild", lora_path="wild").status_code == 409:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
        answer: Any = await client.completions.create(prompt=PROMPT, **fields("wild", "wild"))
        assert answer.choices[0].token_ids == expected("wild")


async def _first(stream: Any, number: int) -> Any:
    for _ in range(number):
        yield await anext(stream)


BAD: list[tuple[str, str, int, str, str]] = [
    ("x", "wide", 400, "lora_path", "rank 9; there is room for 8"),
    ("x", "dora", 400, "lora_path", "merged when the server starts"),
    ("x", "saved", 400, "lora_path", "lora_path: "),
    ("x", "strange", 400, "lora_path", "does not fit the base"),
    ("x", "halved", 400, "lora_path", "lacks lora_B"),
    ("x", "torn", 400, "lora_path", "lora_path: "),
    ("x", "empty", 400, "lora_path", "has no adapter_config.json"),
    ("x", "nowhere", 404, "lora_path", "there is no folder 'nowhere'"),
    ("x", "../outside", 400, "lora_path", "is no folder under"),
    ("x", "/etc", 400, "lora_path", "is no folder under"),
    ("x", "link", 400, "lora_path", "is no folder under"),
    ("x", "", 400, "lora_path", "is no folder under"),
    ("x", ".", 400, "lora_path", "is no folder under"),
    ("x", "a\0b", 400, "lora_path", "is no folder under"),
    ("x", "hub/adapter", 404, "lora_path", "there is no folder"),
    ("red", "warm", 400, "lora_name", "has an expert 'red'"),
    ("giant", "warm", 400, "lora_name", "has a preset 'giant'"),
    ("base", "warm", 400, "lora_name", "cannot be an expert's name"),
    ("", "warm", 400, "lora_name", "cannot be an expert's name"),
    ("spare adapter 1", "warm", 400, "lora_name", "cannot be an expert's name"),
]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: f"{bad[0]}-{bad[1]}")
def test_wrong_adapters(
    server: ServerProcess, client: OpenAI, expected: Expected, bad: tuple[str, str, int, str, str]
) -> None:
    name, path, status, param, message = bad
    answer = post(server, "load_lora_adapter", lora_name=name, lora_path=path)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert message in error["message"]
    assert str(server_folder(server)) not in error["message"]
    assert models(server) == ["giant", "giant-red"]
    assert ask(client, "giant") == expected()


def test_who_may(server: ServerProcess) -> None:
    for route in ("load_lora_adapter", "unload_lora_adapter"):
        refused = post(server, route, key=USER, lora_name="warm", lora_path="warm")
        assert refused.status_code == 403
        assert "admin: true" in refused.json()["error"]["message"]
        assert post(server, route, key="nobody's", lora_name="warm", lora_path="warm").status_code == 401
    missing = post(server, "unload_lora_adapter", lora_name="warn")
    assert missing.status_code == 404
    load(server, "warm")
    assert "did you mean 'warm'" in post(server, "unload_lora_adapter", lora_name="warn").json()["error"]["message"]
    assert post(server, "load_lora_adapter", lora_name="warm").status_code == 400


def test_full(server: ServerProcess) -> None:
    load(server, "warm")
    load(server, "cold")
    full = post(server, "load_lora_adapter", lora_name="wild", lora_path="wild")
    assert full.status_code == 409
    assert "room for 2 adapters at once (adapters.max); unload one first" in full.json()["error"]["message"]


def test_spares_are_nobodys(server: ServerProcess, client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="no preset"):
        ask(client, "spare adapter 1")
    with pytest.raises(openai.NotFoundError, match="no expert"):
        ask(client, "giant", "spare adapter 1")


def test_metrics_count_an_adapter_from_its_beginning(server: ServerProcess, client: OpenAI) -> None:
    def tokens() -> dict[str, float]:
        text = httpx.get(server.url + "/metrics", headers={"Authorization": f"Bearer {USER}"}).text
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == "fusion_tokens_total":
                    name = sample.labels["preset"]
                    found[name] = found.get(name, 0) + sample.value
        return found

    load(server, "warm")
    assert tokens()["warm"] == 0
    ask(client, "warm")
    deadline = time.monotonic() + 20
    while tokens()["warm"] < MAX_TOKENS and time.monotonic() < deadline:
        time.sleep(0.2)
    assert tokens()["warm"] == MAX_TOKENS
    unload(server, "warm")
    load(server, "cold")
    found = tokens()
    assert found["cold"] == 0
    assert "warm" not in found
    assert not [name for name in found if "spare" in name]


def test_it_survives_a_restart(family: Path, expected: Expected, tmp_path: Path) -> None:
    """What no longer loads is left out; two servers that share the file have the same adapters."""
    loaded = tmp_path / "loaded.yaml"
    loaded.write_text(yaml.safe_dump({"warm": "warm", "gone": "gone"}))
    log = family.parent / "again.log"
    with ServerProcess(family, log, "--set", f"adapters.loaded={loaded}") as process:
        assert models(process) == ["giant", "giant-red", "warm"]
        with OpenAI(base_url=process.url + "/v1", api_key=USER, max_retries=0) as client:
            assert ask(client, "warm", "warm") == expected("warm")
            load(process, "cold")
            assert yaml.safe_load(loaded.read_text()) == {"warm": "warm", "gone": "gone", "cold": "cold"}
            # As another server would.
            (tmp_path / "new.yaml").write_text(yaml.safe_dump({"wild": "wild"}))
            (tmp_path / "new.yaml").replace(loaded)
            deadline = time.monotonic() + 20
            while models(process) != ["giant", "giant-red", "wild"] and time.monotonic() < deadline:
                time.sleep(0.2)
            assert ask(client, "wild", "wild") == expected("wild")
        process.end()
    assert "adapter 'gone' is left out: lora_path: there is no folder 'gone'" in log.read_text()


def test_without_the_section_nothing_is_loaded(family: Path) -> None:
    plain = yaml.safe_load(family.read_text())
    del plain["adapters"], plain["auth"]
    config = family.with_name("plain.yaml")
    config.write_text(yaml.safe_dump(plain, sort_keys=False))
    with ServerProcess(config, family.parent / "plain.log") as process:
        answer = httpx.post(process.url + "/v1/load_lora_adapter", json={"lora_name": "a", "lora_path": "warm"})
        assert answer.status_code == 404
        assert "no section 'adapters'" in answer.json()["error"]["message"]
        process.end()


@pytest.mark.parametrize("seconds", [pytest.param(15), pytest.param(600, marks=pytest.mark.long)])
async def test_load(server: ServerProcess, expected: Expected, seconds: float) -> None:
    """Adapters come and go under sixteen streams: no request fails, or has other tokens than alone."""
    stop = time.monotonic() + seconds
    combinations = [(), ("red",), ("fixed",), ("red", "fixed")]
    wanted = {experts: expected(*experts) for experts in combinations} | {(name,): expected(name) for name in GOOD}
    answered, changed, sizes = 0, 0, []

    async with AsyncOpenAI(base_url=server.url + "/v1", api_key=USER, max_retries=0, timeout=120) as client:

        async def stream(number: int) -> None:
            nonlocal answered
            while time.monotonic() < stop:
                experts = combinations[(number + answered) % len(combinations)]
                assert await _streamed(client, experts) == wanted[experts]
                answered += 1

        async def change() -> None:
            nonlocal changed
            while time.monotonic() < stop:
                for name in GOOD:
                    await asyncio.to_thread(load, server, name)
                    assert await _streamed(client, (name,)) == wanted[(name,)]
                    began = [asyncio.Event() for _ in range(4)]
                    asked = asyncio.gather(*(_streamed(client, (name,), event) for event in began))
                    await asyncio.gather(*(event.wait() for event in began))
                    await asyncio.to_thread(unload, server, name)
                    for tokens in await asked:
                        assert tokens == wanted[(name,)]
                    changed += 1
                    sizes.append(_memory(server))

        await asyncio.gather(change(), *(stream(number) for number in range(16)))
    print(f"{answered} answers, {changed} adapters came and went; memory {sizes[0]:.0f} to {sizes[-1]:.0f} MiB")
    assert answered > 16
    assert changed > 2
    if seconds > 60:
        early, late = sizes[len(sizes) // 4 : len(sizes) // 2], sizes[-len(sizes) // 4 :]
        assert max(late) < 1.02 * max(early)


async def _streamed(client: AsyncOpenAI, experts: tuple[str, ...], began: asyncio.Event | None = None) -> list[int]:
    tokens = []
    chunks: Any = await client.completions.create(prompt=PROMPT, stream=True, **fields("giant", *experts))
    async for chunk in chunks:
        tokens += chunk.choices[0].token_ids
        if began is not None:
            began.set()
    return tokens


def _memory(server: ServerProcess) -> float:
    """MiB that the server's processes hold."""
    process = psutil.Process(server.process.pid)
    return sum(each.memory_info().rss for each in (process, *process.children(recursive=True))) / 2**20
