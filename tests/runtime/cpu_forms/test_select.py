from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
from onnx import helper, numpy_helper

from accuquant.runtime.cpu_forms import select as module
from accuquant.runtime.cpu_forms.form import AS_WRITTEN, CpuForm
from accuquant.runtime.cpu_forms.form_choice import FormChoice, FormTime
from accuquant.runtime.cpu_forms.rewrite import rewrite
from accuquant.runtime.openvino_runner import OpenVinoRunner

MEASURED = CpuForm(norms="channels")
SAMPLE = np.random.default_rng(0).normal(2, 1, (2, 6, 4, 5)).astype(np.float32)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ACCUQUANT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cpu_forms"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[CpuForm]:
    """Stands in for the measurement -> the forms that it was given by rule, one for each time that it ran."""
    asked: list[CpuForm] = []

    def choose(ruled: CpuForm, why: str, traits: Any, *_: Any) -> FormChoice:
        asked.append(ruled)
        return FormChoice(MEASURED, "measurement", "7.0 ms a call", (FormTime(MEASURED, 7.0),))

    monkeypatch.setattr(module, "choose_form", choose)
    return asked


def write_norm(path: Path, *, exported: bool = True, epsilon: float = 1e-5) -> Path:
    """sample [N, 6, H, W] -> GroupNormalization in 3 groups -> out_sample."""
    tensors = [
        numpy_helper.from_array(np.linspace(start, 1, 6, dtype=np.float32), name)
        for name, start in (("scale", 0.5), ("bias", -1))
    ]
    node = helper.make_node(
        "GroupNormalization", ["sample", "scale", "bias"], ["out_sample"], num_groups=3, epsilon=epsilon
    )
    shape: list[str | int | None] = ["batch", 6, "height", "width"]
    values = [helper.make_tensor_value_info(name, 1, shape) for name in ("sample", "out_sample")]
    graph = helper.make_graph([node], "norm", values[:1], values[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    if exported:
        helper.set_model_props(model, {"accuquant.version": "0"})
    onnx.save(model, path)
    return path


def normalized(sample: np.ndarray, epsilon: float = 1e-5) -> np.ndarray:
    grouped = sample.astype(np.float64).reshape(len(sample), 3, -1)
    centred = grouped - grouped.mean(-1, keepdims=True)
    flat = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
    scale, bias = np.linspace(0.5, 1, 6), np.linspace(-1, 1, 6)
    return flat.reshape(sample.shape) * scale.reshape(-1, 1, 1) + bias.reshape(-1, 1, 1)


def choice_of(
    path: Path, sample: np.ndarray = SAMPLE, *, rewriting: bool = True, **options: Any
) -> FormChoice:
    with OpenVinoRunner(path, rewriting=rewriting, **options) as runner:
        assert isinstance(runner, OpenVinoRunner)
        np.testing.assert_allclose(
            runner.infer({"sample": sample})["out_sample"], normalized(sample), rtol=1e-5, atol=1e-5
        )
        assert runner.choice is not None
        return runner.choice


@pytest.mark.parametrize("norms", ["written", "channels"])
def test_a_norm_computes_the_same_in_every_form(tmp_path: Path, norms: Any) -> None:
    path = write_norm(tmp_path / "m.onnx")
    with OpenVinoRunner(path, form=CpuForm(norms=norms)) as runner:
        for sample in (SAMPLE, SAMPLE[:1], np.zeros_like(SAMPLE), 1e3 * SAMPLE):
            result = runner.infer({"sample": sample})["out_sample"]
            np.testing.assert_allclose(result, normalized(sample), rtol=1e-4, atol=1e-4)


def test_the_form_by_channel_has_no_norm_of_openvinos_own(tmp_path: Path) -> None:
    model = openvino.Core().read_model(write_norm(tmp_path / "m.onnx"))
    model.reshape({0: SAMPLE.shape})
    for form, number in ((AS_WRITTEN, 1), (MEASURED, 0)):
        kinds = [node.get_type_name() for node in rewrite(model, form).get_ordered_ops()]
        assert kinds.count("GroupNormalization") == number


def test_what_was_measured_is_kept_and_not_measured_again(
    tmp_path: Path, cache: Path, measured: list[CpuForm]
) -> None:
    path = write_norm(tmp_path / "m.onnx")
    first = choice_of(path)
    assert choice_of(path) == first == choice_of(path, SAMPLE[:1]), "batches share a choice"
    assert (first.form, len(measured), len(list(cache.glob("*.json")))) == (MEASURED, 1, 1)


def test_other_graphs_sizes_threads_processors_and_libraries_are_measured(
    tmp_path: Path, cache: Path, measured: list[CpuForm], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_norm(tmp_path / "m.onnx")
    choice_of(path)
    choice_of(path, num_threads=1)
    choice_of(path, SAMPLE[:, :, :3])
    with OpenVinoRunner(write_norm(tmp_path / "other.onnx", epsilon=0.5), rewriting=True) as runner:
        runner.infer({"sample": SAMPLE})
    monkeypatch.setattr(module, "name_of_place", lambda core: "another processor, OpenVINO 2030")
    choice_of(path)
    assert len(measured) == 5


def test_a_broken_file_in_the_cache_is_named_and_measured_again(
    tmp_path: Path, cache: Path, measured: list[CpuForm]
) -> None:
    path = write_norm(tmp_path / "m.onnx")
    choice_of(path)
    (kept,) = cache.glob("*.json")
    for broken in ("{", '{"form": {"norms": "sideways"}}'):
        kept.write_text(broken)
        with pytest.warns(UserWarning, match="is not what was kept there"):
            choice_of(path)
    choice_of(path)
    assert len(measured) == 3


def test_a_cache_that_cannot_be_written_costs_a_warning(
    tmp_path: Path, measured: list[CpuForm], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ACCUQUANT_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="cannot be kept|is not what was kept"):
        assert choice_of(write_norm(tmp_path / "m.onnx")).form == MEASURED


def test_a_strangers_file_is_run_as_it_is(tmp_path: Path, cache: Path, measured: list[CpuForm]) -> None:
    choice = choice_of(write_norm(tmp_path / "m.onnx", exported=False))
    assert (choice.form, choice.basis, measured) == (AS_WRITTEN, "not an export", [])


def test_a_call_that_is_short_goes_by_rule_and_leaves_no_file(tmp_path: Path, cache: Path) -> None:
    assert choice_of(write_norm(tmp_path / "m.onnx")).basis == "rule"
    assert not cache.exists()


def test_the_choice_is_shown(tmp_path: Path, cache: Path, measured: list[CpuForm]) -> None:
    with OpenVinoRunner(write_norm(tmp_path / "m.onnx"), name="the network", rewriting=True) as runner:
        assert runner.chosen is None
        runner.infer({"sample": SAMPLE})
        assert runner.chosen == (
            "the network: zero-points written, norms channels, ranks written, precision fp32, "
            "products written (by measurement: 7.0 ms a call)"
        )


def test_nothing_is_rewritten_where_it_is_switched_off(
    tmp_path: Path, cache: Path, measured: list[CpuForm]
) -> None:
    choice = choice_of(write_norm(tmp_path / "m.onnx"), rewriting=False)
    assert (choice.form, measured) == (AS_WRITTEN, [])


def test_every_form_that_is_timed_in_bfloat16_is_compiled_in_it(
    tmp_path: Path, cache: Path, compiled_in: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accuquant.runtime.cpu_forms.choose_form.SMALLEST_CALL", 0.0)
    with OpenVinoRunner(write_norm(tmp_path / "m.onnx"), precision="bf16") as runner:
        assert isinstance(runner, OpenVinoRunner)
        result = runner.infer({"sample": SAMPLE})["out_sample"]
        assert runner.choice is not None
        assert (runner.choice.basis, runner.choice.form.precision) == ("measurement", "bf16")
        assert {one.form.norms for one in runner.choice.times} == {"channels", "written"}
    assert len(compiled_in) >= 2
    assert set(compiled_in) == {"bf16"}
    np.testing.assert_allclose(result, normalized(SAMPLE), rtol=0.05, atol=0.05)
