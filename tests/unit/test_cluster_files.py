"""The files under cluster/: accepted by Ray's own offline validation, protected alike, their commands run."""

import copy
import os
import re
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

from tests.kuberay_schema import SCHEMAS

FOLDER = Path(__file__).resolve().parents[2] / "cluster"
CLOUDS = ("aws", "gcp", "azure")
LAUNCHED = ("onprem", *CLOUDS)
STARTS = ("head_start_ray_commands", "worker_start_ray_commands")


def read(name):
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def validated(config):
    """Pass Ray's own checks of `ray up`, which need no network and no account."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def commands(config):
    found = [*config["setup_commands"], *config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    for node_type in config.get("available_node_types", {}).values():
        found += node_type.get("worker_setup_commands", [])
    return found


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_accepts_every_file_and_would_refuse_a_misspelt_key(name):
    config = read(name)
    assert validated(config)["cluster_name"] == "ray-fed"
    with pytest.raises(jsonschema.ValidationError):
        validated({**config, "setup_command": []})


@pytest.mark.parametrize("name", LAUNCHED)
def test_every_command_is_one_line_of_correct_shell(name):
    for command in commands(read(name)):
        assert "\n" not in command.strip(), command
        done = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"


@pytest.mark.parametrize("name", LAUNCHED)
def test_token_tls_and_silence_towards_the_makers_of_ray_are_set_everywhere(name):
    config = read(name)
    environment = config["setup_commands"][0]
    for said in ("RAY_AUTH_MODE=token", "RAY_USAGE_STATS_ENABLED=0", "umask 077"):
        assert f"'{said}'" in environment or f"'export {said}'" in environment, said
    assert "RAY_USE_TLS=1'" in environment
    for variable in ("RAY_TLS_CA_CERT", "RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY"):
        assert variable in environment
    for commands_of_start in (config[key] for key in STARTS):
        assert all(command.startswith(". ~/ray-fed/environment;") for command in commands_of_start)
        assert "--disable-usage-stats" in commands_of_start[-1]
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]


@pytest.mark.parametrize("name", LAUNCHED)
def test_only_token_code_and_authority_travel(name):
    assert set(read(name)["file_mounts"].values()) <= {"~/.ray/auth_token", "dist", "authority"}


@pytest.mark.parametrize("name", LAUNCHED)
def test_ports_are_fixed_alike_and_stand_in_the_table_of_the_readme(name):
    readme = (FOLDER / "README.md").read_text()
    config = read(name)
    ports = [dict(re.findall(r"--([a-z-]*port)=(\d+)", config[key][-1])) for key in STARTS]
    head, worker = ports
    assert {**head, **worker} == head
    assert set(head) - set(worker) == {"port", "dashboard-port"}
    for port in head.values():
        assert re.search(rf"^\|[^|]*\b{port}\b", readme, re.MULTILINE), port


@pytest.mark.parametrize("name", CLOUDS)
def test_every_worker_of_a_cloud_stands_at_a_site_and_the_head_at_none(name):
    types = dict(read(name)["available_node_types"])
    head = types.pop(read(name)["head_node_type"])
    assert "site" not in head["labels"]
    assert {key: kind["labels"]["site"] for key, kind in types.items()} == {"north": "north", "south": "south"}
    for kind in types.values():
        assert kind["min_workers"] == kind["max_workers"] == 1
        # Ray takes the commands of a node type instead of the common ones, so the common ones must be among them.
        assert kind["worker_setup_commands"][:3] == read(name)["setup_commands"]


@pytest.fixture
def machine(tmp_path):
    """A home directory with a stand-in for `ray` that writes down how it was called; returns a function that runs."""
    (tmp_path / "bin").mkdir()
    for program in ("ray", "ray-fed"):
        script = tmp_path / "bin" / program
        script.write_text(f'#!/bin/sh\necho "{program} $* TLS=$RAY_USE_TLS AUTH=$RAY_AUTH_MODE" >> $HOME/called\n')
        script.chmod(0o755)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("secret")
    environment = {
        "HOME": str(tmp_path), "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "RAY_HEAD_IP": "192.0.2.10",
        "SSH_CONNECTION": "192.0.2.1 40000 192.0.2.21 22",
    }  # fmt: skip

    def run(command):
        return subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, check=False)

    for name in ("ca.crt", "node.crt", "node.key"):
        (tmp_path / "ray-fed" / "tls").mkdir(parents=True, exist_ok=True)
        (tmp_path / "ray-fed" / "tls" / name).write_text("made by ray-fed cluster certs")
    for command in read("onprem")["setup_commands"]:
        done = run(command)
        assert done.returncode == 0, done.stderr
    return run


def test_a_machine_of_an_institution_starts_with_its_own_site_and_the_address_it_was_reached_by(machine, tmp_path):
    (tmp_path / "ray-fed" / "site").write_text("north\n")
    for command in read("onprem")["worker_start_ray_commands"]:
        assert machine(command).returncode == 0
    called = (tmp_path / "called").read_text().splitlines()[-1]
    assert called.startswith("ray start --address=192.0.2.10:6379 --node-ip-address=192.0.2.21 ")
    assert " --labels=site=north " in called
    assert called.endswith("TLS=1 AUTH=token")


@pytest.mark.parametrize("missing", ["ca.crt", "node.crt", "node.key"])
def test_a_machine_without_its_certificate_is_told_so_before_ray_is(machine, tmp_path, missing):
    (tmp_path / "ray-fed" / "tls" / missing).unlink()
    check = read("onprem")["setup_commands"][1]
    done = machine(check)
    assert done.returncode == 1
    assert "~/ray-fed/tls (ray-fed cluster certs)" in done.stdout
    environment = tmp_path / "ray-fed" / "environment"
    environment.write_text(environment.read_text().replace("RAY_USE_TLS=1", "RAY_USE_TLS=0"))
    assert machine(check).returncode == 0  # who switched it off needs none


def test_a_machine_without_a_site_does_not_start(machine, tmp_path):
    done = machine(read("onprem")["worker_start_ray_commands"][-1])
    assert done.returncode == 1
    assert "write this machine's site into ~/ray-fed/site" in done.stdout
    assert "ray start" not in (tmp_path / "called").read_text()


def test_the_head_may_be_without_a_site(machine, tmp_path):
    assert machine(read("onprem")["head_start_ray_commands"][-1]).returncode == 0
    called = (tmp_path / "called").read_text().splitlines()[-1]
    assert "--head --port=6379 --node-ip-address=192.0.2.21 " in called
    assert "--labels=role=coordinator " in called


def test_token_and_settings_are_for_the_account_only(machine, tmp_path):  # noqa: ARG001
    for path in (".ray/auth_token", "ray-fed/environment"):
        assert (tmp_path / path).stat().st_mode & 0o077 == 0, path


# ---- Kubernetes


def manifests():
    return {each["kind"]: each for each in yaml.safe_load_all((FOLDER / "kuberay.yaml").read_text())}


@pytest.mark.parametrize("kind", SCHEMAS)
def test_manifests_have_only_documented_fields(kind):
    manifest = manifests()[kind]
    jsonschema.validate(manifest, SCHEMAS[kind])
    manifest["spec"]["rayVersoin"] = "2.60.0"
    with pytest.raises(jsonschema.ValidationError, match="rayVersoin"):
        jsonschema.validate(manifest, SCHEMAS[kind])


def test_pods_have_token_tls_and_every_volume_they_mount():
    spec = manifests()["RayCluster"]["spec"]
    assert spec["authOptions"] == {"mode": "token"}
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in (*pod["containers"], *pod["initContainers"]):
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes, container["name"]
        (ray,) = pod["containers"]
        values = {variable["name"]: variable["value"] for variable in ray["env"]}
        assert values["RAY_USE_TLS"] == "1"
        assert values["RAY_USAGE_STATS_ENABLED"] == "0"
        assert "authority" not in {mount["name"] for mount in ray["volumeMounts"]}


def test_only_a_sites_own_pods_mount_its_data_and_nothing_stands_in_for_them():
    groups = manifests()["RayCluster"]["spec"]["workerGroupSpecs"]
    claims = [
        volume["persistentVolumeClaim"]["claimName"]
        for group in groups
        for volume in group["template"]["spec"]["volumes"]
        if "persistentVolumeClaim" in volume
    ]
    assert claims == ["north-data", "north-state", "south-data", "south-state"]
    assert [group["labels"]["site"] for group in groups] == ["north", "south"]
    assert all(group["minReplicas"] == group["maxReplicas"] for group in groups)


def test_the_job_runs_on_that_cluster_and_leaves_it_standing():
    cluster, job = manifests()["RayCluster"], manifests()["RayJob"]
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    assert job["spec"]["shutdownAfterJobFinishes"] is False
