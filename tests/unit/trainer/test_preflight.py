"""A storage that cannot be used is found before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from elastic_train.errors import ConfigurationError
from elastic_train.trainer.preflight import check_storage


def test_a_usable_storage_is_left_as_it_was(tmp_path: Path) -> None:
    check_storage((tmp_path / "new").as_uri())
    assert not [path for path in (tmp_path / "new").rglob("*") if path.is_file()]


def test_an_unknown_scheme_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="zoo") as caught:
        check_storage("zoo://bucket/x")
    assert caught.value.parameter == "storage"


def test_a_path_that_cannot_be_written_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot be used for checkpoints"):
        check_storage((tmp_path / "file" / "below").as_uri())
