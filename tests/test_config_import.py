"""`whimbrel config import`: another program's YAML, translated."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from commands import Shell
from whimbrel.config import load_settings
from whimbrel.config.foreign import Leaf, read_leaves
from whimbrel.config.settings import LEAVES
from whimbrel.config.translate import Became, Translated, as_yaml, translate
from whimbrel.errors import ConfigError, TooLarge
from whimbrel.guards.limits import Limit, parse_budgets

SPACES = """\
profile: "hf_spaces"
document_processor:
  type: "hybrid_pdf"
  config:
    chunk_size: 512
embedder:
  type: "modular"
  config:
    model:
      type: "huggingface_api"
      config:
        model_name: "sentence-transformers/multi-qa-MiniLM-L6-cos-v1"
        api_token: "${HF_TOKEN}"
        batch_size: 32
retriever:
  type: "modular_unified"
  config:
    neural_reranking:
      enabled: true
      model_type: "huggingface_api"
      config:
        model_name: "cross-encoder/ms-marco-MiniLM-L6-v2"
        api_token: "hf_inTheClear0123456789"
        max_candidates: 40
        fallback_to_local: true
answer_generator:
  type: "adaptive_modular"
  config:
    llm_client:
      type: "huggingface"
      config:
        model_name: "${LLM:-microsoft/DialoGPT-medium}"
        api_token: "${MY_TOKEN}"
        temperature: 0.3
        max_tokens: 384
        timeout: 30
        fallback_models:
          - "google/gemma-2-2b-it"
          - "Qwen/Qwen2.5-1.5B-Instruct"
global_settings:
  environment: "hf_spaces"
  log_level: "warning"
  max_concurrent_requests: 5
  surprise: 1
"""


def imported(folder: Path, text: str) -> Translated:
    path = folder / "other.yaml"
    path.write_text(text)
    return translate(read_leaves(path))


def test_what_has_a_counterpart_is_taken_and_can_be_loaded(tmp_path: Path) -> None:
    made = imported(tmp_path, SPACES)
    ours = tmp_path / "whimbrel.yaml"
    ours.write_text(as_yaml(made, "other.yaml"))
    settings = load_settings(home=tmp_path, config_file=ours, env={"LLM": "some/model"})
    assert settings.embedder == "huggingface:sentence-transformers/multi-qa-MiniLM-L6-cos-v1"
    chain = ["some/model", "google/gemma-2-2b-it", "Qwen/Qwen2.5-1.5B-Instruct"]
    assert settings.model == ", ".join(f"huggingface:{name}" for name in chain)
    assert (settings.embed.batch, settings.answer.max_tokens, settings.log.level) == (32, 384, "warning")
    assert settings.models.first_token_timeout_s == 30
    if "reranker" in LEAVES:
        assert made.settings["reranker"] == "huggingface:cross-encoder/ms-marco-MiniLM-L6-v2"
        assert made.settings["rerank.candidates"] == "40"


def test_what_has_none_is_named_by_its_line(tmp_path: Path) -> None:
    lines = SPACES.splitlines()
    made = imported(tmp_path, SPACES)
    unused = {one.key.rpartition(".")[2] for one in made.lines if one.became is Became.NOTHING}
    assert {"temperature", "surprise", "chunk_size", "profile", "environment", "fallback_to_local"} <= unused
    for one in made.lines:
        assert one.key.rpartition(".")[2].removesuffix("[]") in lines[one.line - 1] or one.key.endswith("[]")
        assert one.said
    named = {one.line for one in made.lines}
    values = {n for n, line in enumerate(lines, 1) if not line.rstrip().endswith(":")}
    assert named == values, "every value is accounted for"


def test_no_secret_is_copied_and_each_is_spoken_of(tmp_path: Path) -> None:
    made = imported(tmp_path, SPACES)
    assert "inTheClear" not in as_yaml(made, "other.yaml") + repr(made)
    said = [one.said for one in made.lines if one.became is Became.SECRET]
    assert said[0] == "HF_TOKEN is read from the environment."
    assert "in the clear" in said[1]
    assert "MY_TOKEN" in said[2]


def test_a_reranker_that_was_switched_off_stays_off(tmp_path: Path) -> None:
    made = imported(tmp_path, SPACES.replace("enabled: true", "enabled: false"))
    assert "reranker" not in made.settings


ALERTS = """\
monitoring:
  metrics:
    - api_error_rate
  alerts:
    - cost_threshold: $25/month
    - error_rate_threshold: 5%
    - response_time_threshold: 15s
    - queue_threshold: 9
