"""Options of the verbs that train and evaluate, beside the keys of an experiment.

The reader of command lines, the parser of the experiment and the documentation use these tables.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Option:
    """One option of a verb.

    Attributes:
        name: the flag without its two dashes.
        help: one sentence for ``--help`` and the reference.
        type: type of the value; ``bool`` makes a switch without a value.
        recorded: record a value that is set in the run's ``config.yaml``.
        selects_run: read it before the experiment, because it selects the experiment.
        value_optional: the flag may stand without a value.
        metavar: name of the value in the help; the option's name in capitals by default.
    """

    name: str
    help: str
    type: Any = str | None
    recorded: bool = False
    selects_run: bool = False
    value_optional: bool = False
    metavar: str = ""

    @property
    def is_switch(self) -> bool:
        return self.type is bool

    @property
    def usage(self) -> str:
        """The flag with its value: ``--debug``, ``--run RUN``, ``--resume [RUN]``."""
        metavar = self.metavar or self.name.upper()
        if self.is_switch:
            return f"--{self.name}"
        return f"--{self.name} [{metavar}]" if self.value_optional else f"--{self.name} {metavar}"


_INIT_FROM = Option(
    "init_from",
    "Run or checkpoint file to take initial weights from, as far as they fit the model.",
    recorded=True,
)
_RUN = Option(
    "run",
    "Run to use, by name or folder; null means the newest finished run, or with --config the "
    "newest finished run with the same model and data.",
    selects_run=True,
)
_CKPT_PATH = Option("ckpt_path", "Checkpoint to use: best (the default), last, or a file.")

# Keys of a config that are options of `fit`; other verbs leave them out.
FIT_KEYS = ("init_from", "within")

# Every verb takes these; `cli` reads them before it calls the verb.
COMMON_OPTIONS = (
    Option("debug", "Show the traceback of an error.", bool),
    Option(
        "allow", "Let configs and checkpoints name the contents of a package.", metavar="PACKAGE"
    ),
)

OPTIONS: dict[str, tuple[Option, ...]] = {
    "baseline": (
        Option(
            "name",
            "Beginning of the names of the runs; null means the name of the config or the run.",
        ),
        Option(
            "run",
            "Run whose data and seed to use, by name or folder, in place of --config.",
            selects_run=True,
        ),
    ),
    "fit": (
        Option("name", "Name of the run; null means the next version_N."),
        _INIT_FROM,
        Option("ckpt_path", "Checkpoint file to continue training from, in a new run."),
        Option(
            "resume",
            "Resume an existing run in its own folder; without a value, the newest run.",
            selects_run=True,
            value_optional=True,
            metavar="RUN",
        ),
        Option("lr_find", "Find a learning rate first, and train with it.", bool),
        Option(
            "within",
            "Time for the whole command, such as 30m or 1h30m; training and its schedule end in "
            "it, and max_epochs and max_steps stay limits.",
            recorded=True,
            metavar="TIME",
        ),
    ),
    "check": (
        _INIT_FROM,
        Option("strict", "Treat findings as errors.", bool),
        Option("overfit", "Test whether the net can overfit a single batch.", bool),
    ),
    "validate": (
        _RUN,
        _CKPT_PATH,
        Option(
            "calibrate",
            "temperature: fit a temperature that calibrates the probabilities; `test` and "
            "`predict` apply it.",
        ),
        Option(
            "threshold",
            "Fit the decision threshold of the positive class, or of each label: f1 maximizes F1, "
            "precision=0.9 maximizes recall at a precision of at least 0.9.",
        ),
        Option(
            "coverage",
            "Fit intervals of numbers, or sets of classes, that contain the target with this "
            "probability, such as 0.9; `test` measures and `predict` writes them.",
        ),
        Option(
            "importance",
            "Measure how much worse the metric becomes when the values of a column are permuted.",
            bool,
        ),
    ),
    "test": (_RUN, _CKPT_PATH),
    "predict": (
        _RUN,
        _CKPT_PATH,
        Option(
            "output",
            "File for the predictions, .parquet or .csv; null means predict/ in the run folder.",
        ),
        Option(
            "keep",
            "Columns of the source to write beside the predictions, separated by commas; a name "
            "with a comma in double quotes.",
        ),
        Option(
            "escape_formulas",
            "Put an apostrophe before texts that a spreadsheet would compute.",
            bool,
        ),
    ),
    "export": (
        _RUN,
        _CKPT_PATH,
        Option("format", "onnx (the default), or torch for a program of torch.export."),
        Option("output", "New folder for the bundle; null means bundle/ in the run folder."),
        Option("compile", "Compile the program of --format torch for this processor.", bool),
        Option("no_rows", "Keep no test rows in the bundle, because they are private.", bool),
    ),
}
