"""The proxies and certificates that the environment names: checked before a client uses them, named when they fail.

The HTTP clients read these variables themselves. A value that they cannot use raises ImportError, ValueError or an
OSError without a file name there, and a proxy that does not answer looks like a hub that does not.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from minicpm.errors import HubError, one_line

_PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")
_SETTINGS = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "ssl_cert_file", "ssl_cert_dir")
_LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Proxy:
    """A proxy and the environment variable that names it. As a text it has no password."""

    variable: str
    address: str

    @property
    def is_on_this_machine(self) -> bool:
        return urlsplit(_with_scheme(self.address)).hostname in _LOOPBACK_HOSTS

    @property
    def is_socks(self) -> bool:
        return urlsplit(_with_scheme(self.address)).scheme.startswith("socks")

    def __str__(self) -> str:
        scheme, found, rest = self.address.partition("://")
        prefix, host = (scheme + found, rest) if found else ("", self.address)
        return f"{one_line(prefix + host.rpartition('@')[2])} of {self.variable}"


def proxy_for(url: str) -> Proxy | None:
    """The proxy through which a client asks `url`; None if it asks directly."""
    from urllib.request import proxy_bypass

    parts, proxies = urlsplit(url), _proxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    return None if proxy is None or not parts.hostname or proxy_bypass(parts.hostname) else proxy


def check_settings() -> None:
    """Raises HubError, which names the variable, for a proxy or certificates that no client can use."""
    for proxy in _proxies().values():
        _check_proxy(proxy)
    _check_certificates()


def unreachable(proxy: Proxy, why: str) -> str:
    """The sentence for a proxy that does not answer."""
    return f"the proxy {proxy} does not answer ({why}); start it, correct {proxy.variable}, or unset it"


def refused(proxy: Proxy | None, why: str = "status 407") -> str:
    """The sentence for a proxy that wants credentials."""
    scheme = "http" if proxy is None else urlsplit(_with_scheme(proxy.address)).scheme
    return (
        f"the proxy {proxy or 'of this network'} wants a user and a password ({why}); write them into "
        f"{proxy.variable if proxy else 'HTTPS_PROXY'} as {scheme}://USER:PASSWORD@HOST:PORT"
    )


def no_socks(error: BaseException) -> str | None:
    """The sentence for a proxy that answers something else than SOCKS; None for other errors.

    The client raises this error of socksio as it is.
    """
    proxy = next((proxy for proxy in _proxies().values() if proxy.is_socks), None)
    if proxy is None or type(error).__module__.partition(".")[0] != "socksio":
        return None
    return (
        f"the proxy {proxy} does not answer as SOCKS does ({one_line(str(error))}); correct {proxy.variable}, to "
        "http://HOST:PORT if it is an HTTP proxy, or unset it"
    )


def distrust(error: BaseException, url: str) -> str | None:
    """The sentence for an error that comes from a certificate which is not trusted; None for other errors."""
    import ssl  # loads OpenSSL, which no start without a download needs

    cause: BaseException | None = error
    while not isinstance(cause, ssl.SSLCertVerificationError):
        if cause is None:
            return None
        cause = cause.__cause__ or cause.__context__
    host, why = urlsplit(url).hostname or "the server", one_line(getattr(cause, "verify_message", "") or str(cause))
    variable = next((name for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if os.environ.get(name)), None)
    if variable is not None:
        return f"the certificate of {host} is not trusted by {variable} ({os.environ[variable]}): {why}"
    return (
        f"the certificate of {host} is not trusted: {why}; if a proxy of your network replaces certificates, set "
        "SSL_CERT_FILE to a file with its certificate"
    )


@contextmanager
def hidden_settings() -> Iterator[None]:
    """Without proxies and certificates in the environment: for an import whose clients never ask anybody."""
    kept = {name: value for name, value in os.environ.items() if name.lower() in _SETTINGS}
    for name in kept:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(kept)


def _proxies() -> dict[str, Proxy]:
    """The proxies by the scheme of what is asked: http, https, and all for both."""
    from urllib.request import getproxies

    found = getproxies()
    if "*" in (host.strip() for host in found.get("no", "").split(",")):
        return {}
    return {scheme: Proxy(_variable(scheme), found[scheme]) for scheme in ("http", "https", "all") if found.get(scheme)}


def _variable(scheme: str) -> str:
    name = f"{scheme}_proxy"
    given = [other for other in os.environ if other.lower() == name and os.environ[other]]
    # As urllib chooses: the name in lower case first.
    return name if name in given else given[0] if given else "the system's settings"


def _with_scheme(address: str) -> str:
    return address if "://" in address else f"http://{address}"


def _check_proxy(proxy: Proxy) -> None:
    advice = f"expected http://HOST:PORT, or socks5://HOST:PORT; correct or unset {proxy.variable}"
    try:
        parts = urlsplit(_with_scheme(proxy.address))
        is_address = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        parts, is_address = None, False
    if parts is None or not is_address or " " in proxy.address or not proxy.address.isprintable():
        raise HubError(f"the proxy {proxy} is not an address; {advice}")
    if parts.scheme not in _PROXY_SCHEMES:
        raise HubError(f"the proxy {proxy} is of an unknown kind, {one_line(parts.scheme, 40)}; {advice}")
    if proxy.is_socks and importlib.util.find_spec("socksio") is None:
        raise HubError(
            f"the proxy {proxy} speaks SOCKS, for which the package socksio is missing; run 'pip install socksio', or "
            f"unset {proxy.variable}"
        )


def _check_certificates() -> None:
    """SSL_CERT_FILE, else the folders of SSL_CERT_DIR: the clients read only one of them."""
    if name := os.environ.get("SSL_CERT_FILE"):
        import ssl

        try:
            with Path(name).open("rb"):
                ssl.create_default_context(cafile=name)
        except ssl.SSLError:
            raise HubError(f"SSL_CERT_FILE is {name}, which holds no certificate in PEM format; {_ADVICE}") from None
        except OSError as error:
            raise HubError(f"SSL_CERT_FILE is {name}, which cannot be read ({error.strerror}); {_ADVICE}") from None
    elif (names := os.environ.get("SSL_CERT_DIR")) and not any(Path(name).is_dir() for name in names.split(os.pathsep)):
        raise HubError(f"SSL_CERT_DIR is {names}, which is not a folder; {_ADVICE}")


_ADVICE = "correct it, or unset it to use the system's certificates"
