"""The guards, each by itself: what may pass is asked again, what failed is left alone, what is spent is spent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from pydantic import SecretStr

from clocks import Hands
from support import opened
from whimbrel.catalog.engine import Catalog
from whimbrel.config.settings import Guards as Settings
from whimbrel.errors import (
    BudgetSpent,
    ConfigError,
    ModelBusy,
    ModelDown,
    ModelEmpty,
    ModelError,
    ModelKeyRefused,
    ModelMalformed,
    ModelPaused,
    ModelQueueFull,
    ModelRefused,
    ModelSlow,
)
from whimbrel.guards import in_redis
from whimbrel.guards.breaker import Board, Breaker, Rules
from whimbrel.guards.budget import Alert, Budgets
from whimbrel.guards.calls import Taken
from whimbrel.guards.guard import Guards, Patience
from whimbrel.guards.limits import parse_budgets, parse_prices, parse_rates, parse_shares
from whimbrel.guards.line import Line
from whimbrel.guards.prices import Prices
from whimbrel.guards.rate import Rate
from whimbrel.guards.retry import Retry
from whimbrel.guards.shared import InCatalog, Place, Shared
from whimbrel.models.embedders.resolve import _PROVIDERS as EMBEDDERS
from whimbrel.models.generators.providers import PROVIDERS as GENERATORS
from whimbrel.models.names import PROVIDERS
from whimbrel.models.rerankers.resolve import _PROVIDERS as RERANKERS

MODEL = "openai:gpt-4o-mini"
PATIENCE = Patience(5.0, 60.0)


@pytest.fixture
def hands() -> Hands:
    return Hands()


@pytest.fixture
def here(tmp_path: Path) -> Catalog:
    return opened(f"sqlite:///{tmp_path / 'catalog.db'}", tmp_path)


Processes = Callable[[], Shared]


@pytest.fixture(params=["sqlite", "postgres", "redis"])
def process(
    request: pytest.FixtureRequest, tmp_path: Path, hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Processes]:
    """What one more process has of the place that all share."""
    if request.param == "redis":
        for patience in ("CONNECT_S", "ANSWER_S"):  # a busy machine is no failure
            monkeypatch.setattr(in_redis, patience, 30.0)
        url = SecretStr(request.getfixturevalue("fresh_redis"))
        places: list[Place] = []

        def more() -> Shared:
            places.append(in_redis.InRedis(url))
            return Shared(places[-1], hands.clock)

        yield more
        for place in places:
            place.close()
        return
    postgres = request.param == "postgres"
    url_ = str(request.getfixturevalue("fresh_postgres")) if postgres else f"sqlite:///{tmp_path / 'shared.db'}"
    catalog = opened(url_, tmp_path / "copies")
    yield lambda: Shared(InCatalog(catalog), hands.clock)
    catalog.close()


@pytest.fixture
def shared(process: Processes) -> Shared:
    return process()


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """No pause is waited for; they are noted."""
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr("whimbrel.guards.retry.asyncio.sleep", noted)
    return pauses


class Model:
    """Raises these, one after another; then it answers."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.asked = 0

    async def __call__(self) -> str:
        self.asked += 1
        if self.errors:
            raise self.errors.pop(0)
        return "here"


# --- retry -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ModelBusy, ModelDown, ModelSlow, ModelMalformed])
async def test_what_may_pass_is_asked_again(error: type[ModelError]) -> None:
    model = Model(error("out"))
    assert await Retry()(model) == "here"
    assert model.asked == 2


@pytest.mark.parametrize("error", [ModelKeyRefused, ModelRefused, ModelPaused, BudgetSpent, ModelEmpty])
async def test_what_will_not_pass_is_not_asked_again(error: type[ModelError]) -> None:
    model = Model(error("no"))
    with pytest.raises(error):
        await Retry()(model)
    assert model.asked == 1


async def test_a_broken_answer_is_asked_for_again_once() -> None:
    model = Model(ModelMalformed("odd"), ModelMalformed("odd"), ModelMalformed("odd"))
    with pytest.raises(ModelMalformed):
        await Retry(attempts=5)(model)
    assert model.asked == 2


async def test_no_more_attempts_than_are_allowed() -> None:
    model = Model(*[ModelDown("out")] * 9)
    with pytest.raises(ModelDown):
        await Retry(attempts=4)(model)
    assert model.asked == 4


