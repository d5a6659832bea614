"""Thresholds for alerts as other programs write them: `$25/month`, `5%`, `15s`."""

from __future__ import annotations

import re

_NUMBER = r"(\d+(?:\.\d+)?)"
_SECONDS = {"ms": 0.001, "": 1.0, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0}


def translated_alert(name: str, value: str) -> tuple[str, str] | str:
    """Our setting and its value; or why there is none."""
    said = value.strip()
    if name == "cost_threshold":
        match = re.fullmatch(rf"(?:\$\s*{_NUMBER}|{_NUMBER}\s*USD)\s*/\s*(day|month)", said, re.IGNORECASE)
        form, key = "`$25/month` or `$1/day`", "guards.budgets"
        ours = f"all={match[1] or match[2]} USD/{match[3].lower()} warn" if match else ""
    elif name == "error_rate_threshold":
        match = re.fullmatch(rf"{_NUMBER}\s*(%?)", said)
        form, key = "`5%` or `0.05`", "guards.alert_error_rate"
        ours = f"{float(match[1]) / (100 if match[2] else 1):.6g}" if match else ""
    elif name == "response_time_threshold":
        match = re.fullmatch(rf"{_NUMBER}\s*(ms|sec|s|min|m|)", said, re.IGNORECASE)
        form, key = "`15s` or `800ms`", "guards.alert_response_s"
        ours = f"{float(match[1]) * _SECONDS[match[2].lower()]:.6g}" if match else ""
    else:
        return "There is no counterpart."
    return (key, ours) if ours else f"It is not understood; set `{key}`. Read are forms such as {form}."
