"""What writes answers: one model, or a chain of them, each behind its guards."""

from __future__ import annotations

import os
import threading

from whimbrel.config import Settings
from whimbrel.config.values import listed
from whimbrel.guards.chain import ChainGenerator
from whimbrel.guards.guard import Guards
from whimbrel.models.generators.base import Generator
from whimbrel.models.generators.providers import Timeouts
from whimbrel.models.generators.resolve import chosen, resolve_generator


class Generators:
    """Thread-safe. Their connections belong to the event loop that they were opened on."""

    def __init__(self, settings: Settings, guards: Guards) -> None:
        self._settings = settings
        self._guards = guards
        self._opened: dict[str, Generator | None] = {}
        self._lock = threading.Lock()

    def of(self, spec: str | None = None) -> Generator | None:
        """What writes answers: `spec`, else the configured one, else that whose key is set; None: quotes only. Of
        several, joined by commas, each stands in for those before; all of them behind their guards.

        Nothing is connected to. Raises `ConfigError` for a provider that there is not.
        """
        spec = spec if spec is not None else chosen(self._settings.model, os.environ)
        with self._lock:
            if spec not in self._opened:
                self._opened[spec] = self._made(spec)
            return self._opened[spec]

    def _made(self, spec: str) -> Generator | None:
        limits = self._settings.models
        timeouts = Timeouts(limits.connect_timeout_s, limits.first_token_timeout_s, limits.token_timeout_s)
        found = [resolve_generator(one, timeouts) for one in listed(spec) or [spec]]
        links = [self._guards.generator(one) for one in found if one is not None]
        if found[0] is None or None in found[:-1]:  # quotes, which never fail, come last
            links = links[: found.index(None)]
        return ChainGenerator(links) if len(links) > 1 else links[0] if links else None

    async def close(self) -> None:
        """Close the connections that were opened on the running event loop."""
        for generator in self._opened.values():
            if generator is not None:
                await generator.close()

    def forget(self) -> None:
        """Those that were opened: variables of the environment have changed."""
        with self._lock:
            self._opened.clear()
