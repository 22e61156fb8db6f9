"""The GPU host: intake, engine and enclave agent. Never imports celery, tasks, enclave or infra."""
