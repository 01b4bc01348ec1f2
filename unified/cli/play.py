"""`unified play`."""

import importlib.util
import sys

from unified.cli.arguments import PlayArguments

NEEDED = ("fastapi", "uvicorn", "websockets")


def play(arguments: PlayArguments) -> None:
    """Serves the page until it is stopped.

    Raises:
        ValueError: If something is not installed, the port is taken, or an option is out of range.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"the page needs {', '.join(missing)}, not installed here; "
            "pip install 'unified-tav[play]'"
        )
    print(f"loading {arguments.model} ...", file=sys.stderr, flush=True)
    from unified.cli.serving import serve

    serve(arguments)
