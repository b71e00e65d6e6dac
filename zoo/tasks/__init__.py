"""The seen tasks: worked arithmetic, facts from memory, text transformation."""

from zoo.tasks.facts import FactTask
from zoo.tasks.math import MathTask
from zoo.tasks.text import TextTask

__all__ = ["FactTask", "MathTask", "TextTask"]
