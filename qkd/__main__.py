"""``python -m qkd``: the command line, also under ``torchrun -m qkd``."""

from qkd.cli.main import main

if __name__ == "__main__":
    main()
