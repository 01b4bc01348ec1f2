"""`unified sample`."""

from unified.cli.arguments import SampleArguments
from unified.media.samples import sample


def sample_frame(arguments: SampleArguments) -> None:
    """Writes the frame and prints its task.

    Raises:
        ValueError: If there is no such level, or the file cannot be written.
    """
    if arguments.out.suffix.lower() != ".png":
        raise ValueError(f"--out {arguments.out} is no PNG; end it in .png")
    made = sample(arguments.level, arguments.seed)
    try:
        made.save(arguments.out)
    except OSError as error:
        raise ValueError(f"cannot write {arguments.out} ({error}); choose another --out") from error
    print(f"saved  {arguments.out}")
    print(f"task   {made.task}")
