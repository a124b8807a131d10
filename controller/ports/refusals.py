"""What the pure parts and the publisher raise, as the errors of a port."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from controller.api.ports import (
    ChangedError,
    ConflictError,
    InvalidError,
    NotFoundError,
    PortError,
    UnavailableError,
)
from controller.api.schema import Fault
from controller.distribution import RolloutError
from controller.fleet import ModeError
from controller.pki.custody import CustodyError
from controller.publishing import PublishError
from controller.selection import SelectionError
from controller.store.errors import ExistsError, MissingError, OverloadedStoreError, UnwritableStoreError
from defender.contract.bundle import BundleError
from defender.contract.errors import Problem
from defender.contract.locks import LockError

MAX_FAULTS = 100


@contextmanager
def store_refusals() -> Iterator[None]:
    """Raise what the store raises inside as a port's error: NotFoundError for what is missing, ConflictError
    for what is there already, UnavailableError for a store that cannot do it now.
    """
    try:
        yield
    except MissingError as error:
        raise NotFoundError(str(error)) from None
    except ExistsError as error:
        raise ConflictError(str(error)) from None
    except (UnwritableStoreError, OverloadedStoreError) as error:
        raise UnavailableError(str(error)) from None


@contextmanager
def refusals(selection: str = "/target") -> Iterator[None]:
    """Raise what is raised inside as a port's error; `selection` is where the request names defenders."""
    try:
        with store_refusals():
            yield
    except PublishError as error:
        raise _publishing(error) from None
    except RolloutError as error:
        raise ConflictError(str(error)) from None
    except SelectionError as error:
        raise InvalidError([Fault(selection, str(error))]) from None
    except ModeError as error:
        # The mode itself was checked before; what is left is that nobody is selected.
        raise NotFoundError(str(error)) from None
    except LockError as error:
        raise InvalidError([Fault("/value", str(error))]) from None
    except BundleError as error:
        raise ConflictError(f"this cannot be published: {error}") from None
    except CustodyError as error:
        raise UnavailableError(str(error)) from None


def _publishing(error: PublishError) -> PortError:
    if error.code == "changed":
        return ChangedError(str(error), error.etag)
    if error.code == "invalid":
        return InvalidError([Fault("/text", _told(each)) for each in error.problems[:MAX_FAULTS]])
    if error.code == "name":
        return InvalidError([Fault("/policy", str(error))], "path")
    if error.code == "comment":
        return InvalidError([Fault("/comment", str(error))])
    return (NotFoundError if error.code == "no-version" else ConflictError)(str(error))


def _told(problem: Problem) -> str:
    return problem.describe("policy")[:2000]
