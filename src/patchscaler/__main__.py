"""`python -m patchscaler`, which is also what a launcher of several processes starts."""

from patchscaler.cli import main

if __name__ == "__main__":
    main()
