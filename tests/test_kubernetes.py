"""The manifests in deploy/kubernetes are valid and agree with the code. No cluster is needed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import sqlalchemy as sa
import yaml

from api.server import EXIT_S
from api.state import MAX_CONVERSIONS
from core.jobs.store import JobStore
from core.settings import PREFIX, Settings
from tests.test_compose import instructions, needed_memory_bytes, startable

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "deploy" / "kubernetes"

Manifest = dict[str, Any]


def rendered(folder: Path) -> list[Manifest]:
    """Return the manifests that `kubectl kustomize` makes of a folder."""
    command = [str(Path(sys.executable).with_name("kubectl")), "kustomize", str(folder)]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert shown.returncode == 0, shown.stderr
    return list(yaml.safe_load_all(shown.stdout))


@pytest.fixture(scope="module")
def with_keda() -> list[Manifest]:
    """The manifests with KEDA."""
    return rendered(FOLDER / "keda")


def overlaid(tmp_path: Path, component: str, literals: list[str]) -> list[Manifest]:
    """Return the manifests with KEDA and a component, and with further settings."""
    copied = shutil.copytree(FOLDER, tmp_path / "kubernetes")
    (copied / "mine").mkdir()
    overlay = {
        "resources": ["../keda"],
        "components": [f"../{component}"],
        "configMapGenerator": [{"name": "reverie", "behavior": "merge", "literals": literals}],
    }
    (copied / "mine" / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    return rendered(copied / "mine")


BUCKET = "REVERIE_BLOBS_URL=s3://bucket/prefix"


@pytest.fixture(scope="module", params=["base", "keda", "gpu", "object-store"])
def manifests(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    """The manifests of each folder; two are components, which an overlay adds."""
    if request.param in {"base", "keda"}:
        return rendered(FOLDER / request.param)
    return overlaid(tmp_path_factory.mktemp("overlay"), request.param, [BUCKET])


def of_kind(manifests: list[Manifest], kind: str) -> dict[str, Manifest]:
    """Return the manifests of one kind by name."""
    return {one["metadata"]["name"]: one for one in manifests if one["kind"] == kind}


def container(deployment: Manifest) -> Manifest:
    """Return the only container of a deployment."""
    (one,) = deployment["spec"]["template"]["spec"]["containers"]
    found: Manifest = one
    return found


def settings_of(manifests: list[Manifest], deployment: Manifest, secrets_dir: Path) -> Settings:
    """Return the settings of a deployment's container; its own variables override the ConfigMap."""
    (config,) = of_kind(manifests, "ConfigMap").values()
    variables = {**config["data"], **{entry["name"]: entry["value"] for entry in container(deployment)["env"]}}
    variables["REVERIE_SECRETS_DIR"] = str(secrets_dir)
    return Settings(**{name.removeprefix(PREFIX).lower(): value for name, value in variables.items()})


def size_bytes(text: str) -> int:
    """Return a quantity of Kubernetes, such as 512Mi, in bytes."""
    return int(text[:-2]) << {"Mi": 20, "Gi": 30}[text[-2:]]


def parsed_by_keda(manifest: Manifest) -> Manifest:
    """Return what KEDA's schema keeps of a manifest; raise ValueError if it does not match."""
    from cloudcoil.models.keda import v1alpha1  # takes more than half a second

    model = {"ScaledObject": v1alpha1.ScaledObject, "TriggerAuthentication": v1alpha1.TriggerAuthentication}
    parsed = model[manifest["kind"]].model_validate(manifest)
    return parsed.model_dump(mode="json", by_alias=True, exclude_unset=True)


def test_manifests_match_the_schemas(manifests: list[Manifest]) -> None:
    """Each manifest is valid for Kubernetes or KEDA, which would also ignore no field of it."""
    for manifest in manifests:
        if manifest["apiVersion"].startswith("keda.sh/"):
            assert parsed_by_keda(manifest) == manifest
        else:
            kubernetes_validate.validate(manifest, "1.37", strict=True)


