"""The commands ``trecvit train | evaluate | export``."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated

import typer

# The training program is imported inside the commands, so that --help and wrong arguments answer at once.

RunArgument = Annotated[
    Path, typer.Argument(help="Folder of a run (run.folder).", metavar="RUN", show_default=False)
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Another value for a key of the configuration; may be repeated.",
        metavar="SECTION.KEY=VALUE",
    ),
]
BestOption = Annotated[bool, typer.Option("--best", help="The best checkpoint in place of the newest.")]


def add_to(app: typer.Typer, clear_errors: Callable[[], AbstractContextManager[None]]) -> None:
    """Register the commands."""

    @app.command()
    def train(
        config: Annotated[
            Path, typer.Argument(help="TOML or JSON file.", metavar="CONFIG", show_default=False)
        ],
        resume: Annotated[
            bool | None,
            typer.Option(
                "--resume/--fresh",
                help="If there are checkpoints: go on from the newest, or delete them.",
                show_default=False,
            ),
        ] = None,
        assignments: SetOption = None,
    ) -> None:
        """Train a model; CONFIG says which task, on what data, and how."""
        with clear_errors():
            from trecvit_kernels.training.config import TrainingConfig
            from trecvit_kernels.training.loop import prepare

            settled = TrainingConfig.from_file(config, assignments or ())
            trainer = prepare(settled, resume=resume is True, fresh=resume is False)
            measures = trainer.run()
            typer.echo(json.dumps({"run": settled.run.folder, "step": trainer.step, **measures}))

    @app.command()
    def evaluate(run: RunArgument, best: BestOption = False, assignments: SetOption = None) -> None:
        """Evaluate a trained model on its validation data; prints the measures as JSON."""
        with clear_errors():
            from trecvit_kernels.training.export import evaluate as evaluate_run

            typer.echo(json.dumps(evaluate_run(run, best=best, overrides=assignments or ())))

    @app.command()
    def export(
        run: RunArgument,
        out: Annotated[Path, typer.Argument(help="Folder to make.", metavar="OUT", show_default=False)],
        best: BestOption = False,
        averaged: Annotated[
            bool, typer.Option("--ema/--no-ema", help="Averaged weights, if the run has any.")
        ] = True,
    ) -> None:
        """Write a trained model as model.safetensors and config.json."""
        with clear_errors():
            from trecvit_kernels.training.export import export as export_run

            typer.echo(f"{out}: {export_run(run, out, best=best, averaged=averaged)}")
