"""The schema of one merge, without a search: what `evomerge merge` does."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, model_validator

from evomerge.recipe.schema import Count, OperatorSpec, Part, TaskSpec


class MergeRecipe(Part):
    """Everything about a merge; `evomerge merge` makes one of its options, or reads one from a YAML file."""

    experts: Annotated[tuple[str, ...], Field(min_length=1)]
    """Adapters (PEFT folders or hub names) or full models, all of one kind."""
    method: OperatorSpec = OperatorSpec(name="linear")
    """How they are merged; see `evomerge ls operators`."""
    weights: tuple[FiniteFloat, ...] | None = None
    """One for each expert; by default 1/n each."""
    space: Literal["auto", "subspace", "factors", "dense"] = "auto"
    """`auto` is `subspace` for adapters and `dense` for full models."""
    post_merge: tuple[OperatorSpec, ...] = ()
    """Hooks after the merge, in order."""
    base: str | None = None
    """The base model: full models become task vectors against it; adapters name their own."""
    into_base: bool = False
    """Write the full model, base and merged adapter in one."""
    rank: Count | None = None
    """Rank of the merged adapter; by default the exact one (in `dense`, the sum of the experts' ranks)."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Of a full model's floats; by default as they are stored."""
    fitness: tuple[TaskSpec, ...] = ()
    """Tasks that decide who joins a `greedy_soup`; scored on their search split."""
    seed: Annotated[int, Field(ge=0)] = 0
    """The root of all randomness."""

    @model_validator(mode="after")
    def _counts_agree(self) -> MergeRecipe:
        if self.weights is not None and len(self.weights) != len(self.experts):
            raise ValueError(f"{len(self.weights)} weights for {len(self.experts)} experts")
        if (self.method.name == "greedy_soup") != bool(self.fitness):
            raise ValueError("`fitness` and the method `greedy_soup` need each other")
        return self
