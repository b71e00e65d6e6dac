"""The suite: one YAML file that says which tasks are asked, under which settings, in which tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from fusion_kernels.weighting import Weighting
from server.config.load import describe_fault, read_mapping
from server.config.section import Section
from server.config.setting import AlphaMax, Alphas, WeightingName, check_alpha
from server.errors import ConfigError, nearest

ROUTE = "route"
"""Beside a request's own fields of `fusion`: the preset that chooses the experts."""

Metric = Literal["exact", "choice", "nll"]
Experts = Literal["own", "all"] | tuple[str, ...]


def _file(text: Any, info: ValidationInfo) -> Path:
    if not isinstance(text, str) or info.context is None:
        raise ValueError(f"the path of a file is needed here, not {text!r}")
    path: Path = (info.context["folder"] / Path(text).expanduser()).resolve()
    if not path.is_file():
        raise ValueError(f"there is no file '{text}' (looked for {path})")
    return path


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"'{text}' is not a regular expression: {error}") from None
    return text


ExistingFile = Annotated[Path, BeforeValidator(_file)]
"""A path in the suite, taken from the suite's own folder; absolute once validated."""
Pattern = Annotated[str, AfterValidator(_pattern)]
Count = Annotated[int, Field(ge=1, strict=True)]


class Task(Section):
    """Examples in a file, how they become prompts, and how an answer is scored."""

    data: ExistingFile
    metric: Metric
    prompt: str = ""
    messages: str | None = None
    answer: str
    choices: str | None = None
    chat: bool = False
    max_tokens: Count = 64
    stop: tuple[str, ...] = ()
    extract: Pattern | None = None
    remove: Pattern | None = None
    normalise: Literal["none", "tokens"] = "none"
    limit: Count | None = None
    expert: str | None = None
    upper: str | None = None
    train: ExistingFile | None = None

    @model_validator(mode="after")
    def _asks_one_way(self) -> Self:
        if (self.messages is None) == ("prompt" not in self.model_fields_set):
            raise ValueError("one of prompt, a template, and messages, the field that holds a conversation, is needed")
        return self

    @model_validator(mode="after")
    def _keys_fit_the_metric(self) -> Self:
        if self.metric == "choice" and self.choices is None:
            raise ValueError("metric 'choice' needs choices: the field that holds the list of choices")
        owners = {
            "choices": "choice",
            "normalise": "choice",
            "max_tokens": "exact",
            "stop": "exact",
            "extract": "exact",
        }
        for key, metric in owners.items():
            if key in self.model_fields_set and self.metric != metric:
                raise ValueError(f"{key} is only for metric '{metric}'; this task's is '{self.metric}'")
        return self


class Setting(Section):
    """A column: how the experts steer, in the words of a request's `fusion` field."""

    weighting: WeightingName | Literal["kl-joint"]
    alpha: Alphas | None = None
    alpha_max: AlphaMax = 2.0
    route: str | None = None
    """A preset of the server whose router chooses the experts for each prompt."""

    @model_validator(mode="after")
    def _alpha_where_it_counts(self) -> Self:
        # What is no weighting of the server solves its weights.
        check_alpha("kl" if self.weighting == "kl-joint" else self.weighting, self.alpha)
        return self

    @model_validator(mode="after")
    def _routed_where_experts_steer(self) -> Self:
        if self.route is not None and self.weighting in ("none", "kl-joint"):
            raise ValueError(
                f"route: with weighting '{self.weighting}' no router chooses experts; leave one of them out"
            )
        return self

    @property
    def dynamic(self) -> bool:
        """Whether the weights are solved anew at every token."""
        return self.weighting not in ("none", "alone", "static")

    def field(self, experts: Iterable[str]) -> dict[str, Any]:
        """Return the request's `fusion` field that asks for this setting with these experts."""
        if self.weighting == "none":
            return {"weighting": "none"}
        field: dict[str, Any] = {"weighting": self.weighting}
        field |= {"experts": list(experts)} if self.route is None else {ROUTE: self.route}
        if self.alpha is not None:
            field["alpha"] = self.alpha
        if self.dynamic:
            field["alpha_max"] = self.alpha_max
        return field


class Table(Section):
    """Tasks by settings, with the experts that take part and the examples in the prompt."""

    experts: Experts = "own"
    shots: Annotated[int, Field(ge=0, strict=True)] = 0
    tasks: tuple[str, ...] | None = None
    settings: tuple[str, ...] | None = None
    upper: str | None = None


def _default_settings() -> dict[str, Setting]:
    static = {f"static {alpha}": Setting(weighting="static", alpha=alpha) for alpha in (0.5, 1.0, 1.5)}
    dynamic = {str(weighting): Setting(weighting=str(weighting)) for weighting in Weighting if weighting.searches}
    return {"large": Setting(weighting="none"), "expert alone": Setting(weighting="alone"), **static, **dynamic}


