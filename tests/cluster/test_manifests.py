"""The files in `cluster/` are valid, and they are consistent with each other and with the configs."""

import copy
import json
import os
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from ka_ray import __version__
from ka_ray.config import Config
from ka_ray.distributed.capacity import Host
from ka_ray.distributed.cluster import Cluster
from ka_ray.distributed.resource_plan import plan_resources
from ka_ray.errors import InputError

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
SCHEMAS = ROOT.parent / "shared/schemas"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMAGE = f"ka-ray:{__version__}"
CHECKOUT_IN_IMAGE = "/opt/ka_ray/"
FILES = sorted(path for path in CLUSTER.rglob("*") if path.is_file())
SCRIPTS = [path for path in FILES if path.suffix == ".sh"]


def load_documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CLUSTER / name).read_text()))


def load_document(name: str) -> dict[str, Any]:
    (only,) = load_documents(name)
    return only


KUBERNETES_RESOURCES = [
    part for path in sorted((CLUSTER / "kuberay").glob("*.yaml")) for part in load_documents(str(path))
]
RAYCLUSTER = load_document("kuberay/raycluster.yaml")["spec"]
RAYJOB = load_document("kuberay/rayjob.yaml")["spec"]
AWS = load_document("aws.yaml")


def iterate_mappings(tree: Any) -> Iterator[dict[str, Any]]:
    """Yield every mapping in a tree of mappings and lists, at any depth."""
    if isinstance(tree, dict):
        yield tree
    for part in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else []:
        yield from iterate_mappings(part)


def find_pods(tree: Any) -> list[dict[str, Any]]:
    """Return the spec of every pod in a tree of mappings and lists."""
    return [part for part in iterate_mappings(tree) if "containers" in part]


# --- KubeRay -------------------------------------------------------------------------------------


def forbid_unknown_fields(schema: Any) -> Any:
    """Return a schema that refuses unknown fields, which Kubernetes would drop silently."""
    if not isinstance(schema, dict):
        return schema
    closed = dict(schema)
    if "properties" in schema:
        closed["properties"] = {
            name: forbid_unknown_fields(part) for name, part in schema["properties"].items()
        }
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            closed.setdefault("additionalProperties", False)
    for keyword in ("items", "additionalProperties"):
        if keyword in schema:
            closed[keyword] = forbid_unknown_fields(schema[keyword])
    return closed


@cache
def resource_schema(kind: str) -> dict[str, Any]:
    path = SCHEMAS / f"ray.io_{kind.lower()}s.yaml"
    if not path.exists():
        pytest.skip(f"{path} does not exist")
    loader = getattr(
        yaml, "CSafeLoader", yaml.SafeLoader
    )  # the files are long, and libyaml is ten times as fast
    versions = yaml.load(path.read_text(), Loader=loader)["spec"]["versions"]
    (schema,) = (version["schema"]["openAPIV3Schema"] for version in versions if version["name"] == "v1")
    return forbid_unknown_fields(schema)


@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_manifests_fit_the_custom_resource_definitions_of_kuberay(name):
    manifest = load_document(f"kuberay/{name}.yaml")
    assert manifest["apiVersion"] == "ray.io/v1"
    jsonschema.Draft202012Validator(resource_schema(manifest["kind"])).validate(manifest)


HEAD = ("spec", "headGroupSpec", "template", "spec")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "rayVersoin"), "2.60.0"),
        (("spec", "rayVersion"), 2.6),
        (("spec", "authOptions", "secret"), "ka-ray-token"),
        (("spec", "authOptions", "mode"), "tokens"),
        (("spec", "workerGroupSpecs", 0, "minReplica"), 1),
        (("spec", "workerGroupSpecs", 0, "maxReplicas"), "four"),
        (("spec", "workerGroupSpecs", 0, "labels", "group"), 3),
        ((*HEAD, "containers", 0, "volumeMount"), []),
        ((*HEAD, "containers", 0, "securityContext", "runAsNonroot"), True),
        ((*HEAD, "volumes", 0, "persistentVolumeClaim", "claim"), "ka-ray-shared"),
    ],
)
def test_a_misspelled_key_or_wrong_type_in_a_kuberay_manifest_is_found(path, value):
    manifest = copy.deepcopy(load_document("kuberay/raycluster.yaml"))
    part: Any = manifest
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(resource_schema("RayCluster")).validate(manifest)


def test_rayjob_and_raycluster_describe_the_same_cluster():
    assert RAYJOB["rayClusterSpec"] == RAYCLUSTER


