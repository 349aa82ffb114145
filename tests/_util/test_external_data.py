import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

from accuquant._util.external_data import check_external_files, external_files
from accuquant.errors import EngineError


def external(name: str, location: str) -> onnx.TensorProto:
    tensor = numpy_helper.from_array(np.arange(4, dtype=np.float32), name)
    set_external_data(tensor, location, offset=0, length=16)
    tensor.ClearField("raw_data")
    return tensor


def model_that_names(location: str) -> onnx.ModelProto:
    graph = helper.make_graph([], "g", [], [], [external("w", location)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def test_finds_every_place_where_a_tensor_can_hide(tmp_path: Path) -> None:
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["y"], value=external("c", "branch.bin"))], "b", [], [output]
    )
    sparse = onnx.SparseTensorProto(values=external("v", "values.bin"), indices=external("i", "indices.bin"))
    body = [helper.make_node("Constant", [], ["y"], value=external("f", "function.bin"))]
    graph = helper.make_graph(
        [helper.make_node("If", ["k"], ["y"], then_branch=branch, else_branch=branch)],
        "g",
        [],
        [output],
        [external("w", "weights.bin"), external("w2", "weights.bin")],
        sparse_initializer=[sparse],
    )
    function = helper.make_function("local", "F", [], ["y"], body, [helper.make_opsetid("", 20)])
    model = helper.make_model(graph, functions=[function], opset_imports=[helper.make_opsetid("", 20)])
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    names = {"branch.bin", "values.bin", "indices.bin", "function.bin", "weights.bin"}
    assert set(external_files(tmp_path / "m.onnx")) == names
    assert len(external_files(tmp_path / "m.onnx")) == len(names)


def test_a_self_contained_model_has_none(make_conv: Callable[..., Path]) -> None:
    assert external_files(make_conv()) == ()
    check_external_files(make_conv())


def test_accepts_data_in_a_folder_below(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "w.bin").write_bytes(bytes(16))
    onnx.save(model_that_names("data/../data/w.bin"), tmp_path / "m.onnx")
    check_external_files(tmp_path / "m.onnx")


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "data/../../secret.bin"])
def test_refuses_data_outside_the_folder(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(16))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "m.onnx").write_bytes(model_that_names(location).SerializeToString())
    with pytest.raises(EngineError, match="points outside the folder"):
        check_external_files(folder / "m.onnx")


def test_refuses_a_link_that_leads_outside(tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(16))
    folder = tmp_path / "model"
    folder.mkdir()
    os.symlink(tmp_path / "secret.bin", folder / "w.bin")
    (folder / "m.onnx").write_bytes(model_that_names("w.bin").SerializeToString())
    with pytest.raises(EngineError, match=r"'w\.bin', which points outside"):
        check_external_files(folder / "m.onnx")


def test_refuses_data_that_is_missing(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(model_that_names("w.bin").SerializeToString())
    with pytest.raises(EngineError, match=r"tensor 'w': got no file 'w\.bin' beside it.*Copy 'w\.bin'"):
        check_external_files(tmp_path / "m.onnx")


@pytest.mark.parametrize("content", [b"", b"<html>not a model</html>", b"root:x:0:0:root:/root:/bin/bash\n"])
def test_refuses_a_file_that_is_not_onnx(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(EngineError, match="a damaged file"):
        external_files(tmp_path / "m.onnx")


def test_refuses_every_truncation_or_reads_a_prefix_of_whole_fields(
    tmp_path: Path, make_conv: Callable[..., Path]
) -> None:
    whole = make_conv().read_bytes()
    path = tmp_path / "m.onnx"
    refused = 0
    for length in range(1, len(whole)):
        path.write_bytes(whole[:length])
        try:
            assert external_files(path) == ()
        except EngineError:
            refused += 1
    assert refused > 0.9 * len(whole)


def test_names_a_missing_model(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no such file"):
        external_files(tmp_path / "m.onnx")


def whole(path: Path, location: str = "w.bin") -> bytes:
    """Write a model whose one tensor lies in `location`, and return its bytes."""
    content: bytes = model_that_names(location).SerializeToString()
    path.write_bytes(content)
    return content


def test_a_tag_above_32_bits_hides_nothing(tmp_path: Path) -> None:
    """Decoders that drop the upper bits read the graph behind such a tag."""
    path = tmp_path / "m.onnx"
    content = whole(path, "../secret.bin")
    graph = content.index(onnx.load(path, load_external_data=False).graph.SerializeToString())
    head = content[:graph].rindex(b"\x3a")  # field 7, length-delimited
    for tag in (b"\xba\x80\x80\x80\x10", b"\xba\x80\x80\x80\x80\x80\x80\x80\x01"):
        path.write_bytes(content[:head] + tag + content[head + 1 :])
        with pytest.raises(EngineError, match="a damaged file"):
            check_external_files(path)


@pytest.mark.parametrize(
    "field",
    [
        b"\x3b\x3c",
        b"\x3c",
        b"\x00\x00",
        b"\x38\x01",
        b"\x3a\xff\xff\xff\xff\x7f",
        b"\x3a\x80\x80\x80\x80\x80\x00",
    ],
    ids=["group", "end of group", "field 0", "a number for the graph", "34 bits long", "overlong length"],
)
def test_refuses_fields_that_decoders_read_differently(tmp_path: Path, field: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(whole(path) + field)
    with pytest.raises(EngineError, match="a damaged file"):
        external_files(path)


@pytest.mark.parametrize("location", ["w\0.bin", "w\x1b[2J.bin", "\0"])
def test_refuses_a_location_with_characters_that_no_name_has(tmp_path: Path, location: str) -> None:
    whole(tmp_path / "m.onnx", location)
    with pytest.raises(EngineError, match=r"a path with|points outside the folder|an empty path") as caught:
        check_external_files(tmp_path / "m.onnx")
    assert str(caught.value).isprintable()


def test_a_location_of_many_characters_is_shortened_in_the_error(tmp_path: Path) -> None:
    whole(tmp_path / "m.onnx", "../" + "x" * 100_000)
    with pytest.raises(EngineError, match=r"x\.\.\.'") as caught:
        check_external_files(tmp_path / "m.onnx")
    assert len(str(caught.value)) < 1000


def test_external_data_without_a_location_is_refused(tmp_path: Path) -> None:
    model = model_that_names("w.bin")
    model.graph.initializer[0].ClearField("external_data")
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(EngineError, match=r"a path with|points outside the folder|an empty path"):
        check_external_files(tmp_path / "m.onnx")


def test_of_two_locations_both_are_looked_at(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(16))
    for locations in (("w.bin", "../secret.bin"), ("../secret.bin", "w.bin")):
        model = model_that_names(locations[0])
        model.graph.initializer[0].external_data.add(key="location", value=locations[1])
        (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(EngineError, match=r"a path with|points outside the folder|an empty path"):
            check_external_files(tmp_path / "m.onnx")


def test_refuses_data_that_is_shorter_than_the_model_says(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(15))
    whole(tmp_path / "m.onnx")
    with pytest.raises(EngineError, match="15 bytes where tensor 'w' ends at 16"):
        check_external_files(tmp_path / "m.onnx")


@pytest.mark.parametrize("number", ["-1", "1e9", "9" * 30, "\u0661", ""])
def test_refuses_an_offset_that_is_no_number(tmp_path: Path, number: str) -> None:
    model = model_that_names("w.bin")
    model.graph.initializer[0].external_data.add(key="offset", value=number)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(EngineError, match="external data with offset"):
        external_files(tmp_path / "m.onnx")
