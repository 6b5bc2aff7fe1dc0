"""What deploy/ holds: valid by its real schemas, and closed to strangers."""

import configparser
import json
import os
import re
import shlex
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import mlflow.cli
import pytest
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.deployment import (
    COMPOSE,
    DEPLOY,
    DOCKERFILES,
    ENV_EXAMPLE,
    FILES,
    LAUNCHERS,
    MANIFESTS,
    RAY_MANIFESTS,
    ROOT,
    VALUES,
    cluster_spec,
    document,
    documents,
    groups,
    instructions,
    named,
    nodes_of,
    pod_templates,
    services,
)

SCHEMAS = Path(os.environ.get("AUTOPRUNE_SCHEMAS", ROOT.parent / "shared/schemas"))
KUBERNETES = "1.37"

SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY", re.IGNORECASE)
NO_SECRET = re.compile(r"\$\{\w+:\?.+\}|~/\.ray/auth_token|required")
RANDOM_LOOKING = re.compile(
    r"\b[0-9a-f]{24,}\b|\bAKIA[0-9A-Z]{12,}|-----BEGIN|\b[A-Za-z0-9+/]{40,}={0,2}(?!\S)"
)

# The keys of charts/values.yaml in MLflow's repository: Helm ignores any other without a word
CHART_KEYS = {
    *("image", "imagePullSecrets", "fullnameOverride", "replicaCount", "deploymentStrategy"),
    *("server", "probes", "garbageCollection", "service", "ingress", "mlflow", "env", "envFrom"),
    *("extraVolumes", "extraVolumeMounts", "extraInitContainers", "extraContainers", "tls"),
    *("externalSecrets", "networkPolicy", "metrics", "serviceMonitor", "podSecurityContext"),
    *("securityContext", "serviceAccount", "namespace_rbac", "cluster_rbac", "storage"),
    *("resources", "podAnnotations", "podLabels", "nodeSelector", "tolerations", "affinity"),
}


def schema(name: str) -> Path:
    if not (SCHEMAS / name).is_file():
        pytest.skip(f"{name} is neither at ../shared/schemas nor where AUTOPRUNE_SCHEMAS points")
    return SCHEMAS / name


@cache
def crd(kind: str) -> dict[str, Any]:
    """The schema of ray.io/v1 for a kind, in which a field that it does not know is a fault."""
    resource = document(schema(f"ray.io_{kind.lower()}s.yaml"))
    (version,) = (v for v in resource["spec"]["versions"] if v["name"] == "v1")
    assert version["served"]
    closed: dict[str, Any] = close(version["schema"]["openAPIV3Schema"])
    return closed


def close(node: dict[str, Any]) -> dict[str, Any]:
    """The cluster drops unknown fields without a word, so a typing error would be no error."""
    node = dict(node)
    if "properties" in node:
        node["properties"] = {name: close(part) for name, part in node["properties"].items()}
        if not node.get("x-kubernetes-preserve-unknown-fields"):
            node.setdefault("additionalProperties", False)
    if "items" in node:
        node["items"] = close(node["items"])
    if isinstance(node.get("additionalProperties"), dict):
        node["additionalProperties"] = close(node["additionalProperties"])
    return node


def pod_of_the_chart() -> dict[str, Any]:
    """The pod that MLflow's chart makes of the values: it copies these parts as they are."""
    values = document(VALUES)
    container = {"name": "mlflow", "image": f"{values['image']['repository']}:0"}
    container |= {k: values[k] for k in ("env", "envFrom", "securityContext", "resources")}
    spec = {"containers": [container], "securityContext": values["podSecurityContext"]}
    return {"metadata": {"name": "mlflow"}, "spec": spec}


def test_every_file_is_one_that_these_tests_know() -> None:
    known = {*LAUNCHERS, *MANIFESTS, VALUES, *DOCKERFILES, DEPLOY / "mlflow/basic_auth.ini"}
    known |= {COMPOSE, ENV_EXAMPLE, DEPLOY / "README.md", DEPLOY / "SECURITY.md"}
    assert set(FILES) == known


def test_compose_by_its_specification() -> None:
    specification = json.loads(schema("compose-spec.json").read_text())
    jsonschema.Draft7Validator(specification).validate(document(COMPOSE))


