"""Models made on the spot, in the layout that those of the Hugging Face Hub have: random weights, few words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = tuple("the sea sky bird nest marsh wader sandpiper flies sings sleeps query: passage: a of in".split())  # noqa: SIM905


def weights(dimensions: int = 12, seed: int = 7, words: Sequence[str] = WORDS) -> npt.NDArray[np.float32]:
    """float32[words + 4, dimensions]: [PAD], [UNK], [CLS], [SEP], then the words."""
    return np.random.default_rng(seed).standard_normal((len(words) + 4, dimensions)).astype(np.float32)


def encoder(
    folder: Path,
    *,
    dimensions: int = 12,
    pooling: str = "mean",
    normalise: bool = True,
    prompts: dict[str, str] | None = None,
    max_tokens: int = 32,
    network: str = "onnx/model.onnx",
    output: str = "last_hidden_state",
    seed: int = 7,
    words: Sequence[str] = WORDS,
) -> Path:
    """An encoder whose tokens' vectors are those of its words."""
    (folder / "1_Pooling").mkdir(parents=True)
    tokenizer(folder, words)
    _gather(folder / network, weights(dimensions, seed, words), output)
    modules = ["Transformer", "Pooling", *(["Normalize"] if normalise else [])]
    _write(
        folder / "modules.json",
        [{"idx": n, "name": str(n), "path": "1_Pooling" if name == "Pooling" else "" if n == 0 else f"{n}_{name}",
          "type": f"sentence_transformers.models.{name}"} for n, name in enumerate(modules)],
    )  # fmt: skip
    modes = {"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens", "lasttoken": "lasttoken"}
    _write(
        folder / "1_Pooling" / "config.json",
        {"word_embedding_dimension": dimensions}
        | {f"pooling_mode_{said}": mode == pooling for mode, said in modes.items()},
    )  # fmt: skip
    _write(folder / "config.json", {"model_type": "bert", "hidden_size": dimensions, "max_position_embeddings": 512})
    _write(folder / "sentence_bert_config.json", {"max_seq_length": max_tokens, "do_lower_case": False})
    _write(folder / "tokenizer_config.json", {"model_max_length": 10**30})
    _write(folder / "config_sentence_transformers.json", {"prompts": prompts or {}, "default_prompt_name": None})
    return folder


def tokenizer(folder: Path, words: Sequence[str] = WORDS) -> None:
    """Words as tokens, between [CLS] and [SEP]."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    made = Tokenizer(models.WordLevel(numbers, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made.save(str(folder / "tokenizer.json"))


def _gather(path: Path, of: npt.NDArray[np.float32], output: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["weights", "input_ids"], [output])],
        "words",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"]),
         helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "tokens"])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", "tokens", of.shape[1]])],
        [numpy_helper.from_array(of, "weights")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(path))


def _write(path: Path, said: object) -> None:
    path.write_text(json.dumps(said))


def cross_encoder(
    folder: Path,
    *,
    labels: tuple[str, ...] | None = ("LABEL_0",),
    max_tokens: int = 32,
    network: str = "onnx/model.onnx",
    positive: int = 0,
) -> Path:
    """A cross-encoder whose logit is twice the number of words that question and text share, less 3; with two labels,
    half of it at `positive` and half, negated, at the other."""
    tokenizer(folder)
    table = np.eye(len(WORDS) + 4, dtype=np.float32)
    table[:4] = 0
    count = 1 if labels is None else len(labels)
    spread = np.full((1, count), 1.0 if count == 1 else -0.5, np.float32)
    if count > 1:
        spread[0, positive] = 0.5
    _pairs(folder / network, table, spread)
    said: dict[str, object] = {"model_type": "bert", "hidden_size": 8, "max_position_embeddings": 512}
    if labels is not None:
        said["id2label"] = {str(number): label for number, label in enumerate(labels)}
    _write(folder / "config.json", said)
    _write(folder / "tokenizer_config.json", {"model_max_length": max_tokens})
    return folder


def _pairs(path: Path, table: npt.NDArray[np.float32], spread: npt.NDArray[np.float32]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    made = helper.make_node
    nodes = [
        made("Gather", ["table", "input_ids"], ["words"]),
        made("Cast", ["token_type_ids"], ["second"], to=TensorProto.FLOAT),
        made("Unsqueeze", ["second", "last"], ["text_mask"]),
        made("Sub", ["one", "text_mask"], ["query_mask"]),
        made("Mul", ["words", "text_mask"], ["text_words"]),
        made("Mul", ["words", "query_mask"], ["query_words"]),
        made("ReduceSum", ["text_words", "middle"], ["text"], keepdims=0),
        made("ReduceSum", ["query_words", "middle"], ["query"], keepdims=0),
        made("Mul", ["text", "query"], ["shared"]),
        made("ReduceSum", ["shared", "middle"], ["count"], keepdims=1),
        made("Mul", ["count", "two"], ["twice"]),
        made("Sub", ["twice", "three"], ["logit"]),
        made("MatMul", ["logit", "spread"], ["logits"]),
    ]
    constants = {
        "table": table,
        "spread": spread,
        "last": np.array([2], np.int64),
        "middle": np.array([1], np.int64),
        "one": np.array(1, np.float32),
        "two": np.array(2, np.float32),
        "three": np.array(3, np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "pairs",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"])
            for name in ("input_ids", "attention_mask", "token_type_ids")
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", spread.shape[1]])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(path))
