"""`python -m instainfer.cli`: the same as the `instainfer` script."""

from instainfer.cli import main

if __name__ == "__main__":
    main()
