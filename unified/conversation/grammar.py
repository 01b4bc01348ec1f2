"""The grammar of a conversation: which token may come next.

    episode   := [<task> text*] world ( answer world )*
    world     := [<world> text*] <frame> <latent>* </frame> outcome [hindsight]
    outcome   := <ongoing> | <success> | <failure>
    hindsight := <inverse> action                        names the action that led to the frame
    answer    := ( [reply] <task> text* )* agent         the task may speak again, and be replied to
    reply     := <agent> text+ <eos>
    agent     := <agent> text* <action> action           or, to speak and stop: a reply
    action    := action tokens | <unknown>

Generation samples among legal tokens only, so malformed output cannot occur. The query decides
between what the grammar leaves open: who speaks after an outcome, and where to stop.
"""

from typing import Literal

import torch
from torch import Tensor

from unified.configuration import UnifiedConfig

Query = Literal["policy", "forward", "inverse", "joint"]
QUERIES = ("policy", "forward", "inverse", "joint")


class Grammar:
    """Legal next tokens, which depend on the last token and on whose turn it is.

    Example:
        >>> grammar = Grammar(UnifiedConfig())
        >>> last = torch.tensor([grammar.config.action_token_id])
        >>> grammar.legal(last, "policy").nonzero()[:, 1].tolist()
        [525, 526, 527, 528, 529, 530, 531]
    """

    def __init__(self, config: UnifiedConfig):
        """Sorts the vocabulary into the classes that the grammar distinguishes."""
        self.config = config
        eos = config.eos_token_id
        self.eos = eos if isinstance(eos, int) else (eos or [0])[0]
        first, stop = config.action_token_ids
        class_of = torch.full((config.vocab_size,), _END)
        class_of[config.text_token_ids[0] : config.text_token_ids[1]] = _WORDS
        class_of[config.task_token_id] = _TASK
        if config.world_token_id is not None:
            class_of[config.world_token_id] = _WORLD
        class_of[config.frame_end_token_id] = _SHOWN
        class_of[config.agent_token_id] = _FLOOR
        class_of[config.action_token_id] = _ACTING
        class_of[config.inverse_token_id] = _ACTING
        class_of[config.ongoing_token_id] = _ONGOING
        class_of[config.success_token_id] = _OVER
        class_of[config.failure_token_id] = _OVER
        class_of[first:stop] = _ACTED
        class_of[config.unknown_token_id] = _ACTED
        self.class_of = class_of
        self.openers = torch.tensor(
            [
                config.task_token_id,
                config.agent_token_id,
                config.frame_token_id,
                config.inverse_token_id,
                *([] if config.world_token_id is None else [config.world_token_id]),
            ]
        )
        self._tables: dict[tuple[str, bool | None], Tensor] = {}

    def opener(
        self,
        input_ids: Tensor,
        num_tokens: Tensor | None = None,
        before: Tensor | None = None,
    ) -> Tensor:
        """Whose turn it is after more tokens.

        Args:
            input_ids: `(B, L)` int64.
            num_tokens: `(B,)` int64, how many of them count; None is all.
            before: `(B,)` int64, whose turn it was; None is nobody's, as at the beginning.

        Returns:
            `(B,)` int64: the last of `openers`, -1 for none. Words of the task that do not open
            the conversation count as the world's, `<frame>`: it is the agent's turn behind both.
        """
        index = torch.arange(input_ids.shape[1], device=input_ids.device)
        if before is None:
            before = input_ids.new_full(input_ids.shape[:1], -1)
        task = self.config.task_token_id
        opens = torch.isin(input_ids, self.openers.to(input_ids.device))
        if num_tokens is not None:
            opens &= index < num_tokens[:, None]
        latest = torch.where(opens, index, -1).amax(1)
        found = input_ids.gather(1, latest.clamp(min=0)[:, None])[:, 0]
        opener = torch.where(latest >= 0, found, before)
        others = (opens & (input_ids != task)).any(1) | ((before != -1) & (before != task))
        return torch.where((opener == task) & others, self.config.frame_token_id, opener)

    def legal(
        self,
        last: Tensor,
        query: str,
        think: bool | None = None,
        opener: Tensor | None = None,
    ) -> Tensor:
        """Which tokens may follow.

        This covers the first token of an action only. The others depend on the first, see
        `config.action_format`.

        Args:
            last: `(B,)` int64, the last token of each row.
            query: What is asked: decides who speaks after an outcome.
            think: True makes the agent speak before it acts, False keeps it silent, None
                leaves it the choice.
            opener: `(B,)` int64, whose turn it is, see `opener`; None is the agent's.

        Returns:
            `(B, vocab_size)` bool; a row without a legal token has come to its end.
        """
        if opener is None:
            opener = torch.full_like(last, self.config.agent_token_id)
        if (query, think) not in self._tables:
            self._tables[query, think] = self._table(query, think).to(last.device)
        return self._tables[query, think][self._classes(last, opener)]

    def _classes(self, last: Tensor, opener: Tensor) -> Tensor:
        """The state of each row, `(B,)`: the class of its last token, and whose turn it is."""
        classes = self.class_of.to(last.device)[last]
        of_task = (classes == _WORDS) & (opener == self.config.task_token_id)
        if self.config.world_token_id is not None:
            of_world = (classes == _WORDS) & (opener == self.config.world_token_id)
            classes = torch.where(of_world, _WORLD, classes)
        in_hindsight = (classes == _ACTED) & (opener == self.config.inverse_token_id)
        is_asked = (classes == _WORDS) | (classes == _TASK)
        is_asked &= opener == self.config.frame_token_id
        classes = torch.where(of_task, _TASK, torch.where(in_hindsight, _HINDSIGHT, classes))
        return torch.where(is_asked, _ASKED, classes)

    def _table(self, query: str, think: bool | None) -> Tensor:
        """Legal tokens after each class, `(classes, vocab_size)` bool."""
        config = self.config
        table = torch.zeros(len(_CLASSES), config.vocab_size, dtype=torch.bool)
        words = slice(*config.text_token_ids)
        table[[_TASK, _WORLD], config.frame_token_id] = True
        table[_SHOWN, list(config.outcome_token_ids)] = True
        table[_FLOOR, words] = think is not False
        table[_FLOOR, config.action_token_id] = think is not True
        table[_WORDS, words] = True
        table[_WORDS, [config.action_token_id, self.eos]] = True
        for form in config.listed_action_formats():
            table[_ACTING, slice(*form[0])] = True
        table[_ACTED, config.frame_token_id] = True
        asked = config.inverse_token_id if query == "inverse" else config.agent_token_id
        table[_ONGOING, asked] = True
        table[_ASKED, config.agent_token_id] = True
        table[_HINDSIGHT, config.agent_token_id] = True
        table[_OVER, config.inverse_token_id] = query == "inverse"
        return table

    def query_of(self, input_ids: Tensor, num_tokens: Tensor) -> str:
        """What prompts ask for by their end.

        After a task or an action, the next frame (`forward`). After two frames with an unknown
        action between them, that action (`inverse`). Else it is the agent's turn (`policy`).

        Args:
            input_ids: `(B, L)` int64, padded on the right.
            num_tokens: `(B,)` int64.

        Raises:
            ValueError: If an episode is over, or the prompts ask different things.
        """
        openers = self.opener(input_ids, num_tokens)
        last = input_ids.gather(1, (num_tokens - 1)[:, None])[:, 0]
        asked: list[str] = []
        for row, kind in enumerate(self._classes(last, openers).tolist()):
            shown = kind in _ALLOWED["inverse"]
            if kind in _ALLOWED["forward"]:
                asked.append("forward")
            elif shown and self._is_between_unknown(input_ids[row, : num_tokens[row]]):
                asked.append("inverse")
            elif kind == _OVER:
                raise ValueError(
                    f"prompt {row} ends {_ENDINGS[kind]}, and nobody is asked; end it earlier"
                )
            else:
                asked.append("policy")
        if len(set(asked)) > 1:
            raise ValueError(
                f"the prompts ask different things ({', '.join(asked)}); pass query=, or ask them "
                "apart"
            )
        return asked[0]

    def _is_between_unknown(self, ids: Tensor) -> bool:
        """Whether the last frame follows another one and an action that nobody knows."""
        config = self.config
        frames = (ids == config.frame_token_id).nonzero()[:, 0].tolist()
        if len(frames) < 2:
            return False
        return bool((ids[frames[-2] : frames[-1]] == config.unknown_token_id).any())

    def check(self, last: Tensor, query: str, opener: Tensor) -> None:
        """Refuses prompts that end where the one who is asked may not speak.

        Raises:
            ValueError: Naming the first such row and the fix.
        """
        if not isinstance(query, str) or query not in QUERIES:
            raise ValueError(f"query {query!r} is unknown; use one of {', '.join(QUERIES)}")
        for row, kind in enumerate(self._classes(last, opener).tolist()):
            if kind not in _ALLOWED[query]:
                raise ValueError(
                    f"prompt {row} ends {_ENDINGS[kind]}, where {query!r} cannot go on; "
                    f"{_FIXES[query]}"
                )


