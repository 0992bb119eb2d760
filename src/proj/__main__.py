import sys

from proj.engine.cli import main

if __name__ == "__main__":
    sys.exit(main())
