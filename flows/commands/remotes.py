"""A registry on several machines, and room on this one: push, pull, clone, gc."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.commands import output
from flows.commands.options import DEFAULT_REGISTRY, Json, RegistryPath
from flywheel.errors import InputError

RemoteUrl = Annotated[
    str | None,
    typer.Option("--remote", metavar="URL", help="For the data: a folder, s3://bucket/path, ssh://host/path."),
]
Endpoint = Annotated[str | None, typer.Option(metavar="URL", help="Of an S3 service other than Amazon's.")]


def push(
    registry: RegistryPath = DEFAULT_REGISTRY,
    remote: RemoteUrl = None,
    git: Annotated[
        str | None, typer.Option("--git", metavar="URL", help="For the history; a path that is not there is made.")
    ] = None,
    endpoint: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Send data of all generations to the remote, then the history. Addresses are named once and remembered."""
    from storage import exchange
    from storage.registry import Registry

    done = exchange.push(Registry.open(registry), remote, git, endpoint)
    output.show(as_json, done, _push_text(done))


def pull(
    generations: Annotated[list[str] | None, typer.Argument(help="Whose data to bring, e.g. gen/4.")] = None,
    registry: RegistryPath = DEFAULT_REGISTRY,
    everything: Annotated[bool, typer.Option("--all", help="Data of all generations.")] = False,
    drop_unfinished: Annotated[
        bool, typer.Option("--drop-unfinished", help="Drop a generation that is unfinished here, where others went on.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Follow the history that others sent, and bring data: by default what the head needs to go on."""
    from storage import exchange
    from storage.addresses import parse
    from storage.registry import Registry

    opened = Registry.open(registry)
    addresses = [parse(text) for text in generations or []]
    if wrong := [str(address) for address in addresses if address.kind != "generation"]:
        raise InputError(f"got {wrong[0]}, expected generations such as gen/4")
    numbers = [address.generation for address in addresses if address.generation is not None]
    done = exchange.pull(opened, numbers, everything, drop_unfinished)
    output.show(as_json, done, _pull_text(done))


def clone(
    source: Annotated[str, typer.Argument(help="A git address, or the folder of a registry.")],
    target: Annotated[Path, typer.Argument(help="The folder to make.")],
    at: Annotated[str | None, typer.Option(metavar="GEN", help="Bring this generation's data too, e.g. gen/4.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Bring the data of all generations.")] = False,
    remote: RemoteUrl = None,
    endpoint: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Make a registry out of another one, ready to go on. Nothing of the source is run."""
    from storage import clone as clones
    from storage.addresses import parse

    address = parse(at) if at else None
    if address is not None and address.kind != "generation":
        raise InputError(f"--at: got {address}, expected a generation such as gen/4")
    done = clones.clone(source, target, address.generation if address else None, everything, remote, endpoint)
    number, count = done["head"], done["generations"]
    head = "no generation yet" if number is None else f"{count} generations, head gen/{number}"
    text = f"Made {done['registry']}: {head}, {done['objects']} objects brought"
    output.show(as_json, done, text + (f" from {done['remote']}." if done["remote"] else "."))


def gc(
    keep_last: Annotated[int, typer.Option("--keep-last", min=1, help="Generations of each line that stay whole.")] = 5,
    registry: RegistryPath = DEFAULT_REGISTRY,
    tables: Annotated[
        bool, typer.Option("--tables", help="Small tables of older generations too: labels, evaluations, ...")
    ] = False,
    unpushed: Annotated[
        bool, typer.Option("--unpushed", help="Also what no remote is known to have: lost for good.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, do nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Take data out of the cache that nothing here needs soon and that the remote has; it comes back when asked for."""
    from storage import gc as collector
    from storage.registry import Registry

    opened = Registry.open(registry)
    if dry_run or not yes:
        planned = collector.plan(opened, keep_last, tables, unpushed).document()
        if dry_run:
            output.show(as_json, planned, _gc_text(planned, "Would free"))
            return
        if not sys.stdin.isatty():
            raise InputError("gc asks before it acts, and stdin is no terminal; add --yes, or look with --dry-run")
        output.console(stderr=True).print(_gc_text(planned, "Will free"), highlight=False)
        typer.confirm("Go on?", abort=True, err=True)
    done = collector.collect(opened, keep_last, tables, unpushed)
    output.show(as_json, done, _gc_text(done, "Freed"))


def _push_text(done: dict[str, Any]) -> str:
    data, history = done["data"], done["history"]
    lines = [f"Sent {data['objects']} objects ({size(data['bytes'])}) to {data['remote']}; it had {data['held']}."]
    if done["lost"]:
        lines.append(f"{done['lost']} objects were dropped for good by `flywheel gc --unpushed`; nobody has them.")
    if history is None:
        lines.append("No history was sent: no git remote is named; name one with --git URL.")
    else:
        lines.append(f"Sent branch {history['branch']} and {len(history['tags'])} new tags to {history['remote']}.")
    return "\n".join(lines)


def _pull_text(done: dict[str, Any]) -> str:
    history, data = done["history"], done["data"]
    lines = []
    if history is None:
        lines.append("No git remote is named, so there is no history to follow.")
    elif history["from"] == history["to"]:
        lines.append(f"{history['remote']} has nothing new." if not history["tags"] else "New tags only.")
    else:
        lines.append(f"Followed {history['remote']}: {', '.join(history['tags']) or 'no new generation'}.")
    if data["damaged"]:
        lines.append(f"{data['damaged']} objects were damaged here; they came anew.")
    return "\n".join([*lines, f"Brought {data['objects']} objects: {data['what']}."])


def _gc_text(done: dict[str, Any], verb: str) -> str:
    dropped, orphans, lost, spared = (done[name] for name in ("dropped", "orphans", "lost", "unpushed"))
    lines = [
        f"{verb} {size(done['bytes_before'] - done['bytes_after'])}: {size(done['bytes_before'])} -> "
        f"{size(done['bytes_after'])}.",
        f"{dropped['objects']} objects of older generations ({size(dropped['bytes'])}), "
        f"{orphans['objects']} that no generation names ({size(orphans['bytes'])}).",
    ]
    if lost["objects"]:
        lines.append(f"{lost['objects']} of them ({size(lost['bytes'])}) no remote has: lost for good.")
    if spared["objects"]:
        lines.append(
            f"{spared['objects']} more ({size(spared['bytes'])}) stay because no remote is known to have them: "
            "`flywheel push` first, or --unpushed, which loses them for good."
        )
    return "\n".join([*lines, *done["notes"]])


def size(count: float) -> str:
    """Bytes as people read them."""
    power = min(3, max(0, (int(abs(count)).bit_length() - 1) // 10))
    return f"{count:.0f} bytes" if power == 0 else f"{count / 1024**power:.1f} {'KMG'[power - 1]}iB"
