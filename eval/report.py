"""One report: every figure with its interval, its floor beside it, as JSON and as a table."""

import os
import platform
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from eval.babyai.agent import AgentResult
from eval.babyai.simulator import Answers
from eval.babyai.tally import Tally
from eval.statistics import BalancedAccuracy, Estimate, balanced_accuracy, mean_of_estimates
from unified.cli.loading import load_model, load_processor
from unified.command import chosen_device
from unified.conversation.processing import UnifiedProcessor
from unified.files import atomic_path, write_json
from unified.modeling import UnifiedModel

FLOORS = ("map", "shift", "repeat")
"""Of what is drawn, the best first: odometry and a map of seen cells; the last true frame shifted
by the actions; the last true frame as it was."""
GROUPS = {
    "determined": "determined tiles",
    "changed": "determined tiles that changed",
    "object": "determined objects",
    "door": "determined doors",
    "floor": "determined floor",
    "wall": "determined wall",
    "black": "determined black",
    "frame": "frames with all determined tiles right",
    "all": "all tiles",
}


@dataclass
class Report:
    """What was measured, with what, on what.

    Attributes:
        settings: Options of the run, model and machine.
        agents: One result per level.
        tally: Counts of the simulator, of captions and of imagination, of all levels.
        levels: The same by level.
        outcome: True and given outcomes of next frames.
        inverse: True and given actions.
        imagined: Real and imagined outcomes of imagined episodes.
        misses: Captions that were wrong: what was said, what is true.
        seconds: What each part took.
    """

    settings: dict[str, Any]
    agents: list[AgentResult] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    levels: dict[str, Tally] = field(default_factory=dict)
    outcome: Answers = field(default_factory=Answers)
    inverse: Answers = field(default_factory=Answers)
    imagined: Answers = field(default_factory=Answers)
    misses: list[tuple[str, str]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def rows(self) -> list[tuple[str, str, str]]:
        """The table: figure (of how many), value with its 95 % interval, floors with theirs.

        Values are in bold where the whole interval lies above every floor's: only there has the
        model shown something that a simple rule does not.
        """
        return [
            *self._agent_rows(),
            *self._frame_rows("next", "next frame"),
            *self._rollout_rows(),
            *self._answer_rows(),
            *self._joint_rows(),
        ]

    def _agent_rows(self) -> list[tuple[str, str, str]]:
        rows = self._share("codec round trip: tiles", "codec/tiles")
        if self.agents:
            floors = {
                name: mean_of_estimates([agent.floors[name] for agent in self.agents])
                for name in self.agents[0].floors
            }
            mean = mean_of_estimates([agent.success for agent in self.agents])
            rows.append(row("agent: success, mean of levels", mean, floors))
        for agent in self.agents:
            rows.append(row(f"agent: success, {agent.level}", agent.success, agent.floors))
        return rows

    def _frame_rows(self, figure: str, label: str) -> list[tuple[str, str, str]]:
        rows: list[tuple[str, str, str]] = []
        for group, words in GROUPS.items():
            rows += self._share(f"{label}: {words}", f"{figure}/{group}/model", FLOORS)
        rows += self._share(f"{label}: revealed tiles legal", f"{figure}/revealed/legal")
        value = self.tally.mean(f"{figure}/psnr/model")
        if value is not None:
            below = {name: self.tally.mean(f"{figure}/psnr/{name}") for name in FLOORS}
            rows.append(row(f"{label}: PSNR", value, below, decibels))
        return rows

    def _rollout_rows(self) -> list[tuple[str, str, str]]:
        """Frames 1, 2, 4 and so on, and the last; `report.json` has all."""
        rows: list[tuple[str, str, str]] = []
        horizons = self.horizons()
        for h in horizons:
            if h & (h - 1) == 0 or h == horizons[-1]:
                for group in ("determined", "object", "all"):
                    label = f"rollout frame {h}: {GROUPS[group]}"
                    rows += self._share(label, f"rollout/{h}/{group}/model", FLOORS)
        if horizons:
            value = self.tally.mean(f"rollout/{horizons[-1]}/psnr/model")
            if value is not None:
                names = {n: self.tally.mean(f"rollout/{horizons[-1]}/psnr/{n}") for n in FLOORS}
                label = f"rollout frame {horizons[-1]}: PSNR"
                rows.append(row(label, value, names, decibels))
        return rows

    def _answer_rows(self) -> list[tuple[str, str, str]]:
        rows: list[tuple[str, str, str]] = []
        if self.outcome.truth:
            failures = self.outcome.truth.count("failure")
            count = f"{failures} of {len(self.outcome.truth):,}"
            rows.append(("outcome: true frames that are failures", count, ""))
        for label, answers in (("outcome", self.outcome), ("inverse", self.inverse)):
            if not answers.truth:
                continue
            balanced = balance(answers)
            assert balanced is not None
            floors: dict[str, Estimate | None] = {}
            if answers.floor:
                floors["shift that fits"] = balance(answers, answers.floor)
            else:
                commonest = Counter(answers.truth).most_common(1)[0][0]
                floors["always the same"] = balance(answers, [commonest] * len(answers.truth))
            classes = f"{len(balanced.recalls)} classes"
            rows.append(row(f"{label}: balanced accuracy ({classes})", balanced, floors))
            for name, recall in balanced.recalls.items():
                rows.append(row(f"{label}: recall of {name}", recall))
        rows += self._share("captions: exact match", "caption", {"majority": "caption/majority"})
        return rows

    def _joint_rows(self) -> list[tuple[str, str, str]]:
        if not self.imagined.truth:
            return []
        rows = self._share("joint: imagined transitions that could be judged", "joint/judged")
        rows += self._share("joint: tiles judged in them", "joint/tiles")
        rows += self._share("joint: judged transitions that change the frame", "joint/changes")
        label = "joint: changing transitions confirmed"
        found = self._share(label, "joint/changing/model", FLOORS)
        rows += found or [(label, "none to confirm: it stands still", "")]
        for figure, words in (
            ("frame", "judged transitions confirmed"),
            ("whole", "whole frames right"),
        ):
            rows += self._share(f"joint: {words}", f"joint/{figure}/model", FLOORS)
        pairs = list(zip(self.imagined.truth, self.imagined.given, strict=True))
        false = sum(given == "success" != truth for truth, given in pairs)
        missed = sum(truth == "success" != given for truth, given in pairs)
        rows += self._share("joint: imagined successes that are real", "joint/success")
        rows.append(("joint: false successes; real ones that it missed", f"{false}; {missed}", ""))
        balanced = balance(self.imagined)
        if balanced is not None:
            classes = f"{len(balanced.recalls)} classes"
            rows.append(row(f"joint: outcomes, balanced accuracy ({classes})", balanced))
        return rows

    def _share(
        self, label: str, figure: str, floors: tuple[str, ...] | dict[str, str] = ()
    ) -> list[tuple[str, str, str]]:
        """A row if anything was counted; floors are other ends of the figure's name."""
        estimate = self.tally.estimate(figure)
        if estimate is None:
            return []
        stem = figure.rpartition("/")[0]
        names = floors if isinstance(floors, dict) else {n: f"{stem}/{n}" for n in floors}
        below = {name: self.tally.estimate(other) for name, other in names.items()}
        return [row(f"{label} ({self.tally.total(figure):,})", estimate, below)]

    def horizons(self) -> list[int]:
        """Rollout frames that were counted."""
        found = {f.split("/")[1] for f in self.tally.counts if f.startswith("rollout/")}
        return sorted(int(h) for h in found)

    def table(self) -> str:
        """The rows as a Markdown table."""
        lines = ["| figure | value [95 % interval] | floors |", "|---|---|---|"]
        lines += [f"| {name} | {value} | {floor} |" for name, value, floor in self.rows()]
        return "\n".join([*lines, "", LEGEND])

    def figures(self) -> dict[str, Any]:
        """Everything as plain values, by level too."""
        shares: dict[str, Any] = {}
        for where, tally in (("all", self.tally), *self.levels.items()):
            measured = {f: tally.estimate(f) for f in sorted(tally.counts)}
            measured |= {f: tally.mean(f) for f in sorted(tally.errors)}
            shares[where] = {f: plain(value) for f, value in measured.items()}
        return {
            "settings": self.settings,
            "agent": [plain(agent) for agent in self.agents],
            "shares": shares,
            "outcome": _answers(self.outcome),
            "inverse": _answers(self.inverse),
            "imagined": _answers(self.imagined),
            "caption_misses": self.misses,
            "seconds": {name: round(value, 1) for name, value in self.seconds.items()},
        }

    def save(self, folder: Path) -> None:
        """Writes `report.json` and `report.md`, each whole or not at all."""
        write_json(folder / "report.json", self.figures())
        with atomic_path(folder / "report.md") as draft:
            draft.write_text(self.table() + "\n")


def load(name: str, device: str | None) -> tuple[UnifiedModel, UnifiedProcessor]:
    """A model to be evaluated on a device, with its processor.

    Raises:
        ValueError: If there is no such model, or the device cannot be used.
    """
    chosen = chosen_device(device)
    processor = load_processor(name, chosen)  # first: it refuses a wrong name at once
    return load_model(name, chosen), processor


def with_steps(arguments: Any, model: UnifiedModel) -> Any:
    """Options of an evaluation with the model's own number of denoise steps, if none was given."""
    steps = arguments.num_inference_steps
    return replace(arguments, num_inference_steps=steps or model.config.num_inference_steps)


def machine() -> dict[str, Any]:
    """The machine of the measurement."""
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "gpu": cuda,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


LEGEND = (
    "Bold: the whole interval lies above those of all floors. Floors of frames: *map* is odometry "
    "and a map of the cells seen so far, *shift* the last true frame shifted by the actions, "
    "*repeat* that frame as it was."
)


def row(
    label: str,
    value: Estimate,
    floors: Mapping[str, Estimate | None] | None = None,
    shown: Callable[[Estimate], str] = str,
) -> tuple[str, str, str]:
    """A line of the table; the value in bold where its interval lies above all floors."""
    below = {name: floor for name, floor in (floors or {}).items() if floor is not None}
    is_above = bool(below) and all(value.low > floor.high for floor in below.values())
    words = f"**{shown(value)}**" if is_above else shown(value)
    return label, words, "; ".join(f"{name} {shown(floor)}" for name, floor in below.items())


def decibels(estimate: Estimate) -> str:
    """A mean in dB with its interval."""
    return f"{estimate.value:.2f} dB [{estimate.low:.2f}, {estimate.high:.2f}]"


def balance(answers: Answers, given: list[str] | None = None) -> BalancedAccuracy | None:
    """Balanced accuracy of answers, or of others to the same questions, over episodes."""
    if not answers.truth:
        return None
    said = answers.given if given is None else given
    return balanced_accuracy(answers.truth, said, answers.episodes)


def _answers(answers: Answers) -> Any:
    balanced = balance(answers)
    return None if balanced is None else {**plain(balanced), "count": len(answers.truth)}


def plain(value: Any) -> Any:
    """Values that JSON can hold; an infinite bound is left open (None)."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if value is None or isinstance(value, str | int | bool):
        return value
    return plain(vars(value)) if hasattr(value, "__dict__") else str(value)
