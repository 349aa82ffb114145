"""Read the program that a PyTorch module runs: its layers by name, and the operations between them."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind

from accuquant._util.facts import FactsError
from accuquant.networks.aten_program import is_listed
from accuquant.qparams import fingerprint

_aten = torch.ops.aten
#: Calls whose weight is a constant become layers, which can be quantized.
_LAYERS: dict[Any, str] = {
    _aten.conv2d.default: "conv2d",
    _aten.conv2d.padding: "conv2d",
    _aten.conv_transpose2d.input: "conv_transpose2d",
    _aten.linear.default: "linear",
}
_ARITHMETIC: dict[Any, str] = {
    operator.getitem: "getitem",
    operator.add: "add",
    operator.sub: "sub",
    operator.mul: "mul",
    operator.floordiv: "floordiv",
}
_NORM = _aten._native_batch_norm_legit_no_training.default


def read_program(module: nn.Module, example: Tensor) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what `module` computes from one tensor, as JSON values, and the tensors that it computes with.

    `module` is in float32 on the CPU, in eval mode; `example` [2, ...]. What depends on weights alone (weight
    and spectral normalization, scaled weights) is computed here, and a batch normalization behind a layer
    goes into its weight: the same function, with fewer operations. Raises FactsError for an operation that a
    program may not hold, and whatever torch.export raises.
    """
    batch = {0: torch.export.Dim.DYNAMIC}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch 2.13 about its own trees
        exported = torch.export.export(module, (example,), dynamic_shapes=(batch,), strict=False)
        exported = exported.run_decompositions({})
        return _Reader(module, exported).read()


