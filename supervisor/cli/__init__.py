"""The `superv` command. Each subcommand is a module here, imported when it is called."""

from __future__ import annotations

import importlib
import os
import re
import sys

import click

from supervisor import __version__
from supervisor.core.errors import TransientError, UserError

# name → (module:attribute, one line of help); help is here so that --help imports nothing
COMMANDS = {
    "init": ("supervisor.cli.init:init", "Write a first job file, from a few questions."),
    "launch": ("supervisor.cli.launch:launch", "Start the run of a job file, or attach to it."),
    "attach": ("supervisor.cli.attach:attach", "Watch a run; start its engine if none is running."),
    "watch": ("supervisor.cli.dashboard:watch", "Watch a run over the whole terminal."),
    "status": ("supervisor.cli.status:status", "Show a run, or all that live."),
    "runs": ("supervisor.cli.runs:runs", "List all runs; remove what old ones left behind."),
    "logs": ("supervisor.cli.logs:logs", "Print what a rank wrote."),
    "stop": ("supervisor.cli.stop:stop", "End a run and give its nodes back."),
    "resume": ("supervisor.cli.resume:resume", "Go on with a run that has ended."),
    "checkpoints": (
        "supervisor.cli.checkpoints:checkpoints",
        "List, verify and quarantine checkpoints.",
    ),
    "check": ("supervisor.cli.check:check", "Run health checks on this node."),
    "sweep": ("supervisor.cli.sweep:sweep", "Check the fleet from cron; tell what changed."),
    "accept": ("supervisor.cli.accept:accept", "Accept new or repaired nodes."),
    "prolog": ("supervisor.cli.on_node:prolog", "For Slurm's Prolog."),
    "healthcheck": ("supervisor.cli.on_node:healthcheck", "For Slurm's HealthCheckProgram."),
    "nodes": ("supervisor.cli.nodes:nodes", "Show what is known of the nodes' health."),
    "diagnose": ("supervisor.cli.diagnose:diagnose", "Say what ended a job, from its logs."),
    "report": ("supervisor.cli.report:report", "One page: what is wrong, where, and what to do."),
    "exclude": ("supervisor.cli.exclude:exclude", "Keep nodes out of runs."),
    "include": ("supervisor.cli.include:include", "Let nodes back in, or say what keeps them out."),
    "preflight": ("supervisor.cli.preflight:preflight", "Run health checks on many nodes."),
    "nccl": ("supervisor.cli.nccl:nccl", "NCCL's variables, and what is wrong with them."),
    "doctor": ("supervisor.cli.doctor:doctor", "Examine this machine and the cluster."),
    "lab": ("supervisor.cli.lab:lab", "A real Slurm cluster on this machine, to try and test."),
    "demo": ("supervisor.cli.demo:demo", "Lose a node in mid-training and watch superv recover."),
}

# What people type from habit → what does that here.
HABITS = {
    "why": "status",
    "ps": "runs",
    "list": "runs",
    "ls": "runs",
    "show": "status",
    "info": "status",
    "kill": "stop",
    "cancel": "stop",
    "scancel": "stop",
    "tail": "logs",
    "log": "logs",
    "top": "watch",
    "run": "launch",
    "start": "launch",
    "submit": "launch",
    "sbatch": "launch",
    "new": "init",
    "restart": "resume",
    "drain": "exclude",
}

# Work on no storage that could hang, or have children of their own for it.
AT_HOME = ("lab", "demo")


def _at_home(command: str, words: list[str]) -> bool:
    """Whether this very process does the work: `watch` draws, and lets `watch --json` read."""
    return command in AT_HOME or (command == "watch" and "--json" not in words)


# What an option takes, and where what there is stands.
LISTED = {
    "CHECK": " (superv check --list shows them)",
    "CHECK.KEY=VALUE": " (superv check --list shows them)",
}


class Commands(click.Group):
    """A group that says which commands are valid where there is no such one.

    click's own resolver (8.4 and later) proposes a name that is close, but lists none.
    """

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Each with its whole first sentence: click cuts it to the width that is left."""
        found = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        with formatter.section("Commands"):
            formatter.write_dl(
                [(n, c.get_short_help_str(limit=1000)) for n, c in found.items() if c is not None]
            )

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        names = self.list_commands(ctx)
        if args and args[0] not in names and not args[0].startswith("-"):
            from supervisor.config.schema import did_you_mean

            _, _, group = ctx.command_path.partition(" ")
            what = f"no command {f'{group} {args[0]}'.strip()!r}"
            usual = HABITS.get(args[0], "") if not group else ""
            meant = f"; did you mean {usual}?" if usual else did_you_mean(args[0], names)
            raise UserError(f"{what}; valid: {', '.join(names)}{meant}")
        return super().resolve_command(ctx, args)


class Lazy(Commands):
    """A group whose commands are imported when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="superv")
