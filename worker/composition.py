"""Builds the intake of this host from its settings, and the HTTP server that shows how it does.

May import: the standard library, mrgc.errors, worker. Called by tasks.intake_step.
"""

from __future__ import annotations

import secrets
import socket
from http import HTTPStatus

from mrgc.errors import ConfigError
from mrgc.wire.queue_urls import is_sqs
from worker import metrics
from worker.health import HttpServer, Page, health_page, readiness_page
from worker.intake import Intake
from worker.notices import Notifier
from worker.redis_notices import RedisNotices
from worker.registry import Registry
from worker.settings import HttpAddress, WorkerSettings
from worker.sns_notices import SnsNotices
from worker.sources.brokers import open_source
from worker.sources.redis_streams import connect


def build_intake(settings: WorkerSettings) -> Intake:
    """Wire an intake to its broker; nothing is sent and no thread runs before it is started.

    Raises:
        ConfigError: the registry cannot be read, or a setting does not fit the broker.
    """
    source = open_source(settings.queue_url, consumer=consumer_name(), lease_s=settings.lease_s)
    return Intake(settings, source=source, registry=Registry(settings.registry), notifier=open_notifier(settings))


def open_notifier(settings: WorkerSettings) -> Notifier | None:
    """Make the way to tell tenants of ended jobs; nothing is sent before it is used.

    Raises:
        ConfigError: MRGC_NOTICES is malformed, or names a stream where there is no Redis.
    """
    at_redis = not is_sqs(settings.queue_url)
    match settings.notices or ("stream" if at_redis else "off"):
        case "off":
            return None
        case "stream":
            if not at_redis:
                raise ConfigError("MRGC_NOTICES is stream, which needs a Redis in MRGC_QUEUE_URL")
            return RedisNotices(connect(settings.queue_url))
        case topic:
            return SnsNotices(topic)


def consumer_name() -> str:
    """Return a name for this boot of this host: a lease of an earlier boot must not look like ours."""
    return f"{socket.gethostname()}-{secrets.token_hex(4)}"


def serve_http(intake: Intake, address: HttpAddress) -> HttpServer:
    """Serve /healthz, /readyz and /metrics of an intake.

    Raises:
        OSError: the address is taken.
    """

    def metrics_page() -> Page:
        intake.measure()
        return Page(HTTPStatus.OK, metrics.CONTENT_TYPE, intake.metrics.render())

    pages = {"/healthz": health_page, "/readyz": lambda: readiness_page(intake.readiness()), "/metrics": metrics_page}
    return HttpServer(address, pages)
