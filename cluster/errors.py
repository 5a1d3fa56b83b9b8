"""The one error tree. Every error says what failed, why, and what to do about it.

    TidegateError
    ├── ConfigError          a settings file holds mistakes; lists all of them
    ├── StateError           the state folder can't be used (locked by others, damaged, wrong owner)
    ├── NotLeaderError       another autoscaler acts; this one only watches
    ├── LaunchRefusedError   we decided not to launch; nothing was started
    │   ├── SiteFullError         the site holds as many nodes as it may
    │   ├── SiteNotListedError    what runs at the site isn't known yet
    │   ├── HeadExistsError       the cluster has a head already
    │   └── BudgetExceededError   the launch would commit more money per hour than allowed
    └── BackendError         a site's machinery failed
        ├── NoCapacityError       the site has none of these nodes to give right now
        ├── CredentialsError      the site doesn't accept our credentials
        └── NodeNotFoundError     no such node: it never was, or it is gone

Requests refused by the gateway have classes of their own in `deployments`, under `TidegateError`.
"""


class TidegateError(Exception):
    """Anything Tidegate reports to a person."""


class ConfigError(TidegateError):
    """A settings file holds mistakes; the message lists all of them."""


class StateError(TidegateError):
    """The state folder can't be used."""


class NotLeaderError(StateError):
    """Another autoscaler acts, or this one's lease ran out: nothing may be started or ended."""


class LaunchRefusedError(TidegateError):
    """A launch was refused by us before anything was started.

    `category` is what Ray shows for it: fewer than 20 characters.
    """

    category = "Refused"


class SiteFullError(LaunchRefusedError):
    """The site holds as many nodes as it may."""

    category = "SiteFull"


class SiteNotListedError(LaunchRefusedError):
    """What runs at the site isn't known yet; what is asked for may run there already."""

    category = "SiteNotListed"


class HeadExistsError(LaunchRefusedError):
    """The cluster has a head already; a second one would fight it for ports and workers."""

    category = "HeadExists"


class BudgetExceededError(LaunchRefusedError):
    """The launch would commit more money per hour than allowed."""

    category = "BudgetExceeded"


class BackendError(TidegateError):
    """A site's machinery failed; whether the call took effect is unknown."""


class NoCapacityError(BackendError):
    """The site has none of these nodes to give for `retry_s` seconds; nothing was started."""

    def __init__(self, message: str, *, retry_s: float = 30.0) -> None:
        super().__init__(message)
        self.retry_s = retry_s


class CredentialsError(BackendError):
    """The site doesn't accept our credentials: nothing starts or ends there until they are new."""


class NodeNotFoundError(BackendError):
    """No such node: it never was, or it is gone."""
