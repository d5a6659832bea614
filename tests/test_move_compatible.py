"""Declaring that a model may serve the vectors of another: measured, recorded, followed by all, taken back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from commands import Shell
from running import Toy, count, until
from whimbrel.app import Whimbrel
from whimbrel.catalog import tables as t
from whimbrel.domain import EmbedKind, Space
from whimbrel.errors import BadInput, ConfigError, Conflict, ModelError, MoveNotFound, SpaceMismatch
from whimbrel.models.embedders import resolve
from whimbrel.models.embedders.serving import ServingEmbedder
from whimbrel.move.compatible import Probed, check_spaces

NOTES = 60


class Near(Toy):
    """The vectors of `Toy`, each turned a little: by noise of so many times its length."""

    noise = 0.05

    def __init__(self, *, model: str = "near", revision: str = "1", dimensions: int = 32) -> None:
        super().__init__(model=model, revision=revision, dimensions=dimensions)
        self.asked: list[str] = []

    async def embed(self, texts: Sequence[str], kind: EmbedKind) -> npt.NDArray[np.float32]:
        self.asked += texts
        return await super().embed(texts, kind)

    def _vector(self, text: str) -> npt.NDArray[np.float32]:
        dice = np.random.default_rng(len(text) + sum(text.encode()))
        vector = super()._vector(text)
        noise = dice.standard_normal(len(vector)).astype(np.float32)
        turned = vector + self.noise * noise / np.linalg.norm(noise)
        return turned / np.float32(np.linalg.norm(turned))


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> dict[str, Toy]:
    made: dict[str, Toy] = {"toy": Toy(dimensions=256), "near": Near(dimensions=256)}
    made["far"] = far = Near(model="far", dimensions=256)
    far.noise = 1.5
    made["wide"] = Toy(model="wide", dimensions=512)
    for name, toy in made.items():
        monkeypatch.setitem(resolve._PROVIDERS, name, lambda _model, _threads, toy=toy: toy)
    return made


@pytest.fixture
def home(models: dict[str, Toy], tmp_path: Path) -> Iterator[Whimbrel]:
    with Whimbrel(home=tmp_path / "home", embedder="toy") as whimbrel:
        fill(whimbrel)
        yield whimbrel


def fill(home: Whimbrel, collection: str = "default") -> None:
    home.add([{"id": f"n{n}", "text": note(n)} for n in range(NOTES)], collection)
    home.wait_for_head(collection)


def note(number: int) -> str:
    words = [f"word{(number * 7 + step * step) % 97}" for step in range(12)]
    return f"Note {number}: {' '.join(words)}."


def space_of(home: Whimbrel) -> int:
    store = next(row for row in home.views("default") if row.view.kind == "store")
    assert store.view.space_id is not None
    return store.view.space_id


def test_a_model_that_is_near_enough_serves_from_now_on(home: Whimbrel, models: dict[str, Toy]) -> None:
    home.ask("Which notes have word3?", conversation_id=home.start_conversation("default").id)
    near, toy = models["near"], models["toy"]
    assert isinstance(near, Near)
    vectors = count(home, t.vectors)
    before = home.search("word3 word5", mode="dense", top_k=5)
    found = home.declare_compatible("default", "near")
    assert found.state == "serving"
    assert found.checks["mean_cosine"] > 0.99
    assert found.checks["overlap@10"] >= 0.8
    assert (found.checks["questions"], found.space.model) == (1, "near")
    assert 5 <= found.checks["chunks"] <= 100
    assert count(home, t.vectors) == vectors, "nothing is embedded again"
    near.asked.clear()
    toy.given.clear()
    after = home.search("word3 word5", mode="dense", top_k=5)
    assert near.asked == ["word3 word5"]
    assert not after.degraded
    assert {hit.uri for hit in before.hits} & {hit.uri for hit in after.hits}
    home.add([{"id": "new", "text": "A note on something else: dunlins."}])
    home.wait_for_head("default")
    assert toy.given == [], "new texts are the declared model's too"
    assert home.search("note on something else: dunlins", mode="dense", top_k=1).hits[0].uri == "text:new"
    assert home.embedder_for(space_of(home)).space.model == "toy", "the space is what it was"


def test_it_can_be_taken_back_until_it_is_finalised(home: Whimbrel, models: dict[str, Toy]) -> None:
    near = models["near"]
    assert isinstance(near, Near)
    home.declare_compatible("default", "near")
    with pytest.raises(Conflict, match="can still be taken back"):
        home.declare_compatible("default", "far")
    assert home.withdraw_compatible("default").state == "rolled_back"
    near.asked.clear()
    assert home.search("word3", mode="dense").hits
    assert near.asked == [], "the model that made the vectors serves them again"
    with pytest.raises(Conflict, match="rolled back already"):
        home.finalise_compatible("default")
    home.declare_compatible("default", "near")
    assert home.finalise_compatible("default").state == "finalised"
    with pytest.raises(Conflict, match="finalised already"):
        home.withdraw_compatible("default")
    assert home.search("word3", mode="dense").hits
    assert near.asked[-1] == "word3"
    with pytest.raises(Conflict, match="serves these vectors already"):
        home.declare_compatible("default", "near")
    assert home.declare_compatible("default", "toy").checks["mean_cosine"] == pytest.approx(1.0), "back by a new one"


def test_it_serves_where_the_models_own_is_gone(
    home: Whimbrel, models: dict[str, Toy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A home whose model was taken off the machine: the vectors of record are there to be compared with."""
    folder = home.home.path
    home.close()
    monkeypatch.setitem(resolve._PROVIDERS, "toy", lambda _model, _threads: Toy(revision="2", dimensions=256))
    with Whimbrel(home=folder, embedder="near") as changed:
        with pytest.raises(SpaceMismatch) as raised:
            changed.search("word3", mode="dense")
        assert "--compatible" in raised.value.hint
        found = changed.declare_compatible("default", "near")
        assert found.checks["questions"] == 0
        assert changed.search("word3", mode="dense").hits


