"""The CloudFormation templates and the dashboards: valid, closed, and in step with the code that they serve."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from infra import provision
from mrgc.wire.headers import TENANT
from mrgc.wire.queue_urls import parse_sqs
from tasks.sqs_broker import parse_broker
from worker import emf
from worker.metrics import Metrics
from worker.queue_policy import queue_policy
from worker.registry import Registry
from worker.settings import EdgeSettings, WorkerSettings
from worker.sources.sqs_layout import LEAST_RECEIVES

INFRA: Final = Path(__file__).parents[2] / "infra"
TEMPLATES: Final = ("template.yaml", "tenant.yaml")
PSEUDO: Final = {"Partition": "aws", "Region": "eu-west-1", "AccountId": "111122223333", "URLSuffix": "amazonaws.com"}
TENANT_ROLE: Final = "arn:aws:iam::444455556666:role/acme"
QUEUE_ARN: Final = "arn:aws:sqs:eu-west-1:111122223333:mrgc-acme"
WORKER_ROLE: Final = "arn:aws:iam::111122223333:role/mrgc-worker"
#: The least that a worker is told.
WORKER_ENVIRON: Final = {
    "MRGC_QUEUE_URL": "redis://h/0",
    "MRGC_BROKER_URL": "redis://h/1",
    "MRGC_RESULTS_URL": "file:///r/",
    "MRGC_REGISTRY": "/t",
    "MRGC_ENGINES": "unix:/e",
}


class Loader(yaml.SafeLoader):  # type: ignore[misc]  # the package has no types
    """YAML with CloudFormation's short forms, kept as {"Fn": argument}."""


Loader.add_multi_constructor(
    "!",
    lambda loader, name, node: {
        f"!{name}": loader.construct_scalar(node)
        if isinstance(node, yaml.ScalarNode)
        else loader.construct_sequence(node, deep=True)
    },
)


def template(name: str) -> dict[str, Any]:
    """Return a template as CloudFormation reads it."""
    loaded: dict[str, Any] = yaml.load((INFRA / name).read_text(), Loader)  # noqa: S506  a SafeLoader
    return loaded


def resolved(value: Any, parameters: dict[str, str], arns: dict[str, str]) -> Any:
    """Return a value with references filled in."""
    match value:
        case {"!Ref": name}:
            return parameters[name]
        case {"!GetAtt": name}:
            return arns[name]
        case {"!Sub": text}:
            return re.sub(r"\$\{(?:AWS::)?([\w.]+)\}", lambda m: (PSEUDO | parameters | arns)[m[1]], text)
        case dict():
            return {key: resolved(each, parameters, arns) for key, each in value.items()}
        case list():
            return [resolved(each, parameters, arns) for each in value]
    return value


def resources(name: str, kind: str) -> dict[str, dict[str, Any]]:
    """Return the properties of all resources of a kind."""
    found = template(name)["Resources"]
    return {key: each["Properties"] for key, each in found.items() if each["Type"] == kind}


def statements() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every statement of every role's policies."""
    for name in TEMPLATES:
        for role, properties in resources(name, "AWS::IAM::Role").items():
            for policy in properties["Policies"]:
                for statement in policy["PolicyDocument"]["Statement"]:
                    yield f"{role}/{policy['PolicyName']}", statement


