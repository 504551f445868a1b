"""What every command shares: the application, the global options and how errors end it.

The global options (`--json --url --data-dir --api-key`) stand anywhere on the line: they are options of the
root and of every command at once, each parsed by the same parser as its neighbours, so that `-p text
--json` still passes "--json" as a value. `command` adds them and hands the command one Session.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, get_type_hints

import typer
import typer.core

from instainfer import __version__
from instainfer.errors import BadInput, InstaInferError

if TYPE_CHECKING:
    from instainfer.client import Client

DEFAULT_NAMESPACE = "default"

Json = Annotated[bool, typer.Option("--json", help="Answer in JSON, for programs.")]
Url = Annotated[
    str | None,
    typer.Option("--url", metavar="URL", help="The server [INSTAINFER_URL, then http://127.0.0.1:3233]."),
]
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", metavar="DIR", help="Talk to the local admin socket in DIR instead; needs no key."),
]
ApiKey = Annotated[str | None, typer.Option("--api-key", metavar="KEY", help="The key [INSTAINFER_API_KEY].")]
_GLOBAL: dict[str, tuple[Any, Any]] = {
    "json": (Json, False),
    "url": (Url, None),
    "data_dir": (DataDir, None),
    "api_key": (ApiKey, None),
}

app = typer.Typer(
    name="instainfer",
    help="Serverless ML inference: functions scale to zero, and are loaded before the request comes.",
    epilog="New here? `instainfer demo` shows it all; then serve, deploy PATH, invoke NAME, why ACTIVATION. "
    "--json, --url, --data-dir and --api-key may stand anywhere on the line. A SIZE is written as 512MB or "
    "1GiB, a TIME as 500ms, 30s, 5m or 2h (a bare number is seconds), a SHARE as 0.1.",
    no_args_is_help=True,
    rich_markup_mode=None,  # rich takes longer to import than everything else together
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Session:
    """One run of the command line. `json`: print one JSON document on stdout and nothing else there."""

    def __init__(
        self,
        json: bool = False,
        url: str | None = None,
        data_dir: Path | None = None,
        api_key: str | None = None,
    ) -> None:
        self.json, self.url, self.data_dir, self.api_key = json, url, data_dir, api_key

    def over(self, below: Session) -> Session:
        """This one's options, and where it has none `below`'s."""
        return Session(
            self.json or below.json,
            self.url or below.url,
            self.data_dir or below.data_dir,
            self.api_key or below.api_key,
        )

    @functools.cached_property
    def client(self) -> Client:
        from instainfer.client import Client

        return Client(self.url, self.api_key, self.data_dir)

    def close(self) -> None:
        if "client" in self.__dict__:
            self.client.close()


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"instainfer {__version__}")
        raise typer.Exit


@app.callback()
def root(
    ctx: typer.Context,
    json: Json = False,
    url: Url = None,
    data_dir: DataDir = None,
    api_key: ApiKey = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show this program's version.")
    ] = False,
) -> None:
    ctx.obj = Session(json, url, data_dir, api_key)


class Command(typer.core.TyperCommand):
    """A verb whose help says what an argument is, and not what Python makes of it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for parameter in self.params:
            if isinstance(parameter, typer.core.TyperArgument) and parameter.metavar:
                parameter.display_type_rich = lambda ctx: ""  # type: ignore[method-assign] # no other way


def command(
    name: str, *, example: str, cls: type[Command] = Command
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register `function(session, …)` as a verb; its docstring is the help. A function that has a parameter
    of a global option's name keeps its own meaning of it."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(function, include_extras=True)
        own = [p.replace(annotation=hints[p.name]) for p in inspect.signature(function).parameters.values()][1:]
        named = {parameter.name for parameter in own}
        shared = {option: spec for option, spec in _GLOBAL.items() if option not in named}

        def run(ctx: typer.Context, **given: Any) -> None:
            options = {option: given.pop(option) for option in shared}
            session = Session(**options).over(ctx.obj or Session())
            try:
                function(session, **given)
            except InstaInferError as error:
                raise typer.Exit(fail(error, json=session.json)) from None
            finally:
                session.close()

        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters = [inspect.Parameter("ctx", keyword, annotation=typer.Context)]
        parameters += [parameter.replace(kind=keyword) for parameter in own]
        parameters += [
            inspect.Parameter(option, keyword, annotation=hint, default=default)
            for option, (hint, default) in shared.items()
        ]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined] # read by inspect.signature
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        app.command(name, help=inspect.getdoc(function), epilog=f"Example: {example}", cls=cls)(run)
        return function

    return register


def fail(error: InstaInferError, *, json: bool) -> int:
    """Say what failed where it belongs; the exit status: 2 where the command line itself is at fault."""
    if json:
        from instainfer.cli.output import print_json

        print_json(error.problem())
    else:
        if error.detail:
            typer.echo(error.detail.rstrip(), err=True)
        typer.echo(typer.style("error:", fg="red", bold=True) + f" {error.message}", err=True)
        if error.hint:
            typer.echo(typer.style("hint:", fg="cyan") + f" {error.hint}", err=True)
    return 2 if isinstance(error, Usage) else 1


class Usage(BadInput):
    """The line can be parsed but says something impossible, or with settings that are."""


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the line and exit: 0 done, 1 failed, 2 bad usage, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 must not end a command
    line = list(sys.argv[1:] if args is None else args)
    try:
        status = app(line, prog_name="instainfer", standalone_mode=False)
        sys.stdout.flush()
    except typer.TyperException as error:  # the parser's
        context = getattr(error, "ctx", None)
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(error.format_message(), err=True)
        else:
            path = context.command_path if context else "instainfer"
            usage = Usage(_plainly(error.format_message()), hint=f"`{path} --help` shows how it is used")
            fail(usage, json="--json" in line)
        status = error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        status = 130
    except BrokenPipeError:
        # The reader (head, less) has seen enough. Python would complain once more while flushing at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status if isinstance(status, int) else 0)


def _plainly(message: str) -> str:
    """On one line, without the names that the parser has for its own kinds of error."""
    return " ".join(message.replace("Value error, ", "").split())


def split_name(text: str) -> tuple[str, str]:
    """NAME or NAMESPACE/NAME."""
    namespace, slash, name = text.rpartition("/")
    namespace = namespace if slash else DEFAULT_NAMESPACE
    if not name or not namespace or "/" in namespace:
        raise Usage(f"{text!r} names no function", hint="write NAME or NAMESPACE/NAME")
    return namespace, name


def split_pairs(pairs: Sequence[str], option: str) -> dict[str, str]:
    """`k=v` strings as a dict."""
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise Usage(f"{option} {pair!r} has no value", hint=f"write {option} key=value")
        found[key] = value
    return found