@pytest.mark.parametrize("path", RAY_MANIFESTS, ids=named)
def test_manifests_of_ray_by_its_definitions(path: Path) -> None:
    manifest = document(path)
    assert manifest["apiVersion"] == "ray.io/v1"
    jsonschema.Draft7Validator(crd(manifest["kind"])).validate(manifest)


def test_a_field_that_the_definitions_do_not_know_is_seen() -> None:
    manifest = document(DEPLOY / "kubernetes/raycluster.yaml")
    manifest["spec"]["headGroupSpec"]["template"]["spec"]["securitycontext"] = {}
    with pytest.raises(jsonschema.ValidationError, match="securitycontext"):
        jsonschema.Draft7Validator(crd("RayCluster")).validate(manifest)


@pytest.mark.parametrize("path", MANIFESTS, ids=named)
def test_kinds_of_kubernetes_by_its_schemas(path: Path) -> None:
    for manifest in documents(path):
        if manifest["apiVersion"] != "ray.io/v1":
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
            continue
        for component, template in pod_templates(path).items():
            pod = {"apiVersion": "v1", "kind": "Pod", **template}
            pod["metadata"] = {**template["metadata"], "name": component}
            kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_values_are_those_that_the_chart_reads() -> None:
    values = document(VALUES)
    assert set(values) <= CHART_KEYS
    pod = {"apiVersion": "v1", "kind": "Pod", **pod_of_the_chart()}
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    flags = values["server"]["value_options"].items()
    words = [f"--{name.replace('_', '-')}={value}" for name, value in flags]
    assert mlflow.cli.server.make_context("server", words).params["app_name"] == "basic-auth"


@pytest.mark.parametrize("path", LAUNCHERS, ids=named)
def test_launchers_by_rays_own_validator(path: Path) -> None:
    validate_config(prepare_config(document(path)))


def test_the_command_of_compose_is_one_of_mlflow() -> None:
    program, command, *words = services()["mlflow"]["command"]
    assert (program, command) == ("mlflow", "server")
    read = mlflow.cli.server.make_context("server", words).params
    assert (read["app_name"], read["serve_artifacts"]) == ("basic-auth", True)


# ---- closed to strangers


def test_compose_publishes_on_the_loopback_address_only() -> None:
    published = [port for service in services().values() for port in service.get("ports", [])]
    assert len(published) == 1
    assert all(port.startswith("127.0.0.1:") for port in published)
    networks = document(COMPOSE)["networks"]
    assert services()["postgres"]["networks"] == ["database"]
    assert networks["database"]["internal"] is True
    assert not any("network_mode" in service for service in services().values())


@pytest.mark.parametrize("name", ["postgres", "mlflow"])
def test_services_of_compose_are_hardened(name: str) -> None:
    service = services()[name]
    user, group = map(int, service["user"].split(":"))
    assert user > 0
    assert group > 0
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]["test"]
    assert not {"privileged", "cap_add", "devices", "pid", "ipc"} & service.keys()


@pytest.mark.parametrize("path", RAY_MANIFESTS, ids=named)
def test_pods_are_hardened_and_have_what_they_ask_for(path: Path) -> None:
    for pod in pod_templates(path).values():
        check_pod(pod["spec"])
        assert pod["spec"]["automountServiceAccountToken"] is False


def test_the_pod_of_the_chart_is_hardened() -> None:
    check_pod(pod_of_the_chart()["spec"])
    values = document(VALUES)
    assert values["serviceAccount"]["automountServiceAccountToken"] is False
    assert values["service"]["type"] == "ClusterIP"
    assert "ingress" not in values