def test_the_autoscaler_of_ray_reads_the_same_groups_from_the_manifest():
    from ray.autoscaler._private.kuberay import autoscaling_config

    manifest = load_document("kuberay/raycluster.yaml")
    manifest["metadata"]["namespace"] = "default"
    derived = autoscaling_config._derive_autoscaling_config_from_ray_cr(manifest)["available_node_types"]
    groups = kuberay_groups()
    assert derived.keys() == {"headgroup", *groups}
    assert derived["headgroup"]["resources"]["CPU"] == 0
    for name, group in groups.items():
        assert derived[name]["labels"] == group.labels
        assert derived[name]["resources"]["CPU"] == group.cpu
        assert derived[name]["resources"].get("GPU", 0) == group.gpu
        assert (derived[name]["min_workers"], derived[name]["max_workers"]) == (
            group.min_nodes,
            group.max_nodes,
        )


def test_probes_use_a_path_that_needs_no_token():
    agent = Path(find_spec("ray").submodule_search_locations[0]) / "dashboard/http_server_agent.py"
    public = re.findall(r'"(/\S+)"', agent.read_text())
    probed = {part["httpGet"]["path"] for part in iterate_mappings(RAYCLUSTER) if "httpGet" in part}
    assert probed == {"/api/healthz"} <= set(public)


# --- resources of Kubernetes itself --------------------------------------------------------------


def test_services_select_existing_pods_and_volumes_have_claims():
    labels = [
        part["labels"]
        for part in iterate_mappings(KUBERNETES_RESOURCES)
        if "labels" in part and "app" in part["labels"]
    ]
    named_ports = {
        p["name"]
        for pod in find_pods(KUBERNETES_RESOURCES)
        for c in pod["containers"]
        for p in c.get("ports", [])
    }
    services = [part for part in KUBERNETES_RESOURCES if part["kind"] == "Service"]
    assert len(services) == 2
    for service in services:
        assert service["spec"]["selector"] in labels
        assert service["spec"]["type"] == "ClusterIP"
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= named_ports
    claims = {
        part["metadata"]["name"] for part in KUBERNETES_RESOURCES if part["kind"] == "PersistentVolumeClaim"
    }
    used = {part["claimName"] for part in iterate_mappings(KUBERNETES_RESOURCES) if "claimName" in part}
    assert used == claims


def test_every_mount_has_a_volume_and_every_ray_pod_mounts_the_shared_one():
    for pod in find_pods(KUBERNETES_RESOURCES):
        volumes = {volume["name"] for volume in pod.get("volumes", [])} | {
            "data"
        }  # from the template of the stateful set
        mounts = [mount for container in pod["containers"] for mount in container.get("volumeMounts", [])]
        assert {mount["name"] for mount in mounts} <= volumes
    for pod in find_pods(RAYCLUSTER):
        (container,) = pod["containers"]
        assert {"name": "shared", "mountPath": "/shared"} in container["volumeMounts"]


def test_no_pod_runs_as_root_or_can_become_root():
    found = find_pods(KUBERNETES_RESOURCES)
    assert len(found) == 11  # two clusters of four pods each, the submitter, MLflow and PostgreSQL
    for pod in found:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] >= 999
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"].keys() == {"requests", "limits"}


def test_runs_use_the_service_of_mlflow():
    (service,) = (
        p for p in KUBERNETES_RESOURCES if p["kind"] == "Service" and p["metadata"]["name"] == "ka-ray-mlflow"
    )
    wanted = f"http://ka-ray-mlflow:{service['spec']['ports'][0]['port']}"
    for pod in find_pods(RAYCLUSTER):
        environment = {entry["name"]: entry.get("value") for entry in pod["containers"][0]["env"]}
        assert environment["MLFLOW_TRACKING_URI"] == wanted
    (hosts,) = (
        e["value"]
        for e in iterate_mappings(KUBERNETES_RESOURCES)
        if e.get("name") == "MLFLOW_SERVER_ALLOWED_HOSTS"
    )
    for host in (wanted.removeprefix("http://"), "ka-ray-mlflow.default.svc:5000", "localhost:5000"):
        assert any(fnmatch(host, pattern) for pattern in hosts.split(",")), host
    assert not any(fnmatch("elsewhere:5000", pattern) for pattern in hosts.split(","))


