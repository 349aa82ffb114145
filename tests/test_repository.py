"""What stands beside the code is valid: workflows, issue forms, hooks, the citation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml  # huggingface_hub brings it

import accuquant

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = [
    path for path in sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")) if path.stem != "config"
]


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def steps(workflow: Path) -> list[dict[str, Any]]:
    return [step for job in read(workflow)["jobs"].values() for step in job["steps"]]


def test_continuous_integration_runs_what_everybody_can_run() -> None:
    ran = [step["run"] for step in steps(ROOT / ".github" / "workflows" / "ci.yml") if "run" in step]
    assert ".ci/run" in ran
    assert "make docs" in ran


def test_every_night_the_tests_meet_the_newest_diffusers() -> None:
    nightly = ROOT / ".github" / "workflows" / "nightly.yml"
    assert "schedule" in read(nightly)[True]  # YAML 1.1 reads the key `on` as a truth value
    ran = " ".join(step.get("run", "") for step in steps(nightly))
    assert "pip install --upgrade ${{ matrix.newest }}" in ran
    assert all("diffusers" in newest for newest in matrix_of(nightly, "newest-diffusers", "newest"))


def matrix_of(workflow: Path, job: str, name: str) -> list[str]:
    return list(read(workflow)["jobs"][job]["strategy"]["matrix"][name])


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_reads_only_and_pins_its_actions(workflow: Path) -> None:
    assert read(workflow)["permissions"] == {"contents": "read"}
    used = [step["uses"] for step in steps(workflow) if "uses" in step]
    assert used
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", action) for action in used)


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.name)
def test_an_issue_form_asks_for_what_doctor_says(form: Path) -> None:
    content = read(form)
    assert {"name", "description", "body"} <= content.keys()
    questions = {item["id"]: item for item in content["body"] if "id" in item}
    assert questions["doctor"]["validations"]["required"]
    assert "accuquant doctor" in questions["doctor"]["attributes"]["label"]


def test_the_hooks_use_the_tools_of_the_environment_and_no_network() -> None:
    repositories = read(ROOT / ".pre-commit-config.yaml")["repos"]
    assert [repository["repo"] for repository in repositories] == ["local"]
    hooks = repositories[0]["hooks"]
    assert len(hooks) > 3
    assert all(hook["language"] == "system" and hook["entry"].startswith(".venv/bin/") for hook in hooks)


def test_the_citation_names_this_version_and_the_paper() -> None:
    citation = read(ROOT / "CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == accuquant.__version__
    assert "2510.20348" in citation["references"][0]["notes"]
