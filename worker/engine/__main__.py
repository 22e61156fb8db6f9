"""The engine process: `python -m worker.engine`.

Hardens itself first and loads everything else after: hardening starts the program anew, and torch takes seconds to
import. Exit codes: 0 after SIGTERM or SIGINT with everything answered, 1 after a fault, 2 if it cannot start.

May import: the standard library, worker.engine.
"""

from __future__ import annotations

import os
import sys

from worker.engine import hardening


def main() -> int:
    """Serve until SIGTERM or SIGINT; return the exit code."""
    hardening.use_erasing_allocator(os.environ)
    hardening.forbid_dumps()
    hardening.forbid_swap()
    from worker.engine import process  # noqa: PLC0415  see the module's docstring

    return process.run(os.environ)


if __name__ == "__main__":
    sys.exit(main())
