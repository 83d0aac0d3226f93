"""The settings of pushes to the Hub, shared by the verbs that train; importing them costs nothing."""

from dataclasses import dataclass


@dataclass(kw_only=True)
class PushOptions:
    """What of a run goes to the Hub while it trains, and where."""

    push_to: str | None = None
    """A repository on the Hub, as OWNER/NAME, that gets the finished checkpoint; it is made if it does not exist."""
    push_base_model: str | None = None
    """The name on the Hub of the model that --lora adapts, where that is a folder here: an adapter names its base."""
    push_every: int | None = None
    """Steps between two pushes of the model as it is; each is a saved state, and one commit."""
    push_branch: str | None = None
    """The branch that the pushes go to (default: main); it is made if it does not exist."""
    push_private: bool = False
    """Make a new repository private; an existing public one is refused."""
    push_license: str | None = None
    """The licence that the Hub shows, by its identifier there, such as apache-2.0; --push-to needs it."""
