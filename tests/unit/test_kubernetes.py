"""The manifests for Kubernetes: valid by schemas that nobody here wrote, and in keeping with what the roles need."""

from __future__ import annotations

import copy
import json
import os
import re
import socket

import jsonschema
import kubernetes_validate
import pytest
import yaml

from cxr_node.node import healthcheck, supervisor
from cxr_node.settings import InferenceSettings, load_settings
from cxr_node.store.queue import leases
from cxr_node.store.schema import jobs
from cxr_node.store.views import presence
from tests.conftest import REPOSITORY
from tests.kubernetes import FOLDER, containers, documents, environment, settings_text, workloads

VERSIONS = ("1.31", "1.37")
_KEDA = json.loads((REPOSITORY / "tests" / "data" / "keda-v1alpha1.schema.json").read_text())
_MI = {"Mi": 1, "Gi": 1024}


def judge(document, version):
    if document["apiVersion"].startswith("keda.sh/"):
        jsonschema.validate(document, _KEDA)
    else:
        kubernetes_validate.validate(document, version, strict=True)


def named(kind, name):
    (found,) = [one for one in documents(FOLDER) if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return copy.deepcopy(found)


def memory_mb(amount):
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", amount).groups()
    return int(number) * _MI[unit]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_is_valid(version):
    for document in documents():
        judge(document, version)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("kind", "name", "spoil"),
    [
        ("Deployment", "cxr-node-receive", lambda spec: spec.update(replica=2)),
        ("Deployment", "cxr-node-work", lambda spec: spec.pop("selector")),
        ("Deployment", "cxr-node-web", lambda spec: spec["template"]["spec"].update(terminationGracePeriodSeconds="long")),
        ("Service", "cxr-node-dicom", lambda spec: spec["ports"][0].update(port="dicom")),
        ("PodDisruptionBudget", "cxr-node-work", lambda spec: spec.update(maxUnavailible=1)),
        ("ScaledObject", "cxr-node-work", lambda spec: spec.update(minReplicas=1)),
        ("ScaledObject", "cxr-node-work", lambda spec: spec["triggers"][0]["metadata"].update(targetQueryValue=40)),
        ("TriggerAuthentication", "cxr-node-queue", lambda spec: spec["secretTargetRef"][0].pop("key")),
    ],
)
def test_a_broken_manifest_is_found(version, kind, name, spoil):
    document = named(kind, name)
    judge(document, version)
    spoil(document["spec"])
    with pytest.raises(jsonschema.ValidationError):
        judge(document, version)


def test_every_role_runs_somewhere_and_is_the_program_s():
    roles = {container["args"][0] for _, container in containers()}
    assert roles == set(supervisor.ROLES)
    assert {one["metadata"]["namespace"] for one in documents() if one["kind"] != "Namespace"} == {"cxr-node"}


def test_a_pod_has_the_time_that_its_role_needs_to_end():
    for pod, container in containers():
        before = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["sleep", "0"])
        needed = supervisor._STOP_GRACE_S[container["args"][0]] + int(before[1])
        assert pod["terminationGracePeriodSeconds"] >= needed, container["name"]


def test_no_pod_has_more_rights_than_it_needs():
    for pod, container in containers():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == 10001, "the image's user"
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert (pod["automountServiceAccountToken"], pod["enableServiceLinks"]) == (False, False)
        own = container["securityContext"]
        assert own == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        written = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
        assert written == {"/var/lib/cxr-node", "/tmp"}, "what the image writes to"


def test_every_container_says_how_much_it_needs_and_may_use():
    for _, container in containers():
        asked, most = container["resources"]["requests"], container["resources"]["limits"]
        assert asked["cpu"]
        assert memory_mb(asked["memory"]) <= memory_mb(most["memory"])
        if container["name"] in ("work", "web"):  # they analyse: what an image may need, beyond what they have at the start
            assert memory_mb(most["memory"]) >= 1370 + InferenceSettings().job_memory_mb


