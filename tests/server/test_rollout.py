"""Presets that split, and presets with a shadow: what a configuration may say, what a key brings, what is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.api.allowed import Allowed
from server.auth import Client
from server.config import Config, load_config
from server.errors import ConfigError

GOOD = """\
large: {model: someone/large}
base: {model: someone/base}
experts:
  red: {model: someone/red}
  blue: {model: someone/blue}
  guided: {use: red, against: red, prompt: {against: {system: ""}}}
presets:
  giant: {weighting: none}
  giant-red: {experts: [red], weighting: kl}
  giant-blue: {experts: [blue], weighting: static, alpha: 1.0}
  own: {experts: [guided], weighting: kl}
  auto: {experts: [red, blue], route: router.safetensors}
  ab: {split: {giant-red: 0.9, giant-blue: 0.1}, sticky: user}
  watched: {shadow: {answer: giant, beside: giant-red, share: 0.5}}
"""


def load(folder: Path, *overrides: str) -> Config:
    (folder / "router.safetensors").touch()
    path = folder / "fusion.yaml"
    path.write_text(GOOD)
    return load_config(path, overrides)


def test_who_answers(tmp_path: Path) -> None:
    config = load(tmp_path)
    assert [config.arms(name) for name in ("giant", "ab", "watched")] == [
        ("giant",),
        ("giant-red", "giant-blue"),
        ("giant",),
    ]
    assert load(tmp_path, "presets.ab.split={giant: 0.7, own: 0.2, auto: 0.1}").arms("ab") == ("giant", "own", "auto")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("presets.ab.split={giant: 0.9, giant-red: 0.2}", "ab.split: the shares come to 1.1; they must come to 1"),
        ("presets.ab.split={}", "ab.split: the shares come to 0; they must come to 1"),
        ("presets.ab.split={giant: 1, giant-red: 0}", "ab.split.giant-red: a share above 0 and up to 1 is needed here"),
        ("presets.ab.split={giant: -1}", "ab.split.giant: a share above 0 and up to 1 is needed here, not -1"),
        ("presets.ab.split={giant: .nan}", "ab.split.giant: a share above 0 and up to 1 is needed here, not nan"),
        ("presets.ab.split={giant: true}", "ab.split.giant: true is not a number"),
        ("presets.ab.split=[giant]", "ab.split: a mapping is needed here, not ['giant']"),
        ("presets.ab.split={gaint: 1}", "ab.split.gaint: there is no preset 'gaint'; did you mean 'giant'?"),
        ("presets.ab.split={ab: 1}", "ab.split.ab: 'ab' answers by other presets itself; name those"),
        ("presets.ab.split={watched: 1}", "ab.split.watched: 'watched' answers by other presets itself; name those"),
        ("presets.ab.sticky=users", "ab.sticky: 'users' is not one of key, user, none; did you mean 'user'?"),
        ("presets.ab.experts=[red]", "ab.experts: a preset with `split` answers by others, whose own it is"),
        ("presets.ab.alpha_max=3", "ab.alpha_max: a preset with `split` answers by others, whose own it is"),
        ("presets.watched.weighting=kl", "watched.weighting: a preset with `shadow` answers by others"),
        ("presets.giant.sticky=key", "giant.sticky: it is how a split chooses; name its presets and their shares"),
        ("presets.ab.shadow={answer: giant, beside: giant}", "ab.shadow: a preset that splits has no shadow"),
        ("presets.watched.shadow={answer: giant}", "watched.shadow lacks the key 'beside'"),
        ("presets.watched.shadow.share=2", "watched.shadow.share: a share above 0 and up to 1 is needed here, not 2"),
        ("presets.watched.shadow.answer=ab", "watched.shadow.answer: 'ab' answers by other presets itself"),
        ("presets.watched.shadow.beside=gaint", "watched.shadow.beside: there is no preset 'gaint'; did you mean"),
        ("presets.watched.shadow.beside=auto", "watched.shadow.beside: 'auto' routes: no text can be scored before"),
        ("presets.watched.shadow.answer=own", "watched.shadow.answer: expert 'guided' of 'own' has prompts of its own"),
        ("engine.max_logprobs=0", "watched.shadow: it needs logprobs; engine.max_logprobs or engine.logprobs_mode"),
        ("engine.logprobs_mode=raw_logits", "watched.shadow: it needs logprobs; engine.max_logprobs or engine.logpr"),
    ],
)
def test_faults(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, override)
    assert f": presets.{message}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_key_brings_what_answers(tmp_path: Path) -> None:
    """For the field `fusion`; who is scored beside an answer is none of its business."""
    config = load(tmp_path)
    allowed = Allowed.to(Client(name="team", presets=("ab", "watched")), config)
    assert allowed.presets == ("ab", "watched")
    assert allowed.experts == ("red", "blue")
    assert allowed.weightings == ("none", "static", "kl")
    assert Allowed.to(Client(name="team", presets=("watched",)), config).experts == ()
