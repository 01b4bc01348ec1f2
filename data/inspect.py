"""What a data folder holds, in numbers and in pictures: `python -m data.inspect --data DIR`.

Prints counts, and writes a page with sample episodes: look at it before training on anything.
"""

import base64
import html
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from tqdm import tqdm

from data.dataset import Episode, EpisodeDataset
from data.episode import UNKNOWN, decode_png
from data.outcomes import ends_text, ends_warning
from unified.command import command
from unified.files import atomic_path

PAGE_FILE = "inspect.html"
MOST = 8
"""How many of the most frequent tasks and actions are listed."""
MOST_NAMES = 64
"""How many names of actions are listed: a slip of the pen is the rarest of them."""
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; color: #222;
  background: #fdfdfc; padding: 0 1rem }
table { border-collapse: collapse } td { padding: .15rem 1rem .15rem 0; vertical-align: top }
td:first-child { color: #777; white-space: nowrap }
.episode { display: flex; overflow-x: auto; gap: .6rem; padding: .4rem 0 1rem }
figure { margin: 0; flex: none; width: 112px } img { width: 112px; image-rendering: pixelated }
figcaption { font-size: 12px; overflow-wrap: anywhere } .muted { color: #999 }
"""


@dataclass(frozen=True, kw_only=True)
class InspectArguments:
    """Show what a data folder holds."""

    data: Path
    """A complete data folder."""
    out: Path | None = None
    """Where to write the page; `inspect.html` in the data folder if not given."""
    samples: int = 6
    """Episodes on the page, evenly from first to last."""
    frames: int = 24
    """Greatest number of frames of each."""


def summary(dataset: EpisodeDataset) -> list[tuple[str, str]]:
    """Names and values, in the order of reading."""
    tasks: Counter[str] = Counter()
    actions: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    vectors: list[np.ndarray] = []
    for episode in tqdm(dataset, total=len(dataset), desc="inspect", leave=False):
        tasks[episode.task or "(none)"] += 1
        outcomes[(episode.outcomes or [None])[-1] or UNKNOWN] += 1
        spoken = Counter(words.role for said in episode.said for words in said)
        counts["words of the agent"] += spoken["agent"]
        counts["words to the agent"] += spoken["task"]
        counts["captions"] += sum(caption is not None for caption in episode.captions)
        counts["motions"] += sum(motion is not None for motion in episode.motions)
        for action, weight in zip(episode.actions, episode.action_weights, strict=True):
            counts["actions"] += 1
            counts["learned"] += weight > 0 and action is not None
            numbers = _numbers(action)
            if numbers is None:
                actions["(unknown)" if action is None else action] += 1
            else:
                vectors.append(numbers)
    size = decode_png(dataset.pngs(0)[0]).shape[:2] if dataset.num_frames else (0, 0)
    lengths = dataset.lengths
    rows = [
        ("source", str(dataset.info.get("source", "unknown"))),
        ("episodes", f"{len(dataset):,}"),
        ("frames", f"{dataset.num_frames:,} of {size[0]} x {size[1]} pixels"),
        (
            "frames of an episode",
            f"{lengths.min()} to {lengths.max()}, median {np.median(lengths):g}",
        ),
        ("levels", _most(Counter(dataset.episode_levels.tolist()))),
        ("who acted", _most(Counter(dataset.episode_behaviours.tolist()))),
        ("tasks", f"{len(tasks):,} different: {_most(tasks)}"),
        ("ends", ends_text(outcomes)),
        ("actions", f"{counts['actions']:,}, of which {counts['learned']:,} are learned"),
    ]
    if (warning := ends_warning(outcomes)) is not None:
        rows.append(("warning", warning))
    if actions:
        are_names = not any(name.startswith("{") for name in actions)
        rows.append(("which actions", _most(actions, MOST_NAMES if are_names else MOST)))
    if vectors:
        rows.append(("action vectors", _ranges(vectors)))
    for name in ("words of the agent", "words to the agent", "captions", "motions"):
        if counts[name]:
            rows.append((name, f"{counts[name]:,}"))
    latents = "none yet" if dataset.latents is None else str(tuple(dataset.latents.shape[1:]))
    rows.append(("latents", latents))
    return rows


def _numbers(action: str | None) -> np.ndarray | None:
    """The numbers of an action that is a vector, or a chunk of vectors."""
    if action is None or action[:1] != "[":
        return None
    return np.asarray(json.loads(action), dtype=float)


def _most(counter: Counter[str], most: int = MOST) -> str:
    named = [f"{name} ({count:,})" for name, count in counter.most_common(most)]
    rest = len(counter) - len(named)
    return ", ".join(named) + (f", and {rest:,} more" if rest > 0 else "")


def _ranges(vectors: list[np.ndarray]) -> str:
    size = vectors[0].shape[-1]
    flat = np.concatenate([vector.reshape(-1, size) for vector in vectors])
    low, high = np.nanmin(flat, 0), np.nanmax(flat, 0)
    spans = [f"{a:.3g} to {b:.3g}" for a, b in zip(low[:MOST], high[:MOST], strict=True)]
    chunk = f" in chunks of {len(vectors[0])}" if vectors[0].ndim == 2 else ""
    return f"{size} numbers{chunk}: {'; '.join(spans)}{', ...' * (size > MOST)}"


def page(dataset: EpisodeDataset, rows: list[tuple[str, str]], samples: int, frames: int) -> str:
    """The same with sample episodes, as one HTML file."""
    cells = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>"
        for name, value in rows
    )
    chosen = np.unique(np.linspace(0, len(dataset) - 1, samples).astype(int)).tolist()
    shown = "".join(_episode(dataset[i], dataset.pngs(i)[:frames]) for i in chosen)
    name = html.escape(dataset.folder.name)
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{name}</title>"
        f"<style>{STYLE}</style><h1>{name}</h1><table>{cells}</table>{shown}</html>\n"
    )


def _episode(episode: Episode, pngs: list[bytes]) -> str:
    figures = []
    for place, png in enumerate(pngs):
        said: list[str] = []
        for words in episode.said[place]:
            text = html.escape(words.text or "")
            said.append(f"“{text}”" if words.role == "task" else f"<i>{text}</i>")
        if place < len(episode.actions):
            action, target = episode.actions[place], episode.targets[place]
            said.append(f"<b>{html.escape(action or 'unknown')}</b>")
            if target is not None and target != action:
                said.append(f"<span class='muted'>learn {html.escape(target)}</span>")
            if not episode.action_weights[place]:
                said.append("<span class='muted'>not learned</span>")
        outcome = episode.outcomes[place]
        if outcome not in ("ongoing", None):
            said.append(html.escape(outcome or ""))
        picture = base64.b64encode(png).decode()
        caption = "<br>".join(part for part in said if part)
        figures.append(
            f"<figure><img src='data:image/png;base64,{picture}' alt='frame {place}'>"
            f"<figcaption>{caption}</figcaption></figure>"
        )
    title = f"{episode.id}: {episode.task or 'no task'}"
    return f"<h3>{html.escape(title)}</h3><div class='episode'>{''.join(figures)}</div>"


def inspect(arguments: InspectArguments) -> Path:
    """Prints the summary and writes the page.

    Raises:
        ValueError: If the folder is not complete, or a number is out of range.
    """
    for name in ("samples", "frames"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"{name}={getattr(arguments, name)} must be at least 1")
    dataset = EpisodeDataset(arguments.data)
    rows = summary(dataset)
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:<{width}}  {value}" for name, value in rows))
    out = arguments.out or arguments.data / PAGE_FILE
    with atomic_path(out) as draft:
        draft.write_text(page(dataset, rows, arguments.samples, arguments.frames))
    print(f"\n{out}")
    return out


def main() -> None:
    """Command line."""
    with command("data.inspect"):
        inspect(tyro.cli(InspectArguments, description=__doc__))


if __name__ == "__main__":
    main()