class _Reader:
    def __init__(self, module: nn.Module, exported: torch.export.ExportedProgram) -> None:
        self.module, self.exported = module, exported
        self.graph = exported.graph
        self.constants: dict[str, Any] = {}
        self.layers: dict[str, dict[str, Any]] = {}
        self.tensors: dict[str, Tensor] = {}
        self.of_layer: dict[str, str] = {}  # value -> the layer that computed it
        self.weights: dict[str, tuple[Any, ...]] = {}  # layer -> what it was made of
        self.renamed: dict[str, str] = {}
        self.steps: list[dict[str, Any]] = []

    def read(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        given = self._placeholders()
        (output,) = (node for node in self.graph.nodes if node.op == "output")
        for node in self.graph.nodes:
            if node.op == "call_function" and not self._is_check(node):
                self._read(node)
        (made,) = output.args[0]
        steps = _needed(self.steps, self._name(made))
        called = {step["layer"] for step in steps if "layer" in step}
        used = {f"{layer}.{part}" for layer in called for part in ("weight", "bias")}
        used |= {name for step in steps for name in _names(step, "tensor")}
        program = {
            "input": given,
            "output": self._name(made),
            "layers": {name: facts for name, facts in self.layers.items() if name in called},
            "steps": steps,
        }
        return program, {name: tensor for name, tensor in self.tensors.items() if name in used}

    def _placeholders(self) -> str:
        names = []
        for spec in self.exported.graph_signature.input_specs:
            if spec.kind == InputKind.USER_INPUT:
                names.append(spec.arg.name)
            else:
                held = self.exported.state_dict | self.exported.constants
                self.constants[spec.arg.name] = held[str(spec.target)].detach()
        (name,) = names
        return str(name)

    def _is_check(self, node: torch.fx.Node) -> bool:
        """Say whether a node only checks what torch assumed."""
        name = str(node.target)
        return not node.users and ("_assert" in name or "sym_constrain" in name)

    def _read(self, node: torch.fx.Node) -> None:
        if self._is_constant(node):
            arguments = torch.fx.map_arg((node.args, dict(node.kwargs)), lambda n: self.constants[n.name])
            function: Callable[..., Any] = node.target  # type: ignore[assignment]
            self.constants[node.name] = function(*arguments[0], **arguments[1])
        elif node.target in _LAYERS and self._has_constant_weight(node):
            self._read_layer(node)
        elif node.target is _NORM and self._folds(node):
            return  # its first output is the layer's
        elif node.target is operator.getitem and self._name(node.args[0]) in self.renamed.values():
            self.renamed[node.name] = self._name(node.args[0])
        else:
            self._read_operation(node)

    def _is_constant(self, node: torch.fx.Node) -> bool:
        if any(one.name not in self.constants for one in node.all_input_nodes):
            return False
        if node.target in _ARITHMETIC:
            return True
        tags, schema = getattr(node.target, "tags", ()), getattr(node.target, "_schema", None)
        random = torch.Tag.nondeterministic_seeded in tags
        return schema is not None and not schema.is_mutable and not random

    def _has_constant_weight(self, node: torch.fx.Node) -> bool:
        held = _bound(node)
        parts = [part for part in (held["weight"], held.get("bias")) if part is not None]
        return all(part.name in self.constants for part in parts) and _padding(held) is not None

    def _read_layer(self, node: torch.fx.Node) -> None:
        held, kind = _bound(node), _LAYERS[node.target]
        weight = self.constants[held["weight"].name]
        bias = None if held.get("bias") is None else self.constants[held["bias"].name]
        facts: dict[str, Any] = {"kind": kind}
        if kind != "linear":
            facts |= {name: _two(held[name]) for name in ("stride", "dilation")}
            facts |= {"padding": _padding(held), "groups": held["groups"]}
        if kind == "conv_transpose2d":
            facts["output_padding"] = _two(held["output_padding"])
        # by content: a normalized weight is computed anew for every call
        made_of = (
            fingerprint(weight.numpy()),
            None if bias is None else fingerprint(bias.numpy()),
            *map(str, facts.items()),
        )
        name = self._layer_name(node, kind, made_of)
        self.layers[name], self.weights[name] = facts, made_of
        self.tensors[f"{name}.weight"] = weight.clone().contiguous()
        if bias is not None:
            self.tensors[f"{name}.bias"] = bias.clone().contiguous()
        self.of_layer[node.name] = name
        first = held["input"] if "input" in held else held["self"]
        self.steps.append({"name": node.name, "layer": name, "arguments": [self._encoded(first)]})

    def _layer_name(self, node: torch.fx.Node, kind: str, made_of: tuple[Any, ...]) -> str:
        """Return the module's own name, with what tells its calls apart where it makes several."""
        stack = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
        path = str(stack[-1]).partition("@")[0] if stack else ""
        path = path if path and not path.startswith("_") else ""
        parts = [name for name, _ in self.module.get_submodule(path).named_children()]
        if not path or any(part != "parametrizations" for part in parts):
            path = f"{path}.{kind}".strip(".")
        number, name = 1, path
        while name in self.weights and (self.weights[name] != made_of or self._is_folded(name)):
            number, name = number + 1, f"{path}_{number + 1}"
        return name

    def _is_folded(self, name: str) -> bool:
        return any(self.of_layer.get(value) == name for value in self.renamed.values())

    def _folds(self, node: torch.fx.Node) -> bool:
        """Put a batch normalization into the layer before it, where nothing else reads the layer's output.

        y = gamma (x - mean) / sqrt(var + eps) + beta.
        """
        before: Any = node.args[0]
        statistics: Any = node.args[1:5]
        epsilon: Any = node.args[6]
        layer = self.of_layer.get(getattr(before, "name", ""))
        calls = sum(made == layer for made in self.of_layer.values())
        first_alone = all(user.target is operator.getitem and user.args[1] == 0 for user in node.users)
        known = [getattr(one, "name", None) for one in statistics]
        if layer is None or calls != 1 or len(before.users) != 1 or not first_alone:
            return False
        if any(name is not None and name not in self.constants for name in known):
            return False
        held: list[Any] = [None if name is None else self.constants[name] for name in known]
        gamma, beta, mean, variance = held
        factor = torch.rsqrt(variance + epsilon) * (1 if gamma is None else gamma)
        weight, bias = self.tensors[f"{layer}.weight"], self.tensors.get(f"{layer}.bias", 0.0)
        facts = self.layers[layer]
        if facts["kind"] == "conv_transpose2d":  # [I, O / groups, kh, kw]
            groups = facts["groups"]
            rows = weight.reshape(groups, -1, *weight.shape[1:]) * factor.reshape(groups, 1, -1, 1, 1)
            self.tensors[f"{layer}.weight"] = rows.flatten(0, 1).contiguous()
        else:
            self.tensors[f"{layer}.weight"] = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
        shift = (bias - mean) * factor
        self.tensors[f"{layer}.bias"] = shift if beta is None else shift + beta
        self.renamed[node.name] = self._name(before)
        return True

    def _read_operation(self, node: torch.fx.Node) -> None:
        if node.target not in _ARITHMETIC and not is_listed(node.target):
            where = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
            raise FactsError(
                f"operation {node.target}" + (f" in '{where[-1]}'" if where and where[-1] else "")
            )
        self.steps.append(
            {
                "name": node.name,
                "operation": _ARITHMETIC.get(node.target) or str(node.target),
                "arguments": [self._encoded(item) for item in node.args],
                "keywords": {k: self._encoded(v) for k, v in node.kwargs.items() if not _is_idle(v)},
            }
        )

    def _name(self, node: Any) -> str:
        name = str(getattr(node, "name", ""))
        return self.renamed.get(name, name)

    def _encoded(self, item: Any) -> Any:
        if isinstance(item, torch.fx.Node):
            name = self._name(item)
            if name not in self.constants:
                return {"value": name}
            value = self.constants[name]
            if not isinstance(value, Tensor):
                return self._encoded(value)
            self.tensors[name] = value.clone().contiguous()
            return {"tensor": name}
        if isinstance(item, (list, tuple)):
            return [self._encoded(one) for one in item]
        if isinstance(item, torch.device):
            return {"device": "input"}
        if isinstance(item, float) and item in (float("inf"), float("-inf")):
            return {"float": str(item)}
        if isinstance(item, torch.dtype):
            return {"dtype": str(item).removeprefix("torch.")}
        if isinstance(item, torch.memory_format):
            return {"layout": str(item).removeprefix("torch.")}
        return item


def _bound(node: torch.fx.Node) -> dict[str, Any]:
    """Return the arguments of a call by their names, defaults included."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    values = {one.name: one.default_value for one in schema if one.has_default_value()}
    return values | dict(zip((one.name for one in schema), node.args, strict=False)) | dict(node.kwargs)


def _padding(held: Mapping[str, Any]) -> list[int] | None:
    """Return the padding of a layer, the same on both sides; None where it is not."""
    padding = held.get("padding", 0)
    if padding == "valid":
        return [0, 0]
    if padding != "same":
        return _two(padding)
    kernel = held["weight"].meta["val"].shape[2:]
    total = [d * (k - 1) for d, k in zip(_two(held["dilation"]), kernel, strict=True)]
    return None if any(one % 2 for one in total) else [one // 2 for one in total]


def _two(value: Any) -> list[int]:
    numbers = [value] if isinstance(value, int) else list(value)
    return [int(n) for n in (numbers * 2 if len(numbers) == 1 else numbers)]


def _is_idle(value: Any) -> bool:
    """Say whether a keyword says nothing that a program needs."""
    return value is None or isinstance(value, torch.layout)


def _needed(steps: list[dict[str, Any]], output: str) -> list[dict[str, Any]]:
    """Return the steps that `output` depends on, in their order."""
    wanted, kept = {output}, []
    for step in reversed(steps):
        if step["name"] in wanted:
            kept.append(step)
            wanted |= set(_names(step, "value"))
    return kept[::-1]


def _names(step: Mapping[str, Any], kind: str) -> list[str]:
    """Return what a step's arguments refer to: a "value", or a "tensor"."""

    def found(item: Any) -> list[str]:
        if isinstance(item, dict):
            return [item[kind]] if kind in item else []
        return [name for one in item for name in found(one)] if isinstance(item, list) else []

    return found([step["arguments"], list(step.get("keywords", {}).values())])
