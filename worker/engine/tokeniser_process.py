"""A tokeniser process: `python -m worker.engine.tokeniser_process FD`, started by an engine and by nobody else.

It holds texts for the length of one request, so it is hardened as the engine is. It has one file descriptor, its end
of a socket pair, and ends when the engine's end is closed. It writes nothing anywhere: a library's last words could
quote a text.

May import: the standard library, mrgc.errors, worker.engine, worker.models.tokenizer.
"""

from __future__ import annotations

import os
import signal
import socket
import sys

from worker.engine import hardening


def main() -> int:
    """Tokenise until the engine hangs up; return the exit code."""
    hardening.use_erasing_allocator(os.environ)
    hardening.forbid_dumps()
    hardening.forbid_swap()
    # A service manager signals every process of a service; this one is needed until the engine has drained.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=int(sys.argv[1])) as sock:
        sock.settimeout(None)
        return _serve(sock)


def _serve(sock: socket.socket) -> int:
    # After hardening, as in worker.engine.__main__.
    from worker.engine import tokeniser_frames as frames  # noqa: PLC0415
    from worker.models.tokenizer import TextTokenizer  # noqa: PLC0415

    try:
        recipes = frames.receive_recipes(sock)
        tokenisers = [
            TextTokenizer(recipe.definition, max_tokens=recipe.max_tokens, vocabulary=recipe.vocabulary)
            for recipe in recipes
        ]
        frames.send_answer(sock, [])
        while True:
            request = frames.receive_request(sock)
            frames.send_answer(sock, tokenisers[request.recipe].tokenise(request.texts))
            del request
    except (EOFError, OSError):
        return 0


if __name__ == "__main__":
    sys.exit(main())
