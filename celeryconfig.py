"""Celery's settings: the control plane only. Tenants' jobs never travel through Celery (docs/adr/).

Every line says why. This is the one module that reads the environment when it is imported, because Celery imports it
by name to configure itself.
"""

from __future__ import annotations

import os

from celery.schedules import crontab
from kombu import Exchange, Queue

from mrgc.errors import ConfigError
from mrgc.wire.queue_urls import is_sqs
from tasks.sqs_broker import parse_broker

if not os.environ.get("MRGC_BROKER_URL"):
    # Celery would fall back to amqp://localhost without a word.
    raise ConfigError("MRGC_BROKER_URL is not set")

broker_url = os.environ["MRGC_BROKER_URL"]  # another database, or other queues, than the tenants'
broker_connection_retry_on_startup = True  # the order in which services boot does not matter
broker_connection_max_retries = None  # never give up: the data plane goes on without the control plane

task_serializer = "json"  # no pickle from a shared broker
accept_content = ["json"]  # everything else is refused before it is decoded
result_backend = None  # results are sealed objects in the object store, never in a broker
task_ignore_result = True  # so no result keys and no reply queues
task_acks_late = True  # a control task survives a crash
task_create_missing_queues = False  # a misspelt name must not make a queue
task_default_queue = "control"  # tenants' queues are never kombu queues
task_queues = (  # each with an exchange of its own, or kombu would bind both to both
    Queue("control", Exchange("control"), "control"),
    Queue("infer", Exchange("infer"), "infer"),  # consumed only by an edge worker, -Q infer
)
task_routes = {"tasks.infer": {"queue": "infer"}}  # in-house producers send by name and need no routing of their own

worker_consumer = "tasks.consumer:PlainConsumer"  # runs plain calls only: no callbacks, chords or built-in tasks
worker_pool = "threads"  # the intake's sockets and locks do not survive a fork
worker_concurrency = 4  # control tasks only; nothing about inference is sized by this
worker_prefetch_multiplier = 1  # a control task is never hoarded
worker_cancel_long_running_tasks_on_connection_loss = False  # threads cannot be cancelled; late acks redeliver
worker_soft_shutdown_timeout = 0.0  # with a soft shutdown the worker would go on receiving while it drains
worker_redirect_stdouts = False  # standard error belongs to the JSON logs
worker_hijack_root_logger = False  # so do the handlers of the root logger
worker_send_task_events = False  # no traffic per task unless somebody asks for it

beat_scheduler = "celery.beat:Scheduler"  # in memory: beat needs no file, and what it forgets the clock knows
beat_schedule = {  # `expires`: without a worker a call is dropped before the next one comes, never caught up with
    "backlog": {  # once a minute, the shortest period of an ordinary CloudWatch metric
        "task": "tasks.control.backlog",
        "schedule": 60.0,
        "options": {"expires": 55.0},
    },
    "health": {  # as often: an alarm on its silence tells that no worker answers the control queue
        "task": "tasks.control.health",
        "schedule": 60.0,
        "options": {"expires": 55.0},
    },
    "purge": {  # at a minute of the hour, not after an interval, so that a beat that restarts often still gets to it
        "task": "tasks.control.purge_all",
        "schedule": crontab(minute=17),
        "options": {"expires": 3_000.0},
    },
}

broker_transport_options: dict[str, object]
if is_sqs(broker_url):
    _broker = parse_broker(broker_url, ("control", "infer"))
    broker_url = _broker.url  # no key in it: boto3's default chain finds the instance's role
    task_acks_on_failure = False  # a task that failed stays, and the redrive policy moves it to the dead letters
    worker_disable_prefetch = False  # kombu has it for Redis only, and warns
    worker_enable_remote_control = False  # it needs fanout, which SQS lacks, and would make a reply queue per process
    broker_transport_options = {
        "is_secure": _broker.is_secure,  # http:// is a stand-in on this machine
        "region": _broker.region,  # as the URL says; without it kombu would sign for us-east-1
        # No right to list or create queues is needed, and a misspelt name is an error.
        "predefined_queues": {name: {"url": url} for name, url in _broker.queues.items()},
        "visibility_timeout": 900,  # for whoever reads this: with predefined queues the queue's own attribute counts
        "wait_time_seconds": 10,  # one open request in place of one per second; a drain does not wait for it
        "polling_interval": 1,  # seconds after a poll that found nothing or failed; 0 would spin
        "sqs_base64_encoding": False,  # readable, a quarter smaller; what others send in base64 is read too
        "client-config": {  # of the calls that send and delete; boto3's own would hang a publish for minutes
            "connect_timeout": 3,
            "read_timeout": 15,
            "retries": {"mode": "standard", "total_max_attempts": 3},
        },
    }
else:
    task_acks_on_failure = True  # on Redis a rejected message is deleted anyway; the failure is in the log
    worker_disable_prefetch = True  # a task is taken only when a thread is free for it
    worker_enable_remote_control = True  # inspect mrgc_health and mrgc_backlog, ping, shutdown
    broker_transport_options = {
        "global_keyprefix": "ctl:",  # one prefix for an ACL; kombu's own key names are shared by everybody
        "visibility_timeout": 900,  # longer than the longest control task; the default of an hour delays recovery
        "unacked_restore_interval": 5,  # with the next line: lost control tasks are looked for every 5 s
        "unacked_restore_throttle": 1,  # … instead of at every tenth interval
        "unacked_restore_limit": 1_000,  # … and not all in one command
        "max_connections": 32,  # fewer than threads + 8 gives "couldn't ack", and then duplicates
        "socket_connect_timeout": 5,  # seconds; a half-open broker must not hang a publish for ever
        "socket_timeout": 30,  # seconds; likewise
        "socket_keepalive": True,  # notices a peer that vanished without a word
        "health_check_interval": 10,  # seconds; notices a dead blocking pop in about twice this
        "retry_on_timeout": False,  # a push that is retried is a duplicate
        "priority_steps": [0],  # one key per queue instead of four
        "client_name": "mrgc-control",  # a readable CLIENT LIST
    }
