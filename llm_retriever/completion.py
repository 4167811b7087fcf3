"""Completion of `llm-retriever` in a shell: its commands, theirs, and their flags, as the parsers have them.

eval "$(llm-retriever completion bash)"      # for instance in ~/.bashrc; in ~/.zshrc: completion zsh
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from llm_retriever import console
from llm_retriever.processes import command_line

PROGRAM = "python -m llm_retriever.completion"
# zsh runs bash's completion functions, with the same arrays.
SHELLS = {"bash": "", "zsh": "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"}
SCRIPT = """\
_llm_retriever() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" IFS=$' \\t\\n' known="" flags=""
    case "${{COMP_WORDS[*]:1:$((COMP_CWORD - 1))}} " in
{cases}
    esac
    case "$word" in
        -*) COMPREPLY=($(compgen -W "$flags" -- "$word")) ;;
        *) COMPREPLY=($(compgen -W "$known" -- "$word")) ;;
    esac
}}
complete -o default -F _llm_retriever llm-retriever
"""


def main(arguments: list[str] | None = None, prog: str = PROGRAM) -> int:
    """Runs the command line and returns its exit code."""
    return command_line.run(parser(prog), _run, arguments)


def parser(prog: str = PROGRAM) -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shell", choices=SHELLS, help="Which shell the script is for.")
    return parser


def _run(options: argparse.Namespace) -> int:
    print(script(options.shell), end="")
    return 0


def script(shell: str) -> str:
    """A script that makes a shell complete the words after `llm-retriever`, and file names where there are none."""
    # The longest path first: what follows `versions list` also follows `versions`.
    rows = sorted(_known(), key=lambda row: -len(row[0].split()))
    cases = [f'        "{path} "*) known="{words}" flags="{flags}" ;;' for path, words, flags in rows if path]
    cases += [f'        *) known="{words}" flags="{flags}" ;;' for path, words, flags in rows if not path]
    return SHELLS[shell] + SCRIPT.format(cases="\n".join(cases))


def _known() -> Iterator[tuple[str, str, str]]:
    """The words before, and what may follow them: words, flags."""
    yield "", *_taken(console.parser())
    for name, command in console.COMMANDS.items():
        own = command.parser(name)
        yield name, *_taken(own)
        yield from ((f"{name} {word}", *_taken(found)) for word, found in command_line.subparsers(own).items())


def _taken(parser: argparse.ArgumentParser) -> tuple[str, str]:
    """What a parser takes: words that it can choose from, and flags."""
    words = (word for action in parser._actions if not action.option_strings for word in action.choices or ())
    return " ".join(words), " ".join(flag for action in parser._actions for flag in action.option_strings)
