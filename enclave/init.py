#!/usr/bin/python3.11 -IBu
"""The first process in the enclave: mounts, modules, heartbeat, then the application as an ordinary user.

The kernel starts it as /init from ramdisk 1; the interpreter lies in ramdisk 2. It brings up no network interface, not
even loopback, and when the application ends, or anything here fails, the enclave ends: its supervisor on the parent
starts another one. What the application must be told stands on the kernel's command line, which PCR0 and PCR1 cover.

Run by the kernel only. May import: the standard library, and of that only what the image has.
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys
from pathlib import Path
from typing import Final, NoReturn

PARENT_CID: Final = 3  #: AWS: Nitro Enclaves User Guide: the parent, as seen from its enclave.
HEARTBEAT_PORT: Final = 9_000  #: aws-nitro-enclaves-sdk-bootstrap, init/init.c: nitro-cli waits for it on the parent.
HEARTBEAT: Final = b"\xb7"
HEARTBEAT_S: Final = 30.0
APPLICATION: Final = ("/usr/bin/python3.11", "-IBu", "-m", "enclave.enclave_app")
#: Nobody else's: the application owns no file and needs no privilege, /dev/nsm is open to all.
USER_ID: Final = 65_534

MODULES: Final = Path("/modules")
MODULES_DISABLED: Final = Path("/proc/sys/kernel/modules_disabled")
_PREFIX: Final = "mrgc."
_PARENT_CID: Final = "parent_cid"

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT = 1, 2, 4, 8, 32  # mount(2)
_FINIT_MODULE: Final = 313  # x86-64's syscall table; glibc has no function for it
_RB_AUTOBOOT: Final = 0x01234567  # reboot(2)
_PR_SET_NO_NEW_PRIVS: Final = 38  # prctl(2)


def main() -> NoReturn:
    """Boot, run the application until it ends, and end the enclave."""
    try:
        mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
        mount("devtmpfs", "/dev", "devtmpfs", _MS_NOSUID | _MS_NOEXEC)
        command_line = Path("/proc/cmdline").read_text(encoding="ascii")
        load_modules(command_line)
        # Nothing that runs later can change the kernel or a file of the image.
        if MODULES_DISABLED.exists():  # A kernel that knows no modules has no such switch.
            MODULES_DISABLED.write_text("1")
        mount("rootfs", "/", "", _MS_REMOUNT | _MS_RDONLY)
        options = own_options(command_line)
        heartbeat(int(options.get(_PARENT_CID, PARENT_CID)))
        say(f"the application ended with status {run(options)}")
    except (OSError, ValueError) as error:
        say(f"{type(error).__name__}: {error}")
    _libc().reboot(_RB_AUTOBOOT)
    sys.exit(1)  # The kernel panics when its first process ends, which ends the enclave as well.


def own_options(command_line: str) -> dict[str, str]:
    """Return the words `mrgc.NAME=VALUE` of the kernel's command line; the dot keeps the kernel from passing them on.

    Raises:
        ValueError: a name occurs twice: which one counts must not depend on who reads.
    """
    pairs = [word.removeprefix(_PREFIX).split("=", 1) for word in command_line.split() if word.startswith(_PREFIX)]
    options: dict[str, str] = dict(pairs)
    if len(options) != len(pairs):
        raise ValueError("an option occurs twice on the command line")
    return options


def module_parameters(module: str, command_line: str) -> str:
    """Return the words `MODULE.NAME=VALUE` of the kernel's command line, as that module's own parameters.

    The kernel itself does so for what is built in; for a module it is the loader's work.
    """
    prefix = module.removesuffix(".ko").replace("-", "_") + "."
    return " ".join(word.removeprefix(prefix) for word in command_line.split() if word.startswith(prefix))


def load_modules(command_line: str) -> None:
    """Load the modules of ramdisk 1 in their order.

    Raises:
        OSError: the kernel refuses one.
    """
    for name in (MODULES / "order").read_text(encoding="ascii").split():
        with (MODULES / name).open("rb") as file:
            parameters = module_parameters(name, command_line).encode()
            _check(_libc().syscall(_FINIT_MODULE, file.fileno(), parameters, 0), f"module {name}")


def heartbeat(parent_cid: int) -> None:
    """Tell the parent that the enclave has booted, and demand its echo.

    Raises:
        OSError: nobody listens there.
        ValueError: something else than the echo came back.
    """
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as sock:
        sock.settimeout(HEARTBEAT_S)
        sock.connect((parent_cid, HEARTBEAT_PORT))
        sock.sendall(HEARTBEAT)
        if sock.recv(1) != HEARTBEAT:
            raise ValueError("the parent did not echo the heartbeat")


def run(options: dict[str, str]) -> int:
    """Run the application without privileges and return its wait status.

    Args:
        options: become `--NAME=VALUE`; one that the application does not know ends it.
    """
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    application = os.fork()
    if application == 0:
        _become_application([*APPLICATION, *arguments])
    while True:
        # Everything that is orphaned in the enclave becomes ours; only the application's end counts.
        process, status = os.wait()
        if process == application:
            return status


def say(text: str) -> None:
    """Write a line to the console, which a parent can read of an enclave in debug mode only."""
    sys.stdout.write(f"init: {text}\n")


def mount(source: str, target: str, kind: str, flags: int) -> None:
    """Mount a file system (mount(2)).

    Raises:
        OSError: the kernel refuses.
    """
    _check(_libc().mount(source.encode(), target.encode(), kind.encode(), flags, None), f"mount {target}")


def _become_application(command: list[str]) -> NoReturn:
    try:
        os.setgroups([])
        os.setresgid(USER_ID, USER_ID, USER_ID)
        os.setresuid(USER_ID, USER_ID, USER_ID)
        _check(_libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
        os.execve(command[0], command, {})  # noqa: S606  there is no shell to avoid
    finally:
        # Reached only when one of them failed: a half-made child must not go on as a second init.
        os._exit(127)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), what)


if __name__ == "__main__":
    main()
