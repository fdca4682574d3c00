"""`evomerge explain`: an operator's documentation, paper and parameters."""

from __future__ import annotations

from typing import Annotated, Any

import typer

EPILOG = """Examples:

  evomerge explain ties

  evomerge explain gaussian

  evomerge explain genetic
"""


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("explain", epilog=EPILOG)(explain)


def explain(
    name: Annotated[str, typer.Argument(help="A name from `evomerge ls operators` or `ls strategies`.")],
) -> None:
    """Show what an operator or a strategy computes, its paper, and its parameters."""
    from evomerge.errors import RecipeError, did_you_mean
    from evomerge.recipe.operators import REGISTRIES
    from evomerge.recipe.schema import GeneticSpec
    from evomerge.strategies import genetic

    registries = {registry.kind: registry for registry in REGISTRIES.values()}
    found = [registry[name] for registry in registries.values() if name in list(registry)]
    if name == "genetic":
        typer.echo(f"{genetic.__doc__}\nparameters (recipe section `strategy`):")
        _parameters(GeneticSpec.model_fields)
    for operator in found:
        typer.echo(f"{operator.name}\n\n{operator.documentation}\n\npaper: {operator.paper}\n\nparameters:")
        _parameters(operator.schema.model_fields)
    if not found and name != "genetic":
        known = [other for registry in registries.values() for other in registry] + ["genetic"]
        raise RecipeError(f"nothing is named {name!r}", where="explain", fix=did_you_mean(name, known))


def _parameters(fields: dict[str, Any]) -> None:
    for name, field in fields.items():
        ranges = ", ".join(str(item) for item in field.metadata)
        kind = getattr(field.annotation, "__name__", str(field.annotation))
        default = "required" if field.is_required() else f"default {field.default!r}"
        typer.echo(
            f"  {name}: {kind}{f' ({ranges})' if ranges else ''}, {default}   {field.description or ''}".rstrip()
        )
    if not fields:
        typer.echo("  none")