async def test_a_pause_is_at_least_what_the_provider_asks_for(at_once: list[float]) -> None:
    await Retry()(Model(ModelBusy("busy", retry_after_s=7.0)))
    assert 7.0 <= at_once[0] <= 7.8
    at_once.clear()
    for _ in range(20):
        await Retry()(Model(ModelDown("out")))
    assert len(set(at_once)) > 10, "spread by chance"
    assert max(at_once) < 0.5


async def test_a_pause_beyond_the_deadline_is_not_made(at_once: list[float]) -> None:
    model = Model(ModelBusy("busy", retry_after_s=61.0))
    with pytest.raises(ModelBusy):
        await Retry(deadline_s=60.0)(model)
    assert (model.asked, at_once) == (1, [])


# --- breaker ---------------------------------------------------------------------------------------------------------

RULES = Rules(threshold=3, window_s=60.0, pause_s=30.0)


async def failing(breaker: Breaker, times: int, error: Callable[[], ModelError] = lambda: ModelDown("out")) -> None:
    for _ in range(times):
        with pytest.raises(ModelError):
            await breaker(Model(error()))


async def test_after_so_many_failures_in_a_row_nobody_asks(process: Processes, hands: Hands) -> None:
    ours, theirs = (Breaker(MODEL, Board(process(), RULES, hands.clock)) for _ in range(2))
    await failing(ours, 1)
    await failing(theirs, 2)
    hands.pass_(1.1)
    for breaker in (ours, theirs):
        model = Model()
        with pytest.raises(ModelPaused, match=r"breaker open until .*, after 3 failures in a row \(ModelDown\)"):
            await breaker(model)
        assert model.asked == 0


async def test_one_process_asks_whether_it_is_back(process: Processes, hands: Hands) -> None:
    ours, theirs = (Breaker(MODEL, Board(process(), RULES, hands.clock)) for _ in range(2))
    await failing(ours, 3)
    hands.pass_(31)
    go_on, asked = asyncio.Event(), asyncio.Event()

    async def probe() -> str:
        asked.set()
        await go_on.wait()
        return "here"

    probing = asyncio.create_task(ours(probe))
    await asked.wait()
    with pytest.raises(ModelPaused):
        await theirs(Model())
    go_on.set()
    assert await probing == "here"
    hands.pass_(1.1)
    assert await theirs(Model()) == "here"


async def test_however_many_wait_for_a_dead_model_it_costs_the_threshold(process: Processes, hands: Hands) -> None:
    """Two processes, twenty calls each; two were under way when the first failed, and are waited for."""
    rules = Rules(threshold=8)
    ours, theirs = (Breaker(MODEL, Board(process(), rules, hands.clock)) for _ in range(2))
    go_on = asyncio.Event()
    asked = 0

    async def stalls() -> str:
        nonlocal asked
        asked += 1
        await go_on.wait()
        raise ModelSlow("no answer")

    first = [asyncio.create_task(breaker(stalls)) for breaker in (ours, ours)]
    await asyncio.sleep(0)
    await failing(ours, 1)
    hands.pass_(1.1)
    rest = [asyncio.create_task(ours(stalls)) for _ in range(20)]
    while asked < 7:
        await asyncio.sleep(0.01)
    rest += [asyncio.create_task(theirs(stalls)) for _ in range(20)]
    for _ in range(50):
        await asyncio.to_thread(lambda: None)
    go_on.set()
    ends = await asyncio.gather(*first, *rest, return_exceptions=True)
    assert [type(end) for end in ends].count(ModelSlow) == asked == 7, "and the one that failed first"
    assert [type(end) for end in ends].count(ModelPaused) == 35


async def test_one_answer_lets_all_pass_that_wait(shared: Shared, hands: Hands) -> None:
    breaker = Breaker(MODEL, Board(shared, RULES, hands.clock))
    await failing(breaker, 2)
    answer, asked = asyncio.Event(), 0

    async def waits() -> str:
        nonlocal asked
        asked += 1
        await answer.wait()
        return "here"

    calls = [asyncio.create_task(breaker(waits)) for _ in range(9)]
    while asked < 1:
        await asyncio.sleep(0.01)
    assert asked == 1, "one more failure would open it"
    answer.set()
    assert await asyncio.gather(*calls) == ["here"] * 9


