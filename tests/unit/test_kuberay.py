"""The manifests and Helm values of deploy/kuberay: what Kubernetes and KubeRay would refuse, what must not be
forgotten, and what has to be said alike in several places."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from instainfer.cluster import rayhosts
from instainfer.config import Settings, load
from instainfer.units import parse_bytes

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy" / "kuberay"
KUBERNETES = "1.37"
DRAIN = "INSTAINFER_CLUSTER__DRAIN_S"

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


Manifest = dict[str, Any]


def documents(name: str) -> list[Manifest]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text("utf-8")))


@pytest.fixture(scope="module")
def server() -> list[Manifest]:
    return documents("server.yaml")


def rendered(values: Manifest) -> Manifest:
    """What KubeRay's chart `ray-cluster` makes of them, as its own tests (helm-chart/ray-cluster/tests) tell: the
    keys that are used here, and no others."""
    head: Manifest = {**values["head"]}
    worker: Manifest = {**values["worker"]}
    common: Manifest = values["common"]
    image = f"{values['image']['repository']}:{values['image']['tag']}"

    def template(group: Manifest, name: str) -> Manifest:
        container: Manifest = {
            "name": name,
            "image": image,
            "env": [*common["containerEnv"], *group.pop("containerEnv")],
            **{key: group.pop(key) for key in ("ports", "resources", "volumeMounts") if key in group},
        }
        spec = {key: group.pop(key) for key in ("initContainers", "volumes") if key in group}
        labels = {"app.kubernetes.io/name": "kuberay", **group.pop("labels")}
        return {"metadata": {"labels": labels}, "spec": {**spec, "containers": [container]}}

    made = {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": values["fullnameOverride"]},
        "spec": {
            "rayVersion": head.pop("rayVersion"),
            "enableInTreeAutoscaling": head.pop("enableInTreeAutoscaling"),
            "headGroupSpec": {
                "serviceType": values["service"]["type"],
                "template": template(head, "ray-head"),
                "rayStartParams": head.pop("rayStartParams"),
            },
            "workerGroupSpecs": [
                {
                    "template": template(worker, "ray-worker"),
                    **{key: worker.pop(key) for key in ("groupName", "replicas", "minReplicas", "maxReplicas")},
                    "rayStartParams": worker.pop("rayStartParams"),
                }
            ],
        },
    }
    assert not head and not worker, "keys that nobody has looked at"
    return made


@pytest.fixture(scope="module", params=["raycluster.yaml", "values.yaml"])
def cluster(request: pytest.FixtureRequest) -> Manifest:
    (one,) = documents(request.param)
    return rendered(one) if request.param == "values.yaml" else one


def groups(cluster: Manifest) -> list[Manifest]:
    return [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]


def container(template: Manifest, name: str) -> Manifest:
    spec = template["template"]["spec"]
    (found,) = [one for one in (*spec.get("initContainers", []), *spec["containers"]) if one["name"] == name]
    return dict(found)


def variables(of: Manifest) -> dict[str, str]:
    return {one["name"]: one.get("value", "") for one in of["env"]}


def settings(of: Manifest) -> Settings:
    """Those that it says. Raises BadSettings where there is no such setting."""
    said = {key: value.replace("$(POD_IP)", "10.0.0.7") for key, value in variables(of).items()}
    ours = {key: value or "k" for key, value in said.items() if key.startswith("INSTAINFER_") and "__" in key}
    return load(None, ours)


def mounted(of: Manifest, path: Path) -> str:
    """The volume that a path in it is on."""
    found = [one for one in of["volumeMounts"] if path.is_relative_to(one["mountPath"])]
    return str(found[0]["name"]) if found else ""


def secrets(of: Manifest) -> dict[str, tuple[str, str]]:
    return {
        one["name"]: (one["valueFrom"]["secretKeyRef"]["name"], one["valueFrom"]["secretKeyRef"]["key"])
        for one in of["env"]
        if "secretKeyRef" in one.get("valueFrom", {})
    }


def test_kuberay_takes_it(cluster: Manifest) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator(RAY_CLUSTER).validate(cluster)
    wrong = {**cluster, "spec": {**cluster["spec"], "workerGroupSpec": []}}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(RAY_CLUSTER).validate(wrong)


def test_kubernetes_takes_its_pods(cluster: Manifest) -> None:
    kubernetes = pytest.importorskip("kubernetes_validate")
    for group in groups(cluster):
        one = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": group["template"]}
        kubernetes.validate(one, KUBERNETES, strict=True)


def test_kubernetes_takes_the_rest(server: list[Manifest]) -> None:
    kubernetes = pytest.importorskip("kubernetes_validate")
    for one in server:
        kubernetes.validate(one, KUBERNETES, strict=True)
    with pytest.raises(kubernetes.ValidationError):
        kubernetes.validate({**server[0], "spec": {"replica": 1}}, KUBERNETES, strict=True)


def test_the_chart_makes_the_same_cluster() -> None:
    """But for how the token is handed on, labels of the chart's own, and the time that a node has to go."""
    (direct,) = documents("raycluster.yaml")
    (values,) = documents("values.yaml")
    made = rendered(values)
    for ours, theirs in zip(groups(direct), groups(made), strict=True):
        assert ours["rayStartParams"] == theirs["rayStartParams"]
        (a,), (b,) = (one["template"]["spec"]["containers"] for one in (ours, theirs))
        handed_on = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": ""}
        assert {**variables(a), **handed_on} == variables(b)
        assert {**a, "env": 0} == {**b, "env": 0}
        assert _beside(ours) == _beside(theirs)
    for part in ("rayVersion", "enableInTreeAutoscaling"):
        assert direct["spec"][part] == made["spec"][part]
    assert direct["metadata"]["name"] == made["metadata"]["name"]