def check_pod(spec: dict[str, Any]) -> None:
    security = spec["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] > 0
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    assert not any("hostPath" in volume for volume in spec.get("volumes", []))
    for container in [*spec["containers"], *spec.get("initContainers", [])]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert not {"privileged", "runAsUser"} & container["securityContext"].keys()
        resources = container["resources"]
        assert resources["requests"] == resources["limits"]
        assert resources["limits"].keys() >= {"cpu", "memory"}


def test_the_namespace_admits_hardened_pods_only() -> None:
    namespace, *_ = documents(DEPLOY / "kubernetes/namespace.yaml")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_the_network_policy_walls_in_every_pod() -> None:
    namespace, _, policy = documents(DEPLOY / "kubernetes/namespace.yaml")
    assert policy["metadata"]["namespace"] == namespace["metadata"]["name"]
    selected = policy["spec"]["podSelector"]["matchLabels"]
    for path in RAY_MANIFESTS:
        assert document(path)["metadata"]["namespace"] == policy["metadata"]["namespace"]
        for pod in pod_templates(path).values():
            assert selected.items() <= pod["metadata"]["labels"].items()
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    own, operator = policy["spec"]["ingress"]
    # the pods themselves, of this namespace alone, on every port
    assert own == {"from": [{"podSelector": {"matchLabels": selected}}]}
    # one pod of one other namespace, on the dashboard's port alone
    (peer,) = operator["from"]
    assert peer.keys() == {"namespaceSelector", "podSelector"}
    assert peer["podSelector"]["matchLabels"]
    assert peer["namespaceSelector"]["matchLabels"]
    assert operator["ports"] == [{"protocol": "TCP", "port": 8265}]


@pytest.mark.parametrize("path", RAY_MANIFESTS, ids=named)
def test_clusters_in_kubernetes_ask_for_the_token(path: Path) -> None:
    assert cluster_spec(path)["authOptions"] == {"mode": "token"}


@pytest.mark.parametrize("path", LAUNCHERS, ids=named)
def test_launched_clusters_ask_for_the_token(path: Path) -> None:
    config = document(path)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    for side in ("head", "worker"):
        starts = [c for c in config[f"{side}_start_ray_commands"] if "ray start" in c]
        assert len(starts) == 1
        assert re.search(r"; RAY_AUTH_MODE=token \S+/ray start ", starts[0])
    assert "get-auth-token --generate" in path.read_text()
    head = " ".join(config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in head
    assert "0.0.0.0" not in path.read_text()


def test_any_ray_of_the_image_asks_for_the_token() -> None:
    assert "RAY_AUTH_MODE=token" in instructions(DEPLOY / "Dockerfile", "ENV")[-1]


def test_nodes_on_aws_are_in_a_group_of_the_users() -> None:
    """Ray's own security group lets everybody in by SSH."""
    for node in document(DEPLOY / "ray/cluster-aws.yaml")["available_node_types"].values():
        assert node["node_config"]["SecurityGroupIds"]
        assert node["node_config"]["MetadataOptions"] == {"HttpTokens": "required"}


def test_no_file_holds_a_secret() -> None:
    for path in FILES:
        assert not RANDOM_LOOKING.findall(path.read_text()), path
    for path in [*LAUNCHERS, *MANIFESTS, VALUES, COMPOSE]:
        for tree in documents(path):
            for keys, value in nodes_of(tree):
                if keys and SECRET.search(keys[-1]) and isinstance(value, str) and value:
                    assert NO_SECRET.fullmatch(value), (path, keys)
                if isinstance(value, dict) and SECRET.search(str(value.get("name", ""))):
                    assert "value" not in value, (path, value)
    (secret,) = documents(DEPLOY / "kubernetes/mlflow-credentials.example.yaml")
    assert set(secret["stringData"].values()) == {""}


def test_compose_does_not_start_without_its_secrets() -> None:
    text = (COMPOSE).read_text()
    needed = set(re.findall(r"\$\{(\w+):\?", text))
    assert needed == {
        *("POSTGRES_PASSWORD", "MLFLOW_AUTH_ADMIN_USERNAME", "MLFLOW_AUTH_ADMIN_PASSWORD"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY",
    }
    lines = (ENV_EXAMPLE).read_text().splitlines()
    assigned = [line.partition("=") for line in lines if line and not line.startswith("#")]
    assert {name: value for name, _, value in assigned} == dict.fromkeys(needed, "")
    # and what may be set besides is told of
    passed = {k for s in services().values() for k, v in s["environment"].items() if v is None}
    optional = passed | set(re.findall(r"\$\{(\w+):-", text))
    assert optional == set(re.findall(r"^#(\w+)=", "\n".join(lines), re.MULTILINE))


def test_the_filled_in_environment_stays_here() -> None:
    assert "deploy/.env" in (ROOT / ".gitignore").read_text().splitlines()
    for path in LAUNCHERS:
        assert "deploy/.env" in document(path)["rsync_exclude"]


def test_mlflows_authentication_holds_no_secret_and_starts_by_environment() -> None:
    found = configparser.ConfigParser()
    found.read(DEPLOY / "mlflow/basic_auth.ini")
    assert dict(found["mlflow"]) == {
        "default_permission": "READ",
        "database_uri": "postgresql+psycopg://",
        "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
    }


# ---- what the clusters are made of


@pytest.mark.parametrize("path", RAY_MANIFESTS, ids=named)
def test_no_trial_runs_on_the_head_or_on_the_bench(path: Path) -> None:
    assert cluster_spec(path)["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    bench = groups(path)["bench"]["rayStartParams"]
    assert bench["num-cpus"] == "0"
    (resources,) = shlex.split(bench["resources"])
    assert json.loads(resources) == {"bench": 1}
    assert groups(path)["worker"]["rayStartParams"] == {}
    (rule,) = groups(path)["bench"]["template"]["spec"]["affinity"]["podAntiAffinity"].values()
    selector = rule[0]["labelSelector"]["matchLabels"]
    for pod in pod_templates(path).values():
        assert selector.items() <= pod["metadata"]["labels"].items()


@pytest.mark.parametrize("path", RAY_MANIFESTS, ids=named)
def test_all_nodes_share_the_outputs(path: Path) -> None:
    _, claim, _ = documents(DEPLOY / "kubernetes/namespace.yaml")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for component in ("head", "worker", "bench"):
        spec = pod_templates(path)[component]["spec"]
        (volume,) = spec["volumes"]
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        (mount,) = spec["containers"][0]["volumeMounts"]
        assert mount == {"name": volume["name"], "mountPath": "/outputs"}


@pytest.mark.parametrize("path", RAY_MANIFESTS, ids=named)
def test_the_head_alone_logs_in_at_mlflow(path: Path) -> None:
    secret = document(DEPLOY / "kubernetes/mlflow-credentials.example.yaml")
    for component, pod in pod_templates(path).items():
        env = {v["name"]: v["valueFrom"] for v in pod["spec"]["containers"][0].get("env", [])}
        if component != "head":
            assert not env
            continue
        for variable in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
            reference = env[variable]["secretKeyRef"]
            assert reference["name"] == secret["metadata"]["name"]
            assert reference["key"] in secret["stringData"]


def test_launched_heads_offer_no_cpus_and_there_is_a_bench() -> None:
    for path in LAUNCHERS:
        (start,) = (c for c in document(path)["head_start_ray_commands"] if "ray start" in c)
        assert " --num-cpus=0 " in start
    nodes = document(DEPLOY / "ray/cluster-aws.yaml")["available_node_types"]
    assert nodes["head"]["resources"] == {"CPU": 0}
    assert nodes["bench"]["resources"] == {"CPU": 0, "bench": 1}


@pytest.mark.parametrize("marked", [True, False])
def test_a_marked_machine_becomes_the_bench(marked: bool, tmp_path: Path) -> None:
    """What starts Ray on a worker by SSH, run by a shell with a Ray that says what it was told."""
    (start,) = (
        command
        for command in document(DEPLOY / "ray/cluster-ssh.yaml")["worker_start_ray_commands"]
        if "ray start" in command
    )
    ray = tmp_path / "venv/bin/ray"
    ray.parent.mkdir(parents=True)
    ray.write_text('#!/bin/sh\necho "$RAY_AUTH_MODE"; printf "%s\\n" "$@"\n')
    ray.chmod(0o755)
    if marked:
        (tmp_path / "autoprune-bench").touch()
    told = subprocess.run(
        ["bash", "-c", start.removeprefix("ulimit -n 65536; ")],
        env={"HOME": str(tmp_path), "PATH": os.environ["PATH"], "RAY_HEAD_IP": "192.0.2.10"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    bench = ["--num-cpus=0", '--resources={"bench":1}'] if marked else []
    assert told == ["token", "start", "--address=192.0.2.10:6379", *bench, ""]
