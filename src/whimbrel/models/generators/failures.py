"""From what pydantic-ai and the SDKs raise to errors that are named by who must act.

The messages are our own: a provider's may repeat the key or the prompt. Of its own words only codes are told, such as
`insufficient_quota`.
"""

from __future__ import annotations

import math
import re

from pydantic_ai import exceptions as raised

from whimbrel.errors import (
    ModelBusy,
    ModelDown,
    ModelEndedEarly,
    ModelError,
    ModelKeyRefused,
    ModelMalformed,
    ModelNotFound,
    ModelRefused,
    ModelSlow,
)
from whimbrel.models.generators.providers import PROVIDERS, Timeouts

_CODE = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{1,63}")
_LATER = "Ask again later, or another model: `--model PROVIDER:MODEL`."


def failure(error: Exception, name: str, timeouts: Timeouts, *, begun: bool) -> ModelError:
    """The named error for one of a provider's client. `begun`: text of the answer had come before."""
    if status := _redirect(error):
        return ModelMalformed(
            f"{name} answers with a redirect ({status}), which is not followed.", f"Check {_address(name)}."
        )
    if isinstance(error, TimeoutError | raised.ModelRequestTimeout | raised.ModelTimeoutError):
        return _slow(error, name, timeouts, begun=begun)
    if isinstance(error, raised.ModelConnectionError):
        return _unconnected(error, name, begun=begun)
    if isinstance(error, raised.ModelAPIError):
        return _answered(error, name, begun=begun)
    return ModelMalformed(
        f"The answer of {name} is not what its protocol says ({type(error).__name__}).",
        f"Check that its address is that of a server for {name.partition(':')[0]}: {_address(name)}.",
    )


def _redirect(error: BaseException) -> int:
    """The status of an answer that leads elsewhere; 0 of any other error."""
    statuses = [getattr(one, "status_code", None) for one in (error, error.__cause__)]
    return next((one for one in statuses if isinstance(one, int) and 300 <= one < 400), 0)


def _slow(error: Exception, name: str, timeouts: Timeouts, *, begun: bool) -> ModelError:
    if isinstance(error, raised.ModelConnectionError) and error.phase in ("connect", "pool"):
        return ModelSlow(
            f"{name} could not be reached within {timeouts.connect_s:g} s.",
            f"Check {_address(name)}, or raise `models.connect_timeout_s`.",
        )
    if begun:
        return ModelSlow(
            f"{name} went silent for {timeouts.token_s:g} s in the middle of its answer.",
            "Ask again, or raise `models.token_timeout_s`.",
        )
    return ModelSlow(
        f"{name} had not begun to answer after {timeouts.first_token_s:g} s.",
        "Ask again, or raise `models.first_token_timeout_s`.",
    )


def _unconnected(error: raised.ModelConnectionError, name: str, *, begun: bool) -> ModelError:
    if begun:
        return ModelEndedEarly(f"The answer of {name} broke off: the connection was closed.", "Ask again.")
    if error.phase in ("connect", "pool"):
        return ModelDown(f"Nobody answers at the address of {name}.", f"Start it, or check {_address(name)}.")
    return ModelDown(f"{name} closed the connection without an answer.", _LATER)


def _answered(error: raised.ModelAPIError, name: str, *, begun: bool) -> ModelError:
    provider = PROVIDERS[name.partition(":")[0]]
    said = _said(error)
    if isinstance(error, raised.ModelAuthenticationError):
        return ModelKeyRefused(
            f"{name}: the provider refuses the key of {_key(name)}{said}.",
            f"Check {_key(name)}, and that it may use this model.",
        )
    if isinstance(error, raised.ModelNotFoundError):
        return ModelNotFound(
            f"The provider knows no model {name.partition(':')[2]!r}{said}.",
            f"Choose another: `--model {provider.name}:MODEL`; or check {_address(name)}.",
        )
    if isinstance(error, raised.ModelQuotaExceededError):
        return ModelRefused(f"{name}: the account's credit or quota is used up{said}.", "Top it up, or ask another.")
    if isinstance(error, raised.ModelRateLimitError):
        wait = error.retry_after
        when = f"It asks to wait {math.ceil(wait)} s." if wait is not None else "Wait a little, then ask again."
        return ModelBusy(f"The rate limit of {name} is reached{said}.", when, retry_after_s=wait)
    if isinstance(error, raised.ModelContextWindowExceededError):
        return ModelRefused(
            f"The passages and the question are longer than {name} reads{said}.", "Lower `answer.passage_tokens`."
        )
    if isinstance(error, raised.ModelRequestRejectedError):
        return ModelRefused(f"{name} refuses the request{said}.", "Ask another model; its provider's log says more.")
    if isinstance(error, raised.ModelUnavailableError | raised.ModelServerError):
        return ModelDown(f"{name} says that it cannot answer now{said}.", _LATER, retry_after_s=error.retry_after)
    if isinstance(error.__cause__, ValueError):  # JSONDecodeError and UnicodeDecodeError
        return ModelMalformed(f"The answer of {name} is no JSON.", f"Check {_address(name)}, and ask again.")
    if begun:
        return ModelEndedEarly(f"The answer of {name} broke off{said}.", "Ask again.")
    if error.in_stream or isinstance(error, raised.ModelHTTPError):
        return ModelDown(f"{name} answers with an error{said}.", _LATER)
    return ModelEndedEarly(f"The answer of {name} ended before it began{said}.", "Ask again.")


def _said(error: raised.ModelAPIError) -> str:
    """The status and the provider's code for what is wrong, where they are such; never its prose."""
    parts = [str(error.status_code)] if isinstance(error, raised.ModelHTTPError) else []
    codes = (error.provider_error_type, error.provider_error_code)
    parts += dict.fromkeys(code for code in codes if code and _CODE.fullmatch(code))
    return f" ({', '.join(parts)})" if parts else ""


def _key(name: str) -> str:
    """The variable that holds the key."""
    provider = name.partition(":")[0]
    return "OLLAMA_API_KEY" if provider == "ollama" else PROVIDERS[provider].variables[0]


def _address(name: str) -> str:
    """The variable that says where the provider is."""
    variables = {
        "openai": "OPENAI_BASE_URL",
        "anthropic": "ANTHROPIC_BASE_URL",
        "ollama": "OLLAMA_BASE_URL",
        "huggingface": "HF_BASE_URL",
    }
    return variables[name.partition(":")[0]]
