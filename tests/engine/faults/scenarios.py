"""The scenarios of the campaign of interruptions: a table of what is special about each."""

from engine.faults.experiments import (
    FIT,
    TRAINED,
    TWO_PROCESSES,
    Scenario,
    callback,
    fit,
    folds,
    net,
    optimizer,
    own_loader,
    pictures,
    precision,
    preparation,
    scheduler,
    study,
    table,
    verb,
    write_sources,
    writer,
)

PLATEAU = ("lightning.pytorch.cli.ReduceLROnPlateau", "epoch")
CALLBACKS = "lightning.pytorch.callbacks"
SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05, "momentum": 0.9}}
TEST = ["test", "--run", "run"]

SCENARIOS = [
    precision("32-true"),
    precision("64-true"),
    precision("bf16-mixed"),
    precision("16-mixed"),
    optimizer("LBFGS", lr=0.1, max_iter=3),
    optimizer("LBFGS", lr=0.1, line_search_fn="strong_wolfe"),
    optimizer("SGD", lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    optimizer("AdamW", amsgrad=True),
    optimizer("Adam", foreach=True),
    optimizer("RMSprop", centered=True, momentum=0.5),
    optimizer("Adagrad", lr=0.1),
    optimizer("Adadelta"),
    optimizer("Adafactor"),
    optimizer("Adamax"),
    optimizer("ASGD", lr=0.05, t0=10),
    optimizer("NAdam"),
    optimizer("RAdam"),
    optimizer("Rprop"),
    scheduler("OneCycleLR", "step", max_lr=0.01),
    scheduler("OneCycleLR", "epoch", max_lr=0.01),
    scheduler(*PLATEAU, monitor="val/loss", patience=0, threshold=0.5),
    scheduler("CosineAnnealingLR", "step", T_max=10),
    scheduler("CosineAnnealingWarmRestarts", "step", T_0=5, T_mult=2),
    scheduler("ExponentialLR", "epoch", gamma=0.7),
    scheduler("StepLR", "step", step_size=7),
    scheduler("LinearLR", "step", total_iters=12),
    fit(
        "scheduler CyclicLR with momentum",
        model={
            "optimizer": SGD,
            "scheduler": {
                "class_path": "torch.optim.lr_scheduler.CyclicLR",
                "init_args": {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 5},
            },
            "scheduler_interval": "step",
        },
    ),
    callback("with state", ["engine.faults.own_code.SlowWeights"]),
    callback(
        "with state and points",
        ["engine.faults.own_code.SlowWeights", "engine.faults.victim.Points"],
    ),
    callback(
        "EMAWeightAveraging",
        [{"class_path": f"{CALLBACKS}.EMAWeightAveraging", "init_args": {"decay": 0.9}}],
    ),
    callback("LearningRateMonitor", [f"{CALLBACKS}.LearningRateMonitor"])._replace(
        repeats_points=True
    ),
    callback(
        "GradientAccumulationScheduler",
        [
            {
                "class_path": f"{CALLBACKS}.GradientAccumulationScheduler",
                "init_args": {"scheduling": {0: 1, 1: 2, 2: 3}},
            }
        ],
    ),
    callback(
        "a second ModelCheckpoint",
        [
            {
                "class_path": f"{CALLBACKS}.ModelCheckpoint",
                "init_args": {
                    "monitor": "train/loss",
                    "save_top_k": 2,
                    "filename": "low-{epoch}",
                    # The counter would keep a file that was written before the interruption.
                    "enable_version_counter": False,
                },
            }
        ],
    ),
    fit(
        "early stopping",
        early_stopping={"patience": 1, "min_delta": 0.05},
        trainer={"max_epochs": 8},
    ),
    fit(
        "early stopping of the training loss",
        early_stopping={"monitor": "train/loss", "patience": 1, "min_delta": 0.1},
        trainer={"max_epochs": 8},
    ),
    fit("gradient accumulation", trainer={"accumulate_grad_batches": 2}),
    fit(
        "accumulation, validation within the epoch",
        trainer={"accumulate_grad_batches": 2, "val_check_interval": 5},
    ),
    fit(
        "clipping by norm, single steps",
        trainer={"gradient_clip_val": 0.1},
        model={"steps_per_execution": 1},
    ),
    fit(
        "clipping by value", trainer={"gradient_clip_val": 0.05, "gradient_clip_algorithm": "value"}
    ),
    fit(
        "executions of 7 steps, validation within the epoch",
        model={"steps_per_execution": 7},
        trainer={"val_check_interval": 0.4},
    ),
    fit("max_steps within an epoch", trainer={"max_steps": 17, "max_epochs": -1}),
    fit("limited batches", trainer={"limit_train_batches": 5, "limit_val_batches": 1}),
    fit("validation every second epoch", trainer={"check_val_every_n_epoch": 2, "max_epochs": 5}),
    fit("no validation split", data={"val_fraction": 0.0}, checkpoint={"monitor": "train/loss"}),
    fit("a save after each execution", checkpoint={"every_seconds": 0}),
    fit("saves at the ends of epochs only", checkpoint={"every_n_steps": 1000}),
    fit(
        "compiled step", model={"compile": "step", "net": net("MLP", hidden=[8], dropout=0.2)}
    )._replace(most_kills=5),
    fit(
        "batch norm, frozen layer, learning rates by layer",
        model={
            "net": net("engine.faults.own_code.BatchNormNet"),
            "learning_rates": {"layers.2.*": 0.05},
            "freeze": ["layers.6.*"],
        },
    ),
    fit(
        "regression with its own step, loss and metric",
        "regression",
        model=net(
            "engine.faults.own_code.OwnRegressor",
            net=net("MLP", hidden=[8], dropout=0.2),
            loss={"class_path": "engine.faults.own_code.HuberLoss"},
            metrics={"largest": {"class_path": "engine.faults.own_code.LargestError"}},
        ),
    ),
    fit("two targets", "regression_2"),
    fit("multilabel", "multilabel", model={"pos_weight": "auto"}),
    fit(
        "binary with smoothed labels",
        "binary",
        model={"label_smoothing": 0.1, "pos_weight": "auto"},
    ),
    fit(
        "own data loader",
        "multiclass",
        own_loader,
        model={"net": net("SimpleNN", inputs=6, outputs=3)},
    ),
    fit(
        "own data loader and two optimizers",
        "multiclass",
        own_loader,
        model=net("engine.faults.own_code.Adversaries", lr=0.01),
        checkpoint={"monitor": "val_gap", "mode": "min"},
    ),
    fit("table", "binary", table),
    fit(
        "table with TabM", "binary", table, model={"net": net("TabM", members=2, width=8, blocks=1)}
    ),
    fit("table in one batch", "binary", table, data={"batch_size": None}),
    fit("pictures with augmentation", "binary", pictures, model={"net": net("CNN", width=2)}),
    fit(
        "pictures in bf16-mixed",
        "binary",
        pictures,
        model={"net": net("CNN", width=2)},
        trainer={"precision": "bf16-mixed"},
    ),
    fit("two processes", trainer=TWO_PROCESSES, processes=2),
    fit(
        "two processes, pictures, OneCycleLR",
        "binary",
        pictures,
        model={
            "net": net("CNN", width=2),
            "scheduler": {"class_path": "OneCycleLR", "init_args": {"max_lr": 0.01}},
            "scheduler_interval": "step",
        },
        trainer=TWO_PROCESSES,
        processes=2,
    ),
    Scenario("fit --init_from", [*FIT, "--init_from", "old"], writer(), [[*FIT[:-1], "old"]]),
    Scenario("fit --lr_find", [*FIT, "--lr_find"], writer()),
    Scenario(
        "fit --ckpt_path",
        [
            *FIT,
            "--ckpt_path",
            "lightning_logs/old/checkpoints/last.ckpt",
            "--trainer.max_epochs",
            "4",
        ],
        writer(),
        [[*FIT[:-1], "old", "--trainer.max_epochs", "2"]],
    ),
    folds("cv"),
    folds("cv with two workers, two seeds", "--workers", "2", "--seeds", "2"),
    folds("cv with a refit, of a table", "--refit", task="binary", source=table),
    study("tune"),
    study(
        "tune with TPE and pruning",
        sampler={"class_path": "TPESampler", "init_args": {"n_startup_trials": 2}},
        pruner={"class_path": "MedianPruner", "init_args": {"n_startup_trials": 1}},
    ),
    study("tune with two workers", workers=2),
    study("tune with two seeds", seeds=2, trials=2),
    Scenario(
        "init of a table", ["init", "table.csv", "--target", "label", "--force"], write_sources
    ),
    Scenario("init of pictures", ["init", "pictures", "--force"], write_sources),
    preparation("check", task="multiclass"),
    preparation("preparation of a table", task="binary", source=table),
    preparation(
        "preparation of pictures",
        task="binary",
        source=pictures,
        model={"net": net("CNN", width=2)},
    ),
    verb("test", *TEST),
    verb("test of a table", *TEST, task="binary", source=table),
    verb(
        "test of pictures",
        *TEST,
        task="binary",
        source=pictures,
        model={"net": net("CNN", width=2)},
    ),
    verb("validate", "validate", "--run", "run"),
    verb(
        "validate --calibrate --threshold",
        "validate",
        "--run",
        "run",
        "--calibrate",
        "temperature",
        "--threshold",
        "f1",
        task="binary",
    ),
    verb(
        "validate --importance",
        "validate",
        "--run",
        "run",
        "--importance",
        task="binary",
        source=table,
    ),
    verb("predict", "predict", "--run", "run"),
    verb(
        "predict to CSV with columns",
        "predict",
        "--run",
        "run",
        "--output",
        "out/rows.csv",
        "--keep",
        "day",
        task="binary",
        source=table,
    ),
    verb("report", "report", "run", before=[*TRAINED, TEST]),
    verb(
        "compare",
        "compare",
        "run",
        "other",
        "--output",
        "comparison.html",
        before=[
            *TRAINED,
            TEST,
            [*FIT[:-1], "other", "--seed_everything", "2"],
            ["test", "--run", "other"],
        ],
    ),
]
