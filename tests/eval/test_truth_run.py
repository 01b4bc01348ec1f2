"""`python -m eval.truth`: any model is evaluated, and what it cannot do is said."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from eval.findings import Findings
from eval.truth import Part, TruthArguments, evaluate


def test_parts_run_and_are_saved_as_json_markdown_and_page(
    untrained: Callable[..., str], tmp_path: Path
) -> None:
    parts: tuple[Part, ...] = ("events", "words", "questions")
    arguments = TruthArguments(
        model=untrained(), out=tmp_path, cases=1, parts=parts, num_inference_steps=1
    )
    saved_parts = []

    def save(findings: Findings) -> None:
        findings.save(tmp_path)
        saved_parts.append(len(json.loads((tmp_path / "truth.json").read_text())["parts"]))

    evaluate(arguments, save)
    assert saved_parts == [1, 2, 3]
    saved = json.loads((tmp_path / "truth.json").read_text())
    assert set(saved["parts"]) == set(parts)
    assert all(part["rows"] for part in saved["parts"].values())
    assert "events" in saved["seconds"]
    assert "| what is said happens |" in (tmp_path / "truth.md").read_text()
    page = (tmp_path / "truth.html").read_text()
    assert "data:image/png;base64" in page
    assert "<h2>Events" in page


def test_a_model_without_words_of_the_world_is_said_to_have_none(
    untrained: Callable[..., str],
) -> None:
    model = untrained(world_token_id=None)
    findings = evaluate(TruthArguments(model=model, parts=("events", "words"), cases=1))
    assert all("no <world>" in section.note for section in findings.sections.values())
    assert "Not supported" in findings.markdown()


def test_seeds_of_training_and_no_cases_are_refused() -> None:
    with pytest.raises(ValueError, match="seed=999999 belongs to training"):
        evaluate(TruthArguments(seed=999_999))
    with pytest.raises(ValueError, match="cases=0 must be at least 1"):
        evaluate(TruthArguments(cases=0))