def test_additional_packages_of_the_image_are_optional_dependencies():
    assert {re.split(r"[><=]", name)[0] for name in PROJECT["optional-dependencies"]["cluster"]} == {
        "boto3",
        "psycopg2-binary",
    }
    (uri,) = (
        e["value"]
        for e in iterate_mappings(KUBERNETES_RESOURCES)
        if e.get("name") == "MLFLOW_BACKEND_STORE_URI"
    )
    assert uri.startswith("postgresql+psycopg2://")


# --- `ray up` ------------------------------------------------------------------------------------


def validate_with_ray(config: dict[str, Any]) -> dict[str, Any]:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def test_ray_up_accepts_aws_yaml():
    prepared = validate_with_ray(AWS)
    assert prepared["available_node_types"]["head"]["max_workers"] == 0
    max_nodes = sum(group.max_nodes for group in aws_groups().values())
    assert prepared["max_workers"] >= max_nodes


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("max_worker",), 3),
        (("docker", "images"), IMAGE),
        (("available_node_types", "teachers", "label"), {"group": "teachers"}),
        (("available_node_types", "teachers", "resources", "GPU"), "one"),
    ],
)
def test_a_misspelled_key_or_wrong_type_in_aws_yaml_is_found(path, value):
    config = copy.deepcopy(AWS)
    part = config
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        validate_with_ray(config)


def test_the_token_file_is_mounted_on_every_machine_of_aws():
    (mounted,) = AWS["file_mounts"]
    assert f"--env RAY_AUTH_TOKEN_PATH={mounted}" in AWS["docker"]["run_options"]
    assert "--env RAY_AUTH_MODE=token" in AWS["docker"]["run_options"]


# --- one version, one image ----------------------------------------------------------------------


