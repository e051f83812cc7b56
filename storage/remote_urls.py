"""Addresses of remotes: which are taken, and how they are shown. Nothing here looks at the network.

    data     /mnt/data   s3://bucket/path   ssh://host/path
    history  /mnt/history.git   ssh://host/path.git   host:path.git   https://host/path.git

An address never carries a secret: it stands in files, in messages and in other people's clones.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from flywheel.errors import InputError

_SECRETS = (
    "an address must not carry credentials: put them into the environment (AWS_ACCESS_KEY_ID, ...), ~/.aws, "
    "~/.ssh/config, git's credential helper or .dvc/config.local"
)
_SCP = re.compile(r"(?:[\w.-]+@)?[\w.-]+:(?!/?/)[^:@][^@]*")
"""git's short form, `user@host:path`."""
_USERINFO = re.compile(r"((?!ssh://)\b\w+://)[^\s'\"]*@|(\bssh://[^/@:\s'\"]*):[^\s'\"]*@")
"""Of ssh only what follows the user's name is a secret."""
_QUERY = re.compile(r"(://[^\s'\"?]*)\?[^\s'\"]*")


def redacted(text: str) -> str:
    """A text (an address, or another program's message) without what may be a secret in its addresses."""
    hidden = _USERINFO.sub(lambda found: f"{found[1]}***@" if found[1] else f"{found[2]}:***@", text)
    return _QUERY.sub(r"\1?***", hidden)


def is_local(url: str) -> bool:
    """Whether the address is a folder of this machine."""
    return "://" not in url and not _SCP.fullmatch(url)


def data_address(text: str) -> str:
    """The address of a remote for data; a local one absolute. Raises InputError for one that is not taken."""
    if is_local(text):
        return _local(text)
    parts = _checked(text)
    if parts.scheme not in {"s3", "ssh"} or not parts.hostname:
        raise InputError(f"got {redacted(text)!r} for the data, expected a folder, s3://bucket/path or ssh://host/path")
    return text.rstrip("/")


def git_address(text: str) -> str:
    """The address of a git repository; a local one absolute. Raises InputError for one that is not taken."""
    if text.startswith("-") or "::" in text:
        raise InputError(f"got {redacted(text)!r} for git, which may run programs; expected a path, ssh:// or https://")
    if _SCP.fullmatch(text):
        return text
    if is_local(text):
        return _local(text)
    parts = _checked(text)
    if parts.scheme == "file" and not parts.netloc:
        return _local(parts.path)
    if parts.scheme not in {"ssh", "https", "http"} or not parts.hostname:
        raise InputError(f"got {redacted(text)!r} for git, expected a path, ssh://host/path, host:path or https://")
    return text


def endpoint_address(text: str) -> str:
    """The address of an S3 service. Raises InputError for one that is not taken."""
    parts = _checked(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise InputError(f"got {redacted(text)!r} for --endpoint, expected http://host:port or https://host")
    return text.rstrip("/")


def _local(text: str) -> str:
    if not text or any(ord(letter) < 32 for letter in text):
        raise InputError(f"got the address {text!r}, expected the path of a folder")
    return str(Path(text).expanduser().absolute())


def _checked(text: str) -> SplitResult:
    if any(ord(letter) <= 32 for letter in text):
        raise InputError(f"got the address {redacted(text)!r}, expected one without spaces")
    try:
        parts = urlsplit(text)
        # A secret may hold slashes: any @ counts but the one after the user of ssh.
        _, _, rest = text.partition("://")
        user, found, after = rest.partition("@")
        secret = bool(found) and (parts.scheme != "ssh" or "@" in after or bool(set(user) & set(":/")))
        secret = secret or (parts.scheme == "s3" and ":" in rest.partition("/")[0])
        _ = parts.port
    except ValueError as error:
        raise InputError(f"got the address {redacted(text)!r}, which cannot be read: {error}") from error
    if secret or parts.query or parts.fragment:
        raise InputError(f"got {redacted(text)!r}; {_SECRETS}")
    return parts