def _beside(group: Manifest) -> tuple[list[Manifest], list[Manifest]]:
    """Init containers, without the time that they have to go, and volumes."""
    spec = group["template"]["spec"]
    agents = [
        {**one, "env": [each for each in one["env"] if each["name"] != DRAIN]}
        for one in spec.get("initContainers", [])
    ]
    return agents, spec.get("volumes", [])


def test_a_node_that_goes_has_time_to_be_emptied(cluster: Manifest) -> None:
    for group in groups(cluster)[1:]:
        grace_s = group["template"]["spec"].get("terminationGracePeriodSeconds", 30)
        assert 10 <= float(variables(container(group, "agent"))[DRAIN]) <= grace_s - 10


def test_nobody_may_join_and_nothing_is_reported(cluster: Manifest, server: list[Manifest]) -> None:
    (direct,) = documents("raycluster.yaml")
    assert direct["spec"]["authOptions"] == {"mode": "token", "secretName": "instainfer"}
    assert tuple(map(int, cluster["spec"]["rayVersion"].split("."))) >= (2, 52)
    assert groups(cluster)[0]["rayStartParams"]["dashboard-host"] == "127.0.0.1"
    front = server[0]["spec"]
    for group in (*groups(cluster), front):
        spec = group["template"]["spec"]
        assert all(variables(one)["RAY_USAGE_STATS_ENABLED"] == "0" for one in spec["containers"])
        assert group["template"]["metadata"]["labels"]["instainfer/cluster"] == "instainfer"
    with_token = [container(front, "server")]
    if "authOptions" not in cluster["spec"]:
        with_token += [one for group in groups(cluster) for one in group["template"]["spec"]["containers"]]
    for one in with_token:
        assert variables(one)["RAY_AUTH_MODE"] == "token"
        assert secrets(one)["RAY_AUTH_TOKEN"] == ("instainfer", "auth_token")
    assert secrets(container(front, "server"))["INSTAINFER_SERVER__API_KEY"] == ("instainfer", "api-key")
    (policy,) = [one for one in server if one["kind"] == "NetworkPolicy"]
    assert policy["spec"]["podSelector"]["matchLabels"] == {"instainfer/cluster": "instainfer"}
    open_to_all = [rule["ports"] for rule in policy["spec"]["ingress"] if "from" not in rule]
    assert [[port["port"] for port in ports] for ports in open_to_all] == [[3233]]


