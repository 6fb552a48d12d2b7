"""Which backend serves a URL, and what is refused."""

from __future__ import annotations

import importlib.metadata
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage import ConfigError, MissingDependency, ObjectStore, UnknownScheme, describe_backends, open_store, registry
from storage.backends import obstore_backend

PLUGIN = textwrap.dedent(
    """
    from storage.backends.memory import MemoryBackend

    class Tape(MemoryBackend):
        client = "tape"

    def open_tape(location):
        assert location.options == {"speed": 3}, location.options
        assert location.bucket == "library"
        assert location.prefix == "shelf/9"
        assert "hunter22" not in repr(location)
        assert "hunter22" not in location.scrubber.scrub("token hunter22")
        return Tape("tape", location.prefix)
    """
)


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Install a distribution that serves tape://."""
    (tmp_path / "tape_store.py").write_text(PLUGIN)
    _install(tmp_path, "tape-store", "tape = tape_store:open_tape")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("tape_store", None)


def _install(where: Path, name: str, entry: str) -> None:
    info = where / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{registry.ENTRY_POINT_GROUP}]\n{entry}\n")


def test_a_distribution_adds_a_scheme(plugin: Path) -> None:
    assert importlib.metadata.version("tape-store") == "1.0"
    with open_store("tape://library/shelf/9?token=hunter22", speed=3) as store:
        assert store.client == "tape"
        store.put("key", b"x")
        assert store.get("key") == b"x"
        assert "hunter22" not in repr(store)
    assert ("tape", "tape_store:open_tape", "entry point of tape-store") in [
        (report.scheme, report.client, report.reason) for report in describe_backends()
    ]


def test_two_distributions_for_one_scheme_are_refused(plugin: Path) -> None:
    _install(plugin, "other-tape", "tape = tape_store:open_tape")
    with pytest.raises(ConfigError, match="other-tape"):
        open_store("tape://library")


def test_a_distribution_that_does_not_load_is_named(plugin: Path) -> None:
    _install(plugin, "broken", "punchcard = no_such_module:open")
    with pytest.raises(MissingDependency, match="no_such_module"):
        open_store("punchcard://x")


@pytest.mark.parametrize("url", ["nonsense://host/path", "NoSuch://x"])
def test_an_unknown_scheme_is_refused_and_the_known_are_named(url: str) -> None:
    with pytest.raises(UnknownScheme, match="s3"):
        open_store(url)


@pytest.mark.parametrize(
    ("url", "options", "says"),
    [
        ("file://host/path", {}, "three slashes"),
        ("memory://x", {"size": 3}, "size"),
        ("file:///x", {"fast": True}, "fast"),
        ("file:///x", {"client": "obstore"}, "one client"),
        ("s3:///prefix", {}, "no bucket"),
        ("s3://key:hunter22@bucket", {}, "credentials"),
        ("s3://bucket?token=x", {}, "credentials or a query"),
        ("s3://bucket", {"access_key_id": "only"}, "come together"),
        ("s3://bucket", {"anonymous": True, "profile": "x"}, "choose one"),
        ("s3://bucket", {"endpoint": "http://x"}, "endpoint_url"),
        ("s3://bucket", {"client": "boto3"}, "no client 'boto3'"),
        ("s3://bucket", {"request_timeout_s": 0}, "request_timeout_s"),
        ("gs://bucket", {"key": "x"}, "unknown options"),
        ("az://container", {"account": "x"}, "account_name"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(url: str, options: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_store(url, **options)  # type: ignore[arg-type]  # any options
    assert says in str(caught.value)
    assert "hunter22" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["s3://bucket/p", "s3a://bucket/p", "gs://bucket", "gcs://bucket", "az://c", "abfs://c@acc.dfs.core.windows.net/p"],
)
def test_cloud_stores_are_served_by_obstore(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(obstore_backend, "_used_in", None)
    with open_store(url) as store:
        assert store.client == "obstore"


def test_without_obstore_the_fsspec_client_is_taken_and_the_report_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_is_installed", lambda package: package != "obstore")
    with open_store("s3://bucket") as store:
        assert store.client == "s3fs"
    (report,) = [report for report in describe_backends() if report.scheme == "s3"]
    assert report.client == "s3fs"
    assert "obstore is not installed" in report.reason
    with pytest.raises(MissingDependency, match="pip install obstore"):
        open_store("s3://bucket", client="obstore")


def test_with_no_client_installed_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_is_installed", lambda _: False)
    with pytest.raises(MissingDependency, match="needs obstore or s3fs: pip install obstore"):
        open_store("s3://bucket")
    assert {report.scheme: report.client for report in describe_backends()}["s3"] == ""
    with pytest.raises(UnknownScheme, match="pip install fsspec"):
        open_store("sftp://host/x")


def test_a_child_of_a_process_that_used_obstore_does_not_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(obstore_backend, "_used_in", 1)
    with open_store("s3://bucket") as store:
        assert store.client == "s3fs"
    assert "forked" in {report.scheme: report.reason for report in describe_backends()}["s3"]


def test_a_path_is_a_file_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url in ("here", str(tmp_path / "here"), tmp_path / "here", f"file://{tmp_path}/here"):
        with open_store(url) as store:
            assert store.url == f"file://{tmp_path}/here"


def test_memory_stores_of_one_name_share_their_objects() -> None:
    first: ObjectStore = open_store("memory://unit-shared/p")
    first.put("key", b"x")
    assert open_store("memory://unit-shared").get("p/key") == b"x"
    assert not open_store("memory://unit-other").exists("p/key")
    first.delete("key")
