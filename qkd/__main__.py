"""``python -m qkd``: the command line, also under ``torchrun -m qkd``."""

from qkd.cli import main

if __name__ == "__main__":
    main()
