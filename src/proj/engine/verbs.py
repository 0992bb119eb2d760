"""The verbs of the command line."""

# For each verb, the module and function that implement it, and its description. A module is
# imported when its verb is called.
VERBS = {
    "fit": ("commands.fit:fit", "train into a new run folder, or resume an existing run"),
    "validate": ("commands.validate:validate", "compute a run's metrics on the validation split"),
    "test": (
        "commands.test:test",
        "compute a run's metrics on the test split, and write predictions and a report",
    ),
    "predict": ("commands.predict:predict", "write a run's predictions for new rows"),
    "check": ("commands.check:check", "find mistakes in an experiment without training it"),
    "init": (
        "commands.init:init",
        "inspect a table or a folder of images and write an experiment for it",
    ),
    "baseline": (
        "commands.baseline:baseline",
        "fit standard learners on the splits of an experiment, to compare a run with",
    ),
    "ensemble": (
        "commands.ensemble:ensemble",
        "average runs of one task, with weights fitted on the validation split",
    ),
    "report": ("commands.report:report", "write the HTML report of a run that has been tested"),
    "compare": ("commands.compare:compare", "test whether runs differ on the same test rows"),
    "runs": ("commands.runs:runs", "list runs with their headline metrics"),
    "export": (
        "commands.export:export",
        "write a bundle that predicts without this project, proven equal to the run",
    ),
    "reproduce": (
        "commands.reproduce:reproduce",
        "train a run again, and compare the result to the bit",
    ),
    "eject": (
        "commands.eject:eject",
        "write a run's training as one PyTorch script without Lightning",
    ),
    "verify": ("commands.verify:verify", "repeat the proof of a bundle on this machine"),
    "serve": ("commands.serve:serve", "answer requests over HTTP with a bundle"),
    "new": ("commands.new:new", "make a new project from this template"),
    "complete": ("commands.complete:complete", "print the completion of a shell"),
    "tune": ("tuning.search:tune", "search for better settings"),
    "cv": ("tuning.cv:cv", "cross-validate an experiment, with several seeds"),
}

# The extra that installs a package which a verb imports.
EXTRAS = {"optuna": "tune", "fastapi": "serve", "uvicorn": "serve", "prometheus_client": "serve"}
