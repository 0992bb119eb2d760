"""Train from Python with one call: ``proj.fit``."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from proj.engine import security
from proj.engine.commands.fit import parse_experiment, train_experiment
from proj.engine.commands.test import test as test_run
from proj.engine.config.arguments import as_flags, read_arguments
from proj.engine.config.placeholders import secret_flags
from proj.engine.runs.run import Run
from proj.engine.training.preflight import can_test
from proj.errors import UserError


def fit(
    config: str | Path | Sequence[str | Path],
    overrides: Mapping[str, Any] | None = None,
    *,
    name: str | None = None,
    test: bool = True,
    allow: Iterable[str] = (),
) -> Run:
    """Train an experiment into a new run folder, as ``python -m proj fit`` does.

    Args:
        config: path of the experiment, or several paths; later files override earlier ones.
        overrides: dotted keys and their values, as in ``{"trainer.max_epochs": 5}``. They are the
            flags of the command line without the dashes and override all files. A class may stand
            for its name, such as a net that is defined in a notebook.
        name: name of the run; by default the next ``version_N``.
        test: compute the metrics of the best checkpoint on the test split after training, if the
            data have a test split.
        allow: packages whose classes the experiment may name; see the flag ``--allow``.

    Returns:
        The run, for ``run.metrics("test")`` and ``proj.load(run)``.

    Raises:
        UserError: if the experiment is wrong.
        TrainingError: if training failed, for example because of a loss that is not finite.
        KeyboardInterrupt: if Ctrl-C stopped training. The run can be resumed.
    """
    files = [config] if isinstance(config, str | Path) else config
    args = [word for file in files for word in ("--config", str(file))]
    args += as_flags(dict(overrides or {}))
    args += ["--name", name] if name is not None else []
    try:
        with security.restored():
            for package in allow:
                security.allow_package(package)
            return _fit_and_test(args, test)
    except SystemExit as stop:
        # The verbs end with the exit code of a signal; in Python, Ctrl-C is an exception.
        if stop.code == 130:
            raise KeyboardInterrupt from None
        raise


def _fit_and_test(args: list[str], test: bool) -> Run:
    arguments = read_arguments(args, "fit")
    if arguments.resume is not None:
        raise UserError(
            "resume: expected a new run, got --resume; resume a run with the verb `fit --resume`."
        )
    experiment, lr_figure = parse_experiment(arguments)
    if experiment.config.trainer.fast_dev_run:
        raise UserError(
            "trainer.fast_dev_run: expected false, because proj.fit returns a run and "
            "fast_dev_run saves none; leave it out, or use the verb `fit`."
        )
    run = train_experiment(experiment, args, lr_figure=lr_figure)
    assert run is not None
    if test and can_test(experiment.model, experiment.datamodule):
        checkpoints = [run.path / "checkpoints" / f"{name}.ckpt" for name in ("best", "last")]
        if checkpoint := next((path for path in checkpoints if path.is_file()), None):
            secrets = secret_flags(experiment.secrets)
            test_run(["--run", str(run.path), "--ckpt_path", checkpoint.stem, *secrets])
    return run