@click.option("--debug", is_flag=True, help="Show a traceback where something fails.")
def cli(debug: bool) -> None:
    """Keep one large training job alive on Slurm."""


def main() -> None:
    """The console script: one line for an error, 2 for the user's mistake, 1 for the world's."""
    from supervisor.host.terminal import guard_streams

    guard_streams()
    words = sys.argv[1:]
    debug = "--debug" in words
    try:
        _refuse_bytes(words)
        command = next((word for word in words if not word.startswith("-")), "")
        asks = {"-h", "--help"} & set(words)
        if command in COMMANDS and not asks and not _at_home(command, words):
            from supervisor.cli.expendable import in_a_child

            in_a_child(command)
        code = _invoke(words)
    except UserError as error:
        code = _fail(str(error), 2, debug)
    except TransientError as error:
        code = _fail(str(error), 1, debug)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        code = 0
    except click.BadParameter as error:
        code = _fail(_expected(error), 2, debug)
    except click.UsageError as error:
        where = f"; see {error.ctx.command_path} --help" if error.ctx else ""
        code = _fail(
            _lacks(error, words) or f"{_sentence(error.format_message())}{where}", 2, debug
        )
    except click.exceptions.Exit as end:
        code = end.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = _fail("interrupted", 130, debug=False)
    except BrokenPipeError:
        code = 141  # the reader of the output has gone; as a shell reports SIGPIPE
        sys.stderr.close()
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        code = _fail(f"{where}{error.strerror or error}", 1, debug)
    sys.exit(code if isinstance(code, int) else 0)


def _expected(error: click.BadParameter) -> str:
    """What is wrong with a value, and what is valid, in the words of superv's own options."""
    kind = error.param.type if error.param is not None else None
    where = f"; see {error.ctx.command_path} --help" if error.ctx else ""
    quoted = re.match(r"'(.*)' is not one of", error.message)
    if not isinstance(kind, click.Choice) or error.param is None or quoted is None:
        return f"{_sentence(error.format_message())}{where}"
    choices = ", ".join(map(str, kind.choices))
    return f"{error.param.opts[-1]} {quoted[1]}: expected one of {choices}{where}"


def _invoke(words: list[str]) -> object:
    """Run the command. click's own main ends with 1 where the reader of the output has gone."""
    if "_SUPERV_COMPLETE" in os.environ:  # a shell asks for completions
        return cli.main(prog_name="superv", standalone_mode=False)
    with cli.make_context("superv", list(words)) as context:
        return cli.invoke(context)


def _sentence(text: str) -> str:
    """What click says in sentences, as one without a full stop: a hint follows it."""
    parts = " ".join(text.split()).rstrip(".").split(". ")
    return "; ".join(part[:1].lower() + part[1:] for part in parts)


def _lacks(error: click.UsageError, words: list[str]) -> str:
    """What the value of an option is that lacks it, and how what there is is listed; else empty."""
    if not (isinstance(error, click.BadOptionUsage) and "requires an argument" in error.message):
        return ""
    found: click.Command = cli
    context = click.Context(cli)
    for word in words:
        if isinstance(found, click.Group) and (inner := found.get_command(context, word)):
            found, context = inner, click.Context(inner, context, word)
    for param in found.params:
        if error.option_name in param.opts:
            what = param.make_metavar(context)
            return f"{error.option_name} needs a value: {what}{LISTED.get(what, '')}"
    return ""


def _refuse_bytes(words: list[str]) -> None:
    """Arguments are text: they end up in journals, records and messages, which are UTF-8."""
    for number, word in enumerate(words, start=1):
        if not word.isascii() and any("\ud800" <= c <= "\udfff" for c in word):
            raise UserError(f"argument {number} is not UTF-8: {word!a}; give it as UTF-8")


def _fail(text: str, code: int, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exc()
    from supervisor.host.terminal import printable_lines

    click.echo(f"superv: {printable_lines(text)}", err=True)
    if "--json" in sys.argv[1:]:
        import json

        click.echo(json.dumps({"schema": 1, "error": text, "exit": code}))
    return code
