"""What an operator can rely on: the order of sources, refusals that name the way out, no secret shown."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whimbrel.config import PROFILES, Settings, explain, load_settings, mask_url, reference_markdown
from whimbrel.config.settings import ENVIRONMENT, LEAVES
from whimbrel.config.values import format_size, parse_size
from whimbrel.errors import ConfigError

DOCUMENTATION = Path(__file__).parent.parent / "docs" / "configuration.md"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


def write(folder: Path, text: str, name: str = "whimbrel.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def refusal(text: str = "", **given_env: str) -> ConfigError:
    """The error that a `whimbrel.yaml` here, or variables, lead to."""
    if text:
        write(Path(), text)
    with pytest.raises(ConfigError) as caught:
        load_settings(env=given_env)
    assert caught.value.hint, "an error says what to do"
    assert caught.value.__context__ is None, "a parser's own error, which quotes values, is not attached"
    return caught.value


# --- where values come from ------------------------------------------------------------------------------------------


def test_without_any_source_every_value_is_the_default() -> None:
    settings = load_settings(env={})

    assert settings.home.is_absolute()
    assert settings.home.name == "whimbrel"
    assert settings.catalog_path == settings.home / "catalog.db"
    assert settings.ingest.max_file_bytes == 256 << 20
    assert settings.config_file is None
    assert set(settings.sources.values()) == {"default"}
    assert settings.sources.keys() == LEAVES.keys()


def test_each_source_beats_those_before_it(here: Path) -> None:
    write(here, "profile: server\n")
    in_profile = load_settings(env={})
    write(here, "profile: server\ningest:\n  workers: 5\n")
    in_file = load_settings(env={})
    in_environment = load_settings(env={"WHIMBREL_INGEST_WORKERS": "6"})
    by_flag = load_settings(env={"WHIMBREL_INGEST_WORKERS": "6"}, overrides={"ingest.workers": 7})

    seen = [
        (one.ingest.workers, one.sources["ingest.workers"]) for one in (in_profile, in_file, in_environment, by_flag)
    ]
    assert seen == [
        (4, "profile server"),
        (5, "whimbrel.yaml:3"),
        (6, "WHIMBREL_INGEST_WORKERS"),
        (7, "--workers"),
    ]


def test_sources_of_a_mixed_configuration(here: Path, home: Path) -> None:
    write(here, "server:\n  host: localhost\n")
    settings = load_settings(home=home, env={"DATABASE_URL": "postgres://h/db"}, overrides={"server": {"port": 1}})

    assert settings.sources["server.host"] == "whimbrel.yaml:2"
    assert settings.sources["server.port"] == "--port"
    assert settings.sources["catalog"] == "DATABASE_URL"
    assert settings.sources["home"] == "--home"
    assert settings.sources["profile"] == "default"


def test_flags_that_were_not_given_change_nothing() -> None:
    settings = load_settings(env={"WHIMBREL_SERVER_PORT": "81"}, overrides={"server.port": None, "home": None})

    assert settings.server.port == 81


@pytest.mark.parametrize("key", LEAVES)
def test_every_key_can_be_set_in_the_file_and_in_the_environment(key: str, here: Path) -> None:
    shown = {one.key: one for one in explain(load_settings(env={}))}[key]
    given = {"api_keys": "a:b", "embed.threads": "2", "model": "openai:m", "server.cors_origins": "https://a.example"}
    given |= {"guards.alert_error_rate": "0.05", "guards.alert_response_s": "15"}
    value = given.get(key, shown.value_shown)
    section, _, name = key.rpartition(".")

    assert load_settings(env={shown.env: value}).sources[key] == shown.env
    write(here, f"{section}:\n  {name}: '{value}'\n" if section else f"{name}: '{value}'\n")
    assert load_settings(env={}).sources[key] == f"whimbrel.yaml:{2 if section else 1}"


def test_a_variable_that_is_empty_counts_as_not_set() -> None:
    assert load_settings(env={"WHIMBREL_SERVER_PORT": " ", "DATABASE_URL": ""}).sources["server.port"] == "default"


def test_the_real_environment_is_read_when_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHIMBREL_SERVER_PORT", "1234")

    assert load_settings().server.port == 1234


# --- the file --------------------------------------------------------------------------------------------------------


def test_the_file_is_the_named_one_else_here_else_in_the_home(here: Path, home: Path, tmp_path: Path) -> None:
    env = {"WHIMBREL_HOME": str(home)}
    at_home = write(home, "server: {port: 1}\n")
    assert load_settings(env=env).config_file == at_home
    assert load_settings(env=env).sources["server.port"] == f"{at_home}:1"

    in_here = write(here, "server: {port: 2}\n")
    assert load_settings(env=env).config_file == in_here

    named = write(tmp_path, "server: {port: 3}\n", "other.yaml")
    assert load_settings(env=env | {"WHIMBREL_CONFIG": str(named)}).server.port == 3

    flagged = write(tmp_path, "server: {port: 4}\n", "flagged.yaml")
    assert load_settings(env=env | {"WHIMBREL_CONFIG": str(named)}, config_file=flagged).server.port == 4


def test_a_file_that_is_named_must_exist(tmp_path: Path) -> None:
    by_variable = refusal(WHIMBREL_CONFIG=str(tmp_path / "nowhere.yaml"))
    assert "nowhere.yaml" in by_variable.message
    assert "WHIMBREL_CONFIG" in by_variable.message

    with pytest.raises(ConfigError, match="--config"):
        load_settings(config_file=tmp_path / "nowhere.yaml", env={})


def test_a_file_that_cannot_be_read_is_not_passed_over(here: Path) -> None:
    (here / "whimbrel.yaml").mkdir()

    with pytest.raises(ConfigError, match="cannot be read"):
        load_settings(env={})


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "server:\n", "---\n"])
def test_an_empty_file_or_section_sets_nothing(text: str, here: Path) -> None:
    write(here, text)

    assert set(load_settings(env={}).sources.values()) == {"default"}


def test_a_home_in_the_file_is_meant_from_the_files_folder(tmp_path: Path) -> None:
    path = write(tmp_path, "home: state\n", "conf.yaml")

    settings = load_settings(config_file=path, env={})
    assert settings.home == tmp_path / "state"
    assert settings.catalog_path == tmp_path / "state" / "catalog.db"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("server: {port: ", "whimbrel.yaml:"),
        ("- a\n- b\n", "whimbrel.yaml:1: the file must be a mapping"),
        ("server: 8000\n", "`server` must be a mapping"),
        ("catalog: [a, b]\n", "`catalog` must be a single value"),
        ("server:\n  port: 1\n  port: 2\n", "whimbrel.yaml:3: `server.port` is given twice"),
        ("? [a]\n: 1\n", "a key must be a plain text"),
        ("home: !ENV HOME\n", "`home` has a tag"),
        ("a: 1\n---\nb: 2\n", "is not YAML"),
        ("server.port: 1\n", "`server.port` must be written as `port` below `server`"),
        ("[" * 3000, "nested too deeply"),
        ("catalog:\n", "`catalog` from whimbrel.yaml:1 is empty"),
        ("home: ''\n", "`home` from whimbrel.yaml:1 is empty"),
        ("&loop server:\n  port: 1\n  owner: &x {lease_s: *x}\n", "is no setting"),
    ],
)
def test_a_malformed_file_is_refused_with_its_place(text: str, expected: str) -> None:
    assert expected in refusal(text).message


def test_a_file_in_another_encoding_is_refused(here: Path) -> None:
    (here / "whimbrel.yaml").write_bytes("home: /tmp/é\n".encode("latin-1"))

    with pytest.raises(ConfigError, match="UTF-8"):
        load_settings(env={})


def test_words_that_yaml_reads_as_booleans_stay_words() -> None:
    assert (
        "`log.level` from whimbrel.yaml:1 is 'off': expected one of `debug`" in refusal("log: {level: off}\n").message
    )


# --- ${VAR} ----------------------------------------------------------------------------------------------------------


def test_variables_are_filled_in(here: Path) -> None:
    write(
        here,
        "server:\n  host: ${NAME}.example\n  port: ${PORT:-9000}\n"
        "log: {level: '${LEVEL:-}debug'}\nembedder: '$${NAME}: ${A}${B}'\n",
    )

    settings = load_settings(env={"NAME": "docs", "A": "x", "B": "${A}"})
    assert settings.server.host == "docs.example"
    assert settings.server.port == 9000
    assert settings.log.level == "debug"
    assert settings.embedder == "${NAME}: x${A}", (
        "neither the escaped nor a value that looks like a variable is filled in"
    )
    assert load_settings(env={"NAME": "", "A": "", "B": "", "PORT": ""}).server.port == 9000


def test_an_unset_variable_is_named_with_file_and_key() -> None:
    error = refusal("server:\n  host: ${NOWHERE}\n")

    assert "`server.host` in whimbrel.yaml:2 needs the environment variable NOWHERE" in error.message
    assert "${NOWHERE:-default}" in error.hint


@pytest.mark.parametrize("text", ["${", "${}", "${A-b}", "${1A}", "${A B}", "a${A"])
def test_a_malformed_variable_is_refused(text: str) -> None:
    error = refusal(f"embedder: '{text}'\n", A="secret")

    assert "begins no variable" in error.message
    assert "secret" not in error.message


# --- profiles --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROFILES)
def test_every_built_in_profile_is_valid_and_says_so(name: str) -> None:
    settings = load_settings(env={"WHIMBREL_PROFILE": name})

    assert settings.profile == name
    assert [key for key, source in settings.sources.items() if source == f"profile {name}"] == [
        key for key in LEAVES if key in PROFILES[name]
    ]


def test_a_profile_of_ones_own(here: Path) -> None:
    write(
        here,
        "profile: mine\nserver: {host: localhost}\nprofiles:\n  mine:\n    server:\n      port: 81\n      host: ::1\n"
        "  other: {catalog: '${UNSET}'}\n",
    )

    settings = load_settings(env={"DATABASE_URL": "postgresql://h/db"})
    assert settings.server.port == 81
    assert settings.sources["server.port"] == "profile mine (whimbrel.yaml:6)"
    assert settings.server.host == "localhost", "the file itself beats its profile"
    assert load_settings(env={"WHIMBREL_PROFILE": "server"}).log.format == "json"
    with pytest.raises(ConfigError, match="UNSET"):
        load_settings(env={"WHIMBREL_PROFILE": "other"})


def test_a_profile_beats_the_variables_of_other_programs(here: Path) -> None:
    write(here, "profile: mine\nprofiles: {mine: {catalog: 'sqlite:///mine.db'}}\n")

    settings = load_settings(env={"DATABASE_URL": "postgresql://h/db"})
    assert settings.catalog_path == settings.home / "mine.db"


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("profile: sever\n", "`profile` from whimbrel.yaml:1: there is no profile 'sever'", "'server'"),
        ("profile: mien\nprofiles: {mine: }\n", "no profile 'mien'", "'mine'"),
        ("profiles: {server: {store: 'x:'}}\n", "built-in profile of that name", "another name"),
        ("profiles: {unused: {server: {prot: 1}}}\n", "`server.prot` in `profiles.unused`", "`server.port`"),
        ("profiles: {unused: {profile: local}}\n", "`profile` in `profiles.unused`", ""),
        ("profiles: {unused: 3}\n", "`profiles.unused` must be a mapping", ""),
        ("profiles: [a]\n", "`profiles` must be a mapping", ""),
    ],
)
def test_a_wrong_profile_is_refused(text: str, message: str, hint: str) -> None:
    error = refusal(text)

    assert message in error.message
    assert hint in error.hint


# --- unknown keys ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "key", "near"),
    [
        ("catalogue: x\n", "catalogue", "catalog"),
        ("sever: {port: 1}\n", "sever", "server"),
        ("server: {prot: 1}\n", "server.prot", "server.port"),
        ("port: 1\n", "port", "server.port"),
        ("server: {level: debug}\n", "server.level", "log.level"),
        ("profile_s: {}\n", "profile_s", "profiles"),
    ],
)
def test_an_unknown_key_is_refused_and_the_nearest_named(text: str, key: str, near: str) -> None:
    error = refusal(text)
    assert f"`{key}` in whimbrel.yaml:1 is no setting" in error.message
    assert f"Did you mean `{near}`?" in error.hint


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("WHIMBREL_PORT", "WHIMBREL_SERVER_PORT"),
        ("WHIMBREL_HOEM", "WHIMBREL_HOME"),
        ("WHIMBREL_DATABASE", ""),
        ("WHIMBREL_LOGLEVEL", "WHIMBREL_LOG_LEVEL"),
        ("WHIMBREL_SEARCH_TOPK", "WHIMBREL_SEARCH_TOP_K"),
    ],
)
def test_an_unknown_variable_is_refused_and_the_nearest_named(name: str, near: str) -> None:
    error = refusal(**{name: "s3cret"})

    assert name in error.message
    assert "s3cret" not in error.message + error.hint
    assert (f"Did you mean {near}?" if near else "docs/configuration.md") in error.hint


def test_an_unknown_flag_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"server\.prot") as caught:
        load_settings(env={}, overrides={"server": {"prot": 1}})
    assert "`server.port`" in caught.value.hint


def test_settings_refuse_unknown_names_in_python_too() -> None:
    with pytest.raises(ValueError, match="extra"):
        Settings.model_validate({"nonsense": 1})


def test_what_an_orchestrator_says_of_a_service_named_whimbrel_is_not_ours() -> None:
    env = {
        "WHIMBREL_SERVICE_HOST": "10.0.0.1",
        "WHIMBREL_SERVICE_PORT": "80",
        "WHIMBREL_SERVICE_PORT_HTTP": "80",
        "WHIMBREL_PORT": "tcp://10.0.0.1:80",
        "WHIMBREL_PORT_80_TCP": "tcp://10.0.0.1:80",
        "WHIMBREL_PORT_80_TCP_ADDR": "10.0.0.1",
        "WHIMBREL_SERVER_PORT": "tcp://10.0.0.2:80",
        "WHIMBREL_TEST_DATA": "somewhere",
    }

    assert load_settings(env=env).server.port == 8000


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("WHIMBREL_SERVER_PORT", "eighty", "a whole number, at least 0, at most 65535"),
        ("WHIMBREL_SERVER_PORT", "70000", "a whole number, at least 0, at most 65535"),
        ("WHIMBREL_INGEST_TIMEOUT_S", "0", "a number, more than 0"),
        ("WHIMBREL_INGEST_TIMEOUT_S", "inf", "a number, more than 0"),
        ("WHIMBREL_INGEST_GONE_GUARD_SHARE", "nan", "a number, more than 0, at most 1"),
        ("WHIMBREL_INGEST_MAX_FILE_BYTES", "256M", "`256MB`"),
        ("WHIMBREL_INGEST_MAX_FILE_BYTES", "-1", "a size in bytes"),
        ("WHIMBREL_LOG_LEVEL", "loud", "one of `debug`, `info`, `warning`, `error`"),
    ],
)
def test_a_bad_value_is_named_with_its_source_and_what_is_expected(name: str, value: str, expected: str) -> None:
    message = refusal(**{name: value}).message

    assert f"`{ENVIRONMENT[name]}` from {name} is '{value}'" in message
    assert expected in message


def test_all_bad_values_are_reported_at_once() -> None:
    message = refusal(WHIMBREL_SERVER_PORT="x", WHIMBREL_OWNER_POLL_S="y").message

    assert "WHIMBREL_SERVER_PORT" in message
    assert "WHIMBREL_OWNER_POLL_S" in message


@pytest.mark.parametrize(
    ("env", "rule"),
    [
        ({"WHIMBREL_CHUNKING_OVERLAP": "101"}, "`chunking.overlap` must be at most half of `chunking.tokens`"),
        ({"WHIMBREL_SEARCH_TOP_K": "2000"}, "`search.top_k` must not be larger"),
        ({"WHIMBREL_OWNER_POLL_S": "15"}, "`owner.poll_s` must be smaller"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_with_their_sources(env: dict[str, str], rule: str) -> None:
    message = refusal(**env).message

    assert rule in message
    assert next(iter(env)) in message


@pytest.mark.parametrize(
    ("text", "size"),
    [("256MB", 256_000_000), ("256 MiB", 256 << 20), ("64kb", 64_000), ("1.5GiB", 3 << 29), ("1_000", 1000), ("7B", 7)],
)
def test_sizes(text: str, size: int) -> None:
    assert load_settings(env={}, overrides={"ingest.max_file_bytes": text}).ingest.max_file_bytes == size


@given(st.integers(min_value=0, max_value=2**70))
def test_a_size_is_shown_exactly(size: int) -> None:
    assert parse_size(format_size(size)) == size


def test_levels_are_read_in_any_case() -> None:
    assert load_settings(env={"WHIMBREL_LOG_LEVEL": "INFO"}).log.level == "info"


def test_paths_are_made_absolute(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here / "me"))

    assert load_settings(env={"WHIMBREL_HOME": "state"}).home == here / "state"
    assert load_settings(env={"WHIMBREL_HOME": "~/state"}).home == here / "me" / "state"
    assert load_settings(env={}, home=Path("state")).home == here / "state"


def test_settings_cannot_be_changed() -> None:
    settings = load_settings(env={})

    with pytest.raises(ValueError, match="frozen"):
        settings.server.port = 1


# --- the catalog -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg", "POSTGRESQL"])
@pytest.mark.parametrize("name", ["WHIMBREL_CATALOG", "DATABASE_URL"])
def test_every_form_of_a_postgres_url_becomes_one(scheme: str, name: str) -> None:
    settings = load_settings(env={name: f"{scheme}://me:p%40ss@db:5432/docs?sslmode=require"})

    assert settings.catalog == "postgresql+psycopg://me:p%40ss@db:5432/docs?sslmode=require"
    assert settings.catalog_path is None


def test_an_sqlite_catalog_is_a_file_and_relative_ones_are_in_the_home(here: Path, home: Path) -> None:
    def path(url: str) -> Path | None:
        return load_settings(home=home, env={"WHIMBREL_CATALOG": url}).catalog_path

    assert path("sqlite:///other.db") == home / "other.db"
    assert path(f"sqlite:///{here}/other.db") == here / "other.db"
    assert path("sqlite+pysqlite:///other.db") == home / "other.db"
    assert path("sqlite:///~/other.db") == Path("~/other.db").expanduser()


def test_a_home_with_awkward_characters_has_its_catalog_in_it(tmp_path: Path) -> None:
    home = tmp_path / "who? #1 ü%20@x:y"

    settings = load_settings(home=home, env={})
    assert settings.catalog_path == home / "catalog.db"
    assert load_settings(home=home, env={}, overrides={"catalog": settings.catalog}).catalog_path == home / "catalog.db"
    assert {one.key: one.value_shown for one in explain(settings)}["home"] == str(home)


def test_whimbrels_own_settings_beat_those_of_other_programs(here: Path) -> None:
    foreign = {"DATABASE_URL": "postgresql://other/db"}
    assert load_settings(env=foreign | {"WHIMBREL_CATALOG": "postgresql://own/db"}).catalog.endswith("own/db")

    write(here, "catalog: postgresql://yaml/db\n")
    settings = load_settings(env=foreign)
    assert settings.catalog.endswith("yaml/db")
    assert settings.sources["catalog"] == "whimbrel.yaml:1"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://me:s3cret@h/db", "there is no catalog on 'mysql'; there are SQLite and Postgres"),
        ("postgresql://me:s3cret@host:abc/db", "the server's port is no number"),
        ("postgressql://me:s3cret@h/db", "did you mean 'postgresql'?"),
        ("sqlite3:///s3cret", "did you mean 'sqlite'?"),
        ("sqlite://", "three slashes"),
        ("sqlite:///:memory:", "three slashes"),
        ("sqlite://s3cret/x.db", "three slashes"),
        ("sqlite:///x.db?s3cret=1", "no options"),
        ("me:s3cret@h/db", "this is no URL"),
        ("postgresql://", "names no server"),
    ],
)
def test_a_catalog_that_cannot_be_is_refused_without_showing_it(url: str, message: str) -> None:
    error = refusal(WHIMBREL_CATALOG=url)

    assert "`catalog` from WHIMBREL_CATALOG: expected `sqlite:///PATH` or `postgresql://" in error.message
    assert message in error.message
    assert "s3cret" not in error.message + error.hint


def test_a_database_url_that_we_cannot_use_is_not_passed_over() -> None:
    error = refusal(DATABASE_URL="mysql://me:s3cret@h/db")

    assert "DATABASE_URL" in error.message
    assert "WHIMBREL_CATALOG" in error.hint


# --- secrets ---------------------------------------------------------------------------------------------------------

SECRETS = {
    "WHIMBREL_API_KEYS": "alice:s3cret-a,bob:s3cret-b",
    "WHIMBREL_CATALOG": "postgresql://me:s3cret/@c@db/docs?sslpassword=s3cret",
    "WHIMBREL_STORE": "qdrant://:s3cret@host:6333/?api_key=s3cret",
}


def test_no_listing_or_repr_shows_a_secret() -> None:
    settings = load_settings(env=SECRETS)
    shown = {one.key: one.value_shown for one in explain(settings)}

    assert shown["api_keys"] == "***"
    assert shown["catalog"] == "postgresql+psycopg://me:***@db/docs?sslpassword=***"
    assert shown["store"] == "qdrant://:***@host:6333/?api_key=***"
    assert "s3cret" not in f"{settings!r} {settings} {explain(settings)}"


@pytest.mark.parametrize(
    "text",
    [
        "server: {port: '${TOKEN}'}\n",
        "profile: '${TOKEN}'\n",
        "store: s3cret\n",
        "api_keys: {a: s3cret}\n",
        "api_keys: 's3cret\n",
        "api_keys: &s3cret\n  - *other\n",
        "catalog: postgresql://me:s3cret@h/db\n  port: 1\n",
    ],
)
def test_no_error_shows_a_secret(text: str) -> None:
    error = refusal(text, TOKEN="s3cret")

    assert "whimbrel.yaml:" in error.message
    assert "s3cret" not in error.message + error.hint


def test_python_does_not_show_a_secret_either() -> None:
    with pytest.raises(ValueError, match="catalog") as caught:
        Settings.model_validate({"catalog": "s3cret", "server": {"port": "s3cret"}})
    assert "s3cret" not in str(caught.value)


def test_api_keys_are_read_when_they_are_needed() -> None:
    keys = load_settings(env={"WHIMBREL_API_KEYS": " alice:a:1 , bob:b2,"}).parsed_api_keys()

    assert {name: secret.get_secret_value() for name, secret in keys.items()} == {"alice": "a:1", "bob": "b2"}
    assert load_settings(env={}).parsed_api_keys() == {}


@pytest.mark.parametrize("keys", ["s3cret", "alice:", ":s3cret", "a:x,s3cret", "a:x,a:s3cret"])
def test_malformed_api_keys_are_refused_without_showing_them(keys: str) -> None:
    settings = load_settings(env={"WHIMBREL_API_KEYS": keys})

    with pytest.raises(ConfigError, match="WHIMBREL_API_KEYS") as caught:
        settings.parsed_api_keys()
    assert "s3cret" not in caught.value.message


@given(st.text(min_size=1, max_size=20).filter(str.strip), st.sampled_from(["postgresql", "qdrant", "redis", "https"]))
def test_a_password_never_survives_masking(password: str, scheme: str) -> None:
    assert mask_url(f"{scheme}://me:{password}@host:1/db") == f"{scheme}://me:***@host:1/db"


@pytest.mark.parametrize(
    "url",
    ["sqlite:////home/me/catalog.db", "lancedb:", "postgresql+psycopg://me@db:5432/docs?sslmode=require", "openai:m"],
)
def test_what_holds_no_secret_is_shown_whole(url: str) -> None:
    assert mask_url(url) == url


# --- the seeds' names for a Chroma server ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "store"),
    [
        ({"CHROMADB_HOST": "db"}, "chroma+http://db:8000"),
        ({"CHROMADB_HOST": "db", "CHROMADB_PORT": "9000", "CHROMADB_SSL": "false"}, "chroma+http://db:9000"),
        ({"CHROMADB_HOST": "db", "CHROMADB_SSL": "True"}, "chroma+https://db:443"),
        ({"CHROMADB_HOST": "::1"}, "chroma+http://[::1]:8000"),
        ({"MILVUS_URI": "http://db:19530"}, "milvus+http://db:19530"),
        ({"MILVUS_URI": "./milvus_demo.db"}, "milvus:./milvus_demo.db"),
        ({"MILVUS_URI": "tcp://db:19530"}, "lancedb:"),
        ({"MILVUS_URI": "http://db:19530", "CHROMADB_HOST": "other"}, "chroma+http://other:8000"),
        ({"MILVUS_URI": "http://db:19530", "WHIMBREL_STORE": "lancedb:own"}, "lancedb:own"),
        ({"CHROMADB_PORT": "9000", "CHROMADB_SSL": "perhaps"}, "lancedb:"),
        ({"CHROMADB_HOST": "db", "CHROMADB_PORT": "x", "WHIMBREL_STORE": "lancedb:own"}, "lancedb:own"),
    ],
)
def test_variables_of_a_chroma_server_name_the_store(env: dict[str, str], store: str) -> None:
    assert load_settings(env=env).store == store


def test_what_is_said_to_whimbrel_beats_the_variables_of_a_chroma_server() -> None:
    foreign = {"CHROMADB_HOST": "db", "CHROMADB_CONNECTION_TIMEOUT": "7", "CHROMADB_MAX_CONNECTIONS": "3"}
    settings = load_settings(env=foreign)
    assert settings.stores.reach == (7.0, 30.0, 3)
    assert settings.sources["store"] == "CHROMADB_HOST"
    settings = load_settings(env={**foreign, "WHIMBREL_STORES_MAX_CONNECTIONS": "5"})
    assert settings.stores.reach == (7.0, 30.0, 5)
    assert load_settings(env={"CHROMADB_MAX_CONNECTIONS": "x"}).stores.max_connections == 8


@pytest.mark.parametrize(
    "wrong", [{"CHROMADB_PORT": "x"}, {"CHROMADB_SSL": "perhaps"}, {"CHROMADB_MAX_CONNECTIONS": "x"}]
)
def test_a_wrong_variable_of_a_chroma_server_is_named_with_the_way_out(wrong: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as refused:
        load_settings(env={"CHROMADB_HOST": "db", **wrong})
    (name,) = wrong
    assert name in refused.value.message
    assert "WHIMBREL_STORE" in refused.value.hint


# --- the seeds' names for a Qdrant server ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "store"),
    [
        ({"QDRANT_HOST": "127.0.0.1", "QDRANT_PORT": "6333"}, "qdrant+http://127.0.0.1:6333"),
        ({"QDRANT_HOST": "db"}, "qdrant+http://db:6333"),
        ({"QDRANT_HOST": "db", "QDRANT_API_KEY": "k"}, "qdrant+https://db:6333"),
        ({"QDRANT_HOST": "::1", "QDRANT_PORT": "7000"}, "qdrant+http://[::1]:7000"),
        ({"QDRANT_HOST": "http://db:7000"}, "qdrant+http://db:7000"),
        ({"QDRANT_HOST": "db:7000"}, "qdrant+http://db:7000"),
        ({"QDRANT_URL": "https://a.qdrant.io:6333", "QDRANT_HOST": "db"}, "qdrant+https://a.qdrant.io:6333"),
        ({"QDRANT_PORT": "6333", "QDRANT_API_KEY": "k", "QDRANT_COLLECTION_NAME": "c"}, "lancedb:"),
        ({"QDRANT_URL": "nonsense://", "WHIMBREL_STORE": "lancedb:own"}, "lancedb:own"),
        ({"QDRANT_URL": "http://db", "CHROMADB_HOST": "c", "WHIMBREL_STORE": "lancedb:own"}, "lancedb:own"),
    ],
)
def test_variables_of_a_qdrant_server_name_the_store(env: dict[str, str], store: str) -> None:
    settings = load_settings(env=env)
    assert settings.store == store
    assert '"k"' not in repr(settings)


def test_connections_to_a_qdrant_server_are_bounded_by_its_variable() -> None:
    env = {"MAX_CONCURRENT_QDRANT": "20"}
    assert load_settings(env=env).stores.max_connections == 8
    assert load_settings(env={**env, "QDRANT_HOST": "db"}).stores.max_connections == 20


@pytest.mark.parametrize(
    "wrong",
    [
        {"QDRANT_PORT": "x", "QDRANT_HOST": "db"},
        {"QDRANT_URL": "ftp://db"},
        {"QDRANT_HOST": "db", "CHROMADB_HOST": "c"},
        {"MAX_CONCURRENT_QDRANT": "x", "QDRANT_HOST": "db"},
    ],
)
def test_a_wrong_variable_of_a_qdrant_server_is_named_with_the_way_out(wrong: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as refused:
        load_settings(env=wrong)
    assert next(iter(wrong)) in refused.value.message
    assert "WHIMBREL_STORE" in refused.value.hint


def test_credentials_of_stores_are_found_and_never_shown() -> None:
    others = "postgresql://me:s3cret@h/old chroma+http://t0ken@c:8000"
    settings = load_settings(env={"WHIMBREL_STORES_OTHERS": others, "WHIMBREL_STORE": "postgresql://me:s3cret@h/new"})
    assert settings.configured_stores()[:3] == ["postgresql://me:s3cret@h/new", *others.split()]
    shown = repr(settings) + repr(explain(settings))
    assert "s3cret" not in shown
    assert "t0ken" not in shown


# --- documentation and cost ------------------------------------------------------------------------------------------


def test_the_documentation_lists_every_key_and_variable() -> None:
    text = DOCUMENTATION.read_text(encoding="utf-8")
    command = "python -c 'from whimbrel.config import reference_markdown as r; print(r())'"

    assert reference_markdown() in text, f"put the tables that `{command}` prints into docs/configuration.md"
    for name, key in ENVIRONMENT.items():
        assert f"`{key}`" in text
        assert f"`{name}`" in text


@pytest.mark.parametrize(
    "example", re.findall(r"```yaml\n(.*?)```", DOCUMENTATION.read_text(encoding="utf-8"), re.DOTALL)
)
def test_the_examples_of_the_documentation_load(example: str, here: Path) -> None:
    write(here, example)

    assert load_settings(env={"PGPASSWORD": "x"}).sources["profile"].startswith("whimbrel.yaml:")


def test_every_setting_is_explained() -> None:
    assert all(one.description.endswith(".") for one in explain(load_settings(env={})))


def test_loading_imports_nothing_heavy() -> None:
    code = (
        "import sys; from whimbrel.config import load_settings; load_settings(env={}); "
        "print(sorted({'yaml', 'sqlalchemy', 'numpy', 'lancedb', 'fastapi', 'httpx'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"
