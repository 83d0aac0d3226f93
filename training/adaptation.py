"""Before a classifier learns labels, its model learns the texts: from nothing, or a little further.

A few thousand short texts are learnt by heart within a few passes, and what comes after makes the model worse
(docs/classification.md): so the passes have an end, whatever the clock says, and the rate reaches zero there.
"""

from typing import Any

from groundup.common import clock
from groundup.common.console import say
from groundup.training.checkpoint import Position
from groundup.training.classification_preparation import BASE, MOST_ADAPT_EPOCHS, PreparedExamples
from groundup.training.plan import LEAST_DECAY
from groundup.training.pretraining import Pretraining
from groundup.training.run import carry_out
from groundup.training.schedule import Budget
from groundup.training.settings import PretrainSettings
from groundup.training.starting import open_prepared, prepare_run


class Adaptation(Pretraining):
    """Pretraining that under a clock ends after `MOST_ADAPT_EPOCHS` passes at the latest."""

    def budget(self, position: Position) -> Budget:
        """The budget given, under a clock with an end in steps too."""
        given = super().budget(position)
        if given.steps is not None:
            return given
        most = round(MOST_ADAPT_EPOCHS * len(self.windows) / self.batch_rows)
        return Budget(steps=max(1, most), seconds=given.seconds)


def adapt(prepared: PreparedExamples, began: float) -> None:
    """Pretrain on the training texts into `work/base`, unless an earlier process has done it.

    Without `--model` that is a new model of the plan's sizes, with it the model itself.
    """
    settings, plan = prepared.settings, prepared.plan
    say("pretraining on the texts of the rows first:")
    base: dict[str, Any] = plan.base or {}
    minutes = settings.adapt_minutes
    if minutes is not None:
        minutes = max(0.05, minutes + (began - clock.began()) / 60)  # it counts from where the command began
    model = base["model"] if settings.model is None else {}  # a model that is there has its sizes
    carry_out(
        PretrainSettings(
            data=[str(prepared.work / "texts.jsonl")],
            tokenizer=str(prepared.work / "tokenizer") if settings.model is None else None,
            init_from=None if settings.model is None else str(prepared.given),
            objective=base["objective"],
            out=str(prepared.work / BASE),
            minutes=minutes,
            epochs=settings.adapt_epochs,
            context_length=plan.context_length,
            hidden_size=model.get("hidden_size"),
            num_hidden_layers=model.get("num_hidden_layers"),
            model_config=model,
            optimizer="muon" if plan.optimizer == "muon" else "adamw",
            learning_rate=settings.learning_rate * base["rate"],
            weight_decay=LEAST_DECAY,
            precision=settings.precision,
            seed=settings.seed,
            resume=True,
            smoke=settings.smoke,
            quiet=settings.quiet,
        ),
        verb="pretrain",
        name=BASE,
        prepare=prepare_run,
        start=lambda run, began: Adaptation(open_prepared(run), run, began),
        inner=True,
    )
