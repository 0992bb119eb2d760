import sys

from proj.cli import main

if __name__ == "__main__":
    sys.exit(main())
