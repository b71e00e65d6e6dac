"""The configuration file: its schema, how it is read, and its reference table."""

from server.config.load import load_config
from server.config.presets import PresetConfig
from server.config.schema import Config, ExpertConfig, MemberConfig
from server.config.setting import WeightingName

__all__ = ["Config", "ExpertConfig", "MemberConfig", "PresetConfig", "WeightingName", "load_config"]