def test_wrong_manifests_are_found(with_keda: list[Manifest]) -> None:
    """A misspelt field of Kubernetes or KEDA does not pass."""
    deployment = of_kind(with_keda, "Deployment")["reverie-api"]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**deployment, "spec": {**deployment["spec"], "replica": 1}}, "1.37", strict=True)
    scaled = of_kind(with_keda, "ScaledObject")["reverie-inference"]
    wrong = {**scaled, "spec": {**scaled["spec"], "minReplicas": 1}}
    try:
        parsed = parsed_by_keda(wrong)
    except ValueError:
        return
    assert parsed != wrong


def test_selectors_and_names_refer_to_what_there_is(with_keda: list[Manifest]) -> None:
    """Each deployment has a disruption budget; services, scalers and volumes name what exists."""
    deployments = of_kind(with_keda, "Deployment")
    assert set(deployments) == {"reverie-api", "reverie-inference", "reverie-training"}
    assert set(of_kind(with_keda, "PodDisruptionBudget")) == set(deployments)
    for name, deployment in deployments.items():
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        budget = of_kind(with_keda, "PodDisruptionBudget")[name]
        for selector in (deployment["spec"]["selector"], budget["spec"]["selector"]):
            assert selector["matchLabels"].items() <= labels.items()
        volumes = {volume["name"] for volume in deployment["spec"]["template"]["spec"]["volumes"]}
        assert {mount["name"] for mount in container(deployment)["volumeMounts"]} == volumes
        assert deployment["spec"]["template"]["spec"]["serviceAccountName"] in of_kind(with_keda, "ServiceAccount")
    for scaled in of_kind(with_keda, "ScaledObject").values():
        target = scaled["spec"]["scaleTargetRef"]["name"]
        assert "replicas" not in deployments[target]["spec"]  # otherwise each `apply` would reset it


def test_pods_share_no_volume_with_an_object_store(tmp_path: Path) -> None:
    """With an object store each pod has a folder of its own, which holds the cache."""
    made = overlaid(tmp_path, "object-store", [BUCKET])
    assert not of_kind(made, "PersistentVolumeClaim")
    (config,) = of_kind(made, "ConfigMap").values()
    assert config["data"]["REVERIE_BLOBS_URL"] == "s3://bucket/prefix"
    assert config["data"]["REVERIE_STATE"] == "/state"
    for deployment in of_kind(made, "Deployment").values():
        volumes = {one["name"]: one for one in deployment["spec"]["template"]["spec"]["volumes"]}
        assert volumes["state"]["emptyDir"] == {"sizeLimit": "50Gi"}
        assert not any("persistentVolumeClaim" in one for one in volumes.values())


def test_the_temporary_folders_have_room_for_the_limits(tmp_path: Path) -> None:
    """With an object store all that the settings allow in a pod's folder fits into its size limit,
    beside 2 GiB for small files.

    A dataset's conversion needs room for the unpacked images, and beside them first for the upload
    and then for the arrays that are made of them.
    """
    made = overlaid(tmp_path, "object-store", [BUCKET])
    limits = settings_of(made, of_kind(made, "Deployment")["reverie-training"], tmp_path)
    conversion = limits.max_unpacked_bytes + max(limits.max_dataset_bytes, limits.max_unpacked_bytes)
    cache = limits.cache_bytes + max(limits.max_version_bytes, limits.max_unpacked_bytes)
    needed = {
        "reverie-api": cache + MAX_CONVERSIONS * conversion + limits.max_version_bytes,
        "reverie-inference": cache,
        "reverie-training": cache
        + limits.training_disk_bytes
        + limits.max_unpacked_bytes
        + limits.auxiliary_workers * conversion,
    }
    for name, deployment in of_kind(made, "Deployment").items():
        volumes = {one["name"]: one for one in deployment["spec"]["template"]["spec"]["volumes"]}
        assert needed[name] + (2 << 30) <= size_bytes(volumes["state"]["emptyDir"]["sizeLimit"]), name


