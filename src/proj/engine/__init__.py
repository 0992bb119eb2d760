"""Machinery behind the command line: configuration, runs, training, evaluation, tuning."""

PACKAGE = __name__.partition(".")[0]
