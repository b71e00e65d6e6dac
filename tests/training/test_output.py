"""What a training leaves: a folder that says what it holds, and lines for a configuration that keep its comments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from server.config import Config, load_config
from server.config.load import zoo_config
from server.errors import ConfigError
from training.output import Place, add_to, lines

STATED: dict[str, Any] = {"base": "b", "data": "d", "full": False, "epochs": 3}


def test_a_folder_is_one_trainings(tmp_path: Path) -> None:
    place = Place("places", tmp_path / "experts" / "places")
    assert not place.agree(STATED)
    assert not place.agree(STATED)  # a stopped run goes on
    with pytest.raises(ConfigError, match=r"with epochs 3, not 4; --fresh begins anew"):
        place.agree(STATED | {"epochs": 4})
    place.clear()
    assert not place.agree(STATED | {"epochs": 4})


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    place = Place("places", tmp_path)
    with pytest.raises(ConfigError, match="holds other things"):
        place.agree(STATED)
    with pytest.raises(ConfigError, match="holds other things"):
        place.clear()
    assert (tmp_path / "thesis.txt").is_file()


CONFIG = """\
# What we serve.
large: {model: ./large}   # the big one
base:
  model: './base'
presets:
  giant: {weighting: none}
"""


def added(folder: Path) -> dict[str, Any]:
    return lines(Place("places", folder / "experts" / "places"), "adapter", folder)


@pytest.fixture
def zoo() -> Config:
    return load_config(None)


def test_lines_are_added_and_all_else_stays(tmp_path: Path, zoo: Config) -> None:
    path = tmp_path / "fusion.yaml"
    path.write_text(CONFIG)
    add_to(path, added(tmp_path), zoo_config(), zoo)
    text = path.read_text()
    assert yaml.safe_load(text) == yaml.safe_load(CONFIG) | {
        "experts": {"places": {"adapter": "./experts/places"}},
        "presets": {"giant": {"weighting": "none"}, "places": {"experts": ["places"], "weighting": "kl"}},
    }
    assert text.startswith(CONFIG)
    add_to(path, added(tmp_path), zoo_config(), zoo)
    assert path.read_text() == text


def test_an_entry_of_that_name_is_not_overwritten(tmp_path: Path, zoo: Config) -> None:
    path = tmp_path / "fusion.yaml"
    path.write_text(CONFIG + "experts: {places: {model: ./other}}\n")
    with pytest.raises(ConfigError, match=r"experts.places is there already"):
        add_to(path, added(tmp_path), zoo_config(), zoo)
    assert "./other" in path.read_text()


def test_a_new_file_serves_what_was_trained_with_and_the_expert(tmp_path: Path, zoo: Config) -> None:
    path = tmp_path / "mine" / "fusion.yaml"
    (path.parent / "experts" / "places").mkdir(parents=True)
    add_to(path, added(path.parent), zoo_config(), zoo)
    found = load_config(path)
    assert (found.large, found.base) == (zoo.large, zoo.base)
    assert found.experts.pop("places").adapter == str(path.parent / "experts" / "places")
    assert found.experts == zoo.experts
    assert "The embedded demo family" in path.read_text()


def test_an_expert_elsewhere_is_named_by_its_whole_path(tmp_path: Path) -> None:
    found = lines(Place("places", tmp_path / "places"), "model", tmp_path / "config")
    assert found["experts"]["places"] == {"model": str(tmp_path / "places")}
