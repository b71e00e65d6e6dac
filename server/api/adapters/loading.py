"""Adapters that come and go while the server serves: each is an expert, and a preset, of its own name.

The engine starts with members to spare (`adapters.max`), which are the base until an adapter is put into one.
Here they get names and lose them. Whoever asks reads names from the configuration, so a request that has been settled
keeps the member that it found under a name: a member that lost its name is spare again when its last request ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import TypeVar

from server.api.adapters.listing import Listing
from server.api.errors import RequestError
from server.config.adapters import AdaptersConfig, is_spare, spare_name
from server.config.presets import PresetConfig
from server.config.schema import EXPERT_NAME, RESERVED_EXPERTS, ExpertConfig
from server.config.source import HUB_ID
from server.engine.checks import MemberReport, Report, check_members
from server.engine.client import FusionEngine
from server.engine.members import fetch_weights
from server.engine.settings import FusionSettings
from server.engine.weights import AdapterFiles
from server.errors import ConfigError, ServerError, nearest

FOLLOW_SECONDS = 1.0
# How long an adapter that did not load is left alone.
RETRY_SECONDS = 30.0

logger = logging.getLogger(__name__)

Value = TypeVar("Value")


class Adapters:
    """The adapters of one server."""

    def __init__(
        self,
        engine: FusionEngine,
        report: Report,
        recount: Callable[[], Awaitable[None]],
        list_presets: Callable[[], None],
    ) -> None:
        self.report = report
        """What the members are, those that were loaded since included."""
        self._engine = engine
        self._config = report.config
        self._recount, self._list_presets = recount, list_presets
        self._spares = [expert for expert, member in enumerate(report.members.experts) if member.spare]
        """The experts, by their index, that are to spare or have a loaded adapter."""
        self._users: Counter[int] = Counter()
        self._paths: dict[str, str] = {}
        """Of each loaded adapter, by name, the path as it was given."""
        self._changing = asyncio.Lock()
        loaded = None if report.config.adapters is None else report.config.adapters.loaded
        self._listing = None if loaded is None else Listing(Path(loaded))

    @property
    def settings(self) -> AdaptersConfig:
        """The section of the configuration.

        Raises:
            RequestError: there is none.
        """
        if self._config.adapters is None:
            raise RequestError(
                "this server loads no adapters while it serves: its configuration has no section 'adapters'",
                None,
                HTTPStatus.NOT_FOUND,
            )
        return self._config.adapters

    def hold(self, settings: FusionSettings) -> Callable[[], None]:
        """Keep the members of a request from becoming others until it calls what is returned, once or more often."""
        held = [expert for expert in settings.experts if expert in self._spares]
        self._users.update(held)

        def let_go() -> None:
            self._users.subtract(held)
            held.clear()

        return let_go

    async def load(self, name: str, path: str, *, in_place: bool = False) -> None:
        """Load an adapter, and keep it in the file of those that are loaded; `in_place` for one of the same name.

        Raises:
            RequestError: it cannot be loaded; nothing has changed then.
        """
        async with self._changing:
            await self._load(name, path, in_place)
            self._note(name, path)

    async def unload(self, name: str) -> None:
        """Take an adapter's name from it, and from the file. Requests that use it end as they would have.

        Raises:
            RequestError: none of that name has been loaded.
        """
        async with self._changing:
            if name not in self._paths:
                hint = nearest(name, self._paths)
                raise RequestError(
                    f"lora_name: no adapter {name!r:.100} is loaded; {hint}", "lora_name", HTTPStatus.NOT_FOUND
                )
            self._unname(name)
            self._note(name, None)

    async def begin(self) -> None:
        """Load what the file names, and follow it from now on."""
        await self.restore()
        self._following = asyncio.create_task(self._follow())

    async def restore(self) -> None:
        """Load what the file names, and unload what it does not; what cannot be loaded is logged and left out."""
        if self._listing is None:
            return
        async with self._changing:
            try:
                listed = self._listing.read()
            except ConfigError as error:
                logger.error("the loaded adapters stay as they are: %s", error)
                return
            for name in [name for name in self._paths if name not in listed]:
                self._unname(name)
            for name, path in listed.items():
                if self._paths.get(name) != path:
                    try:
                        await self._load(name, path, in_place=name in self._paths)
                    except RequestError as error:
                        logger.error("adapter '%s' is left out: %s", name, error)

    async def _follow(self) -> None:
        """Do as `restore` whenever the file changes, and now and then while some of it could not be loaded."""
        if self._listing is None:
            return
        seen, tried = self._listing.stamp, 0.0
        clock = asyncio.get_running_loop().time
        while not self._engine.errored:
            stamp = self._listing.stamp
            if stamp != seen or (clock() - tried > RETRY_SECONDS and self._lacks(self._listing)):
                seen, tried = stamp, clock()
                await self.restore()
            await asyncio.sleep(FOLLOW_SECONDS)

    def _lacks(self, listing: Listing) -> bool:
        try:
            return listing.read() != self._paths
        except ConfigError:
            return False

    async def _load(self, name: str, path: str, in_place: bool) -> None:
        self._check_name(name, in_place)
        source = self._source(path)
        spare = self._free()
        report = await asyncio.to_thread(self._check, name, source)
        preset = self._preset_of(spare)
        try:
            await self._engine.put_adapter(1 + spare, preset, report.member)
        except ServerError as error:
            raise RequestError(f"lora_path: the adapter cannot be read: {error}", "lora_path") from None
        await self._recount()
        # From here on nothing waits: no request is settled in between.
        if name in self._paths:
            self._unname(name)
        self._name(spare, name, ExpertConfig.model_construct(adapter=source))
        self._show(spare, report)
        self._paths[name] = path
        logger.warning("adapter '%s' was loaded from %s", name, source)

    def _check_name(self, name: str, in_place: bool) -> None:
        config = self._config
        if not EXPERT_NAME.fullmatch(name) or name in RESERVED_EXPERTS:
            raise RequestError(
                f"lora_name: {name!r:.100} cannot be an expert's name: a letter, then letters, digits, '_' or '-', 32 "
                f"characters at most, and none of {', '.join(RESERVED_EXPERTS)}",
                "lora_name",
            )
        if name in self._paths and not in_place:
            raise RequestError(
                f"lora_name: an adapter '{name}' is loaded; unload it first, or say load_inplace: true", "lora_name"
            )
        if name not in self._paths and (name in config.experts or name in config.presets):
            what = "an expert" if name in config.experts else "a preset"
            raise RequestError(f"lora_name: the configuration has {what} '{name}'; choose another name", "lora_name")

    def _source(self, path: str) -> str:
        """The adapter's folder, or its id on the hub."""
        root = Path(self.settings.folder).resolve()
        # Of a link counts where it leads.
        found = (root / path).resolve() if path.isprintable() and path.strip() else root
        if not found.is_relative_to(root) or found == root:
            raise RequestError(
                f"lora_path: {path!r:.200} is no folder under the one that adapters may come from (adapters.folder)",
                "lora_path",
            )
        if found.is_dir():
            return str(found)
        if self.settings.hub and HUB_ID.fullmatch(path):
            return path
        raise RequestError(f"lora_path: there is no folder {path!r:.200}", "lora_path", HTTPStatus.NOT_FOUND)

    def _free(self) -> int:
        names = list(self._config.experts)
        unnamed = [spare for spare in self._spares if is_spare(names[spare])]
        free = next((spare for spare in unnamed if not self._users[spare]), None)
        if free is None:
            why = "one that was unloaded is still in use" if unnamed else "unload one first"
            raise RequestError(
                f"there is room for {self.settings.max} adapters at once (adapters.max); {why}",
                None,
                HTTPStatus.CONFLICT,
            )
        return free

    def _check(self, name: str, source: str) -> MemberReport:
        """Check an adapter as those of the configuration are checked at the start."""
        settings = self._config.adapters
        assert settings is not None
        alone = {
            "experts": {name: ExpertConfig.model_construct(adapter=source)},
            "presets": {name: PresetConfig(experts=(name,))},
            "speculation": None,
            "adapters": None,
        }
        try:
            report = check_members(self._config.model_copy(update=alone))
            fetch_weights(report.members)
        except ConfigError as error:
            # Where the folder lies is nobody's business.
            told = str(error).replace(f"experts.{name}.adapter: ", "lora_path: ").replace(f"{settings.folder}/", "")
            raise RequestError(told, "lora_path") from None
        member = report.members.experts[0]
        if not member.shares_weights:
            raise RequestError(
                "lora_path: the adapter changes more than LoRA of linear layers does (DoRA, modules_to_save, "
                "embeddings); such an adapter is merged when the server starts: name it under 'experts'",
                "lora_path",
            )
        changes = AdapterFiles(member.folder, member.multimodal).changes
        rank = max(change.rank for change in changes.values())
        if rank > settings.max_rank:
            raise RequestError(
                f"lora_path: the adapter has rank {rank}; there is room for {settings.max_rank} (adapters.max_rank)",
                "lora_path",
            )
        return next(each for each in report.reports if each.member.name == name)

    def _preset_of(self, spare: int) -> int:
        """The index of a spare's preset: presets to spare stand last, as experts do."""
        return len(self._config.presets) - len(self._spares) + self._spares.index(spare)

    def _name(self, spare: int, name: str, expert: ExpertConfig) -> None:
        _exchange(self._config.experts, spare, name, expert)
        _exchange(self._config.presets, self._preset_of(spare), name, PresetConfig(experts=(name,)))
        self._list_presets()

    def _unname(self, name: str) -> None:
        spare = list(self._config.experts).index(name)
        unnamed = spare_name(1 + self._spares.index(spare))
        self._name(spare, unnamed, self._config.experts[name])
        was = next(each for each in self.report.reports if each.member.name == name)
        self._show(spare, replace(was, member=replace(was.member, name=unnamed)))
        del self._paths[name]
        logger.warning("adapter '%s' was unloaded", name)

    def _show(self, spare: int, adapter: MemberReport) -> None:
        """Have the report tell of a member, in the place of what it was."""
        experts = list(self.report.members.experts)
        before, experts[spare] = experts[spare], replace(adapter.member, spare=True)
        reports = tuple(adapter if each.member.name == before.name else each for each in self.report.reports)
        members = replace(self.report.members, experts=tuple(experts))
        self.report = replace(self.report, members=members, reports=reports)

    def _note(self, name: str, path: str | None) -> None:
        if self._listing is None:
            return
        try:
            self._listing.note(name, path)
        except (OSError, ConfigError) as error:
            logger.error("adapter '%s' changed, but the file of loaded adapters could not: %s", name, error)


def _exchange(named: dict[str, Value], index: int, name: str, value: Value) -> None:
    """Give an entry another name and value, in its place."""
    items = list(named.items())
    items[index] = (name, value)
    named.clear()
    named.update(items)
