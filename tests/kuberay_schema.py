"""What our Kubernetes manifests may say, as JSON schemas of our own.

The operator's own schema (its CustomResourceDefinition) is not shipped with Ray and is not kept here. These schemas are
written from its documented fields as of KubeRay 1.5.1 and are closed: a misspelt or unknown field is refused. Of a pod
they know only the fields that our file uses. They do not replace `kubectl apply --dry-run=server` on a real cluster.
"""

from typing import Any

TEXT, FLAG = {"type": "string"}, {"type": "boolean"}
COUNT = {"type": "integer", "minimum": 0}
TEXTS = {"type": "object", "additionalProperties": TEXT}


def closed(required: str = "", **fields: Any) -> dict[str, Any]:
    """Return the schema of a mapping with these fields and no others."""
    return {"type": "object", "properties": fields, "required": required.split(), "additionalProperties": False}


def several(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1}


FIELD = closed("fieldRef", fieldRef=closed("fieldPath", fieldPath=TEXT))
VARIABLE = closed("name", name=TEXT, value=TEXT, valueFrom=FIELD)
MOUNT = closed("name mountPath", name=TEXT, mountPath=TEXT, readOnly=FLAG)
CONTAINER = closed(
    "name image", name=TEXT, image=TEXT, command=several(TEXT), args=several(TEXT), env=several(VARIABLE),
    resources=closed("requests limits", requests=TEXTS, limits=TEXTS), volumeMounts=several(MOUNT),
)  # fmt: skip
VOLUME = closed(
    "name", name=TEXT, secret=closed("secretName", secretName=TEXT, defaultMode=COUNT),
    configMap=closed("name", name=TEXT), emptyDir=closed(medium=TEXT, sizeLimit=TEXT),
    persistentVolumeClaim=closed("claimName", claimName=TEXT, readOnly=FLAG),
) | {"minProperties": 2, "maxProperties": 2}  # fmt: skip
POD = closed(
    "containers", containers=several(CONTAINER), initContainers=several(CONTAINER), volumes=several(VOLUME),
    nodeSelector=TEXTS, securityContext=closed(fsGroup=COUNT),
)  # fmt: skip
TEMPLATE = closed("spec", metadata=closed(labels=TEXTS, annotations=TEXTS), spec=POD)
SERVICE_TYPE = {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]}
HEAD = closed(
    "template", serviceType=SERVICE_TYPE, enableIngress=FLAG, rayStartParams=TEXTS, resources=TEXTS, labels=TEXTS,
    template=TEMPLATE,
)  # fmt: skip
WORKERS = closed(
    "groupName template", groupName=TEXT, replicas=COUNT, minReplicas=COUNT, maxReplicas=COUNT, numOfHosts=COUNT,
    suspend=FLAG, idleTimeoutSeconds=COUNT, rayStartParams=TEXTS, resources=TEXTS, labels=TEXTS, template=TEMPLATE,
)  # fmt: skip
CLUSTER = closed(
    "headGroupSpec", rayVersion=TEXT, enableInTreeAutoscaling=FLAG, suspend=FLAG, headGroupSpec=HEAD,
    workerGroupSpecs=several(WORKERS),
    authOptions=closed("mode", mode={"enum": ["token", "disabled"]}, secretName=TEXT),
)  # fmt: skip
JOB = closed(
    "entrypoint", entrypoint=TEXT, runtimeEnvYAML=TEXT, jobId=TEXT, clusterSelector=TEXTS, rayClusterSpec=CLUSTER,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    shutdownAfterJobFinishes=FLAG, ttlSecondsAfterFinished=COUNT, activeDeadlineSeconds=COUNT, backoffLimit=COUNT,
    entrypointNumCpus={"type": "number"}, suspend=FLAG, metadata=TEXTS,
)  # fmt: skip


def resource(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    metadata = closed("name", name=TEXT, namespace=TEXT, labels=TEXTS, annotations=TEXTS)
    return closed(
        "apiVersion kind metadata spec", apiVersion={"const": "ray.io/v1"}, kind={"const": kind}, metadata=metadata,
        spec=spec,
    )  # fmt: skip


SCHEMAS = {"RayCluster": resource("RayCluster", CLUSTER), "RayJob": resource("RayJob", JOB)}
