"""Which members stand on the sides of an expert's pair, by the numbers of `server.engine.settings`."""

from __future__ import annotations

from collections.abc import Iterator

from server.config import Config
from server.config.schema import LARGE as LARGE_NAME
from server.config.schema import NONE as NONE_NAME
from server.config.speculation import BASE as BASE_NAME
from server.engine.settings import BASE, LARGE, NOTHING, Pair


class Pairs:
    """The pairs of a configuration's experts."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._names = list(config.experts)

    def shared(self, expert: int) -> Pair:
        """The members of an expert's pair that read the request's own prompt."""
        config = self._config.experts[self._names[expert]]
        itself = 1 + expert if config.use is None else self._number(config.use)
        return Pair(itself, self._number(config.against))

    def own(self, expert: int) -> Pair:
        """Those that can read other prompts: with KV caches of their own, where the configuration gives them one."""
        itself, against = self._config.own_cache(self._names[expert])
        shared = self.shared(expert)
        return Pair(
            1 + expert if itself else shared.expert, 1 + len(self._names) + expert if against else shared.against
        )

    def twins(self) -> Iterator[tuple[int, int, int]]:
        """(expert, number of a member that is another one's weights, that one's number)."""
        for expert in range(len(self._names)):
            for number, of in zip(self.own(expert), self.shared(expert), strict=True):
                if number != of:
                    yield expert, number, of

    def _number(self, member: str) -> int:
        numbers = {LARGE_NAME: LARGE, BASE_NAME: BASE, NONE_NAME: NOTHING}
        return numbers[member] if member in numbers else 1 + self._names.index(member)
