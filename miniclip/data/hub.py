"""The Hugging Face Hub: is it there, does it have this set, and errors in one line."""

from contextlib import contextmanager
from typing import NamedTuple

from miniclip.notices import one_line

HUB_ID = r"[\w-][\w.-]*/[\w-][\w.-]*"  # USER/NAME


class HubUnreachable(ConnectionError):
    """The Hugging Face Hub did not answer; the message says what was asked for, and why."""


def unreachable(where: str, error: Exception) -> HubUnreachable:
    return HubUnreachable(f"{where} on the Hub is out of reach ({type(error).__name__}: "
                          f"{one_line(error)}); --data shapes, or a folder, needs no Hub")


class Listing(NamedTuple):
    """What the Hub says of a data set."""

    names: set[str]  # of its files
    revision: str  # the commit that has them


def check_hub(where: str, explicit: bool = True) -> Listing:
    """Ask the Hub once, before `datasets` retries for half a minute → the set's files.

    explicit: whether the user named the set. A proxy's 403 for the default data set only means that
    the Hub is out of reach.

    Raises HubUnreachable, and ValueError if a set that the user named does not exist.
    """
    from huggingface_hub import HfApi, errors

    try:
        found = HfApi().dataset_info(where, timeout=10)
        return Listing({file.rfilename for file in found.siblings or ()}, found.sha or "main")
    except Exception as error:  # of any network library; the message gives the reason
        status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else 0
        if explicit and status in (401, 403, 404):
            raise ValueError(f"the Hub has no public data set {where!r}") from error
        raise unreachable(where, error) from error


@contextmanager
def telling(where: str, split: str, on_hub: bool):
    """Turn the many errors of the libraries that read tables into ValueError or HubUnreachable."""
    import pyarrow

    try:
        yield
    except pyarrow.ArrowException as error:  # Arrow says what is wrong, but not where
        raise ValueError(f"{where}, {split}, can't be read: {one_line(error)}") from error
    except HubUnreachable:
        raise
    except ValueError as error:
        if "Config name is missing" in str(error):
            names = str(error).partition("[")[2].partition("]")[0]
            raise ValueError(f"{where} has several configurations: {names}; name one: --data "
                             f"{where}:NAME") from error
        raise
    except Exception as error:  # the Hub answered, but its files are refused or broke off
        if not on_hub:
            raise
        raise unreachable(where, error) from error
