"""API keys: files that are read, files that are refused, and files that change."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import yaml

from server import auth
from server.auth import Keys
from server.errors import ConfigError
from server.options import KEY_VARIABLE


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def write(path: Path, **keys: dict[str, object]) -> Path:
    entries = [{"name": name, "sha256": digest(f"key of {name}")} | options for name, options in keys.items()]
    path.write_text(yaml.safe_dump({"keys": entries}))
    return path


@pytest.fixture(autouse=True)
def reload_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "RELOAD_SECONDS", 0.0)
    monkeypatch.delenv(KEY_VARIABLE, raising=False)


def test_without_keys_nobody_needs_one() -> None:
    assert not Keys(None).required


def test_a_key_finds_its_client(tmp_path: Path) -> None:
    keys = Keys(write(tmp_path / "keys.yaml", red={"weight": 3, "presets": ["giant"]}, blue={"tokens_per_minute": 100}))
    assert keys.required
    red = keys.client("key of red")
    assert red is not None
    assert (red.name, red.weight, red.presets, red.tokens_per_minute) == ("red", 3.0, ("giant",), None)
    assert keys.client("key of green") is None
    assert keys.client("") is None


def test_keys_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "first, second,")
    keys = Keys(None)
    assert keys.required
    assert [client.name for key in ("first", "second") if (client := keys.client(key))] == ["env-1", "env-2"]
    assert keys.client("") is None


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = write(tmp_path / "keys.yaml", red={})
    keys = Keys(path)
    # As Kubernetes does it: another file under the same name.
    os.replace(write(tmp_path / "new.yaml", blue={}), path)
    assert keys.client("key of blue") is not None
    assert keys.client("key of red") is None


@pytest.mark.parametrize("content", ["keys: [", "keys: [{name: a}]", ""])
def test_a_broken_file_leaves_the_keys_as_they_were(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "keys.yaml", red={})
    keys = Keys(path)
    path.write_text(content)
    assert keys.client("key of red") is not None
    assert "the keys stay as they were" in caplog.text
    path.unlink()
    assert keys.client("key of red") is not None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("keys: [{name: red}]", "key 'red' lacks sha256"),
        ("keys: [{name: red, sha256: secret}]", "keys.0.sha256: String should match pattern"),
        ("keys: [{name: 'a b', sha256: x}]", "keys.0.name"),
        (f"keys: [{{name: red, sha256: {'a' * 64}, wieght: 2}}]", "did you mean 'weight'"),
        (f"keys: [{{name: red, sha256: {'a' * 64}, weight: 0}}]", "keys.0.weight"),
        (f"keys: [{{name: red, sha256: {'a' * 64}, weight: true}}]", "true is not a number"),
        ("keys: {red: secret", "not valid YAML"),
        ("- secret", "should be a valid dictionary"),
    ],
)
def test_faults_are_named_and_no_secret_is_shown(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        Keys(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_missing_file_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        Keys(tmp_path / "keys.yaml")
