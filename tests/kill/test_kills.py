"""Kills of the commands that write: nothing half, the old result whole, nothing left after the next run."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from kill.killing import Room, check_end, moments
from onnx import TensorProto, helper, numpy_helper

from accuquant.engine_manifest import EngineManifest, engine_path
from accuquant.manifest import Manifest
from accuquant.recipe import Recipe

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
Array = npt.NDArray[np.float32]
_TINY = ["--steps", "4", "--group-size", "2", "--num-trajectories", "4", "--batch-size", "2"]
_TINY += ["--iterations", "2", "--shared-iterations", "2", "--observer", "minmax", "--sensitivity", "--quiet"]


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


def write_graph(path: Path, seed: int) -> None:
    """Write a network of two convolutions, whose weights are worth a data file."""
    rng = np.random.default_rng(seed)
    shapes = {"a": (32, 4, 3, 3), "b": (32, 32, 3, 3), "c": (4, 32, 3, 3)}
    weights = [
        numpy_helper.from_array(rng.normal(0, 0.1, s).astype(np.float32), n) for n, s in shapes.items()
    ]
    names = ["sample", "h1", "h2", "out_sample"]
    nodes = [
        helper.make_node("Conv", [names[k], w], [names[k + 1]], f"conv_{w}", pads=[1] * 4)
        for k, w in enumerate(shapes)
    ]
    extents: list[str | int | None] = ["batch", 4, "height", "width"]
    sample = helper.make_tensor_value_info("sample", TensorProto.FLOAT, extents)
    timestep = helper.make_tensor_value_info("timestep", TensorProto.INT64, [])
    output = helper.make_tensor_value_info("out_sample", TensorProto.FLOAT, extents)
    graph = helper.make_graph(nodes, "unet", [sample, timestep], [output], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)


def output_of(path: Path) -> Array:
    """Run a quantized graph on a fixed input."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    sample = np.random.default_rng(0).normal(size=(1, 4, 8, 8)).astype(np.float32)
    result: Array = session.run(None, {"sample": sample, "timestep": np.asarray(3, np.int64)})[0]
    return result


