"""Read ``etcd://user:password@host:2379,host2:2379/?ca=...&cert=...&key=...``, never to show the password again."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote

from elastic_train.errors import ConfigurationError

SCHEME = "etcd://"
_DEFAULT_PORT = 2379
_OPTIONS = ("ca", "cert", "key")
_FORM = "Write etcd://[user:password@]host[:port][,host[:port]...][/?ca=FILE[&cert=FILE&key=FILE]]."


@dataclass(frozen=True, slots=True)
class Tls:
    """Files that secure the connection: the authority to trust, and our own certificate where one is asked for."""

    ca: Path
    cert: Path | None = None
    key: Path | None = None


@dataclass(frozen=True, slots=True)
class EtcdAddress:
    """Where an etcd cluster is and who we are to it. Its `repr` and `str` leave the credentials out."""

    endpoints: tuple[str, ...]
    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    tls: Tls | None = None

    def __str__(self) -> str:
        """Return a URL that is safe to log."""
        return f"{SCHEME}{'***@' if self.user is not None else ''}{','.join(self.endpoints)}"

    def to_url(self) -> str:
        """Return the whole URL, password included: for a child's environment, never for a log."""
        who = f"{quote(self.user, safe='')}:{quote(self.password or '', safe='')}@" if self.user is not None else ""
        files = {name: getattr(self.tls, name) for name in _OPTIONS} if self.tls else {}
        query = "&".join(f"{name}={quote(str(path))}" for name, path in files.items() if path is not None)
        return f"{SCHEME}{who}{','.join(self.endpoints)}{'/?' + query if query else ''}"


def parse_etcd_url(url: str) -> EtcdAddress:
    """Parse an ``etcd://`` URL.

    Raises:
        ConfigurationError: It is malformed, names an unknown option or a file that cannot be read. The message repeats
            only parts that cannot hold a password.
    """
    if not url.startswith(SCHEME):
        raise _wrong(f"does not begin with {SCHEME}")
    rest, _, query = url.removeprefix(SCHEME).partition("?")
    # not urlsplit: it takes a list of hosts for one host, and repeats the whole URL in its errors
    who, at, where = rest.rpartition("@")
    hosts, _, path = where.partition("/")
    if path:
        raise _wrong("has a path, and keys do not come from the URL")
    user, password = _parse_credentials(who) if at else (None, None)
    return EtcdAddress(
        endpoints=tuple(_parse_endpoint(host) for host in hosts.split(",")),
        user=user,
        password=password,
        tls=_parse_tls(query),
    )


def _parse_credentials(who: str) -> tuple[str, str]:
    user, colon, password = who.partition(":")
    if not user or not colon or not password:
        raise _wrong("has an @ without user:password before it")
    return unquote(user), unquote(password)


def _parse_endpoint(text: str) -> str:
    """Return ``host:port``; an IPv6 address stands in brackets."""
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, str(_DEFAULT_PORT)
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not bare or (":" in bare and bare == host) or any(letter.isspace() for letter in bare):
        raise _wrong("names a host that is empty or cannot be told from its port (IPv6 goes in [brackets])")
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise _wrong(f"has a port that is not a number from 1 to 65535 after host {host!r}")
    return f"{host}:{port}"


def _parse_tls(query: str) -> Tls | None:
    if not query:
        return None
    given = parse_qs(query, keep_blank_values=True)
    unknown = sorted(set(given) - set(_OPTIONS))
    if unknown:
        raise _wrong(f"has an unknown option {unknown[0]!r}")
    files = {name: Path(values[-1]) for name, values in given.items()}
    if "ca" not in files:
        raise _wrong("has cert or key without ca")
    if ("cert" in files) != ("key" in files):
        raise _wrong("has only one of cert and key")
    for name, path in files.items():
        if not path.is_file():
            raise _wrong(f"names {name} file {str(path)!r}, which does not exist")
    return Tls(ca=files["ca"], cert=files.get("cert"), key=files.get("key"))


def _wrong(problem: str) -> ConfigurationError:
    return ConfigurationError("coordination", f"this etcd URL {problem}", _FORM)
