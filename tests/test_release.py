"""The workflows and the image: they name files, targets, jobs and versions that exist."""

import re
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def pyproject():
    tomllib = pytest.importorskip("tomllib")
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def workflow(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def steps(path):
    return [step for job in workflow(path)["jobs"].values() for step in job["steps"]]


def pinned(package):
    """The version of a package in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    (version,) = (line.removeprefix(f"{package}==") for line in lines if line.startswith(f"{package}=="))
    return version


# The workflows


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_to_a_commit_with_its_version_beside_it(path):
    lines = re.findall(r"uses: (.*)", path.read_text(encoding="utf-8"))
    assert lines and all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+", line) for line in lines), lines


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_scripts_and_targets_of_workflows_exist(path):
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    commands = [line for step in steps(path) for line in step.get("run", "").splitlines()]
    for command in commands:
        first, *rest = command.split()
        assert first in {"gh", "pipx", "test"} or (ROOT / first).is_file() or (first == "make" and set(rest) <= targets)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_jobs_that_are_needed_exist_and_every_job_ends(path):
    jobs = workflow(path)["jobs"]
    for job in jobs.values():
        needs = job.get("needs", [])
        assert set([needs] if isinstance(needs, str) else needs) <= jobs.keys()
        assert job["timeout-minutes"] <= 120


def test_only_publishing_may_write():
    jobs = workflow(ROOT / ".github/workflows/release.yml")["jobs"]
    writing = {name: {k for k, v in job.get("permissions", {}).items() if v == "write"} for name, job in jobs.items()}
    assert {name: rights for name, rights in writing.items() if rights} == {
        "publish": {"id-token"},
        "attach": {"contents"},
    }
    assert jobs["publish"]["if"] == "github.ref_type == 'tag'" and jobs["attach"]["needs"] == "publish"


def test_a_wheel_is_built_for_each_kind_of_machine():
    runners = workflow(ROOT / ".github/workflows/release.yml")["jobs"]["wheel"]["strategy"]["matrix"]["runner"]
    kinds = {re.sub(r"[\d.]+", "", runner) for runner in runners}
    assert kinds == {"ubuntu-", "ubuntu--arm", "macos-", "macos--intel", "windows-"}


def test_the_release_builds_with_the_versions_of_the_constraints():
    text = (ROOT / ".github/workflows/release.yml").read_text(encoding="utf-8")
    assert re.findall(r"\bbuild==(\S+)", text) == [pinned("build")]


def test_one_wheel_is_built_with_the_oldest_python():
    project = pyproject()
    settings = project["tool"]["cibuildwheel"]
    oldest = re.fullmatch(r">=3\.(\d+)", project["project"]["requires-python"])[1]
    assert settings["build"][0] == f"cp3{oldest}-*"
    for environment in (settings["environment"], settings["macos"]["environment"]):
        assert environment["BERTGEN_REQUIRE_EXT"] == "1"


def test_no_build_needs_torch():
    names = [re.match(r"[\w-]+", requirement)[0] for requirement in pyproject()["build-system"]["requires"]]
    assert names == ["setuptools"]


# The image


def test_the_python_of_the_image_is_supported():
    versions = re.findall(r"python:(\d+\.\d+)[\w-]*-bookworm", DOCKERFILE)
    assert len(versions) >= 2 and len(set(versions)) == 1
    assert versions[0] in SpecifierSet(pyproject()["project"]["requires-python"])


def test_the_torch_of_the_image_is_that_of_the_constraints():
    assert re.findall(r"torch==([\d.]+)", DOCKERFILE) == [pinned("torch")]


def test_the_image_does_not_run_as_root():
    after = DOCKERFILE.rpartition("\nFROM ")[2]
    assert re.findall(r"^USER (\d+)$", after, re.MULTILINE) == ["1000"]
    assert after.index("USER 1000") < after.index('ENTRYPOINT ["bertgen"]')


def test_the_build_of_the_image_sees_what_it_needs_and_nothing_large():
    lines = [line for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    kept = [line[1:] for line in lines if line.startswith("!")]
    assert lines[0] == "*" and {"bertgen", "csrc", "kernels", "pyproject.toml", "setup.py"} <= set(kept)
    for name in kept:
        assert list(ROOT.glob(name)), name
    assert {pyproject()["project"]["readme"], *pyproject()["project"]["license-files"]} <= set(kept)