def test_probes_ask_what_a_pod_of_one_role_can_answer():
    for pod, container in containers():
        role, ports = container["args"][0], {one["name"] for one in container.get("ports", ())}
        for name in ("startupProbe", "readinessProbe", "livenessProbe"):
            probe = container[name]
            if "exec" in probe:
                assert probe["exec"]["command"] == ["python", "-m", "cxr_node.node.healthcheck", role]
            elif "httpGet" in probe:
                assert (role, probe["httpGet"]) == ("web", {"path": "/healthz", "port": "http"})
            else:
                assert (role, probe["tcpSocket"]) == ("receive", {"port": "dicom"})
        assert ports == {"receive": {"dicom"}, "web": {"http"}}.get(role, set())
        assert {mount["name"] for mount in container["volumeMounts"]} <= {"settings", "secrets", "data", "tmp"}, pod


def test_services_and_budgets_choose_pods_that_there_are():
    labels = [one["spec"]["template"]["metadata"]["labels"] for one in workloads()]
    for document in documents():
        if document["kind"] in ("Service", "PodDisruptionBudget"):
            selector = document["spec"]["selector"]
            selector = selector.get("matchLabels", selector)
            assert any(selector.items() <= those.items() for those in labels), document["metadata"]["name"]
    budgets = {one["metadata"]["name"] for one in documents() if one["kind"] == "PodDisruptionBudget"}
    assert {one["metadata"]["name"] for one in workloads()} == budgets


def test_the_settings_load_with_the_secrets_where_the_pods_have_them(tmp_path, monkeypatch):
    for name in os.environ:
        if name.startswith("CXR_NODE"):
            monkeypatch.delenv(name)
    (tmp_path / "database-url").write_text("postgresql+psycopg://cxr:secret@postgres/cxr\n")
    (tmp_path / "storage-secret-key").write_text("hunter2\n")
    config = tmp_path / "cxr-node.toml"
    config.write_text(settings_text())
    for _, container in containers():
        assert container["args"][1:] == ["--config", "/etc/cxr-node/cxr-node.toml"]
        with monkeypatch.context() as inside:
            for name, value in environment(container, tmp_path).items():
                inside.setenv(name, value)
            settings = load_settings(config)
        assert settings.database.url.startswith("postgresql+psycopg://")
        assert settings.storage.secret_access_key.get_secret_value() == "hunter2"
        assert settings.storage.url.startswith("s3://")
        assert str(settings.audit.key).startswith("/etc/cxr-node/secrets/"), "every host signs with the same key"
        ports = {one["containerPort"] for one in container.get("ports", ())}
        assert ports <= {settings.node.port, settings.web.port}


def test_the_last_worker_stays_and_applying_the_file_again_changes_no_number():
    spec = named("ScaledObject", "cxr-node-work")["spec"]
    assert spec["minReplicaCount"] >= 1, "the last worker does the housekeeping"
    assert spec["scaleTargetRef"]["name"] == named("Deployment", "cxr-node-work")["metadata"]["name"]
    assert "replicas" not in named("Deployment", "cxr-node-work")["spec"]


def test_a_pod_is_healthy_while_its_role_is_ready(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CXR_NODE_CONFIG", str(tmp_path / "absent.toml"))
    monkeypatch.setenv("CXR_NODE__NODE__DATA_DIR", str(tmp_path))
    assert healthcheck.main(["work"]) == 1
    with presence.showing(tmp_path, "work"):
        assert healthcheck.main(["work"]) == 0
        assert healthcheck.main(["work", "upload"]) == 1
    assert healthcheck.main(["work"]) == 1
    assert "not ready on this machine: work" in capsys.readouterr().err


def test_a_lease_is_held_under_a_name_that_no_pod_s_name_is_too_long_for(tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "cxr-node-receive-" + 46 * "x")
    owner = leases.owner_name(tmp_path)
    assert len(owner) <= jobs.c.lease_owner.type.length
    assert "cxr" not in owner, "two pods of one name are two owners"


def test_the_readme_names_every_file_and_every_secret():
    text = (FOLDER / "README.md").read_text("utf-8")
    for path in FOLDER.rglob("*.yaml"):
        assert f"`{path.relative_to(FOLDER)}`" in text, path
        for name in re.findall(r"/etc/cxr-node/secrets/([\w.-]+)", path.read_text()):
            assert name in text, name
    assert yaml.safe_load((FOLDER / "namespace.yaml").read_text())["metadata"]["name"] in text
