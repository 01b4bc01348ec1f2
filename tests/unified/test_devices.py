"""What a model leaves on a GPU, or in half precision, is read back like anything else."""

import copy
from typing import Any

import numpy as np
import pytest
import torch

from unified import Agent, WorldEnv, action_segment
from unified.conversation.sequence import Sequence
from unified.sampling.generation import Generation

from .parts import babyai_parts, random_frames

TASK = "go to the red ball"


class OnGpu(torch.Tensor):
    """A tensor that numpy cannot read before it was brought to the CPU, as one on a GPU."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func in (torch.Tensor.numpy, torch.Tensor.__array__):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        out: Any = super().__torch_function__(func, types, args, kwargs or {})
        comes_home = func is torch.Tensor.cpu or (func is torch.Tensor.to and "cpu" in args)
        return out.as_subclass(torch.Tensor) if comes_home else out


@pytest.fixture(scope="module")
def parts():
    return babyai_parts()


def prompt(frame):
    frames = {"role": "world", "content": [{"type": "frame", "frame": frame}]}
    return [{"role": "task", "content": TASK}, frames]


def reply_of(parts, **options):
    model, processor = parts
    inputs = processor.apply_chat_template(prompt(random_frames(1)[0]))
    generator = torch.Generator().manual_seed(0)
    return model.generate(**inputs, query="joint", max_turns=2, generator=generator, **options)


def read(messages):
    """Messages with pictures as nested lists."""
    return [
        (message["role"], [np.asarray(value).tolist() for value in item.values()])
        for message in messages
        for item in message["content"]
    ]


def test_a_tensor_on_a_gpu_is_refused_by_numpy():
    with pytest.raises(TypeError, match="can't convert cuda:0"):
        np.asarray(torch.zeros(2).as_subclass(OnGpu))


def test_a_reply_on_a_gpu_is_decoded_and_said_again(parts, monkeypatch):
    model, processor = parts
    reply = reply_of(parts)
    expected = read(processor.decode(reply))
    far = Generation(
        [ids.as_subclass(OnGpu) for ids in reply.input_ids],
        [latents.as_subclass(OnGpu) for latents in reply.latents],
        reply.config,
    )
    codec = copy.copy(processor.codec)
    monkeypatch.setattr(processor, "codec", codec)
    for name in ("encode", "decode"):
        method = getattr(codec, name)
        monkeypatch.setattr(codec, name, lambda x, run=method: run(x).as_subclass(OnGpu))
    assert read(processor.decode(far)) == expected
    [(ids, latents)] = reply.rows()
    [(far_ids, far_latents)] = far.rows()
    near = processor.segments(ids, latents, model.config)
    back = processor.segments(far_ids, far_latents, model.config)
    streams = [processor.stream(Sequence(segments[2:])) for segments in (near, back)]
    assert torch.equal(streams[0].latents, streams[1].latents)
    assert processor.encode_pixels(np.stack(random_frames(2))).shape == (2, 8, 7, 7)


@pytest.mark.parametrize("model_dtype", [torch.float32, torch.bfloat16])
def test_inputs_in_half_precision_can_be_appended_to(model_dtype):
    model, processor = babyai_parts()
    model.to(model_dtype)
    whole = processor.apply_chat_template(prompt(random_frames(1)[0]))
    half = whole.to("cpu", torch.bfloat16)
    assert half["latents"].dtype == torch.bfloat16
    told = processor.stream(Sequence([action_segment("left")]))
    frame = processor.stream(
        Sequence([action_segment("left"), *processor.segments(*half_frame(half), model.config)])
    )
    for news in (told, frame):
        session = model.start(**half)
        session.append([news])
        rounded = {**whole, "latents": half["latents"].float()}
        expected = model.start(**rounded)
        expected.append([news])
        torch.testing.assert_close(session.logits, expected.logits)
        if news is told:
            assert session.run("forward").latents[0].isfinite().all()


def half_frame(inputs):
    """The tokens of a prompt's frame, and its latents."""
    start = int((inputs["input_ids"][0] == 516).nonzero()[0])
    return inputs["input_ids"][0, start:], inputs["latents"][0, start:]


def test_a_generator_on_another_device_is_refused(parts):
    model, processor = parts
    inputs = processor.apply_chat_template(prompt(random_frames(1)[0]))
    with pytest.raises(ValueError, match=r"is on meta; make it on the CPU, torch\.Generator\(\)"):
        model.start(**inputs, generator=Elsewhere())


class Elsewhere(torch.Generator):
    """A generator as another device has it."""

    device = torch.device("meta")


@pytest.mark.gpu
@pytest.mark.parametrize("codec_device", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_replies_agents_and_worlds_give_pictures(codec_device, dtype):
    model, processor = babyai_parts()
    assert processor.codec is not None
    torch.nn.Module.to(model, "cuda", dtype)
    processor.codec.to(codec_device)
    reply = reply_of((model, processor))
    assert read(processor.decode(reply))
    agent, world = Agent(model, processor), WorldEnv(model, processor, task=TASK)
    frame, _ = world.reset(seed=0)
    for _ in range(3):
        frame, _, is_over, *_ = world.step(agent.environment_action(agent.act(frame, TASK)))
        assert frame.shape == (56, 56, 3)
        if is_over:
            break
    frame, _ = world.reset(seed=0, options={"frame": random_frames(1)[0]})
    assert isinstance(agent.describe(frame), str)