def locked_version(package: str) -> str:
    (version,) = re.findall(rf"^{package}==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    return version


def test_every_manifest_has_the_locked_version_of_ray():
    assert RAYCLUSTER["rayVersion"] == RAYJOB["rayClusterSpec"]["rayVersion"] == locked_version("ray")


def test_all_files_use_the_same_image_without_a_registry():
    images = {part["image"] for part in iterate_mappings([*KUBERNETES_RESOURCES, AWS]) if "image" in part}
    assert images == {IMAGE, "postgres:17"}
    for path in FILES:
        assert set(re.findall(r"ka-ray:[\w.]+", path.read_text())) <= {IMAGE}, path


def test_the_image_has_the_python_version_and_files_of_the_project():
    lines = (CLUSTER / "Dockerfile").read_text().splitlines()
    (base,) = (line.split()[1] for line in lines if line.startswith("FROM"))
    python = base.removeprefix("python:").removesuffix("-slim")
    assert PROJECT["requires-python"] == f">={python}"
    assert f"--python-version {python} " in (ROOT / "Makefile").read_text()  # for requirements.lock
    not_ignored = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    copied = {source for line in lines if line.startswith("COPY") for source in line.split()[1:-1]}
    assert copied == not_ignored
    assert all((ROOT / source).exists() for source in copied)
    assert "--require-hashes -r requirements.lock" in "\n".join(lines)
    assert lines[-2] == "USER 1000:1000"


# --- the plan of a run fits the groups -----------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """A group of nodes of the same kind.

    Attributes:
        cpu: Number of CPUs per node.
        gpu: Number of GPUs per node.
        min_nodes: Number of nodes that always run.
        max_nodes: Maximum number of nodes.
        labels: Labels of each node.
    """

    cpu: float
    gpu: float
    min_nodes: int
    max_nodes: int
    labels: Mapping[str, str] = field(default_factory=dict)

    def hosts(self, name: str, count: int) -> list[Host]:
        """Return ``count`` nodes of the group, named ``name-0``, ``name-1`` and so on."""
        resources = {"CPU": self.cpu, "GPU": self.gpu}
        return [Host(f"{name}-{i}", resources, self.labels) for i in range(count)]


def kuberay_groups() -> dict[str, Group]:
    groups = {}
    for spec in RAYCLUSTER["workerGroupSpecs"]:
        limits = spec["template"]["spec"]["containers"][0]["resources"]["limits"]
        amounts = float(limits["cpu"]), float(limits.get("nvidia.com/gpu", 0))
        min_nodes, max_nodes = spec["minReplicas"], spec["maxReplicas"]
        assert spec["replicas"] == min_nodes
        groups[spec["groupName"]] = Group(*amounts, min_nodes, max_nodes, spec["labels"])
    return groups


def aws_groups() -> dict[str, Group]:
    types = {
        name: kind for name, kind in AWS["available_node_types"].items() if name != AWS["head_node_type"]
    }
    return {
        name: Group(
            kind["resources"]["CPU"],
            kind["resources"].get("GPU", 0),
            kind["min_workers"],
            kind["max_workers"],
            kind["labels"],
        )
        for name, kind in types.items()
    }


def parse_entrypoint() -> tuple[Path, Path, str, dict[str, Any]]:
    """Return what the RayJob runs: script, config, output folder, and the overrides given by ``--set``."""
    words = shlex.split(RAYJOB["entrypoint"])
    assert words[0] == "python"
    script, config = (ROOT / word.removeprefix(CHECKOUT_IN_IMAGE) for word in words[1:3])
    options = list(zip(words[3::2], words[4::2], strict=True))
    (output,) = (value for name, value in options if name == "--output")
    sets = dict(value.split("=", 1) for name, value in options if name == "--set")
    assert len(options) == len(sets) + 1
    return script, config, output, {key: yaml.safe_load(value) for key, value in sets.items()}


def test_the_job_runs_an_existing_script_and_writes_to_the_shared_volume():
    script, config, output, sets = parse_entrypoint()
    assert script == ROOT / "jobs/amalgamate.py"
    assert script.exists()
    assert config.parent == ROOT / "jobs/configs"
    name = load_document("kuberay/rayjob.yaml")["metadata"]["name"]
    assert output == f"/shared/runs/{name}"
    assert sets.keys() == {"placement.teachers", "placement.trainers", "placement.decoding", "ray.workers"}
    assert RAYJOB["backoffLimit"] > 0
    assert RAYJOB["shutdownAfterJobFinishes"] is True


@pytest.mark.parametrize("groups", [kuberay_groups(), aws_groups()], ids=["kuberay", "aws"])
def test_the_plan_of_the_job_fits_the_groups_and_needs_each_of_them(groups):
    _, path, _, sets = parse_entrypoint()
    overrides = [f"{key}={json.dumps(value)}" for key, value in sets.items()]
    config, max_workers = Config.load(path, overrides), sets["ray.workers"]["max"]
    min_hosts = [host for name, group in groups.items() for host in group.hosts(name, group.min_nodes)]
    max_hosts = [host for name, group in groups.items() for host in group.hosts(name, group.max_nodes)]
    plan_resources(config, Cluster(tuple(min_hosts)))
    plan_resources(Config.load(path, [*overrides, f"ray.workers={max_workers}"]), Cluster(tuple(max_hosts)))
    for name in groups:
        others = tuple(host for host in max_hosts if not host.name.startswith(f"{name}-"))
        with pytest.raises(InputError, match=f"on nodes labelled group={name}"):
            plan_resources(config, Cluster(others))


# --- all files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_have_valid_syntax_and_are_executable(path):
    checked = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    assert os.access(path, os.X_OK)
    assert "set -euo pipefail" in path.read_text()


SECRET = re.compile(r"TOKEN$|PASSWORD|SECRET|_KEY$")


def test_secrets_are_only_read_from_kubernetes_secrets():
    assert [part for part in KUBERNETES_RESOURCES if part["kind"] == "Secret"] == []
    secret = [
        e
        for e in iterate_mappings(KUBERNETES_RESOURCES)
        if SECRET.search(str(e.get("name", ""))) and "mountPath" not in e
    ]
    assert len(secret) == 2
    for entry in secret:
        assert entry.keys() == {"name", "valueFrom"}
        assert entry["valueFrom"].keys() == {"secretKeyRef"}


@pytest.mark.parametrize("path", [*FILES, ROOT / ".dockerignore"], ids=lambda path: path.name)
def test_no_file_contains_a_secret_or_a_registry(path):
    text = path.read_text()
    assert not re.search(r"AKIA[A-Z0-9]{16}|PRIVATE KEY|\b[0-9a-f]{32,}\b", text)
    assert not re.search(r"index-url|docker\.io|ghcr|quay|ecr\.|gcr\.|pkg\.dev", text)
    assert not re.search(r"^FROM \S*/", text, re.MULTILINE)


@pytest.mark.parametrize("path", [path for path in FILES if path.name == "README.md"], ids=str)
def test_files_named_in_a_readme_exist(path):
    names = re.findall(
        r"(?<![/\w])(?:cluster|jobs|tests)/[\w/.-]+\.(?:py|sh|yaml|md)\b|cluster/Dockerfile", path.read_text()
    )
    assert names
    assert [name for name in names if not (ROOT / name).exists()] == []