@pytest.mark.parametrize("count", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_a_kill_leaves_an_exported_file_old_or_new_with_its_weights(room: Room, count: int) -> None:
    """The export replaces a graph with a data file by another one; it is killed before any change."""
    for seed in (1, 2):
        write_graph(room.folder / f"float-{seed}.onnx", seed)
    common = ["--target", "cpu", "--external-data", "--quiet", "-o", "q.onnx"]
    first, second = (["export", f"float-{seed}.onnx", *common] for seed in (1, 2))
    room.finish(*first)
    old, names = output_of(room.folder / "q.onnx"), room.names()
    assert any(name.endswith(".onnx_data") for name in names)
    shutil.copytree(room.folder, room.folder.parent / "kept")
    changes = room.finish(*second).changes
    new = output_of(room.folder / "q.onnx")
    assert not np.array_equal(old, new)
    seen = set()
    for at, sent in moments(changes, count, seed=3):
        shutil.rmtree(room.folder)
        shutil.copytree(room.folder.parent / "kept", room.folder)
        check_end(room.run(*second, kill_at=at, sent=sent), sent)
        found = output_of(room.folder / "q.onnx")
        seen.add(np.array_equal(found, old))
        assert np.array_equal(found, old) or np.array_equal(found, new), at
        if sent == signal.SIGTERM:
            assert room.leftovers() == [], at
    room.finish(*second)
    np.testing.assert_array_equal(output_of(room.folder / "q.onnx"), new)
    assert room.leftovers() == []
    assert len(room.names()) == len(names), "one graph, one data file, one recipe"
    assert True in seen


@pytest.fixture(scope="module")
def recipes(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two recipes of the tiny pipeline, from two seeds."""
    (folder := tmp_path_factory.mktemp("recipes") / "x").mkdir()
    room = Room(folder)
    for seed in ("0", "1"):
        room.finish("calibrate", str(tiny_pipeline), *_TINY, "--seed", seed, "-o", f"{seed}.safetensors")
    return room.folder / "0.safetensors", room.folder / "1.safetensors"


@pytest.mark.slow
def test_a_killed_calibration_goes_on_and_ends_as_it_would_have(
    room: Room, tiny_pipeline: Path, recipes: tuple[Path, Path]
) -> None:
    command = ["calibrate", str(tiny_pipeline), *_TINY, "--seed", "0", "-o", "r.safetensors"]
    other = ["calibrate", str(tiny_pipeline), *_TINY, "--seed", "1", "-o", "r.safetensors"]
    changes = room.finish(*command).changes
    recipe = room.folder / "r.safetensors"
    assert recipe.read_bytes() == recipes[0].read_bytes()
    for at, sent in moments(changes, 20, seed=4):
        ended = room.run(*command, kill_at=at, sent=sent)  # it goes on, so that later changes may not come
        if ended.code != 0:
            check_end(ended, sent)
        Recipe.load(recipe)
        assert recipe.read_bytes() == recipes[0].read_bytes(), at
        partial = room.folder / "r.safetensors.partial"
        if partial.exists():
            ended = room.run(*other)
            assert ended.code in (0, 1)
            if ended.code == 0:  # nothing of the first run was left
                assert recipe.read_bytes() == recipes[1].read_bytes()
            else:
                assert "other settings (seed: 0 -> 1)" in ended.error
            room.finish(*command)
    room.finish(*command)
    assert recipe.read_bytes() == recipes[0].read_bytes()
    assert (room.names(), room.leftovers()) == ({"r.safetensors"}, [])


@pytest.mark.slow
def test_a_calibration_killed_in_every_stage_loses_none_and_ends_as_it_would_have(
    room: Room, tiny_pipeline: Path, recipes: tuple[Path, Path]
) -> None:
    """SIGKILL comes again and again, each time a few changes of the file system later."""
    command = ["calibrate", str(tiny_pipeline), *_TINY, "--seed", "0", "-o", "r.safetensors"]
    recipe, partial = room.folder / "r.safetensors", room.folder / "r.safetensors.partial"
    rng, seen = random.Random(8), set[str]()
    for _ in range(80):
        ended = room.run(*command, kill_at=rng.randint(8, 30))
        if ended.code == 0:
            break
        check_end(ended, signal.SIGKILL)
        seen |= {path.relative_to(partial).as_posix() for path in partial.rglob("*")}
    assert recipe.read_bytes() == recipes[0].read_bytes()
    assert (room.names(), room.leftovers()) == ({"r.safetensors"}, [])
    assert seen >= {
        "trajectories/000000.safetensors", "inputs/000001.safetensors", "units/scales", "units/refined",
        "units/rounding", "units/sensitivity", "initial.safetensors", "shared.state", "shared.safetensors",
        "group_000.state", "group_000.json", "group_001.state",
    }  # fmt: skip


@pytest.mark.slow
def test_a_kill_leaves_an_exported_folder_old_or_new(
    room: Room, tiny_pipeline: Path, recipes: tuple[Path, Path]
) -> None:
    exports = [
        ["export", str(tiny_pipeline), "--recipe", str(recipe), "--target", "cpu", "-o", "out", "--quiet"]
        for recipe in recipes
    ]
    out = room.folder / "out"
    room.finish(*exports[0])
    digests = [Manifest.load(out).files]
    changes = room.finish(*exports[1]).changes
    digests.append(Manifest.load(out).files)
    assert digests[0] != digests[1]
    for number, (at, sent) in enumerate(moments(changes, 20, seed=5)):
        check_end(room.run(*exports[number % 2], kill_at=at, sent=sent), sent)
        manifest = Manifest.load(out)
        manifest.check_files(out)
        assert manifest.files in digests, at
        onnxruntime.InferenceSession(out / manifest.graphs[0], providers=["CPUExecutionProvider"])
    room.finish(*exports[0])
    assert Manifest.load(out).files == digests[0]
    assert (room.names(), room.leftovers()) == ({"out"}, [])


@pytest.mark.slow
@pytest.mark.trt
def test_a_kill_leaves_a_whole_engine_or_none_and_no_compiler(
    room: Room, tiny_pipeline: Path, recipes: tuple[Path, Path]
) -> None:
    pytest.importorskip("tensorrt_rtx")
    export = ["export", str(tiny_pipeline), "--recipe", str(recipes[0]), "-o", "out", "--quiet"]
    room.finish(*export, "--target", "cpu")
    build = ["build", "out", "--backend", "tensorrt_rtx", "--target", "sm89", "--quiet", "--force"]
    room.finish(*build)
    changes = room.finish(*build).changes  # over an engine
    out = room.folder / "out"
    engine = engine_path(out, Manifest.load(out).graphs[0], "sm89", "tensorrt_rtx")
    whole = set(os.listdir(engine.parent))
    for at, sent in moments(changes, 20, seed=6):
        check_end(room.run(*build, kill_at=at, sent=sent), sent)
        assert processes_with(str(room.folder.parent)) == []
        if engine.exists():
            EngineManifest.load(engine)  # with an engine of before: build compares their digests
    room.finish(*build)
    EngineManifest.load(engine).check_engine(engine)
    assert (set(os.listdir(engine.parent)), room.leftovers()) == (whole, [])


def processes_with(text: str) -> list[str]:
    """Return the command lines that hold `text`, waiting a moment for those that are ending."""
    import time

    deadline = time.monotonic() + 10
    while True:
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if text in line:
                found.append(line)
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.05)
