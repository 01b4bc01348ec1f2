"""What the subcommands of `unified` take."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from unified.media.pictures import Fit

Paths = Annotated[tuple[Path, ...], tyro.conf.UseAppendAction]
Names = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]


@dataclass(frozen=True, kw_only=True)
class PromptArguments:
    """Show a model a conversation and let it go on.

    Frames and actions alternate: frame, action, frame, action, and so on. An action that is
    missing between two frames is unknown.
    """

    task: str | None = None
    """What to do, in words."""
    frame: Paths = ()
    """An image file; again for the next frame."""
    action: Names = ()
    """What the agent did after the frame, by name or by number, or "unknown"; again for the next
    one."""
    messages: Paths = ()
    """Whole conversations instead, in JSON as reply.json has them, frames as files beside it: a
    file holds one, or a list of them, or one a line (.jsonl). Again for the next file; - reads
    lines from standard input. There, task and agent may talk in mid-episode, too."""
    allow_outside: bool = False
    """Take frames that a file of messages names outside of its own folder, too."""
    query: Literal["policy", "forward", "inverse", "joint"] | None = None
    """What to ask: the next action, the next frame, the action that led to the last frame, or
    both in turn. None is what the prompt's end asks for."""
    out: Path | None = None
    """Folder for the reply's frames (PNG) and reply.json, in a folder of its own for each of
    several prompts; None only prints."""
    model: str = "babyai"
    """Folder, hub id, or embedded name."""
    device: str | None = None
    """Where it runs, such as cpu or cuda; None is a GPU where there is one."""
    seed: int = 0
    """Of noise and samples, of each prompt."""
    temperature: float = 0.0
    """0 takes the likeliest token."""
    top_k: int | None = None
    """Sample among the k likeliest tokens only."""
    top_p: float | None = None
    """Sample among the likeliest tokens only that have this probability together."""
    num_inference_steps: int | None = None
    """Denoise steps of a frame; None is the model's own number."""
    solver: str = "euler"
    """How they are taken: euler, heun, midpoint, rk4, dpm++2m, dpm++2m-sde, unipc, ddim,
    ddim:eta=0.5 or ddpm."""
    time_grid: str = "uniform"
    """Where they lie: uniform, shifted:by=3, logit_normal or karras."""
    timesteps: tuple[float, ...] = ()
    """Their noise levels by hand instead, such as 1 0.6 0."""
    guidance_scale: str | None = None
    """How often what the text, the action and the history make of a frame is taken, such as
    action=2,history=1.5; 1 changes nothing."""
    max_turns: int = 8
    """Frames of a joint reply."""
    max_text_tokens: int = 64
    """Longest run of words; then the agent must act."""
    max_new_tokens: int | None = None
    """Ends a reply before what would make it longer."""
    think: bool | None = None
    """True makes the agent speak before it acts, False keeps it silent."""
    memory: str | None = None
    """What stays of frames that are past: "window:frames=80", "place" (of each cell of the world
    the newest look); None is the model's."""
    resize: Fit | None = None
    """What to do with frames of another size than the model's: crop cuts off what hangs over, pad
    adds black; None refuses them."""


@dataclass(frozen=True, kw_only=True)
class SampleArguments:
    """Write the first frame of a BabyAI level, and say its task."""

    level: str = "OpenDoor"
    """Such as GoToRedBall. Some are shipped; minigrid makes the others, where it is installed."""
    seed: int = 1_000_000
    """Of the environment; the default is that of the shipped frames, and was never trained on."""
    out: Path
    """PNG file."""


@dataclass(frozen=True, kw_only=True)
class AskArguments:
    """Ask a question of the language model that became the decoder, in words alone."""

    question: tyro.conf.Positional[str]
    """In words."""
    model: str
    """Folder or hub id of a model that began as a language model."""
    device: str | None = None
    """Where it runs, such as cpu or cuda; None is a GPU where there is one."""
    max_new_tokens: int = 64
    """Of the answer."""


@dataclass(frozen=True, kw_only=True)
class InfoArguments:
    """Say what a model is: its size, its frames, words and actions, and its model card."""

    model: tyro.conf.Positional[str] = "babyai"
    """Folder, hub id, or embedded name."""


@dataclass(frozen=True, kw_only=True)
class PlayArguments:
    """Play a model in the browser: a local page on which one steers the world that it dreams."""

    model: str = "babyai"
    """Folder, hub id, or embedded name."""
    port: int = 8000
    """Where the page is; 0 takes any that is free."""
    host: str = "127.0.0.1"
    """Address to listen at; any but this machine's own needs a token."""
    token: str | None = None
    """What players from other machines have to know; it stands in the link that is printed."""
    env: str | None = None
    """The true world beside the dream: a gymnasium id, with {level} in it if it has levels, or
    module:function, which makes one of a level. None is BabyAI, for a model of its actions."""
    level: Names = ()
    """What a player may open; again for the next one."""
    steps: int | None = None
    """Denoise steps of a frame; None is the model's own number."""
    device: str | None = None
    """Where the model runs, such as cpu or cuda; None is a GPU where there is one."""
    max_sessions: int = 16
    """Players at a time; others are asked to come later."""
    idle_minutes: float = 15.0
    """After which a game in which nobody plays is given up."""
    session_memory: int = 192
    """Megabytes of one game's timeline; old branches go first."""
    browser: bool = True
    """Open the page in a browser, where there is one."""
