"""What the resolver reads from its environment."""

from chassis.settings import Settings


class ResolverSettings(Settings):
    """Nothing beyond what every stage reads."""
