"""`python -m eval.speed`, see `eval.speed.parts`."""

from eval.speed.parts import main

if __name__ == "__main__":
    main()
