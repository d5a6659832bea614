"""Generators: through the providers' own clients, over sockets, to servers that speak each provider's protocol."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import aclosing

import pytest

from providers import KEY, MODEL, PROTOCOLS, VARIABLES, ModelServer, served
from whimbrel.errors import (
    ConfigError,
    MissingExtra,
    ModelBusy,
    ModelDown,
    ModelEmpty,
    ModelEndedEarly,
    ModelError,
    ModelKeyMissing,
    ModelKeyRefused,
    ModelMalformed,
    ModelNotFound,
    ModelRefused,
    ModelSlow,
    ModelUnusable,
)
from whimbrel.models.generators.base import Generator, Prompt, Usage
from whimbrel.models.generators.providers import PROVIDERS, Timeouts, ollama_url
from whimbrel.models.generators.resolve import EXTRACTIVE, chosen, resolve_generator

pytestmark = pytest.mark.timeout(120)

PROMPT = Prompt("Answer shortly.", "SECRET DOCUMENT. What colour is the sky?", max_tokens=77)
QUICK = Timeouts(connect_s=2.0, first_token_s=3.0, token_s=0.5)


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(params=PROTOCOLS)
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelServer]:
    made = ModelServer(request.param, "The sky is blue. [1]")
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    yield made
    made.close()


def generator(spec: str, timeouts: Timeouts = QUICK) -> Generator:
    made = resolve_generator(spec, timeouts)
    assert made is not None
    return made


async def parts(writer: Generator) -> list[str | Usage]:
    async with aclosing(writer.stream(PROMPT)) as stream:
        found = [part async for part in stream]
    await writer.close()
    return found


async def failed(spec: str, kind: type[ModelError], timeouts: Timeouts = QUICK) -> ModelError:
    """What it raises; never with the prompt or the key in it, nor in what caused it."""
    writer = generator(spec, timeouts)
    with pytest.raises(kind) as caught:
        await parts(writer)
    await writer.close()
    error = caught.value
    assert type(error) is kind
    assert error.__cause__ is None
    assert error.__suppress_context__ or error.__context__ is None
    for text in (error.message, error.hint):
        assert text
        assert "SECRET" not in text
        assert KEY not in text
    return error


async def test_the_answer_comes_in_parts_and_then_what_it_took(server: ModelServer) -> None:
    *text, usage = await parts(generator(server.spec))
    assert len(text) > 2
    assert "".join(map(str, text)) == "The sky is blue. [1]"
    assert usage == Usage(120, 30)
    assert server.asked == [(PROMPT.instructions, PROMPT.input)]
    (body,) = server.bodies
    assert body.get("max_tokens", body.get("max_completion_tokens")) == 77


async def test_a_part_is_there_before_the_answer_is_complete(server: ModelServer) -> None:
    server.behaviour = "silent"
    async with aclosing(generator(server.spec).stream(PROMPT)) as stream:
        assert await anext(stream) == "The"


async def test_a_stream_that_is_closed_stops_the_provider(server: ModelServer) -> None:
    server.behaviour = "silent"
    writer = generator(server.spec, Timeouts(token_s=60))
    async with aclosing(writer.stream(PROMPT)) as stream:
        await anext(stream)
    assert await asyncio.to_thread(server.gone.wait, 20)
    await writer.close()


async def test_complete_gives_the_whole(server: ModelServer) -> None:
    writer = generator(server.spec)
    written = await writer.complete(PROMPT)
    await writer.close()
    assert (written.text, written.usage) == ("The sky is blue. [1]", Usage(120, 30))


def test_one_generator_serves_several_event_loops_one_after_the_other(server: ModelServer) -> None:
    writer = generator(server.spec)

    async def ask() -> str:
        found = (await writer.complete(PROMPT)).text
        await writer.close()
        return found

    assert [asyncio.run(ask()) for _ in range(2)] == ["The sky is blue. [1]"] * 2


async def test_many_questions_at_once(server: ModelServer) -> None:
    writer = generator(server.spec)
    found = await asyncio.gather(*(writer.complete(PROMPT) for _ in range(12)))
    await writer.close()
    assert {one.text for one in found} == {"The sky is blue. [1]"}


async def test_an_answer_that_reached_its_limit_says_so(server: ModelServer) -> None:
    server.behaviour = "length"
    assert (await parts(generator(server.spec)))[-1] == Usage(120, 30, cut=True)


# --- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("behaviour", "kind"),
    [
        ("overloaded", ModelDown),
        ("quota", ModelRefused),
        ("long", ModelRefused),
        ("cut", ModelEndedEarly),
        ("unfinished", ModelEndedEarly),
        ("malformed", ModelMalformed),
        ("odd", ModelMalformed),
        ("page", ModelMalformed),
        ("empty", ModelEmpty),
        ("hangup", ModelDown),
        ("silent", ModelSlow),
    ],
)
async def test_what_a_provider_does_wrong_is_named(behaviour: str, kind: type[ModelError], server: ModelServer) -> None:
    server.behaviour = behaviour
    await failed(server.spec, kind)


async def test_a_provider_that_does_not_begin_is_slow(server: ModelServer) -> None:
    server.behaviour = "slow"
    error = await failed(server.spec, ModelSlow, Timeouts(first_token_s=0.5))
    assert "first_token_timeout_s" in error.hint


async def test_an_error_inside_the_stream_ends_it(server: ModelServer) -> None:
    server.behaviour = "error"
    writer = generator(server.spec)
    with pytest.raises(ModelError) as caught:
        await parts(writer)
    await writer.close()
    assert isinstance(caught.value, ModelEndedEarly | ModelDown)
    assert "SECRET" not in caught.value.message


async def test_a_refusal_by_its_rules_is_named(server: ModelServer) -> None:
    if server.protocol == "huggingface":
        pytest.skip("its protocol has no such reason")
    server.behaviour = "filtered"
    await failed(server.spec, ModelRefused)


async def test_a_rate_limit_says_how_long_to_wait(server: ModelServer) -> None:
    server.behaviour = "busy"
    error = await failed(server.spec, ModelBusy)
    assert isinstance(error, ModelBusy)
    assert error.retry_after_s == 17
    assert "17 s" in error.hint
    server.behaviour = "overloaded for 17 s"
    error = await failed(server.spec, ModelDown)
    assert isinstance(error, ModelDown)
    assert error.retry_after_s == 17


async def test_nobody_is_sent_elsewhere(server: ModelServer) -> None:
    """What answers with a redirect could lead documents' text to any address that is reached from here."""
    if server.protocol == "huggingface":
        pytest.skip("Hugging Face's own client follows redirects, and has no setting for it but a global one")
    with served(server.protocol) as other:
        server.behaviour, server.elsewhere = "moved", other.url
        error = await failed(server.spec, ModelMalformed)
        assert "a redirect (307)" in error.message
        assert other.bodies == []


