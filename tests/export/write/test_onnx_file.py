"""An .onnx and its data file: an export over an earlier one never pairs a graph with another's weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from accuquant._util.files import sha256_of_file
from accuquant._util.lock import only_writer
from accuquant.errors import UsageError
from accuquant.export import write_onnx


@pytest.fixture
def export(one_layer: Any, recipe_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Export one layer with weights times `factor` to q.onnx -> the files written."""
    monkeypatch.setattr("accuquant.export.write.graph_files._EXTERNAL_ABOVE", 64)

    def run(factor: float = 1.0, **choices: Any) -> list[Path]:
        network = one_layer("conv")
        model = onnx.load(network.path)
        (weight,) = (t for t in model.graph.initializer if t.name == "w")
        changed = (onnx.numpy_helper.to_array(weight) * np.float32(factor)).astype(np.float32)
        weight.CopyFrom(onnx.numpy_helper.from_array(changed, "w"))
        onnx.save(model, network.path)
        network.weight = changed
        recipe = recipe_of(network.layer(weight_levels=None))
        return write_onnx(network.path, recipe, tmp_path / "out" / "q.onnx", **choices)

    return run


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_data_file_has_its_contents_hash_in_its_name(export: Callable[..., list[Path]]) -> None:
    graph, data = export(external_data=True)
    assert data.parent == graph.parent
    assert data.name == f"q-{sha256_of_file(data)[:16]}.onnx_data"
    assert names(graph.parent) == {"q.onnx", data.name}
    onnx.checker.check_model(graph)


def test_an_earlier_exports_data_goes_when_its_graph_is_replaced(
    export: Callable[..., list[Path]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = export(external_data=True)
    second = export(-1.0, external_data=True)
    assert first[1] != second[1], "other weights, another name"
    assert names(out) == {path.name for path in second}
    graphs = export(lowering="per-group")
    assert names(out) == {"q.onnx", *(path.name for path in (*graphs, *second))}, "q.onnx still reads its own"
    export()
    assert names(out) == {"q.onnx", *(path.name for path in graphs)}, "inline: no data of its own any more"


def test_a_data_file_that_another_graph_reads_stays(
    export: Callable[..., list[Path]], tmp_path: Path
) -> None:
    graph, data = export(external_data=True)
    graph.with_name("copy.onnx").write_bytes(graph.read_bytes())
    export()
    assert names(graph.parent) == {"q.onnx", "copy.onnx", data.name}
    onnx.checker.check_model(graph.with_name("copy.onnx"))


def test_an_orphan_of_a_killed_export_goes_and_nothing_else(
    export: Callable[..., list[Path]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    others = {"q-0123.onnx_data", "other-0123456789abcdef.onnx_data", "q.onnx_data"}
    for name in ("q-0123456789abcdef.onnx_data", *others):
        (out / name).touch()
    export()
    assert names(out) == {"q.onnx", *others}


def test_the_data_of_an_earlier_release_goes_with_its_graph(
    export: Callable[..., list[Path]], tmp_path: Path
) -> None:
    graph, data = export(external_data=True)
    model = onnx.load(graph)
    data.unlink()
    onnx.save(model, graph, save_as_external_data=True, location="q.onnx_data", size_threshold=64)
    assert names(graph.parent) == {"q.onnx", "q.onnx_data"}
    export(-1.0)
    assert names(graph.parent) == {"q.onnx"}


def test_beside_a_file_that_cannot_be_read_everything_stays(
    export: Callable[..., list[Path]], tmp_path: Path
) -> None:
    _, data = export(external_data=True)
    (data.parent / "half.onnx").write_bytes(b"half")
    export()
    assert names(data.parent) == {"q.onnx", data.name, "half.onnx"}


def test_two_exports_into_one_output_are_refused(export: Callable[..., list[Path]], tmp_path: Path) -> None:
    with (
        only_writer(tmp_path / "out" / "q.onnx"),
        pytest.raises(UsageError, match=r"q.onnx': got another run that writes it now \(process \d+ on"),
    ):
        export()