class Suite(Section):
    """A whole suite."""

    config: ExistingFile | None = None
    upper: ExistingFile | None = None
    tasks: dict[str, Task]
    settings: dict[str, Setting] = Field(default_factory=_default_settings)
    tables: dict[str, Table] = Field(default_factory=lambda: {"Single task": Table()})

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        if not self.tasks:
            raise _at(("tasks",), "at least one task is needed")
        for name, task in self.tasks.items():
            if task.upper is not None and self.upper is None:
                raise _at(("tasks", name, "upper"), "the suite has no 'upper', the configuration that has this preset")
        for name, table in self.tables.items():
            where = ("tables", name)
            for part in table.tasks or ():
                if part not in self.tasks:
                    raise _at((*where, "tasks"), f"there is no task '{part}'; {nearest(part, self.tasks)}")
            for part in table.settings or ():
                if part not in self.settings:
                    raise _at((*where, "settings"), f"there is no setting '{part}'; {nearest(part, self.settings)}")
            if isinstance(table.experts, tuple) and not table.experts:
                raise _at((*where, "experts"), "at least one expert is needed, or own, or all")
            if table.upper is not None and self.upper is None:
                raise _at((*where, "upper"), "the suite has no 'upper', the configuration that has this preset")
            for part in self.tasks_of(table) if table.shots else ():
                if self.tasks[part].train is None:
                    raise _at((*where, "shots"), f"task '{part}' has no train, the file that the examples come from")
        return self

    @property
    def experts(self) -> tuple[str, ...]:
        """The experts that the tasks name, in order: what a table's `all` means."""
        return tuple(dict.fromkeys(task.expert for task in self.tasks.values() if task.expert is not None))

    def tasks_of(self, table: Table) -> tuple[str, ...]:
        """Return the names of the tasks in a table."""
        if table.tasks is not None:
            return table.tasks
        return tuple(name for name, task in self.tasks.items() if table.experts != "own" or task.expert is not None)

    def settings_of(self, table: Table) -> tuple[str, ...]:
        """Return the names of the settings in a table."""
        return tuple(self.settings) if table.settings is None else table.settings

    def experts_of(self, table: Table, task: str, setting: str) -> tuple[str, ...] | None:
        """Return the experts that take part in a cell; None where the cell is empty, as it would have none."""
        own = self.tasks[task].expert
        alone: tuple[str, ...] | None = None if own is None else (own,)
        weighting = self.settings[setting].weighting
        if weighting == "none" or self.settings[setting].route is not None:
            return ()
        if table.experts == "own":
            return alone
        several = self.experts if table.experts == "all" else table.experts
        return alone if weighting == "alone" and len(several) != 1 else several or None


def load_suite(path: Path) -> Suite:
    """Return the suite in a file, all its paths absolute.

    Raises:
        ConfigError: the file, one of its keys, or a file that it names is not as it should be.
    """
    data = read_mapping(path, "a mapping with tasks is needed")
    try:
        return Suite.model_validate(data, context={"folder": path.resolve().parent})
    except ValidationError as error:
        raise ConfigError(f"{path}: {describe_fault(error, data)[1]}") from None


def narrow(suite: Suite, tasks: Sequence[str], limit: int | None, shots: int | None) -> Suite:
    """Return a suite whose tables have these tasks only (none: all), fewer examples, or other shots.

    Raises:
        ConfigError: there is no such task, no table has it, or it has no `train` for the shots.
    """
    for name in tasks:
        if name not in suite.tasks:
            raise ConfigError(f"--task {name}: there is no such task; {nearest(name, suite.tasks)}")
    tables = {}
    for title, table in suite.tables.items():
        kept = tuple(name for name in suite.tasks_of(table) if not tasks or name in tasks)
        count = table.shots if shots is None else shots
        for name in kept:
            if count and suite.tasks[name].train is None:
                raise ConfigError(f"--shots {count}: task '{name}' has no train, the file that the examples come from")
        if kept:
            tables[title] = table.model_copy(update={"tasks": kept, "shots": count})
    if not tables:
        raise ConfigError(f"no table has a task to ask: {', '.join(tasks or suite.tasks)}")
    limits = {name: min(filter(None, (task.limit, limit)), default=None) for name, task in suite.tasks.items()}
    limited = {name: task.model_copy(update={"limit": limits[name]}) for name, task in suite.tasks.items()}
    return suite.model_copy(update={"tasks": limited, "tables": tables})


def _at(where: tuple[str, ...], message: str) -> PydanticCustomError:
    """Make a fault that belongs deeper than the section whose validator found it."""
    return PydanticCustomError("fault", "{message}", {"where": where, "message": message})
