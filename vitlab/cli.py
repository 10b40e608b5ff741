"""What every script shares: its argument parser, and the user's errors in one line."""

import argparse
import difflib
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn


class UserError(Exception):
    """An error that the user can put right: one line that names the value and the remedy."""


class Parser(argparse.ArgumentParser):
    """argparse.ArgumentParser, but errors are a UserError, which names the nearest flag where one is unknown, flags
    cannot be abbreviated, dashes in them do for underscores, and ~ is the home folder where the shell leaves it
    (--data_path=~/images)."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None) -> tuple:
        """Called by parse_args."""
        args = sys.argv[1:] if args is None else args
        known = {flag.replace("-", "_"): flag for flag in self._option_string_actions}
        read = []
        for arg in args:
            flag, equals, value = re.match(r"(--[\w-]+)?(=?)(.*)", arg, re.DOTALL).groups("")
            read.append(known.get(flag.replace("-", "_"), flag) + equals + os.path.expanduser(value))
        return super().parse_known_args(read, namespace)

    def error(self, message: str) -> NoReturn:
        """Called by argparse; the flag leads the message."""
        if unknown := re.match(r"unrecognized arguments: (-\S+)", message):
            message = f"{unknown[1]} {self.remedy(re.sub(r'(?<=[^-])-', '_', unknown[1].split('=')[0]))}"
        raise UserError(re.sub(r"^argument (\S+): ", r"\1: ", message))

    def remedy(self, unknown: str) -> str:
        """What to do instead of giving a flag that is unknown where it was given."""
        actions = [action for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        commands = {name: parser for action in actions for name, parser in action.choices.items()}
        if having := [name for name, parser in commands.items() if unknown in parser._option_string_actions]:
            return f"is a flag of {', '.join(having)}; give it after {'one of these' if having[1:] else 'that'}"
        flags = {flag: None for parser in (self, *commands.values()) for flag in parser._option_string_actions}
        near = difflib.get_close_matches(unknown, flags, n=1)
        return f"is no flag; did you mean {near[0]}?" if near else "is no flag; --help lists them"


def whole_number(flag: str, *, low: int = 0, high: int | None = None) -> Callable[[object], int]:
    """A function that reads a whole number from `low` to `high` (None: no limit), for argparse's `type=` and for YAML.
    It raises UserError, naming the flag and the range."""

    def read(value: object) -> int:
        text = str(value)
        if high is not None and high < low:
            raise UserError(f"{flag} {text}: it takes at least {low}, and there are only {high}")
        if not text.removeprefix("-").isdecimal() or int(text) < low or (high is not None and int(text) > high):
            upwards = f"from {low} to {high}" if high is not None else f"from {low} on"
            raise UserError(f"{flag} {text}: give a whole number {upwards}")
        return int(text)

    return read


def check_folder_name(name: str) -> None:
    """UserError if a --folder_name is a path."""
    if Path(name).name != name or name in (".", ".."):
        raise UserError(f"--folder_name {name!r}: give a plain name; --output_path says where")


def run_cli(main: Callable[[], int | None], *, in_processes: bool = False) -> NoReturn:
    """Run a script's main() and exit with what it returns (None: 0). A UserError becomes one line on stderr and exit
    status 2, Ctrl-C exit status 130; a closed pipe (`| head -1`) ends it with 141. What the terminal's encoding lacks
    is printed as an escape such as \\u732b. Of the processes of torchrun on a machine, the first prints errors;
    a script that is not made for them (in_processes) does not run."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    script = Path(sys.argv[0]).name
    try:
        try:
            if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not in_processes:
                raise UserError("torchrun is for train.py; start this script with python")
            status = main()
        finally:
            sys.stdout.flush()  # here, not when Python exits, where a closed pipe cannot be caught
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"{script}: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print(f"{script}: interrupted", file=sys.stderr)
        status = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still in the buffer
        status = 141
    sys.exit(status)
