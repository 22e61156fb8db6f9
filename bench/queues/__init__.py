"""Jobs per second from queue to acknowledgement, ours beside two ways of doing the same work with Celery alone."""