@pytest.mark.parametrize("out", ["probe", "try"])
async def test_a_call_that_nobody_waits_for_any_more_gives_its_place_back(
    out: str, shared: Shared, hands: Hands
) -> None:
    breaker = Breaker(MODEL, Board(shared, RULES, hands.clock))
    await failing(breaker, 3 if out == "probe" else 2)
    hands.pass_(31)
    asked = asyncio.Event()

    async def stalls() -> str:
        asked.set()
        await asyncio.Event().wait()
        return "never"

    call = asyncio.create_task(breaker(stalls))
    await asked.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.get_running_loop().run_in_executor(None, lambda: None)
    for _ in range(100):
        with suppress(ModelPaused):
            assert await breaker(Model()) == "here"
            return
        await asyncio.to_thread(lambda: None)
    pytest.fail("its place was not given back")


async def test_a_probe_that_fails_costs_one_attempt(shared: Shared, hands: Hands) -> None:
    breaker = Breaker(MODEL, Board(shared, RULES, hands.clock))
    await failing(breaker, 3)
    model = Model(*[ModelDown("out")] * 99)
    for _ in range(100):
        hands.pass_(1)
        with pytest.raises(ModelDown):
            await breaker(model)
    assert model.asked == 3  # at 30, 60 and 90 s


async def test_an_answer_between_failures_and_a_failure_of_long_ago_begin_anew(shared: Shared, hands: Hands) -> None:
    breaker = Breaker(MODEL, Board(shared, RULES, hands.clock))
    for _ in range(5):
        await failing(breaker, 2)
        assert await breaker(Model()) == "here"
    for _ in range(5):
        await failing(breaker, 1)
        hands.pass_(61)
    assert await breaker(Model()) == "here"


@pytest.mark.parametrize("error", [ModelKeyRefused, ModelRefused, ModelBusy])
async def test_a_wrong_key_does_not_touch_it(error: type[ModelError], shared: Shared, hands: Hands) -> None:
    breaker = Breaker(MODEL, Board(shared, RULES, hands.clock))
    await failing(breaker, 10, lambda: error("no"))
    assert await breaker(Model()) == "here"
    shared.look()
    assert shared.breakers() == []


@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0, 10 * 365 * 86_400.0])
async def test_a_clock_that_jumps_holds_nothing_open_for_long(jump: float, shared: Shared, hands: Hands) -> None:
    ours, theirs = (Breaker(MODEL, Board(shared, RULES, hands.clock)) for _ in range(2))
    await failing(ours, 3)
    hands.shown += jump
    for breaker in (ours, theirs):
        hands.pass_(31)
        with pytest.raises(ModelDown):
            await breaker(Model(ModelDown("still out")))
    hands.pass_(31)
    assert await theirs(Model()) == "here"


async def test_without_a_catalog_it_is_kept_in_the_process(hands: Hands) -> None:
    breaker = Breaker(MODEL, Board(Shared(), RULES, hands.clock))
    await failing(breaker, 3)
    with pytest.raises(ModelPaused):
        await breaker(Model())
    hands.pass_(31)
    assert await breaker(Model()) == "here"


# --- rate ------------------------------------------------------------------------------------------------------------


