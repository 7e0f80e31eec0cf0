"""The RayJob manifest: fits KubeRay's and Kubernetes' schemas, agrees with recipe, image and presets, and is safe."""

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml
from flamscale_cluster.arguments import check_absolute, check_places, parse_arguments, places

from flamscale.presets import PRESETS

ROOT = Path(__file__).parents[2]
CLAIM, JOB = yaml.safe_load_all((ROOT / "cluster" / "kuberay.yaml").read_text())
CLUSTER = JOB["spec"]["rayClusterSpec"]
HEAD = CLUSTER["headGroupSpec"]
(WORKERS,) = CLUSTER["workerGroupSpecs"]
TEMPLATES = {"submitter": JOB["spec"]["submitterPodTemplate"], "head": HEAD["template"], "worker": WORKERS["template"]}
SCHEMA = json.loads((ROOT / "tests" / "cluster" / "rayjob.schema.json").read_text())


def container(name: str) -> dict[str, Any]:
    (found,) = TEMPLATES[name]["spec"]["containers"]
    return found


def test_the_job_fits_kuberays_schema():
    jsonschema.validate(JOB, SCHEMA)


def test_the_schema_refuses_a_field_that_kuberay_does_not_know():
    with pytest.raises(jsonschema.ValidationError, match="'entryPoint' was unexpected"):
        jsonschema.validate(JOB | {"spec": JOB["spec"] | {"entryPoint": "x"}}, SCHEMA)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_pods_fit_kubernetes_schema(name):
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": TEMPLATES[name]["metadata"] | {"name": name}}
    kubernetes_validate.validate(pod | {"spec": TEMPLATES[name]["spec"]}, "1.33", strict=True)


def test_the_claim_fits_kubernetes_schema_and_all_pods_share_it():
    kubernetes_validate.validate(CLAIM, "1.33", strict=True)
    assert CLAIM["spec"]["accessModes"] == ["ReadWriteMany"]
    for name in ("head", "worker"):
        (volume,) = TEMPLATES[name]["spec"]["volumes"]
        assert volume["persistentVolumeClaim"]["claimName"] == CLAIM["metadata"]["name"]


def test_the_entrypoint_is_one_the_recipe_takes(monkeypatch):
    program, recipe, *flags = shlex.split(JOB["spec"]["entrypoint"])
    config = parse_arguments(flags, description="").config
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")  # as in a Ray job
    check_places(config)
    check_absolute(places(config))
    assert program == "python"
    (folder,) = re.findall(r"^WORKDIR (\S+)$", (ROOT / "cluster" / "Dockerfile").read_text(), re.MULTILINE)
    assert (ROOT / Path(recipe).relative_to(folder)).exists()
    (mount,) = container("worker")["volumeMounts"]
    assert config.out.startswith(mount["mountPath"] + "/")


def test_the_pods_have_room_for_the_presets_workers():
    cluster = PRESETS["large"]().cluster
    limits = container("worker")["resources"]["limits"]
    assert limits == container("worker")["resources"]["requests"]
    num_gpus = int(limits["nvidia.com/gpu"])
    assert WORKERS["replicas"] * num_gpus == cluster.num_workers
    assert int(limits["cpu"]) >= num_gpus * cluster.cpus_per_worker
    assert WORKERS["minReplicas"] == WORKERS["replicas"] == WORKERS["maxReplicas"]


def test_image_and_ray_are_the_versions_of_this_repository():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    image = f"flamscale:{version}"
    assert {container(name)["image"] for name in TEMPLATES} == {image}
    assert f"-t {image} " in (ROOT / "cluster" / "Dockerfile").read_text()
    assert CLUSTER["rayVersion"] == ray.__version__


def test_the_runtime_environment_is_that_of_ray_job_submit():
    submitted = yaml.safe_load((ROOT / "cluster" / "runtime_env.yaml").read_text())
    assert yaml.safe_load(JOB["spec"]["runtimeEnvYAML"]) == {"env_vars": submitted["env_vars"]}


def test_keys_come_from_a_secret():
    for name in ("head", "worker"):
        for variable in container(name)["env"]:
            assert "value" not in variable
            assert variable["valueFrom"]["secretKeyRef"]["key"] == variable["name"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_no_pod_has_rights_it_does_not_need(name):
    spec = TEMPLATES[name]["spec"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["automountServiceAccountToken"] is False
    assert container(name)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }


def test_the_cluster_is_closed_to_others_and_goes_with_the_job():
    assert HEAD["serviceType"] == "ClusterIP"
    assert CLUSTER["authOptions"] == {"mode": "token"}
    assert CLUSTER["enableInTreeAutoscaling"] is False
    assert JOB["spec"]["shutdownAfterJobFinishes"] is True
