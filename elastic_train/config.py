"""What a user may set, checked before anything starts.

Every class here is frozen and validates itself: a value that cannot work raises ConfigurationError, which names the
parameter, the value seen and what to write instead. Environment variables are read in `read_environment` and nowhere
else; an argument always wins over its variable.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from elastic_train.errors import ConfigurationError

JOB_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
COORDINATION_SCHEMES = ("etcd", "memory")

_DIGEST_EVERY_STEPS = 100

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})


def check_job_name(name: object, parameter: str = "name") -> str:
    """Return `name` if it can name a job: it becomes a directory, a key prefix and part of URLs.

    Raises:
        ConfigurationError: It is empty, too long, or has characters that those do not all allow.
    """
    if not isinstance(name, str) or JOB_NAME.fullmatch(name) is None:
        raise ConfigurationError(
            parameter,
            f"{name!r} cannot name a job",
            "Use 1 to 63 letters, digits, '.', '_' or '-', beginning and ending with a letter or digit",
        )
    return name


def check_coordination_url(url: str, parameter: str = "coordination") -> str:
    """Return `url` if its scheme is one that `adapters.coordination` can open; that adapter checks the rest.

    Raises:
        ConfigurationError: The scheme is missing or unknown. The URL is not repeated: it may hold a password.
    """
    scheme, separator, _ = url.partition("://")
    if separator and scheme in COORDINATION_SCHEMES:
        return url
    raise ConfigurationError(
        parameter,
        f"unknown scheme {scheme + '://'!r}" if separator else "no URL with a scheme",
        "Write 'etcd://host:2379,host2:2379', or leave it out for an etcd of the job's own",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleConfig:
    """How many workers the job may have.

    Attributes:
        min_workers: Below it the job pauses, keeping its state, until there are enough again.
        max_workers: Never more than this; also the default number of logical shards.
        num_workers: How many to begin with; None: what the machine holds, within the bounds.
    """

    min_workers: int = 1
    max_workers: int | None = None
    num_workers: int | None = None

    def __post_init__(self) -> None:
        _check_count("min_workers", self.min_workers)
        if self.max_workers is not None:
            _check_count("max_workers", self.max_workers)
            if self.max_workers < self.min_workers:
                raise ConfigurationError(
                    "max_workers",
                    f"{self.max_workers} is smaller than min_workers={self.min_workers}",
                    "Raise max_workers or lower min_workers",
                )
        if self.num_workers is not None:
            _check_count("num_workers", self.num_workers)
            if not self.min_workers <= self.num_workers <= (self.max_workers or self.num_workers):
                raise ConfigurationError(
                    "num_workers",
                    f"{self.num_workers} lies outside [min_workers={self.min_workers}, max_workers={self.max_workers}]",
                    "Choose a number within the bounds, or leave it out",
                )

    def resolve(self, machine_workers: int) -> ScaleConfig:
        """Fill in what was left out for a machine that holds `machine_workers`."""
        ceiling = self.max_workers or max(machine_workers, self.min_workers, self.num_workers or 0)
        number = self.num_workers or min(max(machine_workers, self.min_workers), ceiling)
        return ScaleConfig(min_workers=self.min_workers, max_workers=ceiling, num_workers=number)


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureConfig:
    """What counts as a failure, and how many are borne.

    Attributes:
        max_failures: How often an exception in the user's own code is answered by restarting that worker before the
            job ends with it; -1: without end. Lost machines are no failures and are never counted.
        hang_timeout_s: A worker whose training thread computes for so long while the others wait for it is taken for
            hung and replaced.
        below_minimum_timeout_s: How long the job may stand below `min_workers` before it ends with NotEnoughWorkers;
            None: for ever.
    """

    max_failures: int = 0
    hang_timeout_s: float = 120.0
    below_minimum_timeout_s: float | None = None

    def __post_init__(self) -> None:
        if not _is_int(self.max_failures) or self.max_failures < -1:
            raise ConfigurationError(
                "FailureConfig.max_failures", f"{self.max_failures!r} is not -1, 0 or more", "Use -1 for no limit"
            )
        _check_seconds("FailureConfig.hang_timeout_s", self.hang_timeout_s)
        _check_seconds("FailureConfig.below_minimum_timeout_s", self.below_minimum_timeout_s, optional=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointConfig:
    """When the state is written to storage, and how much of it is kept.

    A checkpoint is taken at the first step boundary at which either rule is due, and always when the job ends.

    Attributes:
        every_steps: After so many committed steps; None: not by steps.
        every_seconds: After so many seconds; None: not by time. With both None only the final state is written.
        keep: How many committed checkpoints stay; the newest readable one is never deleted.
        at_end: Also write the state that the job ends with (finished or stopped).
    """

    every_steps: int | None = None
    every_seconds: float | None = 60.0
    keep: int = 3
    at_end: bool = True

    def __post_init__(self) -> None:
        if self.every_steps is not None:
            _check_count("CheckpointConfig.every_steps", self.every_steps)
        _check_seconds("CheckpointConfig.every_seconds", self.every_seconds, optional=True)
        _check_count("CheckpointConfig.keep", self.keep)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeoutConfig:
    """How long the job waits for things; the defaults suit one machine or one cluster network.

    Attributes:
        lease_ttl_s: A worker that cannot reach the coordination service for so long fences itself and is left out.
        ack_timeout_s: A member that does not acknowledge an unplanned change within it is left out.
        coalesce_s: Losses within it of the first are answered by one change.
        join_batch_s: A ready worker waits so long for others that are still starting, so that one change admits them.
        formation_timeout_s: Forming the process group of a world takes at most this long.
        start_timeout_s: A worker process that has not registered itself by then is killed and replaced.
    """

    lease_ttl_s: float = 10.0
    ack_timeout_s: float = 1.0
    coalesce_s: float = 0.02
    join_batch_s: float = 0.2
    formation_timeout_s: float = 10.0
    start_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            _check_seconds(f"TimeoutConfig.{name}", getattr(self, name))
        if self.lease_ttl_s < 2.0:
            raise ConfigurationError(
                "TimeoutConfig.lease_ttl_s", f"{self.lease_ttl_s} s is less than etcd grants", "Use 2 seconds or more"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """What decides which samples a step sees.

    Attributes:
        seed: Of the sample order and of every generator in a step.
        logical_shards: Number of fixed parts of every global batch; None: `max_workers`.
        deterministic: Compute every logical shard by itself, so that weights, optimizer state and losses have the same
            bits at every world size, whatever is lost or joins meanwhile.
        digest_every_steps: After so many committed steps the workers compare digests of the whole state; None: every
            100 where `deterministic`, else never.
    """

    seed: int = 0
    logical_shards: int | None = None
    deterministic: bool = False
    digest_every_steps: int | None = None

    def __post_init__(self) -> None:
        if not _is_int(self.seed) or not 0 <= self.seed < 2**63:
            raise ConfigurationError("seed", f"{self.seed!r} is not an integer in [0, 2**63)", "Use e.g. seed=0")
        if self.logical_shards is not None:
            _check_count("logical_shards", self.logical_shards)
        if self.digest_every_steps is not None:
            _check_count("digest_every_steps", self.digest_every_steps)

    def resolve(self, max_workers: int) -> DataConfig:
        """Fill in what was left out.

        Raises:
            ConfigurationError: There would be fewer logical shards than workers.
        """
        shards = self.logical_shards or max_workers
        if shards < max_workers:
            raise ConfigurationError(
                "logical_shards",
                f"{shards} shards cannot occupy max_workers={max_workers}: every worker needs one at least",
                f"Use logical_shards={max_workers} or more, or lower max_workers",
            )
        every = self.digest_every_steps or (_DIGEST_EVERY_STEPS if self.deterministic else None)
        return replace(self, logical_shards=shards, digest_every_steps=every)


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What the environment variables say; None where they say nothing."""

    home: Path = field(default_factory=lambda: Path.home() / "elastic_train")
    coordination: str | None = None
    storage: str | None = None
    num_workers: int | None = None
    progress: bool | None = None