"""


def test_alerts_become_thresholds_and_a_budget_that_refuses_nothing(tmp_path: Path) -> None:
    made = imported(tmp_path, ALERTS)
    assert made.settings == {
        "guards.budgets": "all=25 USD/month warn",
        "guards.alert_error_rate": "0.05",
        "guards.alert_response_s": "15",
    }
    became = {one.line: one.became for one in made.lines}
    assert became == {3: Became.BY_ITSELF, **dict.fromkeys((5, 6, 7), Became.TAKEN), 8: Became.NOTHING}
    ours = tmp_path / "whimbrel.yaml"
    ours.write_text(as_yaml(made, "other.yaml"))
    guards = load_settings(home=tmp_path, config_file=ours, env={}).guards
    assert (guards.alert_error_rate, guards.alert_response_s) == (0.05, 15.0)
    assert parse_budgets(guards.budgets) == [Limit("all", 25.0, "usd", "month", warns=True)]


@pytest.mark.parametrize(
    ("name", "value", "taken"),
    [
        ("cost_threshold", "$ 0.5 / day", "all=0.5 USD/day warn"),
        ("cost_threshold", "10 USD/month", "all=10 USD/month warn"),
        ("cost_threshold", "$25", None), ("cost_threshold", "€25/month", None), ("cost_threshold", "${COST}", None),
        ("error_rate_threshold", "0.1", "0.1"), ("error_rate_threshold", "12.5 %", "0.125"),
        ("error_rate_threshold", "100%", None), ("error_rate_threshold", "5", None),
        ("error_rate_threshold", "0", None),
        ("response_time_threshold", "800ms", "0.8"), ("response_time_threshold", "2 min", "120"),
        ("response_time_threshold", "fast", None), ("response_time_threshold", "0s", None),
    ],
)  # fmt: skip
def test_a_threshold_is_read_or_named(name: str, value: str, taken: str | None, tmp_path: Path) -> None:
    made = imported(tmp_path, yaml.safe_dump({"monitoring": {"alerts": [{name: value}, {name: value}]}}))
    assert list(made.settings.values()) == ([taken] if taken else [])
    first, second = made.lines
    assert first.became is (Became.TAKEN if taken else Became.NOTHING)
    assert second.became is Became.NOTHING
    assert "guards." in first.said
    assert "guards." in second.said


def test_values_that_ours_do_not_take_are_not_taken(tmp_path: Path) -> None:
    made = imported(tmp_path, SPACES.replace("max_tokens: 384", "max_tokens: many").replace('"huggingface"', "mock"))
    assert "answer.max_tokens" not in made.settings
    assert "model" not in made.settings
    said = {one.key.rpartition(".")[2]: one.said for one in made.lines}
    assert "answer.max_tokens" in said["max_tokens"]
    assert "provider" in said["type"] or "provider" in said["model_name"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a: [1, 2", ConfigError),
        ("a: \x00", ConfigError),
        ("- a\n- b", ConfigError),
        ("a: &a [*a]", ConfigError),
        ("a: " + "[" * 200 + "]" * 200, ConfigError),
        ("a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n"
         + "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)), TooLarge),
        ("a: " + "x" * (1 << 20), TooLarge),
    ],
)  # fmt: skip
def test_a_file_that_is_none_is_refused(tmp_path: Path, text: str, error: type[Exception]) -> None:
    with pytest.raises(error) as raised:
        imported(tmp_path, text)
    assert "xxxx" not in str(raised.value)


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    marked = tmp_path / "made"
    made = imported(tmp_path, f'a: !!python/object/apply:os.mkdir ["{marked}"]\n')
    assert not marked.exists()
    assert made.settings == {}


NAMES = st.sampled_from(
    ["answer_generator", "config", "llm_client", "embedder", "model", "type", "model_name", "api_token", "log_level",
     "global_settings", "retriever", "neural_reranking", "enabled", "max_tokens", "fallback_models", "other"]
)  # fmt: skip
VALUES = st.one_of(st.text(max_size=20), st.integers(), st.booleans(), st.none(), st.just("huggingface"))
TREES = st.recursive(
    st.dictionaries(NAMES, VALUES, max_size=4),
    lambda below: st.dictionaries(NAMES, st.one_of(VALUES, below, st.lists(VALUES, max_size=3)), max_size=4),
)


@given(TREES)
def test_whatever_is_in_it_what_comes_out_is_a_file_that_can_be_read(
    tmp_path_factory: pytest.TempPathFactory, tree: dict[str, object]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    made = imported(folder, yaml.safe_dump(tree))
    text = as_yaml(made, "other.yaml")
    ours = folder / "whimbrel.yaml"
    ours.write_text(text)
    found = yaml.safe_load(text) or {}
    assert set(found) <= {key.partition(".")[0] for key in LEAVES}
    if "${" not in text:
        load_settings(home=folder, config_file=ours, env={})


def test_secrets_are_known_by_their_names() -> None:
    for name in ("api_key", "hf_token", "password", "client_secret", "openai_api_key", "token"):
        (line,) = translate([Leaf(f"a.{name}", "s3cr3t", 1)]).lines
        assert line.became is Became.SECRET
    (line,) = translate([Leaf("a.max_tokens", "3", 1)]).lines
    assert line.became is Became.NOTHING


def test_the_command(tmp_path: Path) -> None:
    shell = Shell(tmp_path / "home")
    (tmp_path / "other.yaml").write_text(SPACES)
    first = shell.run("config", "import", "other.yaml")
    assert 'embedder: "huggingface:' in first.out
    assert "other.yaml:7 embedder.type" in first.err
    written = shell.run("config", "import", "other.yaml", "--out", "whimbrel.yaml", "--json")
    assert written.json["settings"]["answer.max_tokens"] == "384"
    assert {"line", "key", "became", "said"} == set(written.json["lines"][0])
    assert 'batch: "32"' in (tmp_path / "whimbrel.yaml").read_text()
    again = shell.run("config", "import", "other.yaml", "--out", "whimbrel.yaml", ok=False)
    assert again.status == 2
    assert "left as it is" in again.err
    assert shell.run("config", "import", "nothing.yaml", ok=False).status == 2
