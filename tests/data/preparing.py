"""`data.prepare` as a shell sees it."""

from data.prepare import main


def prepare(arguments: list[str]) -> int:
    """Its exit status."""
    try:
        main(arguments)
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0
