"""The container file, which no test here can build: linted, its sources there, its pins the project's, free of keys."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml
from dockerfile_parse import DockerfileParser
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]
FILE = ROOT / "cluster" / "Dockerfile"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
INSTRUCTIONS = [(step["instruction"], step["value"]) for step in DockerfileParser(str(FILE)).structure]


def values(instruction: str) -> list[str]:
    return [value for name, value in INSTRUCTIONS if name == instruction]


def test_the_file_is_sound_to_hadolint():
    subprocess.run([Path(sys.executable).parent / "hadolint", FILE], check=True)


def test_all_that_is_copied_is_there_and_not_ignored():
    sources = [source for value in values("COPY") for source in value.split()[:-1]]
    let_in = [line.strip("!/") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert sorted(sources) == sorted(let_in)
    assert all((ROOT / source).exists() for source in sources)


def test_the_base_image_has_a_fixed_version_and_cuda():
    (base,) = [value for value in values("ARG") if value.startswith("CUDA_IMAGE=")]
    assert re.fullmatch(r"CUDA_IMAGE=nvidia/cuda:\d+\.\d+\.\d+-runtime-ubuntu24\.04", base)


def test_python_is_one_the_project_supports():
    (python,) = [value.partition("=")[2] for value in values("ARG") if value.startswith("PYTHON_VERSION=")]
    assert python in SpecifierSet(PROJECT["requires-python"])


def test_what_is_installed_is_pinned_by_the_constraints():
    pinned = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    assert {Requirement(line).name for line in PROJECT["dependencies"]} <= pinned
    installs = [line for value in values("RUN") for line in value.split("&&") if "pip install" in line]
    assert len(installs) == 2
    assert all("-c /tmp/constraints.txt" in line for line in installs)


def test_it_runs_as_the_user_that_the_pods_run_as():
    (user,) = values("USER")
    job = list(yaml.safe_load_all((ROOT / "cluster" / "kuberay.yaml").read_text()))[1]
    security = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["securityContext"]
    assert user == f"{security['runAsUser']}:{security['runAsGroup']}"
    assert security["runAsUser"] > 0
    assert f"--uid {security['runAsUser']} " in " ".join(values("RUN"))


def test_no_key_is_part_of_it():
    names = re.findall(r"(\w+)=", " ".join([*values("ENV"), *values("ARG")]))
    assert names
    assert not [name for name in names if re.search("KEY|SECRET|TOKEN|PASSWORD|AWS", name)]
