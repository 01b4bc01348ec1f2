"""How fast the model trains, samples and plays on this machine, beside transfusion-pytorch.

python -m eval.speed --out runs/speed

Every comparison is made in one run: the sides take turns, the first rounds are thrown away, and
medians are reported. What is timed is checked first. A part that fails says so, and the others go
on.
"""

import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import transformers
import tyro
from torch import Tensor
from tqdm import tqdm

from eval.report import machine
from eval.speed.bench import (
    ON_CPU,
    ON_GPU,
    WORDS,
    Bench,
    Part,
    SpeedArguments,
    Table,
    medians,
    timed,
)
from unified.command import chosen_device, command
from unified.configuration import UnifiedConfig
from unified.conversation.processing import UnifiedProcessor
from unified.conversation.sequence import Sequence, action_segment
from unified.conversation.stream import TokenStream
from unified.files import atomic_path, write_json
from unified.model.attention import IMPLEMENTATIONS
from unified.model.flops import batch_flops, peak_flops
from unified.model.plan import TrainingRow, collate, plan_training
from unified.modeling import UnifiedModel
from unified.pretrained import resolve_checkpoint
from unified.sampling.generation import Session

KERNELS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "gemm", "nvjet"),
    "attention": ("flash_attention", "efficient_attention", "cudnn_attention", "flash_fwd", "fmha"),
    "convolutions": ("convolution", "conv2d", "cudnn"),
}
"""Kinds of kernels, by words in their names."""
PLAY_BURSTS, PLAY_FRAMES = 6, 8
"""Turns of each played world, and frames that are timed in a turn."""
SIZES = {
    "10M": {"width": 320, "layers": 8, "heads": 5, "head_size": 64},
    "100M": {"width": 768, "layers": 14, "heads": 12, "head_size": 64},
    "300M": {"width": 1024, "layers": 24, "heads": 16, "head_size": 64},
    "1B": {"width": 2048, "layers": 20, "heads": 16, "head_size": 128},
}
"""Models of the sizes part."""
SIZES_LENGTH = 8192
"""Tokens of a row in the sizes part."""
LARGE = {"width": 1280, "layers": 24, "heads": 20, "head_size": 64}
"""Of the large part: as many parameters as Oasis has (500 M), on latents of 18 x 32 in 2 x 2
patches, that is, 144 tokens a frame."""
LARGE_FRAMES = 32
"""Frames of its window."""


def train_step(
    bench: Bench,
    model: torch.nn.Module,
    loss: Callable[[], Tensor],
    optimizer: torch.optim.Optimizer | None = None,
) -> Callable[[], None]:
    """A call that takes one step, or only a gradient without an optimiser."""

    def step() -> None:
        with bench.mixed_precision(bench.trains_in_bf16):
            value = loss()
        if not bool(torch.isfinite(value)):
            raise ValueError(f"the loss is {value.item()}")
        value.backward()
        if optimizer is not None:
            optimizer.step()
        model.zero_grad()

    return step


