"""`python -m wildshape`: the same as the command `wildshape`."""

from wildshape.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
