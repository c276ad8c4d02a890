"""Configuration of the model, of sampling and of training."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, TypeAdapter, field_validator, model_validator

from jobs.config.base import Name, Section, Seed


class SamplingSection(Section):
    """Class sampling frequencies in training, and the epoch length as a fraction of the training pixels."""

    frequencies: Literal["natural", "balanced", "sqrt"] = "natural"
    epoch_fraction: float = Field(default=1.0, gt=0, le=1)


class ModelSection(Section):
    """The model: the network and its loss, or a classifier of pixel features, to which only `sources` applies."""

    kind: Literal["mibf", "boosting", "linear"] = "mibf"
    patch: int = 7
    beta: float = Field(default=1e-4, ge=0)
    sources: Annotated[tuple[Name, ...], Field(min_length=1)] | None = None
    without: tuple[Literal["noise", "relation", "bottleneck"], ...] = ()
    centre: bool = False
    penalty: float = Field(default=1e-3, gt=0)

    @field_validator("patch")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0 or not 5 <= value <= 15:
            raise ValueError("the patch side must be an odd number of pixels from 5 to 15")
        return value

    @field_validator("without")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError(f"{', '.join(value)}: the same part is listed twice")
        return value


#: Presets of `train` by name. Keys that a recipe omits keep their defaults; keys given in the file override the recipe.
RECIPES: dict[str, dict[str, Any]] = {
    "standard": {},
    "auto": {},  # see `jobs.models.auto`: it sets the keys that the file does not give
    # Geng et al. 2023, released code; see `_paper_schedule` for its rate and warm-up. The last epoch is the model.
    "paper": {
        "optimizer": "adam",
        "epochs": 300,
        "batch_size": 64,
        "weight_decay": 5e-4,
        "ema": None,
        "augment": False,
        "select": "last",
    },
}
#: One mirror, named by the directions that it swaps.
Mirror = Literal["mirror_east_west", "mirror_north_south", "mirror_northeast_southwest", "mirror_northwest_southeast"]
MIRRORS: tuple[Mirror, ...] = get_args(Mirror)
Select = Literal["overall_accuracy", "average_accuracy", "macro_f1", "kappa", "loss", "last"]


def _paper_schedule(values: dict[str, Any]) -> dict[str, float]:
    """Return the released code's peak rate, 1e-3 * batch / 256, and its warm-up of ten epochs, as a share of all epochs.

    Ten epochs or fewer would be nothing but warm-up; they, and a length in steps, get the share of the released 300. The
    result is empty for values that are not numbers above 0, which validation refuses.
    """
    try:
        batch, epochs = int(values["batch_size"]), int(values["epochs"])
    except (TypeError, ValueError):
        return {}
    if min(batch, epochs) < 1:
        return {}
    return {
        "learning_rate": 1e-3 * batch / 256,
        "warmup": 10 / (epochs if epochs > 10 and values.get("steps") is None else 300),
    }


class TrainSection(Section):
    """Training. `batch_size` is the global batch size: samples over all workers."""

    recipe: Literal["auto", "standard", "paper"] = "auto"
    budget_minutes: float | None = Field(default=None, gt=0)
    epochs: int = Field(default=10, ge=1)
    steps: int | None = Field(default=None, ge=1)
    validate_steps: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=256, ge=2)
    accumulate_steps: int = Field(default=1, ge=1)
    optimizer: Literal["adamw", "adam"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0)] | Literal["auto"] = 2e-3
    weight_decay: float = Field(default=5e-4, ge=0)
    warmup: float = Field(default=0.05, ge=0, lt=1)
    clip_grad_norm: float | None = Field(default=None, gt=0)
    ema: float | None = Field(default=0.05, gt=0, le=0.5)
    class_weights: Literal["balanced", "sqrt"] | dict[str, Annotated[float, Field(gt=0)]] | None = None
    workers: int = Field(default=1, ge=0)
    max_workers: int | None = Field(default=None, ge=1)
    threads: int | None = Field(default=None, ge=1)
    max_failures: int = Field(default=3, ge=0)
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    sync_batch_norm: bool = False
    batch_norm_samples: int | None = Field(default=None, ge=2)
    compile: bool = False
    augment: bool | Mirror = False
    source_dropout: float = Field(default=0.0, ge=0, lt=1)
    band_dropout: float = Field(default=0.0, ge=0, lt=1)
    period_dropout: float = Field(default=0.0, ge=0, lt=1)
    jitter: float = Field(default=0.0, ge=0, le=1)
    mixup: float = Field(default=0.0, ge=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    select: Select = "overall_accuracy"
    early_stopping_patience: int | None = Field(default=None, ge=1)
    validate_every: int = Field(default=1, ge=1)
    checkpoint_steps: int = Field(default=1000, ge=1)
    log_steps: int = Field(default=100, ge=1)
    mlflow: str | None = None
    seed: Seed = 0
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] | None = None
    ensemble: bool = False
    blend: bool = False

    @field_validator("learning_rate", mode="before")
    @classmethod
    def _rate(cls, value: Any) -> Any:
        try:
            if value == "auto" or float(value) > 0:
                return value
        except (TypeError, ValueError):
            pass
        raise ValueError("must be a number above 0, or `auto`")

    @field_validator("augment", mode="before")
    @classmethod
    def _symmetries(cls, value: Any) -> Any:
        if isinstance(value, str) and value in MIRRORS:
            return value
        try:
            return TypeAdapter(bool).validate_python(value)
        except ValueError as error:
            raise ValueError(f"must be true, false or one of {', '.join(MIRRORS)}") from error

    @field_validator("class_weights", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        if value is not None and value not in ("balanced", "sqrt") and not isinstance(value, dict):
            raise ValueError("must be `balanced`, `sqrt` or weights by class, {NAME: WEIGHT}")
        for name, weight in value.items() if isinstance(value, dict) else ():
            if not isinstance(name, str):
                raise ValueError(f"has the key {name}; use class names here, not ids")
            try:
                positive = float(weight) > 0
            except (TypeError, ValueError):
                positive = False
            if not positive:
                raise ValueError(f"gives class {name!r} the weight {weight!r}; a weight must be a number above 0")
        return value

    @model_validator(mode="before")
    @classmethod
    def _by_recipe(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        recipe = str(values.get("recipe", "auto"))
        merged = RECIPES.get(recipe, {}) | values
        return _paper_schedule(merged) | merged if recipe == "paper" else merged

    @model_validator(mode="after")
    def _consistent(self) -> TrainSection:
        most = self.most_workers
        if self.max_workers is not None and (self.workers < 1 or self.max_workers < self.workers):
            raise ValueError(
                f"`max_workers` is {self.max_workers} and `workers` is {self.workers}; use 1 <= workers <= max_workers"
            )
        if self.batch_size < 2 * most:
            raise ValueError(
                f"`batch_size` {self.batch_size} is too small for {most} workers: each needs at least 2 samples"
            )
        if self.batch_size < 2 * max(1, most) * self.accumulate_steps:
            raise ValueError(
                f"`batch_size` {self.batch_size} is too small for {self.accumulate_steps} micro-batches on each of "
                f"{max(1, most)} workers: "
                "each micro-batch needs at least 2 samples"
            )
        if self.ensemble and len(self.every_seed) < 2:
            raise ValueError("`ensemble` makes one model of several networks, but there is one seed; list some in `seeds`")
        if self.validate_steps is not None and self.steps is None:
            raise ValueError(
                f"`validate_steps` is {self.validate_steps}, but the length of training is given in epochs; set `steps`, "
                "too, or use `validate_every`"
            )
        if self.seeds is not None and len(set(self.seeds)) < len(self.seeds):
            raise ValueError("`seeds` contains a duplicate")
        if self.early_stopping_patience is not None and self.select == "last":
            raise ValueError(
                "`early_stopping_patience` stops when the score no longer improves, but `select: last` uses no "
                "score; change one of them"
            )
        return self

    @property
    def most_workers(self) -> int:
        """Maximum number of workers; 0 trains in the command's own process."""
        return self.max_workers or self.workers

    @property
    def peak_learning_rate(self) -> float:
        """Learning rate after the warm-up; "auto" is 2e-3 for batches of 256, in proportion to the root of the batch size.

        The square root keeps the noise of the steps of Adam and AdamW (Malladi et al. 2022), as a factor in proportion to
        the batch size does for stochastic gradient descent.
        """
        return 2e-3 * math.sqrt(self.batch_size / 256) if self.learning_rate == "auto" else self.learning_rate

    @property
    def every_seed(self) -> tuple[int, ...]:
        """Seeds of all training runs."""
        return self.seeds or (self.seed,)
