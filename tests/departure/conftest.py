"""The workers of tests/tasks, on instances that go away."""

from tests.tasks.conftest import client, engine, environ, results, server, start_worker

__all__ = ["client", "engine", "environ", "results", "server", "start_worker"]
