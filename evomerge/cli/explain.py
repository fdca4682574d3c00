"""`evomerge explain`: an operator's documentation, paper and parameters, and what a hook does to a pool's merge."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer

if TYPE_CHECKING:
    from torch import Tensor

    from evomerge.registry import Operator
    from evomerge.spaces.base import GenomeSpace

EPILOG = """Examples:

  evomerge explain ties

  evomerge explain gaussian

  evomerge explain genetic

  evomerge explain rht --experts experts/quickstart/german --experts experts/quickstart/spanish --set gamma=0.5
"""

# Tail statistics of delta-W take no more than these: a large model has billions of entries.
MODULES, ENTRIES = 32, 1 << 20


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("explain", epilog=EPILOG)(explain)


def explain(
    name: Annotated[
        str, typer.Argument(help="A name from `evomerge ls operators` or `ls strategies`, or a hook file of your own.")
    ],
    experts: Annotated[
        list[str] | None, typer.Option(help="Adapter folder: show what a hook does to their merge. Repeatable.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="With --experts: parameter=value. Repeatable.")
    ] = None,
) -> None:
    """Show what an operator or a strategy computes, its paper, and its parameters."""
    from evomerge.errors import RecipeError, did_you_mean
    from evomerge.recipe.operators import REGISTRIES
    from evomerge.recipe.schema import GeneticSpec
    from evomerge.strategies import genetic
    from evomerge.variation.hooks import HOOKS
    from evomerge.variation.hooks.user import is_file

    registries = {registry.kind: registry for registry in REGISTRIES.values()}
    found = [(kind, registry[name]) for kind, registry in registries.items() if name in list(registry)]
    found += [(HOOKS.kind, HOOKS[name])] if is_file(name) else []
    if name == "genetic":
        typer.echo(f"{genetic.__doc__}\nparameters (recipe section `strategy`):")
        _parameters(GeneticSpec.model_fields)
    for kind, operator in found:
        typer.echo(f"{operator.name} ({kind})\n\n{operator.documentation}\n\npaper: {operator.paper}\n\nparameters:")
        _parameters(operator.schema.model_fields)
        if not operator.schema.model_fields:
            typer.echo("  none")
    if not found and name != "genetic":
        known = [other for registry in registries.values() for other in registry] + ["genetic"]
        raise RecipeError(f"nothing is named {name!r}", where="explain", fix=did_you_mean(name, known))
    if experts or set_:
        hooks = [operator for kind, operator in found if kind == HOOKS.kind]
        if not (experts and hooks):
            fix = "`evomerge ls operators` lists the hooks; give them --experts."
            raise RecipeError("--experts and --set are for hooks, and --set needs --experts", where="explain", fix=fix)
        _show_on(experts, hooks[0], set_ or [])


def _show_on(experts: Sequence[str], hook: Operator[..., Any], settings: Sequence[str]) -> None:
    """Print a table: the uniform linear merge of the experts before and after the hook, in each of its modes."""
    import torch
    from rich.console import Console
    from rich.table import Table

    from evomerge.experts.pool import load_pool
    from evomerge.keys import Key
    from evomerge.spaces import build_space
    from evomerge.variation.hooks.apply import apply_hooks, bind_hook
    from evomerge.variation.merge import MERGES

    hooks = {label: bind_hook(hook.name, parameters) for label, parameters in _modes(hook, settings)}
    pool = load_pool(experts)
    space = build_space("subspace", pool)
    genomes = torch.stack([space.encode(adapter) for adapter in pool.adapters])
    uniform = torch.full((len(genomes),), 1 / len(genomes))
    merged = MERGES["linear"](genomes, uniform, space.segments, Key(0))
    rows = {"linear merge": merged}
    rows |= {label: apply_hooks(merged, genomes, space, [bound], Key(0)) for label, bound in hooks.items()}
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("", "norm", "cosine", "kurtosis", "tail index", "core kurtosis", "core tail index"):
        table.add_column(heading, justify="right" if heading else "left")
    for label, genome in rows.items():
        cosine = torch.nn.functional.cosine_similarity(genome, merged, dim=0)
        table.add_row(label, f"{space.norm(genome):.4g}", f"{float(cosine):.3f}", *_tails(space, genome))
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 110)
    console.print(f"\nThe uniform linear merge of {len(genomes)} experts in the space subspace, delta-W:")
    console.print(table)
    console.print(
        "cosine: to the merge. kurtosis: excess, 0 for a Gaussian. tail index: Hill's estimate on the largest\n5 % of "
        "the magnitudes, ± its standard error for one tensor; 6.0 for a Gaussian, smaller is heavier. Medians\n"
        f"over tensors (at most {MODULES} modules, of each about {ENTRIES:,} entries). A hook here acts on the cores;\n"
        "their entries are coordinates, and heavy-tailed wherever most of them are nearly unused."
    )


def _tails(space: GenomeSpace, genome: Tensor) -> Iterator[str]:
    """Yield kurtosis and tail index of delta-W, then of the genome's own tensors."""
    from evomerge.spaces.base import split
    from evomerge.variation.hooks.tails import tails

    modules = list(space.modules)
    some = modules[:: -(-len(modules) // MODULES)]
    deltas = (space.delta(genome, name) for name in some)
    for tensors in (deltas, split(genome, space.segments).values()):
        # Whole rows, evenly spaced, so that no column is favoured.
        found = tails(tensor[:: max(1, tensor.numel() // ENTRIES)].numpy() for tensor in tensors)
        yield "-" if found.kurtosis is None else f"{found.kurtosis:.2f}"
        yield "-" if found.index is None else f"{found.index:.2f} ± {found.error:.2f}"


def _modes(hook: Operator[..., Any], settings: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the parameters that ``--set`` gives, with each mode of the hook unless they name one."""
    import yaml

    from evomerge.errors import RecipeError

    given = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise RecipeError(f"--set {setting!r} is not parameter=value", where="--set", fix="E.g. --set gamma=0.5")
        given[key] = yaml.safe_load(value)
    field = hook.schema.model_fields.get("mode")
    modes = get_args(field.annotation) if field and "mode" not in given else ()
    for parameters in [{"mode": mode, **given} for mode in modes] or [given]:
        values = " ".join(f"{key}={value}" for key, value in parameters.items())
        yield values or hook.name, parameters


def _parameters(fields: Mapping[str, Any], section: str = "") -> None:
    from evomerge.recipe.schema import OperatorSpec, Part

    for short, field in fields.items():
        name, kind, default = f"{section}{short}", field.annotation, field.default
        if isinstance(kind, type) and issubclass(kind, Part):
            _parameters(kind.model_fields, f"{name}.")
            continue
        ranges = ", ".join(str(item) for item in field.metadata)
        shown = default.name if isinstance(default, OperatorSpec) else repr(default)
        word = "operator" if isinstance(default, OperatorSpec) else _kind(kind)
        typer.echo(
            f"  {name}: {word}{f' ({ranges})' if ranges else ''}, "
            f"{'required' if field.is_required() else f'default {shown}'}   {field.description or ''}".rstrip()
        )
        if isinstance(default, OperatorSpec):
            own = {key: value for key, value in type(default).model_fields.items() if key != "name"}
            _parameters(own, f"{name}.")


def _kind(annotation: Any) -> str:
    """Return a type in the words of a recipe."""
    parts = get_args(annotation)
    if get_origin(annotation) is Literal:
        return " | ".join(repr(part) for part in parts)
    if get_origin(annotation) is Annotated:
        return _kind(parts[0])
    if parts:
        return " | ".join(_kind(part) for part in parts)
    return "none" if annotation is type(None) else str(annotation.__name__)
