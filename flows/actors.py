"""Who starts a flow: the person at the command line, or a deployment that runs by itself."""

from pipelines.actors import Actor, automatic, person


def who_runs() -> Actor:
    """A deployment's run acts by itself, whether a schedule, an event or a click started it."""
    from prefect.runtime import deployment

    name = deployment.name
    return automatic(f"deployment {name}") if name else person()
