"""Settings for people: `whimbrel config show` and the tables of docs/configuration.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import BeforeValidator, SecretStr
from pydantic.fields import FieldInfo

from whimbrel.config.settings import ENVIRONMENT, LEAVES, Settings
from whimbrel.config.values import SIZE_FORM, format_size, mask_url, parse_size


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as `whimbrel config show` prints it; secrets are masked."""

    key: str
    value_shown: str
    source: str
    description: str
    env: str


def explain(settings: Settings) -> list[Setting]:
    """Every setting with its value, source and meaning, in the order of the documentation."""
    variables = {key: name for name, key in ENVIRONMENT.items()}
    sources = settings.sources
    return [
        Setting(key, _shown(info, _value(settings, key)), sources[key], info.description or "", variables[key])
        for key, info in LEAVES.items()
    ]


def expected(info: FieldInfo) -> str:
    """What a setting takes, in words."""
    extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
    if "expected" in extra:
        return str(extra["expected"])
    kinds = [info.annotation, *get_args(info.annotation)]
    if get_origin(info.annotation) is Literal:
        return "one of " + ", ".join(f"`{choice}`" for choice in get_args(info.annotation))
    size = _is_size(info)
    noun = SIZE_FORM if size else "a whole number" if int in kinds else "a number" if float in kinds else "a text"
    limits = {
        sign: getattr(rule, sign) for rule in info.metadata for sign in ("ge", "gt", "le", "lt") if hasattr(rule, sign)
    }
    words = {"ge": "at least {}", "gt": "more than {}", "le": "at most {}", "lt": "less than {}"}
    shown = {
        sign: f"`{format_size(limit)}`" if size else limit for sign, limit in limits.items() if limit != 1 or not size
    }
    return ", ".join([noun, *(words[sign].format(limit) for sign, limit in shown.items())])


def reference_markdown() -> str:
    """The tables of docs/configuration.md: every key, its variable, default, form and meaning."""
    variables = {key: name for name, key in ENVIRONMENT.items()}
    blocks = []
    for section in dict.fromkeys(key.rpartition(".")[0] for key in LEAVES):
        rows = [f"### `{section}`" if section else "### General", ""]
        rows += ["| key | environment | default | takes | meaning |", "|---|---|---|---|---|"]
        for key, info in LEAVES.items():
            if key.rpartition(".")[0] == section:
                cells = [
                    f"`{key}`",
                    f"`{variables[key]}`",
                    _default_shown(info),
                    expected(info),
                    info.description or "",
                ]
                rows.append(f"| {' | '.join(cells)} |")
        blocks.append("\n".join(rows))
    return "\n\n".join(blocks) + "\n"


def _value(settings: Settings, key: str) -> Any:
    value: Any = settings
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _shown(info: FieldInfo, value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, SecretStr):
        return "***"
    if _is_size(info):
        return format_size(value)
    if isinstance(value, float):
        return f"{value:g}"
    return mask_url(value) if isinstance(value, str) else str(value)


def _default_shown(info: FieldInfo) -> str:
    extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
    if info.default_factory is None:
        return "none" if info.default is None else f"`{_shown(info, info.default)}`"
    default = str(extra["default"])
    return f"`{default}`" if "://" in default else default


def is_secret(key: str) -> bool:
    """May the value hold a password? Errors repeat none of it: the fault may be in what masking looks for."""
    extra = LEAVES[key].json_schema_extra
    return LEAVES[key].annotation == SecretStr | None or bool(isinstance(extra, dict) and extra.get("url"))


def _is_size(info: FieldInfo) -> bool:
    return any(isinstance(rule, BeforeValidator) and rule.func is parse_size for rule in info.metadata)
