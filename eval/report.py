"""One report: every figure with its interval, its floor beside it, as JSON and as a table."""

import os
import platform
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

import torch

from eval.babyai.agent import AgentResult
from eval.babyai.simulator import Answers
from eval.babyai.tally import Tally
from eval.statistics import BalancedAccuracy, Estimate, balanced_accuracy
from unified.files import atomic_path, write_json


@dataclass
class Report:
    """What was measured, with what, on what.

    Attributes:
        settings: Options of the run, model and machine.
        agents: One result per level.
        tally: Counts of the simulator, of captions and of imagination, of all levels.
        levels: The same by level.
        outcome: True and given outcomes.
        inverse: True and given actions.
        misses: Captions that were wrong: what was said, what is true.
        seconds: What each part took.
    """

    settings: dict[str, Any]
    agents: list[AgentResult] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    levels: dict[str, Tally] = field(default_factory=dict)
    outcome: Answers = field(default_factory=lambda: Answers([], []))
    inverse: Answers = field(default_factory=lambda: Answers([], []))
    misses: list[tuple[str, str]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def rows(self) -> list[tuple[str, str, str]]:
        """The table: figure (of how many), value with its 95 % interval, floor."""
        rows: list[tuple[str, str, str]] = []

        def share(label: str, figure: str, floor: str | None = None) -> None:
            estimate = self.tally.estimate(figure)
            below = self.tally.estimate(floor) if floor else None
            if estimate is not None:
                count = f"{self.tally.total(figure):,}"
                rows.append((f"{label} ({count})", str(estimate), _percent(below)))

        share("codec round trip: tiles", "codec/tiles")
        if self.agents:
            mean = sum(a.success.value for a in self.agents) / len(self.agents)
            rows.append(("agent: success, mean of levels", f"{100 * mean:.2f} %", ""))
        for agent in self.agents:
            rows.append((f"agent: success, {agent.level}", str(agent.success), ""))
        for group, label in (
            ("determined", "determined tiles"),
            ("changed", "determined tiles that changed"),
            ("frame", "frames with all determined tiles right"),
            ("all", "all tiles"),
        ):
            share(f"next frame: {label}", f"next/{group}/model", f"next/{group}/repeat")
        share("next frame: revealed tiles legal", "next/revealed/legal")
        for h in self.horizons():
            name = f"rollout/{h}/determined"
            share(f"rollout: determined tiles at frame {h}", f"{name}/model", f"{name}/repeat")
        for figure, label in (("next", "next frame"), *self._ends()):
            value = self.tally.mean(f"{figure}/psnr/model")
            floor = self.tally.mean(f"{figure}/psnr/repeat")
            if value is not None:
                rows.append((f"{label}: PSNR", f"{value:.2f} dB", f"{floor:.2f} dB"))
        for label, answers in (
            ("outcome: balanced accuracy", self.outcome),
            ("inverse: balanced accuracy over actions", self.inverse),
        ):
            if answers.truth:
                balanced = balanced_accuracy(answers.truth, answers.given)
                guess = 1 / len(balanced.recalls)
                rows.append((label, str(balanced), f"{100 * guess:.2f} %"))
                for name, recall in balanced.recalls.items():
                    rows.append((f"{label.split(':')[0]}: recall of {name}", str(recall), ""))
        share("captions: exact match", "caption")
        share("joint: imagined transitions confirmed", "joint/confirmed", "joint/frame/repeat")
        return rows

    def horizons(self) -> list[int]:
        """Rollout frames that were counted."""
        found = {f.split("/")[1] for f in self.tally.counts if f.startswith("rollout/")}
        return sorted(int(h) for h in found)

    def _ends(self) -> list[tuple[str, str]]:
        horizons = self.horizons()
        return [(f"rollout/{horizons[-1]}", f"rollout frame {horizons[-1]}")] if horizons else []

    def table(self) -> str:
        """The rows as a Markdown table."""
        lines = ["| figure | value [95 % interval] | floor |", "|---|---|---|"]
        lines += [f"| {name} | {value} | {floor} |" for name, value, floor in self.rows()]
        return "\n".join(lines)

    def figures(self) -> dict[str, Any]:
        """Everything as plain values, by level too."""
        shares: dict[str, Any] = {}
        for where, tally in (("all", self.tally), *self.levels.items()):
            measured = {f: tally.estimate(f) for f in sorted(tally.counts)}
            measured |= {f: tally.mean(f) for f in sorted(tally.errors)}
            shares[where] = {f: _plain(value) for f, value in measured.items()}
        return {
            "settings": self.settings,
            "agent": [_plain(agent) for agent in self.agents],
            "shares": shares,
            "outcome": _answers(self.outcome),
            "inverse": _answers(self.inverse),
            "caption_misses": self.misses,
            "seconds": {name: round(value, 1) for name, value in self.seconds.items()},
        }

    def save(self, folder: Path) -> None:
        """Writes `report.json` and `report.md`, each whole or not at all."""
        write_json(folder / "report.json", self.figures())
        with atomic_path(folder / "report.md") as draft:
            draft.write_text(self.table() + "\n")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "gpu": cuda,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _answers(answers: Answers) -> Any:
    if not answers.truth:
        return None
    balanced = balanced_accuracy(answers.truth, answers.given)
    return {**_plain(balanced), "count": len(answers.truth)}


def _percent(estimate: Estimate | BalancedAccuracy | None) -> str:
    return "" if estimate is None else f"{100 * estimate.value:.2f} %"


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
