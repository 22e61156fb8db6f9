"""Celery's settings: the control plane only. Tenants' jobs never travel through Celery (docs/adr/).

Every line says why. This is the one module that reads the environment when it is imported, because Celery imports it
by name to configure itself.
"""

from __future__ import annotations

import os

from celery.schedules import crontab
from kombu import Exchange, Queue

from mrgc.errors import ConfigError

if not os.environ.get("MRGC_BROKER_URL"):
    # Celery would fall back to amqp://localhost without a word.
    raise ConfigError("MRGC_BROKER_URL is not set")

broker_url = os.environ["MRGC_BROKER_URL"]  # another database than the tenants' queues
broker_connection_retry_on_startup = True  # the order in which services boot does not matter
broker_connection_max_retries = None  # never give up: the data plane goes on without the control plane

task_serializer = "json"  # no pickle from a shared broker
accept_content = ["json"]  # everything else is refused before it is decoded
result_backend = None  # results are sealed objects in the object store, never in a broker
task_ignore_result = True  # so no result keys and no reply queues
task_acks_late = True  # a control task survives a crash
task_acks_on_failure = True  # on Redis a rejected message is deleted anyway; the failure is in the log
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
worker_disable_prefetch = True  # a task is taken only when a thread is free for it
worker_cancel_long_running_tasks_on_connection_loss = False  # threads cannot be cancelled; late acks redeliver
worker_soft_shutdown_timeout = 0.0  # with a soft shutdown the worker would go on receiving while it drains
worker_redirect_stdouts = False  # standard error belongs to the JSON logs
worker_hijack_root_logger = False  # so do the handlers of the root logger
worker_send_task_events = False  # no traffic per task unless somebody asks for it
worker_enable_remote_control = True  # inspect mrgc_health and mrgc_backlog, ping, shutdown

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