async def test_nobody_tries_again_unseen(server: ModelServer) -> None:
    for behaviour in ("busy", "overloaded", "hangup"):
        server.behaviour = behaviour
        with pytest.raises(ModelError):
            await parts(generator(server.spec))
    assert len(server.bodies) == 3


async def test_a_wrong_key_names_its_variable(server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    variable = next(name for name in server.environment if name.endswith(("_KEY", "_TOKEN")))
    monkeypatch.setenv(variable, "hf_wrong-and-secret")
    error = await failed(server.spec, ModelKeyRefused)
    assert "wrong-and-secret" not in error.message + error.hint
    assert isinstance(error, ModelUnusable)


async def test_a_model_that_the_provider_does_not_know(server: ModelServer) -> None:
    error = await failed(f"{server.protocol}:nonsense", ModelNotFound)
    assert "'nonsense'" in error.message


async def test_nobody_at_the_address(server: ModelServer) -> None:
    server.close()
    await failed(server.spec, ModelDown)


@pytest.mark.parametrize(
    ("spec", "variable"),
    [("openai", "OPENAI_API_KEY"), ("anthropic", "ANTHROPIC_API_KEY"), ("huggingface", "HF_TOKEN")],
)
async def test_without_a_key_nothing_is_sent_and_the_variable_is_named(spec: str, variable: str) -> None:
    assert variable in (await failed(f"{spec}:{MODEL}", ModelKeyMissing)).message


async def test_a_token_of_somebody_else_is_not_sent_to_hugging_face(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "sk-other")
    await failed("huggingface:some/model", ModelKeyRefused)


def test_a_compatible_server_needs_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    server = ModelServer("openai")
    monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/v1")
    with pytest.raises(ModelKeyRefused):  # this one wants one; the point is that it was asked
        asyncio.run(generator(server.spec).complete(PROMPT))
    assert len(server.bodies) == 1
    server.close()


@pytest.mark.parametrize(("provider", "package"), [("openai", "openai"), ("anthropic", "pydantic_ai")])
def test_a_package_that_is_not_installed_names_the_extra(provider: str, package: str) -> None:
    script = (
        "import asyncio, sys\n"
        f"sys.modules[{package!r}] = None\n"
        "from whimbrel.models.generators.base import Prompt\n"
        "from whimbrel.models.generators.resolve import resolve_generator\n"
        f"asyncio.run(resolve_generator('{provider}:m').complete(Prompt('', 'x')))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"whimbrel.errors.{MissingExtra.__name__}"), done.stderr


# --- choosing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("configured", "environment", "expected"),
    [
        (None, {}, EXTRACTIVE),
        (None, {"OPENAI_API_KEY": "k"}, "openai"),
        (None, {"OPENAI_API_KEY": " "}, EXTRACTIVE),
        (None, {"OPENAI_BASE_URL": "http://localhost/v1"}, "openai"),
        (None, {"ANTHROPIC_API_KEY": "k", "HF_TOKEN": "k"}, "anthropic"),
        (None, {"ANTHROPIC_API_KEY": "k", "OPENAI_API_KEY": "k"}, "openai"),
        (None, {"OLLAMA_HOST": "localhost", "HF_TOKEN": "k"}, "ollama"),
        (None, {"HF_TOKEN": "k"}, "huggingface"),
        (EXTRACTIVE, {"OPENAI_API_KEY": "k"}, EXTRACTIVE),
        ("ollama:x", {"OPENAI_API_KEY": "k"}, "ollama:x"),
    ],
)
def test_the_configured_model_or_else_the_key_that_is_set(
    configured: str | None, environment: dict[str, str], expected: str
) -> None:
    assert chosen(configured, environment) == expected


def test_a_provider_without_a_model_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, provider in PROVIDERS.items():
        assert generator(name).name == f"{name}:{provider.model}"
    assert generator("ollama:qwen3:8b").name == "ollama:qwen3:8b"
    assert resolve_generator(EXTRACTIVE) is None


def test_a_provider_that_there_is_not_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'openai'") as caught:
        resolve_generator("opnai:gpt")
    assert "anthropic" in caught.value.hint


@pytest.mark.parametrize(
    ("environment", "url"),
    [
        ({}, "http://127.0.0.1:11434/v1"),
        ({"OLLAMA_HOST": "0.0.0.0"}, "http://127.0.0.1:11434/v1"),
        ({"OLLAMA_HOST": "0.0.0.0:8080"}, "http://127.0.0.1:8080/v1"),
        ({"OLLAMA_HOST": ":8080"}, "http://127.0.0.1:8080/v1"),
        ({"OLLAMA_HOST": "models.lan"}, "http://models.lan:11434/v1"),
        ({"OLLAMA_HOST": "[::1]:99"}, "http://[::1]:99/v1"),
        ({"OLLAMA_HOST": "[::1]"}, "http://[::1]:11434/v1"),
        ({"OLLAMA_HOST": "https://ollama.com"}, "https://ollama.com/v1"),
        ({"OLLAMA_HOST": "http://models.lan"}, "http://models.lan:11434/v1"),
        ({"OLLAMA_BASE_URL": "http://h:1/v1/"}, "http://h:1/v1"),
        ({"OLLAMA_BASE_URL": "https://h/proxy/ollama", "OLLAMA_HOST": "x"}, "https://h/proxy/ollama/v1"),
    ],
)
def test_where_ollama_is(environment: dict[str, str], url: str) -> None:
    assert ollama_url(environment) == url