def test_cloudformations_own_rules_hold() -> None:
    """cfn-lint finds no error, no warning and nothing to say."""
    linter = str(Path(sys.executable).with_name("cfn-lint"))
    command = [linter, "--include-checks", "I", "--", *(str(INFRA / name) for name in TEMPLATES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=55, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_role_may_do_what_it_needs_on_what_is_its_own() -> None:
    """No action has a wildcard, and no resource is everything."""
    found = dict.fromkeys((name for name, _ in statements()), 0)
    assert {"HostRole/queues", "HostRole/results", "HostRole/keys", "HostRole/lifecycle"} <= found.keys()
    for name, statement in statements():
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        assert statement["Effect"] == "Allow"
        assert not any("*" in action for action in actions), name
        for resource in statement["Resource"] if isinstance(statement["Resource"], list) else [statement["Resource"]]:
            assert resource != "*", name
        assert not [
            each for each in actions if re.search(r"Delete(Object|Queue)|Purge|Create(Queue|Grant)|Policy", each)
        ]


def test_the_role_decrypts_for_the_named_enclave_only() -> None:
    """The condition is KMS's own: the image's measurement, which the tenant's key policy demands too."""
    ((_, keys),) = [(name, each) for name, each in statements() if name == "HostRole/keys"]
    assert keys["Action"] == "kms:Decrypt"
    assert keys["Condition"] == {"StringEqualsIgnoreCase": {"kms:RecipientAttestation:ImageSha384": {"!Ref": "Pcr0"}}}


@pytest.mark.parametrize(
    ("policy", "queue", "tenant"), [("JobsPolicy", "", TENANT_ROLE), ("DeadLettersPolicy", "_dead", None)]
)
def test_a_tenants_queue_has_the_policy_that_the_command_writes(policy: str, queue: str, tenant: str | None) -> None:
    """Template and `python -m worker.access sqs` say the same."""
    document = resources("tenant.yaml", "AWS::SQS::QueuePolicy")[policy]["PolicyDocument"]
    parameters = {"Tenant": "acme", "TenantPrincipal": TENANT_ROLE}
    arns = {"Jobs.Arn": QUEUE_ARN, "DeadLetters.Arn": f"{QUEUE_ARN}_dead"}
    written = queue_policy(queue_arn=QUEUE_ARN + queue, worker_role=WORKER_ROLE, tenant_principal=tenant)
    assert resolved(document, parameters, arns) == written


def test_the_queues_are_named_and_set_up_as_the_worker_expects() -> None:
    """Names, receive counts and the visibility of the control queue are those of the code; each redrives to its own."""
    jobs = resources("tenant.yaml", "AWS::SQS::Queue")
    tenants = parse_sqs("https://sqs.eu-west-1.amazonaws.com/111122223333/mrgc-{tenant}")
    names = {key: resolved(each["QueueName"], {"Tenant": "acme"}, {}) for key, each in jobs.items()}
    assert names == {
        "Jobs": tenants.queue("acme").rpartition("/")[2],
        "DeadLetters": tenants.dead("acme").rpartition("/")[2],
    }
    assert jobs["Jobs"]["RedrivePolicy"]["maxReceiveCount"] == LEAST_RECEIVES
    assert jobs["DeadLetters"]["RedriveAllowPolicy"]["redrivePermission"] == "byQueue"
    control = resources("template.yaml", "AWS::SQS::Queue")
    url = resolved(template("template.yaml")["Outputs"]["BrokerUrl"]["Value"], {}, {})
    broker = parse_broker(url, ("control",))
    assert control["ControlQueue"]["QueueName"] == broker.queues["control"].rpartition("/")[2]
    assert control["ControlQueue"]["VisibilityTimeout"] == provision.CONTROL_VISIBILITY_S
    assert control["ControlQueue"]["RedrivePolicy"]["maxReceiveCount"] == provision.CONTROL_RECEIVES


def test_a_tenants_parameter_is_a_tenants_name() -> None:
    """Whatever the template takes, the registry takes."""
    pattern = template("tenant.yaml")["Parameters"]["Tenant"]["AllowedPattern"]
    assert pattern == TENANT.pattern


def test_the_fleet_waits_for_a_drain() -> None:
    """The hook outlasts MRGC_DRAIN_S and what follows it, goes on by itself; instances have IMDSv2 and enclaves."""
    drain_s = WorkerSettings.from_env(WORKER_ENVIRON).drain_s
    (fleet,) = resources("template.yaml", "AWS::AutoScaling::AutoScalingGroup").values()
    (hook,) = fleet["LifecycleHookSpecificationList"]
    assert hook["LifecycleTransition"] == "autoscaling:EC2_INSTANCE_TERMINATING"
    assert hook["HeartbeatTimeout"] >= drain_s + 15
    assert hook["DefaultResult"] == "CONTINUE"
    (host,) = resources("template.yaml", "AWS::EC2::LaunchTemplate").values()
    assert host["LaunchTemplateData"]["MetadataOptions"]["HttpTokens"] == "required"
    assert host["LaunchTemplateData"]["EnclaveOptions"] == {"Enabled": True}
    assert "HostRole" in str(resources("template.yaml", "AWS::IAM::InstanceProfile"))


def test_the_example_of_a_registry_is_accepted() -> None:
    """Each key that it shows is one that the worker knows."""
    found = Registry(INFRA / "tenants.example.toml").tenants
    assert (found["acme"].weight, found["globex"].exclusive) == (2, True)


def own_metrics(document: object) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Yield name and dimensions of every metric of our own namespace in a template."""
    if isinstance(document, dict):
        if document.get("Namespace") == {"!Ref": "Namespace"}:
            yield document["MetricName"], document["Dimensions"]
        for each in document.values():
            yield from own_metrics(each)
    elif isinstance(document, list):
        for each in document:
            yield from own_metrics(each)


def test_alarms_and_scaling_use_metrics_that_are_written() -> None:
    """Every name is one of worker.emf's, under its Service; the namespace is one that MRGC_EMF_NAMESPACE takes."""
    found = list(own_metrics(template("template.yaml")["Resources"]))
    assert {"BacklogJobs", "WorkerReady", "DeadLetters"} <= {name for name, _ in found} <= set(emf.METRICS)
    assert all(dimensions == [{"Name": "Service", "Value": emf.SERVICE}] for _, dimensions in found)
    namespace = template("template.yaml")["Parameters"]["Namespace"]["Default"]
    environ = {"MRGC_QUEUE_URL": "redis://h/0", "MRGC_REGISTRY": "/t", "MRGC_EMF_NAMESPACE": namespace}
    assert EdgeSettings.from_env(environ).emf_namespace == namespace


def test_the_cloudwatch_dashboard_shows_metrics_that_are_written() -> None:
    """Every metric of ours is one of worker.emf's, and all of them are shown."""
    text = (INFRA / "dashboards" / "cloudwatch.json").read_text()
    json.loads(text)
    shown = set(re.findall(r'\["mrgc", "(\w+)", "Service", "mrgc"\]', text))
    shown |= set(re.findall(r'MAX\((\w+)\) FROM SCHEMA\(\\"mrgc\\", Service, Tenant\)', text))
    assert shown == set(emf.METRICS)


def test_the_grafana_dashboard_shows_metrics_that_exist() -> None:
    """Every name in an expression is a sample of a worker, or a counter of an agent."""
    dashboard = json.loads((INFRA / "dashboards" / "grafana.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    used = {name for expression in expressions for name in re.findall(r"\bmrgc_\w+", expression)}
    worker = {family.name: family.type for family in Metrics().registry.collect()}
    exported = {f"{name}_total" if kind == "counter" else name for name, kind in worker.items()}
    exported |= {
        f"{name}_{part}" for name, kind in worker.items() if kind == "histogram" for part in ("bucket", "sum", "count")
    }
    agent = re.findall(
        r"`(mrgc_enclave_\w+)`(?:, `(mrgc_enclave_\w+)`)? \| counter",
        (INFRA.parent / "docs" / "operations.md").read_text(),
    )
    exported |= {f"{name}_total" for names in agent for name in names if name}
    assert used <= exported
    assert {"mrgc_backlog_jobs", "mrgc_ready"} <= used
    assert len(dashboard["panels"]) == len({panel["id"] for panel in dashboard["panels"]})