def read_environment(variables: Mapping[str, str]) -> Environment:
    """Read all environment variables of elastic-train from `variables` (normally ``os.environ``).

    ``ELASTIC_TRAIN_HOME``, ``ELASTIC_TRAIN_COORDINATION``, ``ELASTIC_TRAIN_STORAGE``, ``ELASTIC_TRAIN_NUM_WORKERS``,
    ``ELASTIC_TRAIN_PROGRESS``. An empty variable counts as not set.

    Raises:
        ConfigurationError: A variable is set to something that cannot be read; it is named.
    """
    home = _variable(variables, "ELASTIC_TRAIN_HOME")
    return Environment(
        home=Path(home).expanduser() if home else Path.home() / "elastic_train",
        coordination=_variable(variables, "ELASTIC_TRAIN_COORDINATION"),
        storage=_variable(variables, "ELASTIC_TRAIN_STORAGE"),
        num_workers=_integer_variable(variables, "ELASTIC_TRAIN_NUM_WORKERS"),
        progress=_boolean_variable(variables, "ELASTIC_TRAIN_PROGRESS"),
    )


def _variable(variables: Mapping[str, str], name: str) -> str | None:
    return variables.get(name) or None


def _integer_variable(variables: Mapping[str, str], name: str) -> int | None:
    text = _variable(variables, name)
    if text is None:
        return None
    try:
        return int(text)
    except ValueError:
        raise ConfigurationError(name, f"{text!r} is not a whole number", f"Set {name}=4, or unset it") from None


def _boolean_variable(variables: Mapping[str, str], name: str) -> bool | None:
    text = _variable(variables, name)
    if text is None:
        return None
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ConfigurationError(name, f"{text!r} is neither yes nor no", f"Set {name}=1 or {name}=0, or unset it")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_count(parameter: str, value: object) -> None:
    if not _is_int(value) or value < 1:  # type: ignore[operator]  # _is_int has said that it is one
        raise ConfigurationError(parameter, f"{value!r} is not a whole number of 1 or more", "Use 1 or more")


def _check_seconds(parameter: str, value: object, *, optional: bool = False) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        remedy = "Use a number of seconds above 0" + (", or None" if optional else "")
        raise ConfigurationError(parameter, f"{value!r} is not a finite number of seconds above 0", remedy)
