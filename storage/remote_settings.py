"""The remotes that `.dvc/config` and `.git/config` name: naming them, and reading those that came from elsewhere.

A shared address (s3://, ssh://) stands in .dvc/config, which git keeps, so that a clone knows it; one that only means
something on this machine stands in .dvc/config.local. DVC is not asked: both are short text files.
"""

from __future__ import annotations

import configparser
import re
from pathlib import Path
from typing import TYPE_CHECKING

from flywheel.errors import InputError, RegistryError
from storage import git, lock
from storage.remote_urls import data_address, endpoint_address, is_local, redacted

if TYPE_CHECKING:
    from storage.registry import Registry

NAME = "data"
"""DVC's name of the remote that Flywheel names."""
_SECTION = f"'remote \"{NAME}\"'"
_LINE = re.compile(r"\s*([a-z_]+) = (?:\"([^\"'%#]*)\"|([^\"'%#\[\]]*))")
_HEAD = re.compile(r"\[(?:(core|cache)|'?remote \"([\w.-]+)\"'?)\]")
_KEYS = {
    "core": {"remote", "analytics", "check_update", "autostage", "site_cache_dir", "checksum_jobs"},
    "cache": {"dir", "type"},
    "remote": {
        "url", "endpointurl", "region", "port", "user", "jobs", "checksum_jobs", "timeout", "connect_timeout",
        "read_timeout", "max_sessions", "allow_anonymous_login",
    },
}  # fmt: skip
"""What a config from elsewhere may say: nothing that names a file or a program, carries a secret or weakens a check."""
_FIXED = {("cache", "dir"): "cache", ("core", "site_cache_dir"): ".flywheel/dvc"}


def name_data(registry: Registry, address: str, endpoint: str | None) -> bool:
    """Make `address` the default remote; whether anything changed. A shared one is committed ("Name the remote").

    Raises InputError for an address that is not taken, RegistryBusy where tracked files were edited by hand.
    """
    url = data_address(address)
    service = endpoint_address(endpoint) if endpoint else None
    if service is not None and not url.startswith("s3://"):
        raise InputError(f"got --endpoint with {redacted(url)}; only s3:// has one")
    values = {"url": url, **({"endpointurl": service} if service else {})}
    shared = not is_local(url)
    with lock.ensure(registry, "name the remote"):
        config, local = registry.root / ".dvc" / "config", registry.root / ".dvc" / "config.local"
        kept, own = _parsed(config), _parsed(local)
        # The local file wins over the shared one, so what it says of the address must go or be the new one.
        _forget(own)
        if shared:
            _forget(kept)
        _set(kept if shared else own, values)
        changed = False
        if shared and _text(kept) != _text(_committed(registry)):
            if _text(kept) != _text(_parsed(config)):
                registry.check_clean()
            _write(config, kept)
            _commit(registry, url)
            changed = True
        return _write(local, own) or changed


def check_foreign(text: str) -> list[str]:
    """What in a .dvc/config from elsewhere could run or redirect something; [] if nothing. Strict: what is not known
    to be harmless, or could be read in two ways, is named."""
    wrong, section = [], ""
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        head, pair = _HEAD.fullmatch(line.strip()), _LINE.fullmatch(line)
        if head:
            section = head[1] or "remote"
            continue
        if not pair or pair[1] not in _KEYS.get(section, set()):
            wrong.append(f"line {number} of .dvc/config: {redacted(line.strip())!r} in [{section}]")
            continue
        value = (pair[2] or pair[3] or "").strip()
        if value != _FIXED.get((section, pair[1]), value):
            wrong.append(f"line {number} of .dvc/config: {pair[1]} = {value!r}")
        try:
            if pair[1] == "url" and not (is_local(value) and value):
                data_address(value)
            if pair[1] == "endpointurl":
                endpoint_address(value)
        except InputError as error:
            wrong.append(f"line {number} of .dvc/config: {error}")
    return wrong


def name_locally(root: Path, name: str, address: str, endpoint: str | None, default: bool) -> None:
    """Name a remote in .dvc/config.local of the registry at `root`, as its default or beside it."""
    local = root / ".dvc" / "config.local"
    own = _parsed(local)
    values = {"url": address, **({"endpointurl": endpoint} if endpoint else {})}
    _set(own, values, name, default)
    _write(local, own)


def _set(parser: configparser.ConfigParser, values: dict[str, str], name: str = NAME, default: bool = True) -> None:
    section = f"'remote \"{name}\"'"
    if not parser.has_section(section):
        parser.add_section(section)
    for key, value in values.items():
        if '"' in value or "\n" in value:
            raise InputError(f"got {redacted(value)!r}, which a config file cannot hold; use a plainer path")
        parser.set(section, key, f'"{value}"' if set(value) & set(",#'") else value)
    if default:
        if not parser.has_section("core"):
            parser.add_section("core")
        parser.set("core", "remote", name)


def _forget(parser: configparser.ConfigParser) -> None:
    """Take out the address and that it is the default; credentials beside it stay."""
    for section, keys in ((_SECTION, ("url", "endpointurl")), ("core", ("remote",))):
        if parser.has_section(section):
            for key in keys:
                parser.remove_option(section, key)
            if not parser.options(section):
                parser.remove_section(section)


def _parsed(path: Path) -> configparser.ConfigParser:
    return _read(path.read_text(encoding="utf-8") if path.exists() else "", path)


def _committed(registry: Registry) -> configparser.ConfigParser:
    text = git.read_many(registry.root, ["HEAD:.dvc/config"])[0]
    return _read((text or b"").decode(), registry.root / ".dvc" / "config")


def _read(text: str, path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(text)
    except configparser.Error as error:
        raise RegistryError(f"{path} is not a DVC config: {error}; restore it with git") from error
    return parser


def _text(parser: configparser.ConfigParser) -> str:
    """As DVC writes it."""
    lines = []
    for section in parser.sections():
        lines.append(f"[{section}]")
        lines += [f"    {key} = {value}" for key, value in parser.items(section)]
    return "\n".join(lines) + "\n" if lines else ""


def _write(path: Path, parser: configparser.ConfigParser) -> bool:
    from storage.tables import replace_text

    text = _text(parser)
    if text == _text(_parsed(path)):
        return False
    if text:
        replace_text(path, text)
    else:
        path.unlink()
    return True


def _commit(registry: Registry, url: str) -> None:
    text = git.message("Name the remote", {"Flywheel-Remote": redacted(url)})
    git.run(registry.root, "add", "--", ".dvc/config")
    git.run(registry.root, "commit", "-q", "--cleanup=verbatim", "-F", "-", "--only", "--", ".dvc/config", stdin=text)