_CLASSES = range(12)
_END, _TASK, _SHOWN, _FLOOR, _WORDS, _ACTING, _ACTED, _HINDSIGHT, _ONGOING, _OVER, _ASKED = (
    _CLASSES[:11]
)
_WORLD = 11
_ENDINGS = {
    _END: "where nobody may speak",
    _TASK: "with the task",
    _WORLD: "with the world's words",
    _SHOWN: "with a frame",
    _FLOOR: "with the agent's turn just opened",
    _WORDS: "with the agent's words",
    _ACTING: "before an action",
    _ACTED: "with an action",
    _HINDSIGHT: "with an action told in hindsight",
    _ONGOING: "with an ongoing frame",
    _OVER: "with a final outcome",
    _ASKED: "with words that the agent has to answer",
}
_AGENT_SPEAKS = {_SHOWN, _FLOOR, _WORDS, _ACTING, _HINDSIGHT, _ONGOING, _ASKED}
_ALLOWED = {
    "policy": _AGENT_SPEAKS,
    "forward": {_TASK, _WORLD, _ACTED},
    "inverse": {_SHOWN, _ONGOING, _OVER},
    "joint": _AGENT_SPEAKS | {_TASK, _WORLD, _ACTED},
}
_FIXES = {
    "policy": "end it with a frame, or ask 'forward' for the frame that an action leads to",
    "forward": "end it with an action or a task, or ask 'policy' for an action",
    "inverse": "end it with the frame that the unknown action led to",
    "joint": "end it with a task, an ongoing frame or an action",
}
