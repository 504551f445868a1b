"""The manifests of deploy/kuberay: what Kubernetes and KubeRay would refuse, and what must not be forgotten."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from instainfer.config import load
from instainfer.units import parse_bytes

yaml = pytest.importorskip("yaml")
DEPLOY = Path(__file__).parents[2] / "deploy" / "kuberay"
KUBERNETES = "1.37"

_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_COUNT = {"type": "integer", "minimum": 0}
#: KubeRay's own part of a RayCluster, as far as it is used here: the names are those of its API reference (v1.6).
#: Pod templates in it are checked by Kubernetes' own schemas.
RAY_CLUSTER: dict[str, Any] = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "additionalProperties": False,
    "properties": {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": "RayCluster"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": {
            "type": "object",
            "required": ["headGroupSpec"],
            "additionalProperties": False,
            "properties": {
                "rayVersion": {"type": "string"},
                "authOptions": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {"mode": {"enum": ["disabled", "token"]}, "secretName": {"type": "string"}},
                },
                "enableInTreeAutoscaling": {"type": "boolean"},
                "headGroupSpec": {
                    "type": "object",
                    "required": ["template"],
                    "additionalProperties": False,
                    "properties": {
                        "serviceType": {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
                        "rayStartParams": _TEXTS,
                        "template": {"type": "object"},
                    },
                },
                "workerGroupSpecs": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["groupName", "minReplicas", "maxReplicas", "template"],
                        "additionalProperties": False,
                        "properties": {
                            "groupName": {"type": "string"},
                            "replicas": _COUNT,
                            "minReplicas": _COUNT,
                            "maxReplicas": _COUNT,
                            "rayStartParams": _TEXTS,
                            "template": {"type": "object"},
                        },
                    },
                },
            },
        },
    },
}


@pytest.fixture(scope="module")
def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "raycluster.yaml").read_text("utf-8")))


@pytest.fixture(scope="module")
def cluster(documents: list[dict[str, Any]]) -> dict[str, Any]:
    return documents[0]


def groups(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    return [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]


def container(group: dict[str, Any]) -> dict[str, Any]:
    (only,) = group["template"]["spec"]["containers"]
    found: dict[str, Any] = only
    return found


def variables(group: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one.get("value", "") for one in container(group)["env"]}


def test_kuberay_takes_it(cluster: dict[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator(RAY_CLUSTER).validate(cluster)
    wrong = {**cluster, "spec": {**cluster["spec"], "workerGroupSpec": []}}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(RAY_CLUSTER).validate(wrong)


def test_kubernetes_takes_the_rest(documents: list[dict[str, Any]]) -> None:
    kubernetes = pytest.importorskip("kubernetes_validate")
    cluster, *others = documents
    templates = [
        {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": group["template"]}
        for group in groups(cluster)
    ]
    for one in (*others, *templates):
        kubernetes.validate(one, KUBERNETES, strict=True)
    with pytest.raises(kubernetes.ValidationError):
        kubernetes.validate({**others[0], "spec": {"accessMode": []}}, KUBERNETES, strict=True)


def test_nobody_may_join_and_nothing_is_reported(cluster: dict[str, Any], documents: list[dict[str, Any]]) -> None:
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    assert tuple(map(int, cluster["spec"]["rayVersion"].split("."))) >= (2, 52)
    assert groups(cluster)[0]["rayStartParams"]["dashboard-host"] == "127.0.0.1"
    for group in groups(cluster):
        assert variables(group)["RAY_USAGE_STATS_ENABLED"] == "0"
        assert group["template"]["spec"]["automountServiceAccountToken"] is False
        (key,) = [one for one in container(group)["env"] if one["name"] == "INSTAINFER_SERVER__API_KEY"]
        assert "value" not in key and key["valueFrom"]["secretKeyRef"]["name"] == "instainfer"
    policy = next(one for one in documents if one["kind"] == "NetworkPolicy")
    open_to_all = [rule["ports"] for rule in policy["spec"]["ingress"] if "from" not in rule]
    assert [[port["port"] for port in ports] for ports in open_to_all] == [[3233]]


def test_a_lost_node_is_noticed_soon_and_a_lost_head_waited_for(cluster: dict[str, Any]) -> None:
    for group in groups(cluster):
        given = variables(group)
        period, timeout = (float(given[f"RAY_health_check_{name}_ms"]) for name in ("period", "timeout"))
        assert (period + timeout) * int(given["RAY_health_check_failure_threshold"]) <= 5000
        assert float(given["RAY_gcs_rpc_server_reconnect_timeout_s"]) >= 600
        assert given["RAY_memory_monitor_refresh_ms"] == "0"


def test_memory_is_said_three_times_alike(cluster: dict[str, Any]) -> None:
    for group in cluster["spec"]["workerGroupSpecs"]:
        (warm,) = re.findall(r'\\"warm_mb\\": (\d+)', group["rayStartParams"]["resources"])
        memory = load(None, {"INSTAINFER_NODE__MEMORY": variables(group)["INSTAINFER_NODE__MEMORY"]}).node.memory
        assert memory == int(warm) * 1_000_000
        limit = container(group)["resources"]["limits"]["memory"]
        assert memory < 0.8 * parse_bytes(limit.replace("Gi", "GiB"))  # the agent, Ray and page tables need some


def test_every_node_has_the_same_paths_and_settings_that_exist(cluster: dict[str, Any]) -> None:
    seen = set()
    for group in groups(cluster):
        ours = {name: value for name, value in variables(group).items() if name.startswith("INSTAINFER_")}
        settings = load(None, {**ours, "INSTAINFER_SERVER__API_KEY": "k"})
        mounted = {one["mountPath"] for one in container(group)["volumeMounts"]}
        assert str(settings.server.data_dir) in mounted and set(settings.artifacts.sources) < mounted
        named = {volume["name"] for volume in group["template"]["spec"]["volumes"]}
        assert {one["name"] for one in container(group)["volumeMounts"]} == named
        seen.add((settings.server.data_dir, settings.artifacts.sources, container(group)["image"]))
    assert len(seen) == 1


def test_the_image_has_the_version_that_the_cluster_names(cluster: dict[str, Any]) -> None:
    (version,) = re.findall(r"^ARG RAY_VERSION=(\S+)$", (DEPLOY / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    assert version == cluster["spec"]["rayVersion"]
