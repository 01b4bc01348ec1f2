"""The model card that is written beside weights, so that whoever finds them can use them."""

from pathlib import Path
from typing import Any

from unified.files import atomic_path

CARD_FILE = "README.md"
_CARD = """---
library_name: transformers
tags: [world-model, agent, transfusion, unified]
---

# A model of Unified

One transformer of {parameters:,} parameters that is both an agent and its world: {layers} layers of
{width}, frames of {rows}x{cols} latent tokens, {actions} action tokens, and a memory of {window}
frames.

```python
import unified  # needed: transformers does not know this kind of model by itself

model = unified.UnifiedModel.from_pretrained("FOLDER OR HUB ID")
processor = unified.UnifiedProcessor.from_pretrained("FOLDER OR HUB ID")
messages = [
    {{"role": "task", "content": "what to do, in words"}},
    {{"role": "world", "content": [{{"type": "frame", "frame": "first_frame.png"}}]}},
]
reply = model.generate(**processor.apply_chat_template(messages))
print(processor.decode(reply))
```

After `import unified`, `AutoModel` and `AutoProcessor` know it, too.
"""


def card_of(model: Any) -> str:
    """What can be said of a model by looking at it."""
    config = model.config
    first, stop = config.action_token_ids
    return _CARD.format(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        rows=config.latent_grid[0],
        cols=config.latent_grid[1],
        actions=stop - first,
        window=config.window_frames,
    )


def write_card(model: Any, folder: Path) -> None:
    """Writes the card into a folder that has none; somebody's own words stay."""
    path = folder / CARD_FILE
    if not path.exists():
        with atomic_path(path) as temporary:
            temporary.write_text(card_of(model), encoding="utf-8")