async def test_a_rate_is_shared(process: Processes, hands: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    async def noted(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr("whimbrel.guards.rate.asyncio.sleep", noted)
    rates = [Rate(MODEL, "requests", 60, process(), hands.clock) for _ in range(2)]
    for _ in range(8):
        for rate in rates:
            await rate.take(1)
    assert len(waited) == 16 - 6  # one a second; five seconds' worth are lent, and one is due now
    assert waited == sorted(waited)
    assert waited[-1] == pytest.approx(10.0)
    await rates[0].take(60)
    with pytest.raises(ModelBusy) as raised:
        await rates[0].take(1)
    assert raised.value.retry_after_s
    hands.shown -= 86_400  # set back: what was taken in the future counts for nothing
    await rates[0].take(1)


# --- budget ----------------------------------------------------------------------------------------------------------


def budgets(text: str, catalog: Catalog | None, hands: Hands, told: list[Alert] | None = None) -> Budgets:
    said = told if told is not None else []
    return Budgets(parse_budgets(text), catalog, on_alert=said.append, clock=hands.clock)


async def spend(found: Budgets, tokens: int, usd: float | None = None, key: str = "", model: str = MODEL) -> None:
    found.settle(await found.promise(model, key, (usd, tokens)), (usd, tokens))


async def test_what_is_spent_is_spent_for_all_processes(catalog: Catalog, hands: Hands) -> None:
    ours, theirs = (budgets("all=1000 tokens/day", catalog, hands) for _ in range(2))
    for _ in range(4):
        await spend(ours, 100)
        await spend(theirs, 100)
    ours.told()
    theirs.told()
    await spend(ours, 100)
    with pytest.raises(BudgetSpent, match=r"the budget of 1,000 tokens/day for all is spent \(2026-01-31\)") as raised:
        await spend(theirs, 150)
    assert raised.value.status == 402
    hands.pass_(86_400)
    await spend(theirs, 900)


async def test_calls_at_a_time_do_not_spend_the_same(catalog: Catalog, hands: Hands) -> None:
    both = [budgets("all=1000 tokens/day", catalog, hands) for _ in range(2)]
    allowed = 0
    for number in range(30):
        try:
            await both[number % 2].promise(MODEL, "", (None, 90))
            allowed += 1
        except BudgetSpent:
            pass
    assert allowed == 11


async def test_what_a_process_held_that_is_gone_is_free_again(here: Catalog, hands: Hands) -> None:
    gone, found = (budgets("all=1000 tokens/day", here, hands) for _ in range(2))
    await gone.promise(MODEL, "", (None, 900))
    with pytest.raises(BudgetSpent):
        await spend(found, 200)
    hands.pass_(61)
    await spend(found, 200)


async def test_a_budget_is_of_all_or_of_a_model_or_of_a_key(hands: Hands) -> None:
    found = budgets(f"{MODEL}=100 tokens/day; key:alice=50 tokens/month", None, hands)
    await spend(found, 1_000, model="openai:other")
    await spend(found, 50, key="alice")
    with pytest.raises(BudgetSpent, match="for key:alice"):
        await spend(found, 1, key="alice")
    await spend(found, 50, key="bob")
    with pytest.raises(BudgetSpent, match=f"for {MODEL}"):
        await spend(found, 1, key="bob")


async def test_each_share_is_told_once_in_a_home(catalog: Catalog, hands: Hands) -> None:
    told: list[Alert] = []
    both = [budgets("all=10 USD/month", catalog, hands, told) for _ in range(2)]
    for number in range(10):
        found = both[number % 2]
        await spend(found, 0, usd=1.0)
        found.told()
    assert [alert.share for alert in told] == [0.8, 1.0]
    assert told[0].said == "8 of 10 USD/month for all is spent (2026-01)"


async def test_a_call_of_unknown_price_is_not_counted_in_usd(hands: Hands) -> None:
    found = budgets("all=1 USD/day", None, hands)
    await spend(found, 10**9, usd=None)
    assert found.state()[0]["spent"] == 0


async def test_a_budget_that_warns_refuses_nothing(catalog: Catalog, hands: Hands) -> None:
    told: list[Alert] = []
    both = [budgets("all=10 USD/month warn; all=100 tokens/day", catalog, hands, told) for _ in range(2)]
    for number in range(20):
        found = both[number % 2]
        await spend(found, 1, usd=1.0)
        found.told()
    assert [alert.share for alert in told] == [0.8, 1.0]
    assert [(one["unit"], one["spent"], one["warns"]) for one in both[0].state()] == [
        ("usd", 20.0, True),
        ("tokens", 20.0, False),
    ]
    with pytest.raises(BudgetSpent, match="100 tokens/day"):
        await spend(both[0], 90)


# --- concurrency -----------------------------------------------------------------------------------------------------


async def test_so_many_at_a_time_so_many_in_line_the_next_is_refused_at_once() -> None:
    line = Line("write", at_once=2, waiting=3)
    go_on = asyncio.Event()
    most = now = 0

    async def call() -> None:
        nonlocal most, now
        async with line.place():
            now += 1
            most = max(most, now)
            await go_on.wait()
            now -= 1

    calls = [asyncio.create_task(call()) for _ in range(5)]
    await asyncio.sleep(0)
    with pytest.raises(ModelQueueFull) as raised:
        await call()
    assert raised.value.status == 503
    calls[4].cancel()
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(*calls, return_exceptions=True)
    assert (most, now) == (2, 0)
    await asyncio.wait_for(call(), 5)


async def test_bulk_work_gives_way_and_is_never_refused() -> None:
    line = Line("make vectors", at_once=2, waiting=0)
    order: list[str] = []
    go_on = asyncio.Event()

    async def bulk(name: str) -> None:
        async with line.place(bulk=True):
            order.append(name)
            await go_on.wait()

    tasks = [asyncio.create_task(bulk(f"bulk {number}")) for number in range(3)]
    await asyncio.sleep(0)
    async with line.place():
        order.append("a query")
    go_on.set()
    await asyncio.gather(*tasks)
    assert order == ["bulk 0", "a query", "bulk 1", "bulk 2"]


# --- all together ----------------------------------------------------------------------------------------------------


async def test_an_attempt_has_an_end(here: Catalog) -> None:
    guards = Guards(Settings(attempts=1), here)
    with pytest.raises(ModelSlow, match=r"had not answered after 0\.05 s"):
        await guards.of("embed", MODEL).call(lambda: asyncio.Event().wait(), Taken(), Patience(0.05, 1.0))
    guards.close()


async def test_a_retry_does_not_go_past_an_open_breaker(here: Catalog) -> None:
    guards = Guards(Settings(attempts=9, breaker_failures=4), here)
    model = Model(*[ModelDown("out")] * 99)
    with pytest.raises(ModelPaused):
        await guards.of("embed", MODEL).call(model, Taken(), PATIENCE)
    assert model.asked == 4
    assert guards.state()["paused"] == [{"model": MODEL, "reason": "ModelDown", "failures": 4}]
    guards.close()


async def test_a_call_that_is_not_answered_is_not_charged(here: Catalog) -> None:
    guards = Guards(Settings(budgets="all=1000 tokens/day"), here)
    guard = guards.of("generate", MODEL)
    with pytest.raises(ModelKeyRefused):
        await guard.call(Model(ModelKeyRefused("no")), Taken(900, 100), PATIENCE)
    await guard.call(Model(), Taken(600, 100), PATIENCE)
    assert guards.state()["budgets"][0]["spent"] == 700
    guards.close()


async def test_a_model_of_this_process_has_no_budget_and_no_breaker(here: Catalog) -> None:
    guards = Guards(Settings(budgets="all=1 tokens/day", breaker_failures=1), here)
    guard = guards.of("embed", "minilm")
    with pytest.raises(ModelDown):
        await guard.call(Model(ModelDown("out")), Taken(900), PATIENCE)
    assert await guard.call(Model(), Taken(900), PATIENCE) == "here"
    guards.close()


# --- what is said of them --------------------------------------------------------------------------------------------


def test_prices(monkeypatch: pytest.MonkeyPatch) -> None:
    prices = Prices({"openai:mine": (1.0, 10.0)})
    assert prices.usd("openai:mine", 1_000_000, 100_000) == pytest.approx(2.0)
    assert prices.usd("ollama:llama3.2", 10, 10) == 0.0
    assert prices.usd(MODEL, 1_000_000, 0) == pytest.approx(0.15)
    assert prices.usd("openai:nobody-knows-it", 10, 10) is None
    assert prices.usd("elsewhere:model", 10, 10) is None
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    assert prices.usd(MODEL, 10, 10) is None, "somebody else answers there"
    assert prices.usd("openai:mine", 0, 100_000) == pytest.approx(1.0)


def test_what_the_settings_say() -> None:
    assert parse_prices("openai:a=0.15/0.6; tei:http://h:80=0/0") == {
        "openai:a": (0.15, 0.6),
        "tei:http://h:80": (0, 0),
    }
    assert parse_rates("openai:a=500 requests, 200k tokens") == {"openai:a": {"requests": 500, "tokens": 200_000}}
    said = [limit.said for limit in parse_budgets("all=25 USD/month; openai:a=1.5M tokens/day\nkey:me=1 usd/day")]
    assert said == ["25 USD/month for all", "1,500,000 tokens/day for openai:a", "1 USD/day for key:me"]
    assert [limit.warns for limit in parse_budgets("all=25 USD/month warn, 1k tokens/day")] == [True, False]
    assert parse_shares("1, 0.5") == [0.5, 1.0]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("budgets", "25 USD/month"), ("budgets", "all=25 EUR/month"), ("budgets", "all=25 USD/week"),
        ("budgets", "all=25 USD/month warns"), ("budgets", "all=20 USD/day warn, 25 USD/day"),
        ("rates", "openai:a=many requests"), ("rates", "openai:a=0 requests"), ("prices", "openai:a=1"),
        ("budgets", "al=25 USD/month"), ("budgets", "key:=1 USD/day"), ("budgets", "openai=1 USD/day"),
        ("rates", "opnai:a=5 requests"), ("prices", "OpenAI:a=1/2"), ("alert_at", "80"), ("alert_at", "half"),
        ("webhook", "file:///etc/passwd"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused(setting: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"guards.{setting}"):
        Guards(Settings.model_validate({setting: value}))


def test_a_limit_of_a_provider_that_there_is_not_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'opnai:a' is no model\..*'openai'"):
        parse_budgets("opnai:a=1 USD/day")
    assert {*EMBEDDERS, *RERANKERS, *GENERATORS} == set(PROVIDERS)
