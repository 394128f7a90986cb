"""Who decides: a person by name, with the account it came from, or a part of dankai acting by itself."""

import os
import pwd
from typing import Annotated

from pydantic import StringConstraints

from validation.errors import InputError
from validation.record import Record

LONGEST_NAME = 100


class Actor(Record):
    """`account` is the operating system's; "" where the way in knows none, as Prefect's UI does.

    Automatic actors may hold, fail, challenge, demote and roll back, and ask for a promotion; never promote.
    """

    name: Annotated[str, StringConstraints(min_length=1, max_length=LONGEST_NAME)]
    account: str = ""
    automatic: bool = False


def person(name: str | None = None) -> Actor:
    """Whoever runs this process, as `name` or by the account's. Raises InputError on a name that is none."""
    account = account_name()
    chosen = account if name is None else name.strip()
    refuse_unusable_name(chosen)
    return Actor(name=chosen, account=account)


def automatic(name: str) -> Actor:
    """A part of dankai that acts without a person: a schedule, the monitor."""
    return Actor(name=name, account=account_name(), automatic=True)


def account_name() -> str:
    """The operating system's name for this process's user, whatever the environment says."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container may run under a number without a name
        return f"uid {os.getuid()}"


def refuse_unusable_name(name: str) -> None:
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise InputError(f"--as: {name!r} is no name: give one line of at most {LONGEST_NAME} characters")
