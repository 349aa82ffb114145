from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from accuquant.cli.main import main

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
#: The Python that each image has.
PYTHON = {"cpu": "3.11", "gpu": "3.12"}
#: TensorRT is in the base; ONNX Runtime runs QDQ graphs in float on a GPU.
LEFT_OUT = ("tensorrt", "onnxruntime-gpu")
IMAGES = pytest.mark.parametrize("image", PYTHON)


def locked(name: str) -> dict[str, tuple[str, int]]:
    """Read a lock -> {package: (version, number of hashes)}."""
    entries = (DOCKER / f"requirements-{name}.txt").read_text().replace("\\\n", " ").splitlines()
    found: dict[str, tuple[str, int]] = {}
    for entry in entries:
        if match := re.match(r"([\w.-]+)==(\S+)", entry):
            found[canonicalize_name(match[1])] = (match[2], entry.count("--hash=sha256:"))
    return found


def constraints(python: str) -> dict[str, str]:
    """Read the versions that the tests run with, on that Python."""
    lines = (ROOT / "requirements" / "constraints.txt").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {
        canonicalize_name(item.name): str(item.specifier).removeprefix("==")
        for item in requirements
        if item.marker is None or item.marker.evaluate({"python_version": python})
    }


def instructions(image: str) -> list[tuple[str, str]]:
    """Read a Dockerfile -> (instruction, its arguments on one line)."""
    text = (DOCKER / f"{image}.Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(name, " ".join(rest.split())) for name, rest in (line.split(maxsplit=1) for line in lines)]


def last_stage(image: str) -> dict[str, str]:
    """Read the instructions of the stage that becomes the image; the last of a kind counts."""
    parts = instructions(image)
    start = max(index for index, (name, _) in enumerate(parts) if name == "FROM")
    return dict(parts[start:])


def command_parses(words: list[str]) -> bool:
    """Say whether AccuQuant knows the command and its options; nothing is run."""
    return main([*words, "--help"]) == 0


@pytest.mark.parametrize("name", [*PYTHON, "build"])
def test_locks_agree_with_the_constraints_and_carry_hashes(name: str) -> None:
    pinned = constraints(PYTHON.get(name, "3.11"))
    lock = locked(name)
    shared = lock.keys() & pinned.keys()
    assert shared
    assert {key: lock[key][0] for key in shared} == {key: pinned[key] for key in shared}
    assert all(hashes for _, hashes in lock.values())


@IMAGES
def test_locks_hold_every_dependency_of_the_package(image: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = project["optional-dependencies"]["gpu"] if image == "gpu" else []
    wanted = [Requirement(item) for item in [*project["dependencies"], *extra]]
    lock = locked(image)
    for item in wanted:
        if item.name in LEFT_OUT:
            continue
        if item.marker is None or item.marker.evaluate({"python_version": PYTHON[image]}):
            assert item.specifier.contains(lock[canonicalize_name(item.name)][0]), item.name


@IMAGES
def test_images_hold_neither_torch_nor_telemetry(image: str) -> None:
    names = locked(image).keys()
    assert not names & {"torch", "diffusers", "transformers", "openvino-telemetry"}
    assert not [name for name in names if name.startswith(("nvidia", "onnxruntime", "tensorrt", "triton"))]
    assert ("polygraphy" in names) == (image == "gpu")


@IMAGES
def test_the_base_is_pinned_and_an_argument(image: str) -> None:
    parts = instructions(image)
    arguments_of = [arguments for name, arguments in parts if name == "ARG"]
    (base,) = (given.removeprefix("BASE=") for given in arguments_of if given.startswith("BASE="))
    assert re.search(r":[\w.-]*\d[\w.-]*(@sha256:[0-9a-f]{64}|\$\{DIGEST\})$", base), base
    stages = {"${BASE}"}
    for name, arguments in parts:
        if name == "FROM":
            source, *alias = arguments.split(" AS ")
            assert source in stages
            stages.update(alias)


@IMAGES
def test_packages_are_installed_as_locked(image: str) -> None:
    runs = [arguments for name, arguments in instructions(image) if name == "RUN"]
    installs = [
        step for run in runs for step in run.split("&&") if " install " in step and "apt-get" not in step
    ]
    assert len(installs) == 3
    for step in installs:
        assert "--no-cache-dir" in step
        assert "--no-deps" in step
        assert "--no-index" in step or "--require-hashes" in step


@IMAGES
def test_the_image_does_not_run_as_root(image: str) -> None:
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last_stage(image)["USER"])


@IMAGES
def test_the_health_check_is_a_command_that_exists(image: str) -> None:
    check = last_stage(image)["HEALTHCHECK"]
    program, *words = json.loads(check.partition("CMD ")[2])
    assert program == "accuquant"
    assert words[0] == "doctor"
    assert ("--gpu" in words) == (image == "gpu")
    assert command_parses(words)


@IMAGES
def test_what_is_copied_is_in_the_build_context(image: str) -> None:
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    assert rules[1] == "*"
    kept = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    for name, arguments in instructions(image):
        if name == "COPY" and "--from" not in arguments:
            for source in arguments.split()[:-1]:
                assert (ROOT / source).exists()
                assert source in kept or (
                    source.startswith("docker/requirements-") and "docker/requirements-*.txt" in kept
                )


@IMAGES
def test_the_compose_service_samples_without_rights(image: str) -> None:
    service = services()[image]
    assert service["build"]["dockerfile"] == f"docker/{image}.Dockerfile"
    assert service["user"].startswith("${ACCUQUANT_USER:-1000:")
    assert service["cap_drop"] == ["ALL"]
    assert service["read_only"]
    assert command_parses(service["command"])
    mounted = {volume["target"]: volume.get("read_only", False) for volume in service["volumes"]}
    assert mounted == {"/model": image == "cpu", "/images": False}  # engines are kept in the model's folder


def test_only_the_gpu_service_asks_for_a_gpu() -> None:
    assert "deploy" not in services()["cpu"]
    (device,) = services()["gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


def test_the_documented_docker_commands_parse() -> None:
    lines = (ROOT / "docs" / "docker.md").read_text().replace("\\\n", " ").splitlines()
    runs = [shlex.split(line) for line in lines if line.strip().startswith("docker run")]
    assert runs
    for words in runs:
        (position,) = (index for index, word in enumerate(words) if word.startswith("accuquant:"))
        assert command_parses(words[position + 1 :]), words


def services() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    return read
