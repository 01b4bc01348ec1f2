"""`unified ask`."""

import torch

from unified.cli.arguments import AskArguments
from unified.cli.loading import load_model, load_processor
from unified.command import chosen_device
from unified.sampling.completion import complete


def ask(arguments: AskArguments) -> None:
    """Prints the answer.

    Raises:
        ValueError: If the model was never a language model that answers questions.
    """
    device = chosen_device(arguments.device)
    tokenizer = load_processor(arguments.model, device).tokenizer
    if not tokenizer.chat_template:
        raise ValueError(
            f"{arguments.model!r} has no chat template: it did not begin as a language model that "
            "answers questions; make one with train.pretrain --language-model"
        )
    model = load_model(arguments.model, device)
    turn = [{"role": "user", "content": arguments.question}]
    ids = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
    stop = [tokenizer.eos_token_id]
    said = complete(model, torch.tensor(ids), max_new_tokens=arguments.max_new_tokens, stop=stop)
    print(tokenizer.decode(said, skip_special_tokens=True).strip())
