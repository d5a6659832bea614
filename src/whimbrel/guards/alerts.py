"""Alerts to a webhook that the operator names: sent beside the calls, once, never followed anywhere else."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

from whimbrel.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import SecretStr

logger = logging.getLogger("whimbrel.guards")

TIMEOUT_S = 5.0
END_S = 2.0


class Alerts:
    """The address comes from the configuration alone, and no redirect is followed: nobody else can say where it goes.
    It may hold a secret, and is in no log."""

    def __init__(self, webhook: SecretStr | None) -> None:
        """Raises `ConfigError`."""
        self._url = webhook.get_secret_value() if webhook else ""
        self._sending: list[threading.Thread] = []
        if self._url and not self._url.startswith(("http://", "https://")):
            raise ConfigError("`guards.webhook` is no address.", "Write `https://HOST/PATH`.")

    def send(self, body: Mapping[str, object]) -> None:
        """Returns at once."""
        if not self._url:
            return
        thread = threading.Thread(target=self._post, args=(dict(body),), name="whimbrel-alert", daemon=True)
        self._sending = [one for one in self._sending if one.is_alive()] + [thread]
        thread.start()

    def close(self) -> None:
        for thread in self._sending:
            thread.join(END_S)

    def _post(self, body: dict[str, object]) -> None:
        import httpx

        try:
            answer = httpx.post(self._url, json=body, timeout=TIMEOUT_S, follow_redirects=False)
        except httpx.HTTPError as error:
            logger.warning("the webhook for alerts could not be reached: %s", type(error).__name__)
            return
        if not answer.is_success:
            logger.warning("the webhook for alerts answers with %d", answer.status_code)
