"""Arguments of `generate` that users of transformers know, and what they mean here."""

import difflib
from typing import Any

from transformers import GenerationConfig

from unified.sampling.options import count, number, switch

_NAMES = (
    "query",
    "generator",
    "seed",
    "temperature",
    "top_k",
    "top_p",
    "do_sample",
    "max_new_tokens",
    "num_return_sequences",
    "num_inference_steps",
    "solver",
    "time_grid",
    "timesteps",
    "guidance_scale",
    "max_turns",
    "max_text_tokens",
    "think",
    "memory",
    "known",
    "callback",
    "streamer",
    "generation_config",
    "return_dict_in_generate",
)
_OURS = {
    "max_length": "max_new_tokens",
    "min_length": "think=True, which makes the agent speak",
    "pixel_values": "latents",
    "inputs": "input_ids",
    "stop_strings": "max_text_tokens, the longest run of words",
    "stopping_criteria": "query and max_turns, which say where a reply ends",
    "num_beams": "num_return_sequences, replies that are sampled apart",
    "max_time": "max_new_tokens",
}
_READ = ("temperature", "top_k", "top_p", "max_new_tokens", "num_return_sequences", "do_sample")
_NEUTRAL: dict[str, Any] = {
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "use_cache": True,
    "output_attentions": False,
    "output_hidden_states": False,
    "output_scores": False,
    "output_logits": False,
    "return_dict_in_generate": False,
    "max_length": 20,
}
_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")


def check_names(unknown: dict[str, Any]) -> None:
    """Refuses arguments that `generate` does not have.

    Raises:
        ValueError: Naming the first, and what is meant.
    """
    for name, value in unknown.items():
        if name in _NEUTRAL and value in (None, _NEUTRAL[name]):
            continue
        like = difflib.get_close_matches(name, _NAMES, 1)
        hint = _OURS.get(name) or (like[0] if like else "one of " + ", ".join(_NAMES))
        raise ValueError(f"generate has no argument {name!r}; use {hint}")


def read_config(config: Any, **given: Any) -> dict[str, Any]:
    """Options by their usual meaning: what is given, else what a config says.

    As in transformers, a config that does not sample has no temperature.

    Args:
        config: A `GenerationConfig`.
        **given: The options of that name that were passed, None where they were not.

    Returns:
        `temperature`, `top_k`, `top_p`, `max_new_tokens` and `num_return_sequences`.

    Raises:
        ValueError: If options contradict each other, or the config asks for what is not done.
    """
    if not isinstance(config, GenerationConfig):
        raise ValueError(
            f"generation_config is a {type(config).__name__}; give transformers.GenerationConfig"
        )
    for name, value in config.to_diff_dict().items():
        known = name in (*_READ, *_TOKENS) or name.startswith(("_", "transformers_"))
        if not known and value not in (None, _NEUTRAL.get(name)):
            hint = _OURS.get(name)
            raise ValueError(
                f"{name}={value!r} of the generation_config is not done here; "
                + (f"use {hint}" if hint else "leave it out")
            )
    said = {name: getattr(config, name, None) for name in _READ}
    if not said["do_sample"]:
        said.update(temperature=None, top_k=None, top_p=None)
    chosen = {name: said[name] if given.get(name) is None else given[name] for name in _READ}
    do_sample = switch("do_sample", chosen.pop("do_sample"))
    explicit = given.get("temperature")
    if explicit is not None:
        heat = number("temperature", explicit)
        if given.get("do_sample") is not None and given["do_sample"] != (heat > 0):
            verb = "samples" if heat > 0 else "takes the likeliest token"
            raise ValueError(
                f"do_sample={given['do_sample']} and temperature={explicit}, which {verb}, "
                "contradict each other; leave one out"
            )
    elif not do_sample:
        chosen["temperature"] = 0.0
    elif chosen["temperature"] is None:
        chosen["temperature"] = 1.0
    copies = chosen["num_return_sequences"]
    chosen["num_return_sequences"] = 1 if copies is None else count("num_return_sequences", copies)
    return chosen
