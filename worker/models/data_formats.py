"""Which files a model folder may hold: data formats, told by suffix and by the bytes themselves.

A suffix is a promise of whoever wrote the folder, so each is kept to: JSON is JSON, text is text, and no file begins
like a format that carries a program, whatever it is called. Nothing here unpacks or executes what it judges.

May import: the standard library, mrgc.errors, mrgc.wire. Called by worker.models.folder.
"""

from __future__ import annotations

import re
from typing import Any, Final

from mrgc.errors import ConfigError, FormatError
from mrgc.wire import strict_json

WEIGHTS_SUFFIX: Final = ".safetensors"
#: Most bytes of a file, by suffix; other suffixes are refused. Weights: what a host of today would hold in memory.
#: JSON and text: twice the largest published tokenizer.json.
MAX_BYTES: Final = {WEIGHTS_SUFFIX: 64 << 30, ".json": 64 << 20, ".txt": 64 << 20}

#: A plain file name: no folder, nothing hidden.
_FILE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

#: First bytes of formats that hold programs, or other files that may.
_MAGICS: Final = {
    b"PK\x03\x04": "a zip archive, as torch.save, TorchScript, .pt2 and .npz are",
    b"PK\x05\x06": "a zip archive",
    b"PK\x07\x08": "a zip archive",
    **{bytes([0x80, protocol]): "a pickle" for protocol in range(2, 8)},
    b"\x93NUMPY": "a numpy file, which may hold pickled objects",
    b"\x7fELF": "a program",
    b"#!": "a script",
    b"\x89HDF": "an hdf5 file, which may hold pickled layers",
    b"\x1f\x8b": "a compressed file",
    b"BZh": "a compressed file",
    b"\xfd7zXZ": "a compressed file",
    b"\x28\xb5\x2f\xfd": "a compressed file",
    b"7z\xbc\xaf": "an archive",
}
#: How a tar archive, torch's oldest format, is told: its magic stands at this offset.
_TAR_AT: Final = 257
#: How many first bytes tell a format.
HEAD_BYTES: Final = 512
#: A pickle of protocol 0 is text: marks, then a global (`cos\nsystem\n`) or a container; at its end STOP, a full stop
#: without a line end, which lists of words do not have. One that only holds a number or a string is not looked for.
_TEXT_PICKLE: Final = re.compile(
    rb"\(*(?:[ci][A-Za-z_][\w.]*\r?\n[A-Za-z_]\w*\r?\n|[dlt]p[0-9]+\r?\n|[dl]\(?[VSIFLN]).*\.", re.DOTALL
)
#: What text consists of beside printable characters. The other control characters are those of binary formats.
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0e-\x1f]")

#: Keys by which transformers, diffusers and others find code to load beside a model.
REMOTE_CODE_KEYS: Final = frozenset(
    {"auto_map", "code_revision", "custom_generate", "custom_pipeline", "custom_pipelines", "trust_remote_code"}
)
#: Files that have tokens for keys: any word may be one. None of their readers looks for code.
_TOKEN_TABLES: Final = frozenset({"tokenizer.json", "vocab.json", "added_tokens.json"})
_MAX_VALUES: Final = 262_144


def ensure_name(name: str) -> None:
    """Raise ConfigError unless this is a plain file name whose suffix is one of a data format."""
    if not _FILE_NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is not a file name that a model folder may hold")
    if _suffix(name) not in MAX_BYTES:
        raise ConfigError(f"{name} is not a data format that a model folder may hold: {', '.join(MAX_BYTES)}")


def ensure_size(name: str, size_bytes: int) -> None:
    """Raise ConfigError if a file is longer than its format's cap."""
    cap_bytes = MAX_BYTES[_suffix(name)]
    if size_bytes > cap_bytes:
        raise ConfigError(f"{name} is over its size limit: {size_bytes} bytes, at most {cap_bytes}")


def is_weights(name: str) -> bool:
    """Tell whether a file holds tensors; its content is judged by its header, not by `ensure_content`."""
    return name.endswith(WEIGHTS_SUFFIX)


def ensure_head(name: str, head: bytes) -> None:
    """Raise ConfigError if a file's first HEAD_BYTES bytes are those of a format that may hold a program."""
    # A header of 640 bytes has the length 80 02 00 … and is no pickle: in safetensors the ninth byte opens the JSON.
    if is_weights(name) and head[5:9] == b"\0\0\0{":
        return
    for magic, what in _MAGICS.items():
        if head.startswith(magic):
            raise ConfigError(f"{name} is {what}")
    if head[_TAR_AT : _TAR_AT + 5] == b"ustar":
        raise ConfigError(f"{name} is an archive")


def ensure_content(name: str, content: bytes) -> None:
    """Raise ConfigError unless the bytes of a .json or .txt file are such, and name no code to be loaded."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{name} is not utf-8 text") from None
    if _CONTROL.search(text):
        raise ConfigError(f"{name} is not text: it has control characters, as pickles do")
    if _TEXT_PICKLE.fullmatch(content):
        raise ConfigError(f"{name} is a pickle in text form")
    if name.endswith(".json"):
        _ensure_json(name, content)


def _ensure_json(name: str, content: bytes) -> None:
    if name in _TOKEN_TABLES:
        # A table of a million tokens is left to the tokeniser's own parser; here it has to look like an object.
        if not (content.lstrip()[:1] == b"{" and content.rstrip()[-1:] == b"}"):
            raise ConfigError(f"{name} is not a json object")
        return
    try:
        fields = strict_json.parse(content, max_values=_MAX_VALUES)
    except FormatError as error:
        raise ConfigError(f"{name} is not strict json") from error
    _ensure_no_code(name, fields)


def _ensure_no_code(name: str, value: Any) -> None:
    if isinstance(value, list):
        for each in value:
            _ensure_no_code(name, each)
    elif isinstance(value, dict):
        if found := sorted(REMOTE_CODE_KEYS & value.keys()):
            raise ConfigError(f"{name} names code to be loaded: {found[0]}; a model here is data alone")
        for each in value.values():
            _ensure_no_code(name, each)


def _suffix(name: str) -> str:
    return name[name.rfind(".") :]