def measure_training(bench: Bench) -> Table:
    """One optimiser step on the same episodes: ours and transfusion-pytorch's."""
    a = bench.arguments
    config = bench.config()
    table = Table(
        f"Training: {a.batch} episodes of {WORDS} words and {a.frames} frames of "
        f"{config.frame_tokens} tokens, each with an action",
        ["", "parameters", "tokens a row", "step, s", "frames/s", "tokens/s", "times faster"],
    )
    theirs = bench.theirs(config)
    streams = [bench.processor.stream(bench.episode(a.frames, i)) for i in range(a.batch)]
    words = torch.randint(0, 512, (a.batch, WORDS), device=bench.device)
    actions = torch.randint(0, 7, (a.batch, a.frames), device=bench.device)
    frames = torch.randn(a.batch, a.frames, *theirs.grid, theirs.channels, device=bench.device)
    spans = [(i, i + 1) for i in range(a.frames)]

    def clean_history(stream: TokenStream) -> TrainingRow:
        levels = torch.rand(a.frames, a.frames)
        return plan_training(stream, config, spans=spans, noise_levels=levels)

    def noisy_history(stream: TokenStream) -> TrainingRow:
        levels = torch.rand(a.frames)
        none = levels.new_zeros(0, a.frames)
        return plan_training(
            stream,
            config,
            spans=[],
            noise_levels=none,
            context_noise_levels=levels,
            learn_context=True,
        )

    lengths: dict[str, int] = {}
    parameters: dict[str, int] = {}

    def side(name: str, model: torch.nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
        parameters[name] = sum(p.numel() for p in model.parameters())
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        return train_step(bench, model.train(), loss, optimizer)

    def ours(
        name: str, lay_out: Callable[[TokenStream], TrainingRow], is_compiled: bool
    ) -> Callable[[], None]:
        model = bench.model(config)
        model.is_compiled = is_compiled

        def loss() -> Tensor:
            rows = [lay_out(stream) for stream in streams]
            lengths[name] = max(map(len, rows))
            laid = collate(rows, config, lengths[name])
            return model(**{key: value.to(bench.device) for key, value in laid.items()}).loss

        return side(name, model, loss)

    sides: dict[str, Callable[[], None]] = {}
    for history, lay_out in {"clean": clean_history, "noisy": noisy_history}.items():
        for suffix in ("", ", compiled"):
            name = f"ours, {history} history{suffix}"
            step = ours(name, lay_out, bool(suffix))
            with table.attempt(name):
                step()
                sides[name] = step
    name = "transfusion-pytorch, noisy history"
    sides[name] = side(name, theirs.model, lambda: theirs.loss(words, actions, frames))
    took = medians(sides, a.rounds)
    lengths[name] = theirs.row_length
    for each, seconds in took.items():
        rate, tokens = a.batch * a.frames / seconds, a.batch * lengths[each] / seconds
        faster = took[name] / seconds
        table.rows.append([each, parameters[each], lengths[each], seconds, rate, tokens, faster])
    table.notes.append(
        "with a noisy history each frame is laid out once, noisy, and the frames after it see it "
        "so (Diffusion Forcing): their objective, and one of ours. With a clean history there is a "
        "noisy copy of each frame beside the clean one, as when the model plays. Laying out is "
        "timed on both sides, and so is AdamW"
    )
    return table


def measure_sampling(bench: Bench) -> Table:
    """Frames drawn with the key-value cache: ours and transfusion-pytorch's batched sampler."""
    a = bench.arguments
    config = bench.config()
    ours, theirs = bench.model(config).eval(), bench.theirs(config)
    theirs.model.eval()
    table = Table(
        f"Sampling: {a.frames} frames after {WORDS} words, {a.evaluations} evaluations of the "
        "network for each",
        ["", "rows", "s", "frames/s", "latent tokens/s", "times faster"],
    )
    action = bench.processor.stream(Sequence([action_segment("left")]))
    for rows in sorted({1, a.batch}):
        words = torch.randint(0, 512, (rows, WORDS), device=bench.device)
        prompt = bench.prompt(rows)

        def draw(is_compiled: bool, rows: int = rows, prompt: Any = prompt) -> Tensor:
            seeds = torch.Generator().manual_seed(a.seed)
            session = ours.start(**prompt, generator=seeds, compiled=is_compiled)
            for _ in range(a.frames):
                session.append([action] * rows)
                session.run("forward", num_inference_steps=a.evaluations)
            return session.history(0)[1]

        sides: dict[str, Callable[[], Any]] = {
            "ours": lambda: draw(False),
            "transfusion-pytorch": lambda words=words: theirs.sample(
                words, 0, a.frames, a.evaluations
            ),
        }
        with table.attempt("compiled sampling"):
            torch.testing.assert_close(draw(True), draw(False), rtol=1e-2, atol=1e-2)
            sides["ours, compiled"] = lambda: draw(True)
        with bench.mixed_precision(a.bf16):
            took = medians(sides, a.rounds)
        for name, seconds in took.items():
            rate = rows * a.frames / seconds
            faster = took["transfusion-pytorch"] / seconds
            table.rows.append([name, rows, seconds, rate, rate * config.frame_tokens, faster])
    table.notes.append(
        "ours also commits each finished frame by a clean pass, and says its outcome; their "
        "sampler is told which tokens to say between frames, and draws without guidance"
    )
    return table


def measure_play(bench: Bench) -> Table:
    """The given model as a game: one action, one frame."""
    a = bench.arguments
    model = UnifiedModel.from_pretrained(a.model).eval()
    torch.nn.Module.to(model, bench.device)
    table = Table(
        f"Play: {a.model}, one action to one frame, pixels included",
        ["", "denoise steps", "frame", "frames/s", "median, ms", "p95, ms", "cache, MB"],
    )
    prompt = bench.prompt(1)
    sessions: dict[tuple[str, int, int], Session] = {}
    with bench.mixed_precision(a.bf16):
        for name in ("eager", "compiled"):
            for steps in a.play_steps:
                with table.attempt(f"play, {steps} steps, {name}"):
                    seeds = torch.Generator().manual_seed(a.seed)
                    session = model.start(**prompt, generator=seeds, compiled=name == "compiled")
                    numbers = a.play_frames if steps == 4 else a.play_frames[:1]
                    what = f"play, {steps} steps, {name}"
                    for frame in tqdm(range(1, max(numbers) + 1), desc=what, leave=False):
                        play_frame(bench, session, steps)
                        if frame in numbers:  # a fork has the cache, and code compiled already
                            sessions[name, steps, frame] = session.fork()
        seconds: dict[tuple[str, int, int], list[float]] = {key: [] for key in sessions}
        for _ in tqdm(range(PLAY_BURSTS), desc="play, in turns", leave=False):
            for key, session in sessions.items():
                burst = [
                    timed(lambda s=session, n=key[1]: play_frame(bench, s, n))
                    for _ in range(PLAY_FRAMES + 2)
                ]
                seconds[key] += burst[2:]
    for key, values in seconds.items():
        last = sorted(values)
        median, p95 = statistics.median(last), last[int(0.95 * (len(last) - 1))]
        size = sessions[key].cache.states.nbytes / 1e6
        table.rows.append([*key, 1 / median, 1e3 * median, 1e3 * p95, size])
    table.notes.append(
        f"{PLAY_BURSTS} times {PLAY_FRAMES} frames from the one that is named; the rows take "
        "turns, and the first two frames of a turn do not count"
    )
    return table


def play_frame(bench: Bench, session: Session, steps: int) -> np.ndarray:
    """An action, and the frame it leads to, in pixels."""
    session.append([bench.processor.stream(Sequence([action_segment("left")]))])
    generation = session.run("forward", num_inference_steps=steps)
    drawn = bench.processor.segments(*next(iter(generation.rows())), session.config)
    return bench.processor.pixels(drawn[0])


def measure_scaling(bench: Bench) -> Table:
    """Training tokens a second, by the length of a row and by attention back end."""
    a = bench.arguments
    table = Table(
        f"Scaling: forward and backward of one row, width {a.width}, {a.layers} layers",
        ["back end", "tokens", "s", "tokens/s", "TFLOP/s", "loss"],
    )
    for length in a.lengths:
        expected = None
        for name in IMPLEMENTATIONS:
            reason = _why_not(name, bench.device)
            if reason:
                table.notes += [f"{name}: {reason}"] if length == a.lengths[0] else []
                continue
            with table.attempt(f"{name}, {length} tokens"):
                config, batch = bench.long_row(length, attn_implementation=name)
                took, loss = _gradient_seconds(bench, config, batch, 1 + a.rounds // 3, False)
                expected = loss if expected is None else expected
                if abs(loss - expected) > 1e-2 * abs(expected):
                    raise ValueError(f"the loss is {loss}, but {expected} by the dense mask")
                work = batch_flops(config, batch["input_ids"], batch["visible"])
                table.rows.append([name, length, took, length / took, work / took / 1e12, loss])
    return table


def measure_sizes(bench: Bench) -> Table:
    """Training at growing sizes, compiled."""
    length = SIZES_LENGTH
    table = Table(
        f"Sizes: one compiled training step (AdamW, bfloat16 on a GPU) on a row of {length} tokens",
        ["size", "back end", "parameters", "s", "tokens/s", "TFLOP/s", "MFU", "memory, GB"],
    )
    for size, shape in SIZES.items():
        for name in IMPLEMENTATIONS:
            if _why_not(name, bench.device) or (name == "sdpa" and size != "10M"):
                continue
            with table.attempt(f"{size}, {name}"):
                config, batch = bench.long_row(length, attn_implementation=name, **shape)
                took, _ = _gradient_seconds(bench, config, batch, 5, True)
                speed = batch_flops(config, batch["input_ids"], batch["visible"]) / took
                gpu = torch.cuda.is_available()
                peak = peak_flops(torch.cuda.get_device_name()) if gpu else None
                memory = torch.cuda.max_memory_allocated() / 1e9 if gpu else None
                row = [size, name, _parameters(config), took, length / took, speed / 1e12]
                table.rows.append([*row, speed / peak if peak else None, memory])
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
    return table


def _gradient_seconds(
    bench: Bench,
    config: UnifiedConfig,
    batch: dict[str, Tensor],
    rounds: int,
    is_whole_step: bool,
) -> tuple[float, float]:
    """Seconds of a gradient, or of a whole compiled step, and the loss."""
    model = bench.model(config).train()
    model.is_compiled = is_whole_step
    noise = torch.randn(batch["latents"].shape, generator=torch.Generator().manual_seed(0))
    batch = {**batch, "noise": noise.to(bench.device)}
    optimizer = None
    if is_whole_step:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    with torch.no_grad(), bench.mixed_precision(bench.trains_in_bf16):
        loss = float(model(**batch).loss)
    step = train_step(bench, model, lambda: model(**batch).loss, optimizer)
    name = f"{config._attn_implementation}, {noise.shape[1]} tokens"
    return medians({name: step}, rounds)[name], loss


def _parameters(config: UnifiedConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in UnifiedModel(config).parameters())


def _why_not(implementation: str, device: str) -> str | None:
    if device == "cuda" or implementation == "sdpa":
        return None
    if implementation == "flex_attention":
        return "has no backward pass on CPU"
    return "on CPU it is the reference of its algorithm, for tests"


def measure_large(bench: Bench) -> Table:
    """A simulator as large as Oasis, in bfloat16, its window full."""
    processor = UnifiedProcessor(
        tokenizer=bench.processor.tokenizer,
        action_space=bench.processor.action_space,
        latent_patch_size=2,
    )
    bench = Bench(bench.arguments, bench.device, processor, (16, 18, 32))
    config = bench.config(window_frames=LARGE_FRAMES, **LARGE)
    model = bench.model(config).eval().bfloat16()
    table = Table(
        f"Large: {_parameters(config):,} parameters, {config.frame_tokens} tokens a frame, "
        f"window of {LARGE_FRAMES} frames, full, bfloat16",
        ["", "denoise steps", "frames/s", "median, ms", "cache, MB"],
    )
    action = processor.stream(Sequence([action_segment("left")]))
    for is_compiled in (False, True):
        for steps in (4, 10):
            with table.attempt(f"{steps} steps, compiled={is_compiled}"):
                prompt = processor.encode([bench.episode(LARGE_FRAMES + 1, 0)])
                session = model.start(**prompt, compiled=is_compiled)

                def draw(session: Session = session, steps: int = steps) -> None:
                    session.run("forward", num_inference_steps=steps)
                    session.append([action])

                seconds = [timed(draw) for _ in range(24)]
                median = statistics.median(seconds[8:])
                name = "compiled" if is_compiled else "eager"
                size = session.cache.states.nbytes / 1e6
                table.rows.append([name, steps, 1 / median, 1e3 * median, size])
    return table


def measure_profile(bench: Bench) -> Table:
    """Which kernels the time goes to, in training, sampling and play."""
    a = bench.arguments
    kinds = list(KERNELS)
    table = Table(
        "Where the time goes: shares of the time in kernels, compiled",
        ["", *(f"{kind}, %" for kind in kinds), "the rest, %", "torch operations"],
    )
    config = bench.config()
    with table.attempt("profile of training"):
        rows = [bench.row(a.frames, i, config) for i in range(a.batch)]
        laid = collate(rows, config, max(map(len, rows)))
        batch = {name: value.to(bench.device) for name, value in laid.items()}
        trained = bench.model(config).train()
        trained.is_compiled = True
        step = train_step(bench, trained, lambda: trained(**batch).loss)
        table.rows.append(["training step", *_shares(step)])
    action = bench.processor.stream(Sequence([action_segment("left")]))
    for rows in sorted({1, a.batch}):
        with table.attempt(f"profile of sampling, {rows} rows"):
            session = bench.model(config).eval().start(**bench.prompt(rows), compiled=True)

            def draw(session: Session = session, rows: int = rows) -> None:
                session.append([action] * rows)
                session.run("forward", num_inference_steps=a.evaluations)

            table.rows.append([f"frame, {rows} rows", *_shares(draw, a.frames)])
    with table.attempt("profile of play"):
        model = UnifiedModel.from_pretrained(a.model).eval()
        torch.nn.Module.to(model, bench.device)
        played = model.start(**bench.prompt(1), compiled=True)
        window = model.config.window_frames
        table.rows.append(
            [f"play, {a.model}", *_shares(lambda: play_frame(bench, played, 4), window)]
        )
    table.notes.append("the time between kernels, in Python, is in no share")
    return table


def _shares(run: Callable[[], Any], warmup: int = 2) -> list[float]:
    """Percentages of the kernels' time, by kind and for the rest, and their number."""
    for _ in range(warmup):
        run()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        timed(run)  # for its wait
    on_gpu = torch.cuda.is_available()
    seconds = dict.fromkeys([*KERNELS, "rest"], 0.0)
    count = 0
    for event in profile.key_averages():
        took = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        kind = next(
            (k for k, words in KERNELS.items() if any(w in event.key for w in words)), "rest"
        )
        seconds[kind] += took
        count += event.count if took and (on_gpu or event.key.startswith("aten::")) else 0
    total = sum(seconds.values()) or 1.0
    return [*(100 * value / total for value in seconds.values()), count]


MEASURES: dict[Part, Callable[[Bench], Table]] = {
    "train": measure_training,
    "sample": measure_sampling,
    "play": measure_play,
    "profile": measure_profile,
    "scaling": measure_scaling,
    "sizes": measure_sizes,
    "large": measure_large,
}


def measure(arguments: SpeedArguments) -> Iterator[Table]:
    """Runs the parts, one after another.

    Raises:
        ValueError: If the model is missing.
    """
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    device = chosen_device(arguments.device)
    processor = UnifiedProcessor.from_pretrained(arguments.model)
    config = UnifiedConfig.from_pretrained(resolve_checkpoint(arguments.model))
    rows, columns = config.latent_grid
    bench = Bench(arguments, device, processor, (config.latent_channels, rows, columns))
    parts = arguments.parts or (ON_GPU if device.startswith("cuda") else ON_CPU)
    for part in tqdm(parts, desc="speed"):
        table = Table(part.capitalize(), [])
        with table.attempt(part):
            table = MEASURES[part](bench)
        yield table


def surroundings(arguments: SpeedArguments) -> dict[str, Any]:
    """Commit, machine, packages and time of the measurement."""
    try:
        command = ["git", "describe", "--always", "--dirty=+"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        commit = done.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {
        **machine(),
        "system": platform.system(),
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "precision": "bfloat16" if arguments.bf16 else "float32",
        "commit": commit,
        "date": time.strftime("%Y-%m-%d"),
    }


def main() -> None:
    """Command line."""
    arguments = tyro.cli(SpeedArguments, description=__doc__)
    tables: list[Table] = []
    with command("eval.speed"):
        for table in measure(arguments):
            tables.append(table)
            save(arguments, tables)  # after each part: the next may end the process
    print((arguments.out / "speed.md").read_text())


def save(arguments: SpeedArguments, tables: list[Table]) -> None:
    """Writes speed.json and speed.md."""
    out, about = arguments.out, surroundings(arguments)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "speed.json", {"machine": about, "tables": [vars(table) for table in tables]})
    head = "# Speed\n\n" + ", ".join(f"{name} {value}" for name, value in about.items()) + "\n"
    with atomic_path(out / "speed.md") as draft:
        draft.write_text("\n".join([head, *(table.markdown() for table in tables)]))