@pytest.mark.parametrize("folder", ["keda", "gpu", "object-store"])
def test_the_memory_limits_have_room_for_what_the_settings_allow(tmp_path: Path, folder: str) -> None:
    """The limit of each pod is above the sum of docs/operations.md, "Sizing", with its folder /tmp,
    which is in memory.
    """
    made = rendered(FOLDER / folder) if folder == "keda" else overlaid(tmp_path, folder, [BUCKET])
    for name, deployment in of_kind(made, "Deployment").items():
        volumes = {one["name"]: one for one in deployment["spec"]["template"]["spec"]["volumes"]}
        needed = needed_memory_bytes(name.removeprefix("reverie-"), settings_of(made, deployment, tmp_path))
        needed += size_bytes(volumes["tmp"]["emptyDir"]["sizeLimit"])
        assert needed <= size_bytes(container(deployment)["resources"]["limits"]["memory"]), name


def test_every_pod_is_confined(with_keda: list[Manifest]) -> None:
    """No pod has root, capabilities, a writable root file system, or rights at the API of
    Kubernetes.
    """
    for deployment in of_kind(with_keda, "Deployment").values():
        pod = deployment["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        context = container(deployment)["securityContext"]
        assert context == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "memory" in container(deployment)["resources"]["limits"]


def test_settings_and_commands_exist(with_keda: list[Manifest], tmp_path: Path) -> None:
    """Variables are settings with valid values, and commands and probes run what there is."""
    for deployment in of_kind(with_keda, "Deployment").values():
        one = container(deployment)
        settings_of(with_keda, deployment, tmp_path)
        if "command" in one:
            assert startable(one["command"])
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            if "exec" in one.get(probe, {}):
                assert (ROOT / one[probe]["exec"]["command"][-1]).is_file()
        assert any(
            word == "FROM" and rest.endswith(f" AS {one['image'].split('-')[1].split(':')[0]}")
            for word, rest in instructions()
        )


def test_a_pod_has_time_to_drain(with_keda: list[Manifest], tmp_path: Path) -> None:
    """An API pod gets its delay and its requests' time before it is killed; this time is above the
    longest wait of a synchronous request.
    """
    deployment = of_kind(with_keda, "Deployment")["reverie-api"]
    pod, one = deployment["spec"]["template"]["spec"], container(deployment)
    settings = settings_of(with_keda, deployment, tmp_path)
    assert settings.shutdown_grace_s > settings.max_sync_timeout_s
    delay_s = one["lifecycle"]["preStop"]["sleep"]["seconds"]
    probe = one["readinessProbe"]
    assert delay_s > probe["periodSeconds"] * probe["failureThreshold"]
    assert pod["terminationGracePeriodSeconds"] >= delay_s + settings.shutdown_grace_s + EXIT_S


def test_a_migration_may_take_half_an_hour(with_keda: list[Manifest]) -> None:
    """Until then no pod is killed because it has not started, and the rollout has not failed."""
    for name, deployment in of_kind(with_keda, "Deployment").items():
        probe = container(deployment)["startupProbe"]
        started_s = probe["periodSeconds"] * probe["failureThreshold"]
        assert started_s >= 1800, name
        assert deployment["spec"]["progressDeadlineSeconds"] > started_s, name


def test_workers_with_a_gpu_are_updated_without_another_gpu(tmp_path: Path) -> None:
    """The component `gpu` gives each worker a GPU and no more during an update."""
    deployments = of_kind(overlaid(tmp_path, "gpu", []), "Deployment")
    for name, device in (("reverie-inference", "REVERIE_DEVICE"), ("reverie-training", "REVERIE_TRAINING_DEVICE")):
        one = container(deployments[name])
        assert one["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert {entry["name"]: entry["value"] for entry in one["env"]}[device] == "cuda"
        assert deployments[name]["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 1, "maxSurge": 0}
    assert "nvidia.com/gpu" not in container(deployments["reverie-api"])["resources"]["limits"]


def test_scalers_ask_for_what_there_is(with_keda: list[Manifest], root: Path, tmp_path: Path) -> None:
    """Metrics in queries are those of docs/monitoring.md, and SQL runs on the job database."""
    described = set(re.findall(r"(?m)^\| `(reverie_\w+)`", (root / "docs" / "monitoring.md").read_text()))
    store = JobStore(f"sqlite:///{tmp_path / 'jobs.sqlite3'}")
    for scaled in of_kind(with_keda, "ScaledObject").values():
        for trigger in scaled["spec"]["triggers"]:
            query = trigger["metadata"]["query"]
            if trigger["type"] == "postgresql":
                with store.engine.connect() as connection:
                    assert connection.execute(sa.text(query)).scalar() == 0
            else:
                names = re.findall(r"\breverie_\w+", query)
                assert names
                assert {name.removesuffix("_bucket") for name in names} <= described
    store.engine.dispose()


def test_missing_metrics_are_failures_of_a_scaler(with_keda: list[Manifest]) -> None:
    """Each query either always has a value or fails without one; with a failure the fallback
    applies.
    """
    always = {"reverie_waiting_requests", "reverie_waiting_jobs"}  # of each API process: `api.metrics`
    for scaled in of_kind(with_keda, "ScaledObject").values():
        assert scaled["spec"]["fallback"]["replicas"] >= scaled["spec"]["minReplicaCount"]
        for trigger in scaled["spec"]["triggers"]:
            if trigger["type"] == "prometheus" and not trigger["metadata"]["query"].endswith(" or vector(0)"):
                assert set(re.findall(r"\breverie_\w+", trigger["metadata"]["query"])) <= always
                assert trigger["metadata"]["ignoreNullValues"] == "false"


def test_keda_has_a_database_user_of_its_own(with_keda: list[Manifest], root: Path) -> None:
    """The URL for KEDA is in a Secret of its own, which no pod mounts and docs/operations.md
    creates.
    """
    (authentication,) = of_kind(with_keda, "TriggerAuthentication").values()
    (parameter,) = authentication["spec"]["secretTargetRef"]
    mounted = {
        volume["secret"]["secretName"]
        for deployment in of_kind(with_keda, "Deployment").values()
        for volume in deployment["spec"]["template"]["spec"]["volumes"]
        if "secret" in volume
    }
    assert parameter["name"] not in mounted
    page = (root / "docs" / "operations.md").read_text()
    assert re.search(rf"create secret generic {parameter['name']} [^`]*--from-literal={parameter['key']}=", page)


def test_the_overlay_of_the_documentation_is_valid(tmp_path: Path, root: Path) -> None:
    """The kustomization in docs/operations.md gives images and settings to the manifests."""
    page = (root / "docs" / "operations.md").read_text()
    (overlay,) = re.findall(r"```yaml\n(# deploy/kubernetes/mine/kustomization\.yaml\n.*?)```", page, re.DOTALL)
    copied = shutil.copytree(FOLDER, tmp_path / "kubernetes")
    (copied / "mine").mkdir()
    (copied / "mine" / "kustomization.yaml").write_text(overlay)
    made = rendered(copied / "mine")
    images = {container(deployment)["image"] for deployment in of_kind(made, "Deployment").values()}
    assert images == {"REGISTRY/reverie-api:1.0", "REGISTRY/reverie-worker:1.0"}
    for deployment in of_kind(made, "Deployment").values():
        assert settings_of(made, deployment, tmp_path).blobs.startswith("s3://")
    assert "ScaledObject" in {one["kind"] for one in made}


def test_the_stated_release_of_keda_accepts_the_fallbacks(with_keda: list[Manifest], root: Path) -> None:
    """Beside a fallback each trigger has an explicit type, and `Value` requires KEDA 2.18.

    KEDA 2.16 rejects a fallback if a trigger has no type, and every release before 2.18 if the type
    of one is `Value`.
    """
    texts = [(FOLDER / "keda" / "kustomization.yaml").read_text(), (root / "docs" / "operations.md").read_text()]
    stated = [re.findall(r"KEDA \(?(\d+)\.(\d+) or newer", text) for text in texts]
    assert stated[0] == stated[1]
    ((major, minor),) = stated[0]
    scaled = [one["spec"] for one in of_kind(with_keda, "ScaledObject").values()]
    types = [trigger.get("metricType") for spec in scaled if "fallback" in spec for trigger in spec["triggers"]]
    assert types
    assert set(types) <= {"AverageValue", "Value"}
    if "Value" in types:
        assert (int(major), int(minor)) >= (2, 18)
