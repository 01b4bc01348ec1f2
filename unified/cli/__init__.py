"""The command `unified`: prompt a model, play it, ask what it is, get a frame to begin with.

torch and transformers take seconds to import, so only a command that runs imports them.
"""

import sys
from pathlib import Path
from typing import Any

import tyro

from unified.cli.arguments import (
    AskArguments,
    InfoArguments,
    PlayArguments,
    PromptArguments,
    SampleArguments,
)
from unified.command import command
from unified.conversation.lexicon import Lexicon
from unified.pretrained import resolve_checkpoint

# tyro joins the lines of a paragraph, so each line is one of its own.
DESCRIPTION = """Unified: one transformer that is both the agent and the world.

Begin:     unified sample --level OpenDoor --out a.png

Act:       unified prompt --task "open the red door" --frame a.png

Simulate:  unified prompt --frame a.png --action left --query forward --out out/

Explain:   unified prompt --frame a.png --frame out/frame_000.png --query inverse

Dream:     unified prompt --task "open the red door" --frame a.png --query joint --out dream/

Describe:  unified prompt --task "describe what you see" --frame a.png --think True

Converse:  unified prompt --messages out/reply.json

Ask:       unified ask "What is the capital of France?" --model runs/smollm2/model

Play:      unified play

About:     unified info babyai
"""

COMMANDS: dict[str, Any] = {
    "prompt": PromptArguments,
    "sample": SampleArguments,
    "ask": AskArguments,
    "play": PlayArguments,
    "info": InfoArguments,
}


def main(arguments: list[str] | None = None) -> None:
    """Entry point; exits with status 2 and one line where the input is bad.

    Args:
        arguments: Command line without the program's name; None takes the process's own.
    """
    given = sys.argv[1:] if arguments is None else arguments
    with command("unified"):
        parsed = tyro.extras.subcommand_cli_from_dict(
            COMMANDS, prog="unified", description=_description(given), args=given
        )
        run(parsed)


def run(told: Any) -> None:
    """Runs the command that the arguments are of."""
    if isinstance(told, SampleArguments):
        from unified.cli.sample import sample_frame

        sample_frame(told)
        return
    from transformers.utils import logging

    logging.disable_progress_bar()  # "Loading weights" is over before one can read it
    if isinstance(told, PromptArguments):
        from unified.cli.prompt import prompt

        prompt(told)
    elif isinstance(told, PlayArguments):
        from unified.cli.play import play

        play(told)
    elif isinstance(told, AskArguments):
        from unified.cli.ask import ask

        ask(told)
    else:
        from unified.cli.info import info

        info(told)


def _description(given: list[str]) -> str:
    """What `--help` says first, with what the model that is named was taught to hear."""
    if not {"-h", "--help"} & set(given):
        return DESCRIPTION
    place = given.index("--model") + 1 if "--model" in given else len(given)
    name = given[place] if place < len(given) else PromptArguments.model
    lexicon = Lexicon.read(Path(resolve_checkpoint(name)))
    if lexicon is None:
        return DESCRIPTION
    lines = str(lexicon).splitlines()
    return "\n\n".join([DESCRIPTION.strip(), f"What {name} was taught to hear:", *lines])