def test_only_the_agent_has_privileges(cluster: Manifest, server: list[Manifest]) -> None:
    privileged = [
        one["name"]
        for group in (*groups(cluster), server[0]["spec"])
        for one in (*group["template"]["spec"].get("initContainers", []), *group["template"]["spec"]["containers"])
        if one.get("securityContext")
    ]
    assert privileged == ["agent"]


def test_a_lost_node_is_noticed_soon_and_a_lost_head_waited_for(cluster: Manifest, server: list[Manifest]) -> None:
    for group in groups(cluster):
        given = variables(group["template"]["spec"]["containers"][0])
        period, timeout = (float(given[f"RAY_health_check_{name}_ms"]) for name in ("period", "timeout"))
        assert (period + timeout) * int(given["RAY_health_check_failure_threshold"]) <= 5000
    for group in (*groups(cluster), server[0]["spec"]):
        given = variables(group["template"]["spec"]["containers"][0])
        assert float(given["RAY_gcs_rpc_server_reconnect_timeout_s"]) >= 600
        assert given["RAY_memory_monitor_refresh_ms"] == "0"


def test_a_head_that_comes_back_knows_its_nodes(cluster: Manifest, server: list[Manifest]) -> None:
    head = container(groups(cluster)[0], "ray-head")
    assert variables(head)["RAY_gcs_storage"] == "rocksdb"
    (volume,) = groups(cluster)[0]["template"]["spec"]["volumes"]
    assert volume["name"] == mounted(head, Path(variables(head)["RAY_gcs_storage_path"]))
    claims = {one["metadata"]["name"] for one in server if one["kind"] == "PersistentVolumeClaim"}
    assert volume["persistentVolumeClaim"]["claimName"] in claims


def test_memory_is_said_three_times_alike(cluster: Manifest) -> None:
    for group in cluster["spec"]["workerGroupSpecs"]:
        (warm,) = re.findall(r'\\"warm_mb\\": (\d+)', group["rayStartParams"]["resources"])
        agent = container(group, "agent")
        memory = settings(agent).node.memory
        assert memory == int(warm) * 1_000_000
        limit = agent["resources"]["limits"]["memory"]
        assert memory < 0.8 * parse_bytes(limit.replace("Gi", "GiB"))  # the agent and page tables need some


def test_containers_are_on_workers_alone(cluster: Manifest, server: list[Manifest]) -> None:
    head, *workers = (group["rayStartParams"] for group in groups(cluster))
    assert "no_containers" in head["resources"]
    assert not [worker for worker in workers if "no_containers" in worker["resources"]]
    (script,) = container(server[0]["spec"], "server")["args"]
    assert "no_containers" in script


def test_the_server_finds_the_agent_where_it_looks_for_it(cluster: Manifest, server: list[Manifest]) -> None:
    """Through what the stub in `ray-worker` reads: the data directory that the server would have given it."""
    front = container(server[0]["spec"], "server")
    ours = settings(front)
    for group in cluster["spec"]["workerGroupSpecs"]:
        agent, worker = container(group, "agent"), container(group, "ray-worker")
        theirs = settings(agent)
        assert theirs.server.data_dir == rayhosts.agent_data(ours.server.data_dir, "10.0.0.7")
        assert mounted(agent, theirs.server.data_dir) == mounted(worker, theirs.server.data_dir) == "data"
        assert agent["command"][:4] == ["instainfer", "agent", "--node", "$(POD_IP)"]
        assert agent["restartPolicy"] == "Always" and agent["startupProbe"]
        assert variables(worker)["INSTAINFER_AGENT_APART"]
        assert secrets(agent)["INSTAINFER_CLUSTER__KEY"] == secrets(front)["INSTAINFER_CLUSTER__KEY"]
        assert theirs.environments.root == ours.environments.root
        assert mounted(agent, theirs.environments.root) == "data"
        assert theirs.artifacts.sources == ours.artifacts.sources
        assert theirs.sandbox.kind == "linux"


