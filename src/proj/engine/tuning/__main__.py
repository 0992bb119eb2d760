"""Program of a worker process: `python -m proj.engine.tuning`."""

from proj.engine import PACKAGE
from proj.engine.lazy_packages import import_program

if __name__ == "__main__":
    import_program(f"{PACKAGE}.engine.tuning.worker").main()
