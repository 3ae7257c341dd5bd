"""A pair of programs whose client has plugins, each behind a port of its own."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field

from tests.support.ports import free_port
from tests.support.processes import Config, Kind, Tunnel, tcp_proxy

# What a work connection may be wrapped in; plugins get the payload as it was before.
WRAPPINGS: dict[str, Config] = {
    "plain": {},
    "encrypted": {"useEncryption": True},
    "compressed": {"useCompression": True},
    "both": {"useEncryption": True, "useCompression": True},
}


@dataclass
class PluginScene:
    """What the tests of a module know of the running pair.

    Attributes:
        kinds: Which server and which client.
        ports: Of the users of each proxy, by its name.
        pair: The two programs, once they run.
    """

    kinds: tuple[Kind, Kind]
    _: KW_ONLY
    ports: dict[str, int] = field(default_factory=dict)
    pair: Tunnel | None = None

    def keeps(self, wrapping: str) -> bool:
        """Whether a connection to an HTTP plugin lives on after its first request.

        frp's plugins are servers of Go's `net/http`, which breaks off its read between two
        requests by a deadline in the past. What unwraps the connection keeps that error for good.
        """
        return self.kinds[1] == "ours" or wrapping == "plain"

    def proxy(self, name: str, plugin: Config, wrapping: str = "plain") -> Config:
        """A proxy for a plugin, with a port that `ports` tells."""
        self.ports[name] = free_port()
        return tcp_proxy(name, 0, self.ports[name], plugin=plugin, transport=WRAPPINGS[wrapping])

    def proxies(self, **plugins: Config) -> list[Config]:
        """A proxy for each of the plugins, the wrappings in turn as far as requests survive it."""
        turns = [wrapping for wrapping in WRAPPINGS if self.keeps(wrapping)]
        return [
            self.proxy(name, plugin, turns[number % len(turns)])
            for number, (name, plugin) in enumerate(plugins.items())
        ]