def test_every_volume_is_there_and_used(cluster: Manifest, server: list[Manifest]) -> None:
    claims = {one["metadata"]["name"] for one in server if one["kind"] == "PersistentVolumeClaim"}
    for group in (*groups(cluster), server[0]["spec"]):
        spec = group["template"]["spec"]
        every = [*spec.get("initContainers", []), *spec["containers"]]
        assert {one["name"] for each in every for one in each["volumeMounts"]} == {
            one["name"] for one in spec["volumes"]
        }
        named = [
            one["persistentVolumeClaim"]["claimName"] for one in spec["volumes"] if "persistentVolumeClaim" in one
        ]
        assert set(named) <= claims


def named(server: list[Manifest], kind: str, name: str) -> Manifest:
    (found,) = [one for one in server if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


def test_callers_reach_gateways_and_these_the_server(server: list[Manifest]) -> None:
    pods = {}
    for service, deployment in (("instainfer", "instainfer-gateway"), ("instainfer-server", "instainfer")):
        made, front = named(server, "Deployment", deployment)["spec"], named(server, "Service", service)["spec"]
        matched = [
            one["metadata"]["name"]
            for one in server
            if one["kind"] == "Deployment"
            and front["selector"].items() <= one["spec"]["template"]["metadata"]["labels"].items()
        ]
        assert matched == [deployment]
        assert made["selector"]["matchLabels"].items() <= made["template"]["metadata"]["labels"].items()
        (pods[deployment],) = made["template"]["spec"]["containers"]
        assert [one["containerPort"] for one in pods[deployment]["ports"]] == [front["ports"][0]["targetPort"]]
        assert front["ports"][0]["port"] == 3233
    gateway = pods["instainfer-gateway"]
    assert gateway["command"][:4] == ["instainfer", "gateway", "--server", "http://instainfer-server:3233"]
    assert gateway["readinessProbe"]["httpGet"]["path"] == "/livez"  # it takes requests while the server is away
    labels = named(server, "Deployment", "instainfer-gateway")["spec"]["template"]["metadata"]["labels"]
    assert labels["instainfer/cluster"] == "instainfer"  # the rule that opens port 3233 is about such pods


def test_the_server_is_one_and_keeps_its_data(server: list[Manifest]) -> None:
    deployment = named(server, "Deployment", "instainfer")
    front = container(deployment["spec"], "server")
    assert front["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "api"}
    assert front["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "api"}
    assert deployment["spec"]["replicas"] == 1 and deployment["spec"]["strategy"] == {"type": "Recreate"}
    (data,) = [one for one in deployment["spec"]["template"]["spec"]["volumes"] if one["name"] == "data"]
    assert mounted(front, settings(front).server.data_dir) == "data" and "persistentVolumeClaim" in data


def test_the_server_speaks_to_the_head_of_this_cluster(cluster: Manifest, server: list[Manifest]) -> None:
    (script,) = container(server[0]["spec"], "server")["args"]
    assert script.count(f"{cluster['metadata']['name']}-head-svc:6379") == 2
    subprocess.run(["/bin/bash", "-n"], input=script, text=True, check=True)


def test_one_image_with_the_version_that_the_cluster_names(cluster: Manifest, server: list[Manifest]) -> None:
    (version,) = re.findall(r"^ARG RAY_VERSION=(\S+)$", (DEPLOY / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    assert version == cluster["spec"]["rayVersion"]
    templates = [group["template"]["spec"] for group in (*groups(cluster), server[0]["spec"])]
    templates.append(named(server, "Deployment", "instainfer-gateway")["spec"]["template"]["spec"])
    images = {one["image"] for spec in templates for one in (*spec.get("initContainers", []), *spec["containers"])}
    assert len(images) == 1


def test_the_image_is_given_what_the_package_is_made_of() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")}
    about = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    wheel = about["tool"]["hatch"]["build"]["targets"]["wheel"]
    project = about["project"]
    needed = [*wheel["packages"], *wheel["force-include"], *project["license-files"], project["readme"]]
    assert {Path(one).parts[0] for one in needed} | {"pyproject.toml"} == kept
    assert {"ray", "objects"} <= set(project["optional-dependencies"])
