"""What calls cost, in USD: by the settings, else by the table of `genai-prices`; else it is not known, and said so."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from genai_prices.types import PriceCalculation

FREE = frozenset({"minilm", "onnx", "tei", "ollama", "sentence-transformers"})
"""Providers that are machines of one's own: they send no bill."""
_OWN_ADDRESS = {"openai": "OPENAI_BASE_URL", "huggingface": "HF_BASE_URL", "anthropic": "ANTHROPIC_BASE_URL"}
"""Where this is set, somebody else answers under the provider's name, at a price of their own."""
MILLION = 1_000_000
LOOK_S = 300.0
"""The table is asked again after so long: some prices depend on the hour."""


class Prices:
    def __init__(self, own: Mapping[str, tuple[float, float]] | None = None) -> None:
        """`own`: USD for a million tokens of input and of output, by `provider:model`."""
        self._own = own or {}

    def usd(self, model: str, input_tokens: int, output_tokens: int) -> float | None:
        """None where the price is not known."""
        if model in self._own:
            each_in, each_out = self._own[model]
            return (input_tokens * each_in + output_tokens * each_out) / MILLION
        provider, _, name = model.partition(":")
        if provider in FREE:
            return 0.0
        if os.environ.get(_OWN_ADDRESS.get(provider, ""), "").strip():
            return None
        each = _listed(provider, name, int(time.monotonic() // LOOK_S))
        if each is None:
            return None
        if not each:
            return _calculated(provider, name, input_tokens, output_tokens)
        return (input_tokens * each[0] + output_tokens * each[1]) / MILLION


@lru_cache(maxsize=1_000)
def _listed(provider: str, name: str, _when: int) -> tuple[float, float] | tuple[()] | None:
    """USD for a million tokens; empty where that depends on how many they are; None where it is not known."""
    try:
        calculated = _calculation(provider, name, MILLION, MILLION)
    except (ImportError, LookupError, ValueError):
        return None
    from genai_prices.types import TieredPrices

    price = calculated.model_price
    if isinstance(price.input_mtok, TieredPrices) or isinstance(price.output_mtok, TieredPrices):
        return ()
    return float(calculated.input_price), float(calculated.output_price)


def _calculated(provider: str, name: str, input_tokens: int, output_tokens: int) -> float:
    return float(_calculation(provider, name, input_tokens, output_tokens).total_price)


def _calculation(provider: str, name: str, input_tokens: int, output_tokens: int) -> PriceCalculation:
    from genai_prices import Usage, calc_price

    return calc_price(Usage(input_tokens=input_tokens, output_tokens=output_tokens), name, provider_id=provider)
