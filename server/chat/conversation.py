"""The conversation of `logit-fusion chat`: what is said, how it is coloured, and the commands that steer it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.style import Style
from rich.table import Table
from rich.text import Text

from fusion_kernels.weighting import NAMES, Weighting
from server.chat.client import Settings, Token, answer
from server.client import Server
from server.errors import ServerError, nearest

# Okabe and Ito's palette, which people with any colour vision can tell apart.
PALETTE = ("#3d9bd6", "#e69f00", "#1fae84", "#d88cb6", "#e8742c", "#8accf2", "#f0e442")
SEVERAL = "#9ca3af"
INK = "#14171c"
# Below this share of the largest weight a tint could not be seen.
FAINTEST = 0.35


@dataclass
class Chat:
    """The conversation, and the commands that change its settings."""

    server: Server
    settings: Settings
    out: Console
    presets: list[str]
    members: dict[str, Any]
    messages: list[dict[str, str]] = field(default_factory=list)

    @property
    def experts(self) -> list[str]:
        """The server's experts, in order."""
        return [member["name"] for member in self.members["members"] if member["role"] == "expert"]

    def ask(self, prompt: str) -> None:
        """Send one message and print the answer as it comes; a failed one leaves the conversation as it was.

        Raises:
            ServerError: the server is gone, or refused.
        """
        asked = [*self.messages, {"role": "user", "content": prompt}]
        moved: dict[str, int] = {}
        text = ""
        try:
            for token in answer(self.server, asked, self.settings):
                self.out.print(self._tinted(token), end="", soft_wrap=True)
                mover = token.movers[0] if len(token.movers) == 1 else "several" if token.movers else "large alone"
                moved[mover] = moved.get(mover, 0) + 1
                text += token.text
        except KeyboardInterrupt:
            self.out.print("\n[dim]stopped[/]")
            return
        except ServerError:
            if text:
                self.out.print()
            raise
        self.out.print()
        self.messages = [*asked, {"role": "assistant", "content": text}]
        if self.out.is_terminal:
            self.out.print(self._legend(moved), end="\n\n")

    def obey(self, line: str) -> bool:
        """Carry out a `/command`; False ends the chat."""
        name, _, value = line[1:].partition(" ")
        command = COMMANDS.get(name)
        if command is None:
            self.complain(f"there is no command /{name}; {nearest(name, COMMANDS)}")
            return True
        if name == "quit":
            return False
        try:
            command.act(self, value.strip())
        except ValueError as error:
            self.complain(str(error))
        return True

    def set_preset(self, value: str) -> None:
        """Answer as another preset, with its own weighting, weights and experts.

        Raises:
            ValueError: there is no such preset.
        """
        if value not in self.presets:
            raise ValueError(f"there is no preset '{value}'; {nearest(value, self.presets)}")
        now = self.settings
        self.settings = Settings(value, max_tokens=now.max_tokens, temperature=now.temperature)
        self.show_settings()

    def set_weighting(self, value: str) -> None:
        """Change the weighting, as `weigh` does, and show what holds now."""
        self.weigh(value)
        self.show_settings()

    def weigh(self, value: str) -> None:
        """Change the weighting; without a value, back to the preset's.

        Raises:
            ValueError: there is no such weighting.
        """
        if value and value not in NAMES:
            raise ValueError(f"there is no weighting '{value}'; {nearest(value, NAMES)}")
        self.settings.weighting = value or None
        weighting = Weighting.named(value) if value else None
        fixed = weighting is not None and weighting.takes_alpha
        self.settings.alpha = self.settings.alpha if fixed else None
        self.settings.experts = None if weighting is Weighting.NONE else self.settings.experts
        if fixed and self.settings.alpha is None and self._preset().get("weighting") != value:
            self.settings.alpha = 1.0
        if weighting is not None and weighting.experts != "none" and not self._used_experts():
            self.settings.experts = self.experts[:1] if weighting.experts == "one" else self.experts

    def set_alpha(self, value: str) -> None:
        """Fix the weight of all experts, which makes the weighting `static`; without a value, the preset's.

        Raises:
            ValueError: it is no number.
        """
        try:
            alpha = float(value) if value else None
        except ValueError:
            raise ValueError(f"alpha needs a number, not '{value}'") from None
        if alpha is not None:
            self.settings.alpha = alpha
            self.set_weighting("static")
            return
        self.settings.alpha = None
        self.set_weighting("")

    def set_experts(self, value: str) -> None:
        """Choose the experts; without a value, list them.

        Raises:
            ValueError: there is no such expert.
        """
        if not value:
            self.out.print(self._table())
            return
        names = value.replace(",", " ").split()
        for name in names:
            if name not in self.experts:
                raise ValueError(f"there is no expert '{name}'; {nearest(name, self.experts)}")
        self.settings.experts = names
        self.show_settings()

    def reset(self, value: str = "") -> None:
        """Forget what was said."""
        self.messages = []
        self.out.print("[dim]A new conversation.[/]")

    def show_help(self, value: str = "") -> None:
        """List the commands."""
        table = Table.grid(padding=(0, 3))
        for name, command in COMMANDS.items():
            table.add_row(f"[bold]/{name}[/] {escape(command.argument)}", command.help)
        self.out.print(table)

    def show_settings(self) -> None:
        """Print what the next request asks for."""
        settings = self.settings
        weighting = settings.weighting or self._preset().get("weighting", "the preset's weighting")
        used = self._used_experts() if weighting != "none" else []
        alpha = "" if settings.alpha is None else f", alpha {settings.alpha:g}"
        line = Text.assemble((settings.preset, "bold"), f" · {weighting}{alpha}")
        for name in used:
            line.append(" · ")
            line.append(name, Style(color=self._colour([name])))
        self.out.print(line)

    def _preset(self) -> dict[str, Any]:
        preset: dict[str, Any] = self.members.get("presets", {}).get(self.settings.preset, {})
        return preset

    def _used_experts(self) -> list[str]:
        return list(self._preset().get("experts", ())) if self.settings.experts is None else self.settings.experts

    def _tinted(self, token: Token) -> Text:
        movers = token.movers
        if not movers:
            return Text(token.text)
        most = max(2.0, float(self._preset().get("alpha_max", 2.0)))
        strength = max(FAINTEST, min(1.0, abs(token.alpha[movers[0]]) / most))
        return Text(token.text, Style(color=INK, bgcolor=_mixed(self._colour(movers), strength)))

    def _colour(self, names: Sequence[str]) -> str:
        return PALETTE[self.experts.index(names[0]) % len(PALETTE)] if len(names) == 1 else SEVERAL

    def _legend(self, moved: dict[str, int]) -> Text:
        line = Text(style="dim")
        order = [*self.experts, "several", "large alone"]
        for name, count in sorted(moved.items(), key=lambda item: order.index(item[0])):
            if name in self.experts or name == "several":
                colour = self._colour([name] if name in self.experts else [])
                line.append("■ ", Style(color=colour, dim=False))
            else:
                line.append("□ ")
            line.append(f"{name} {count}   ")
        return line

    def _table(self) -> Table:
        used = self._used_experts()
        table = Table(show_header=True, header_style="dim", box=None)
        for title in ("", "expert", "parameters", "in use"):
            table.add_column(title, justify="right" if title == "parameters" else "left")
        for member in self.members["members"]:
            if member["role"] == "expert":
                name = member["name"]
                mark = Text("■", Style(color=self._colour([name])))
                table.add_row(mark, name, f"{member['parameters']:,}", "yes" if name in used else "")
        return table

    def complain(self, message: str) -> None:
        """Say what went wrong."""
        self.out.print(Text(message, "red"))


@dataclass(frozen=True)
class Command:
    """One thing that a line starting with `/` can ask for."""

    argument: str
    help: str
    act: Callable[[Chat, str], None]


COMMANDS: dict[str, Command] = {
    "preset": Command("NAME", "answer as another preset", Chat.set_preset),
    "weighting": Command("[W]", f"{', '.join(NAMES)}; without W the preset's", Chat.set_weighting),
    "alpha": Command("[X]", "fix the weight of all experts (weighting static); without X the preset's", Chat.set_alpha),
    "experts": Command("[NAMES]", "list the experts, or choose the ones to use", Chat.set_experts),
    "reset": Command("", "forget what was said", Chat.reset),
    "help": Command("", "this list", Chat.show_help),
    "quit": Command("", "leave (also Ctrl-D)", lambda chat, value: None),
}


def _mixed(colour: str, strength: float) -> str:
    """`colour` thinned with white, so that dark letters stay readable on any terminal."""
    channels = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(255 + (channel - 255) * strength):02x}" for channel in channels)