def test_every_process_follows(home: Whimbrel, models: dict[str, Toy]) -> None:
    near = models["near"]
    assert isinstance(near, Near)
    with Whimbrel(home=home.home.path, embedder="toy") as other:
        assert other.search("word3", mode="dense").hits
        home.declare_compatible("default", "near")

        def asked() -> bool:
            near.asked.clear()
            other.search("word3", mode="dense")
            return near.asked == ["word3"]

        until(asked, "the other process asks the declared model")
        home.withdraw_compatible("default")
        until(lambda: not asked(), "and goes back with it")


def test_what_is_not_good_enough_is_refused(home: Whimbrel, models: dict[str, Toy]) -> None:
    with pytest.raises(SpaceMismatch, match=r"'far' cannot serve this space: mean cosine 0\.\d+, at least 0\.98"):
        home.declare_compatible("default", "far")
    with pytest.raises(SpaceMismatch, match="512 dimensions"):
        home.declare_compatible("default", "wide")
    with pytest.raises(Conflict, match="serves these vectors already"):
        home.declare_compatible("default", "toy")
    with pytest.raises(ConfigError, match="no embedder"):
        home.declare_compatible("default", "nobody")
    models["near"]._space = replace(models["near"].space, max_tokens=64)
    with pytest.raises(ConfigError, match="reads 64 tokens"):
        home.declare_compatible("default", "near")
    models["near"]._space = replace(models["near"].space, max_tokens=512)
    models["near"].out = "The server is down."
    with pytest.raises(ModelError, match="down"):
        home.declare_compatible("default", "near")
    assert home.compatible("default") is None
    with pytest.raises(MoveNotFound, match="No model was declared"):
        home.withdraw_compatible("default")


