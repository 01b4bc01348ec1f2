import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from tests.unified.parts import babyai_parts, random_frames


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint as users have it: model and processor in one folder."""
    folder = tmp_path_factory.mktemp("checkpoint")
    model, processor = babyai_parts()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(folder):
    from unified import UnifiedModel, UnifiedProcessor

    return UnifiedModel.from_pretrained(folder), UnifiedProcessor.from_pretrained(folder)


def conversation(first_frame):
    return [
        {"role": "task", "content": [{"type": "text", "text": "open the red door"}]},
        {"role": "world", "content": [{"type": "frame", "frame": first_frame}]},
        {"role": "agent", "content": [{"type": "action", "action": "left"}]},
    ]


def items(messages):
    """Role and content item, flat."""
    return [(m["role"], item) for m in messages for item in m["content"]]


def ask(loaded, messages, **options):
    model, processor = loaded
    inputs = processor.apply_chat_template(messages, return_tensors="pt")
    options = {"num_inference_steps": 1, "max_text_tokens": 3, **options}
    generator = torch.Generator().manual_seed(0)
    return processor.decode(model.generate(**inputs, generator=generator, **options))


@pytest.mark.parametrize("as_image", [True, False])
def test_forward_answers_with_a_frame_and_an_outcome(loaded, as_image):
    frame = random_frames(1)[0]
    reply = ask(
        loaded, conversation(Image.fromarray(frame) if as_image else frame), query="forward"
    )
    (role, shown), (_, outcome) = items(reply)
    assert role == "world"
    assert shown["frame"].size == (56, 56)
    assert shown["frame"].mode == "RGB"
    assert outcome["outcome"] in ("ongoing", "success", "failure")


def test_policy_answers_with_words_and_an_action(loaded):
    messages = [*conversation(random_frames(1)[0])]
    messages.append(
        {
            "role": "world",
            "content": [
                {"type": "frame", "frame": random_frames(2)[1]},
                {"type": "outcome", "outcome": "ongoing"},
            ],
        }
    )
    silent = items(ask(loaded, messages, query="policy", think=False))
    assert [(role, item["type"]) for role, item in silent] == [("agent", "action")]
    spoken = items(ask(loaded, messages, query="policy", think=True, max_text_tokens=3))
    assert (spoken[0][0], spoken[0][1]["type"]) == ("agent", "text")


def test_inverse_names_the_unknown_action(loaded):
    first, second = random_frames(2)
    messages = [
        {"role": "world", "content": [{"type": "frame", "frame": first}]},
        {"role": "agent", "content": [{"type": "action", "action": "unknown"}]},
        {
            "role": "world",
            "content": [
                {"type": "frame", "frame": second},
                {"type": "outcome", "outcome": "ongoing"},
            ],
        },
    ]
    ((role, item),) = items(ask(loaded, messages, query="inverse"))
    assert (role, item["hindsight"]) == ("agent", True)
    assert item["action"] in loaded[1].action_space.names


def test_joint_alternates_frames_and_actions(loaded):
    messages = conversation(random_frames(1)[0])
    reply = items(ask(loaded, messages, query="joint", think=False, max_turns=3))
    kinds = [item["type"] for _, item in reply]
    assert kinds[:2] == ["frame", "outcome"]
    assert kinds in [(["frame", "outcome", "action"] * n)[:-1] for n in (1, 2, 3)]


def test_a_reply_continues_the_conversation(loaded):
    messages = conversation(random_frames(1)[0])
    reply = ask(loaded, messages, query="forward")
    reply[-1]["content"][-1]["outcome"] = "ongoing"
    reply += ask(loaded, messages + reply, query="policy", think=False)
    action = items(reply)[-1][1]
    assert action["type"] == "action"
    ask(loaded, messages + reply, query="forward")


def test_ragged_prompts_in_a_batch_reply_as_each_alone(loaded):
    model, processor = loaded
    frames = random_frames(3)
    short = [
        {"role": "world", "content": [{"type": "frame", "frame": frames[0]}]},
        {"role": "agent", "content": [{"type": "action", "action": "toggle"}]},
    ]
    text_only = [{"role": "task", "content": "imagine: a key"}]
    prompts = [conversation(frames[1]), short, text_only]
    seeds = [torch.Generator().manual_seed(i) for i in range(3)]
    inputs = processor.apply_chat_template(prompts, return_tensors="pt")
    assert inputs["attention_mask"].sum(1).unique().numel() == 3
    options = {"query": "forward", "num_inference_steps": 2}
    together = model.generate(**inputs, generator=seeds, **options)
    assert len(processor.decode(together)) == 3
    for row, prompt in enumerate(prompts):
        one = processor.apply_chat_template(prompt, return_tensors="pt")
        seed = [torch.Generator().manual_seed(row)]
        alone = model.generate(**one, generator=seed, **options)
        assert torch.equal(alone.input_ids[0], together.input_ids[row])
        assert torch.allclose(alone.latents[0], together.latents[row], atol=1e-4)


def test_the_callback_gets_each_finished_segment_once(loaded):
    model, processor = loaded
    inputs = processor.apply_chat_template(conversation(random_frames(1)[0]))
    segments = []
    generation = model.generate(
        **inputs,
        query="joint",
        max_turns=3,
        max_text_tokens=3,
        num_inference_steps=1,
        callback=lambda row, ids, latents: segments.append((row, ids, latents)),
    )
    assert torch.equal(torch.cat([ids for _, ids, _ in segments]), generation.input_ids[0])
    for _, ids, latents in segments:
        assert len(processor.segments(ids, latents, model.config)) == 1


@pytest.mark.parametrize(
    ("messages", "query", "message"),
    [
        ([], "policy", "prompt is empty"),
        ([{"role": "god", "content": "hi"}], "policy", "role 'god'.*task, agent, world"),
        (conversation(np.zeros((64, 64, 3), np.uint8)), "forward", "64x64.*56x56.*resize"),
        (conversation(np.zeros((56, 56), np.uint8)), "forward", r"\(56, 56\).*uint8"),
        (conversation(random_frames(1)[0]), "policy", "ends with an action.*'forward'"),
        (conversation(random_frames(1)[0]), "dream", "query 'dream' is unknown"),
        (conversation(random_frames(1)[0])[:1], "policy", "ends with the task"),
    ],
)
def test_bad_prompts_are_refused_by_name(loaded, messages, query, message):
    with pytest.raises(ValueError, match=message):
        ask(loaded, messages, query=query)


def test_every_public_name_can_be_imported():
    import unified

    for name in unified.__all__:
        assert getattr(unified, name).__name__ == name
    assert set(unified.__all__) <= set(dir(unified))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = unified.nonsense


def test_importing_the_library_is_quick_because_it_imports_nothing_yet():
    code = "import sys, unified; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
