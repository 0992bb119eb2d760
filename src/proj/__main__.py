import signal
import sys

from proj.engine.cli import main


def run() -> None:
    """Run the command line, and end the process with its exit code."""
    try:
        code = main()
    finally:
        # From here on, Ctrl-C ends the process at once, without a traceback of the interpreter.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(code)


if __name__ == "__main__":
    run()