def test_a_small_collection_and_one_that_moves(home: Whimbrel) -> None:
    home.add([{"id": "x", "text": "One note."}], "small")
    home.wait_for_head("small")
    with pytest.raises(Conflict, match="1 chunks with a vector: too few"):
        home.declare_compatible("small", "near")
    move, job = home.start_move("default", to="lancedb:other")
    home.finish(job)
    with pytest.raises(Conflict, match=f"is being moved: move {move.id} is ready"):
        home.declare_compatible("default", "near")
    home.abort_move(home.move_by_id(move.id))
    assert home.declare_compatible("default", "near")


def test_a_fallback_that_was_not_declared_stays_refused(home: Whimbrel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where another model was declared, and is another one by now."""
    home.declare_compatible("default", "near")
    folder = home.home.path
    home.close()
    monkeypatch.setitem(resolve._PROVIDERS, "near", lambda _model, _threads: Near(revision="2", dimensions=256))
    with Whimbrel(home=folder, embedder="toy") as changed, pytest.raises(SpaceMismatch, match="not compared"):
        changed.search("word3", mode="dense")


def test_a_decision_is_in_a_backup(home: Whimbrel, tmp_path: Path) -> None:
    home.declare_compatible("default", "near")
    home.backup(tmp_path / "saved")
    with Whimbrel(home=tmp_path / "again", embedder="toy") as restored:
        restored.restore(tmp_path / "saved")
        assert restored.embedder_for(1).space.model == "toy"
        with restored.catalog.read() as connection:
            (row,) = connection.execute(t.compatible.select()).all()
        assert (row.embedder, row.state) == ("near", "serving")


# --- its parts -------------------------------------------------------------------------------------------------------


def test_each_measure_has_its_bound() -> None:
    good = Probed(chunks=50, questions=0, mean=0.98, lowest=0.90, overlap=0.80)
    assert good.said == []
    for name in ("mean", "lowest", "overlap"):
        (said,) = replace(good, **{name: getattr(good, name) - 0.001}).said
        assert "is wanted" in said


def test_vectors_of_another_length_are_never_compared() -> None:
    one = Space("a", "1", 8)
    with pytest.raises(SpaceMismatch, match="another length"):
        check_spaces(one, one, Space("b", "1", 8, normalised=False), "b")


async def test_a_decision_is_looked_up_once_a_second_at_most() -> None:
    looks: list[int] = []
    toy = Toy()

    def serving() -> Toy:
        looks.append(1)
        return toy

    embedder = ServingEmbedder(Space("s", "1", 32), serving)
    for _ in range(50):
        await embedder.embed(["a"], EmbedKind.QUERY)
    assert len(looks) < 50
    known = len(looks)
    embedder.look_again()
    assert embedder.count_tokens("a b") == 4
    assert len(looks) == known + 1
    assert embedder.space.model == "s"


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command(tmp_path: Path) -> None:
    """The built-in model under another revision: the same network, and another space."""
    import json
    import shutil

    from whimbrel.models.embedders import minilm

    copy = tmp_path / "copy"
    shutil.copytree(minilm.folder(), copy)
    about = json.loads((copy / "model.json").read_text())
    (copy / "model.json").write_text(json.dumps({**about, "revision": "copied"}))
    notes = tmp_path / "notes"
    notes.mkdir()
    for number in range(6):
        (notes / f"{number}.md").write_text(note(number))
    shell = Shell(tmp_path / "home")
    shell.run("ingest", str(notes))
    start, status, back, again, done, wrong = shell.several(
        ["move", "start", "default", "--embedder", f"onnx:{copy}", "--compatible"],
        ["move", "status", "default", "--json"],
        ["move", "rollback", "default"],
        ["move", "start", "default", "--embedder", f"onnx:{copy}", "--compatible", "--json"],
        ["move", "finalise", "default"],
        ["move", "start", "default", "--to", "lancedb:x", "--compatible"],
    )
    assert start.status == 0, start.err
    assert "nothing was embedded again" in start.out
    assert "mean 1.0000" in start.out
    assert (status.json["state"], status.json["numeric"]) == ("serving", "int8-per-channel")
    assert "was taken back" in back.out
    assert again.json["checks"]["overlap@10"] == 1.0
    assert "for good" in done.out
    assert wrong.status == BadInput.exit_code
