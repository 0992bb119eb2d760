"""Hyperparameter search and cross-validation.

``tune``: ``search`` runs the trials of a ``StudyPlan`` (``plan``, ``space``) in an Optuna study
(``study``) and reports them (``study_report``). ``cv`` cross-validates one experiment and scores
the folds (``fold_scores``). Both train in the worker processes of a ``Pool`` (``pool``,
``worker``).
"""
