"""Bytes over HTTP that survive everything: kill -9, cut connections, servers that ignore ranges, wrong bytes.

A file grows under one stable partial name. Whoever comes next hashes what is there and asks for the rest. The HTTP
client is huggingface_hub's shared one (`get_session`), so its proxies and certificates count here too.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TypeVar
from urllib.parse import urljoin, urlsplit

from minicpm.errors import HubError, brief, one_line
from minicpm.files import naming_full_disk
from minicpm.hub import network
from minicpm.hub.remote import RemoteFile
from minicpm.progress import Progress

if TYPE_CHECKING:
    from hashlib import _Hash

Result = TypeVar("Result")

TIMEOUT_S = 30.0  # without a byte, or to connect
RETRY_DELAYS_S = (1.0, 2.0, 4.0, 8.0, 16.0)  # a file fails after this many tries in a row that brought no byte
MAX_RETRY_AFTER_S = 300.0  # a server that asks for more patience than this is told to the user instead
MAX_REDIRECTS = 10
MAX_JSON_BYTES = 64 << 20
# In what the clients say of a SOCKS proxy that wants credentials, or others than the given ones.
_WANTS_PASSWORD = ("NO ACCEPTABLE METHODS", "but got USERNAME/PASSWORD", "Invalid username/password")
_READ_BYTES = 1 << 20
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 522, 524})


class Response(Protocol):
    """What is used of httpx's response, the same in httpx and httpx2."""

    status_code: int
    headers: Mapping[str, str]

    def iter_raw(self) -> Iterator[bytes]: ...


@dataclass(frozen=True)
class Download:
    """Where one file comes from.

    `headers` go to `url`'s own host only. `explain` turns a refusal (status, headers) into the sentence for the user.
    `etag_is_digest`: this hub's ETag (or X-Linked-Etag) is the file's hash, so a changed file shows before its bytes.
    """

    file: RemoteFile
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    explain: Callable[[int, Mapping[str, str]], str] = lambda status, headers: f"the hub answered with status {status}"
    etag_is_digest: bool = False


class _TryAgain(Exception):
    """This try failed in a way that the next may not."""

    def __init__(self, why: str, after_s: float | None = None):
        self.after_s = after_s
        super().__init__(why)


class _StartOver(Exception):
    """The partial file is of no use."""


def fetch(download: Download, partial: Path, progress: Progress, tell: Callable[[str], None]) -> None:
    """Complete `partial` with the bytes of `download.file`, verified against its hash and on disk (fsync).

    Bytes already in `partial` are kept when their hash comes out right; a whole that comes out wrong is fetched once
    more from its first byte. `progress.advance` gets the bytes as they come, and negative numbers for bytes dropped.
    Raises HubError; what arrived stays in `partial` for the next call unless it is known to be wrong.
    """
    file = download.file
    with naming_full_disk(partial), partial.open("a+b", buffering=0) as out:
        for is_last in (False, True):
            have, hasher = _already_there(out, file)
            try:
                _append_rest(download, out, have, hasher, progress, tell)
                if hasher.hexdigest() == file.digest:
                    os.fsync(out.fileno())
                    return
                problem = f"the bytes received have hash {hasher.hexdigest()}, the hub lists {file.digest}"
            except _StartOver as error:
                problem = str(error)
            progress.advance(-out.seek(0, os.SEEK_END))
            out.truncate(0)
            if not is_last:
                tell(f"{file.path}: {problem}; fetching it again from the start")
    raise HubError(f"{file.path}: {problem}, twice; nothing of it was kept: try again later or take the other hub")


def fetch_json(url: str, headers: Mapping[str, str], tell: Callable[[str], None]) -> tuple[int, Any]:
    """GET a small JSON answer: (status, value; None where it is no JSON). Transient trouble is retried."""

    def once() -> tuple[int, Any]:
        with _get(url, headers) as (response, _):
            _raise_if_transient(response, url)
            body = bytearray()
            for chunk in response.iter_raw():
                body += chunk
                if len(body) > MAX_JSON_BYTES:
                    raise HubError(f"{url} answered with more than {MAX_JSON_BYTES >> 20} MiB; that is no file list")
            try:
                return response.status_code, json.loads(body)
            except (ValueError, RecursionError):
                return response.status_code, None

    return with_retries(once, f"{urlsplit(url).hostname}", tell)


def with_retries(call: Callable[[], Result], what: str, tell: Callable[[str], None]) -> Result:
    """`call`, again after transient trouble, up to the patience of RETRY_DELAYS_S; then HubError."""
    failures = 0
    while True:
        try:
            with _network_errors():
                return call()
        except _TryAgain as trouble:
            _wait(trouble, failures, what, tell)
            failures += 1


def raise_if_transient(status: int, headers: Mapping[str, str], url: str) -> None:
    """Inside `with_retries`: have a call made through another library tried again if its answer says so.

    Raises HubError for a proxy that wants credentials: it answers in place of the server at `url`.
    """
    if status == 407:
        raise HubError(network.refused(network.proxy_for(url)))
    if status in _TRANSIENT:
        raise _TryAgain(f"status {status}", _retry_after_s(headers))


def require_free_space(folder: Path, needed_bytes: int, what: str) -> None:
    """HubError unless the disk of `folder` has room for `needed_bytes` more."""
    while not folder.exists():
        folder = folder.parent
    free_bytes = shutil.disk_usage(folder).free
    if needed_bytes > free_bytes:
        raise HubError(
            f"{what} needs {needed_bytes / 1e9:.2f} GB more on the disk of {folder}, where {free_bytes / 1e9:.2f} GB "
            "are free; make room, or set HF_HOME or MODELSCOPE_CACHE to another disk"
        )


def _already_there(out: BinaryIO, file: RemoteFile) -> tuple[int, _Hash]:
    """How many bytes the partial holds and their hash; one that is too long cannot be a beginning and is emptied."""
    if out.seek(0, os.SEEK_END) > file.size:
        out.truncate(0)
    out.seek(0)
    hasher, have = file.hasher(), 0
    while block := out.read(_READ_BYTES):
        hasher.update(block)
        have += len(block)
    return have, hasher


def _append_rest(
    download: Download, out: BinaryIO, have: int, hasher: _Hash, progress: Progress, tell: Callable[[str], None]
) -> None:
    """Ask for what is missing until all is there."""
    file = download.file
    failures = 0
    while have < file.size:
        before = have
        try:
            with _network_errors():
                for chunk in _rest_of(download, have):
                    if have + len(chunk) > file.size:
                        raise HubError(f"{file.path}: more than the {file.size} bytes that the hub lists came")
                    _write(out, chunk, file, have)
                    hasher.update(chunk)
                    have += len(chunk)
                    progress.advance(len(chunk))
                if have < file.size:
                    raise _TryAgain(f"the connection ended after {have} of {file.size} bytes")
        except _TryAgain as trouble:
            failures = 0 if have > before else failures
            _wait(trouble, failures, file.path, tell)
            failures += 1


def _rest_of(download: Download, have: int) -> Iterator[bytes]:
    """The bytes of the file from `have` on, as they come."""
    file = download.file
    headers = dict(download.headers)
    if have:
        headers["Range"] = f"bytes={have}-"
        if download.etag_is_digest:
            headers["If-Range"] = f'"{file.digest}"'
    with _get(download.url, headers, lambda hop: _check_identity(download, hop)) as (response, redirects):
        status = response.status_code
        _raise_if_transient(response, download.url)
        if status in (401, 403) and redirects:
            raise _TryAgain(f"the storage behind the hub answered with status {status}")  # a signed link that expired
        if status == 416 and have:
            raise _StartOver(f"the server has no bytes after the first {have}")
        if status not in (200, 206):
            raise HubError(f"{file.path}: {download.explain(status, response.headers)}")
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise HubError(f"{file.path}: the server compressed the file although it was asked not to")
        skip = have if status == 200 else 0  # ranges ignored: everything comes again, and what we have stays ours
        _check_length(file, response, have - skip)
        for chunk in response.iter_raw():
            if skip:
                skip, chunk = max(0, skip - len(chunk)), chunk[skip:]
            if chunk:
                yield chunk


def _check_identity(download: Download, hop: Response) -> None:
    """A hub that names the file by another hash than it listed has changed it in between."""
    if not download.etag_is_digest:
        return
    etag = hop.headers.get("X-Linked-Etag") or ("" if hop.status_code >= 300 else hop.headers.get("ETag", ""))
    named = etag.removeprefix("W/").strip('"')
    if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", named) and named != download.file.digest:
        raise HubError(f"{download.file.path} changed on the hub while it was fetched; run the same command again")


def _check_length(file: RemoteFile, response: Response, start: int) -> None:
    """HubError when the answer announces other bytes than [start, size)."""
    expected = file.size - start
    if response.status_code == 206:
        found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", "").strip())
        if not found or int(found[1]) != start or found[3] not in ("*", str(file.size)):
            answered = response.headers.get("Content-Range", "no Content-Range")
            raise HubError(
                f"{file.path}: asked for bytes {start}- of {file.size}, the server answered {one_line(answered)}"
            )
        expected = int(found[2]) + 1 - start
    announced = response.headers.get("Content-Length", str(expected))
    if announced != str(expected) or start + expected > file.size:
        announced = one_line(announced, 40)
        raise HubError(
            f"{file.path}: the hub lists {file.size} bytes, but the server announces {announced} from byte {start} on"
        )


@contextmanager
def _get(
    url: str, headers: Mapping[str, str], see: Callable[[Response], None] = lambda hop: None
) -> Iterator[tuple[Response, int]]:
    """GET that follows redirects itself: the answer and how many led to it. Credentials stay with `url`'s own host.

    `see` is shown the answer of the first host, redirect or not.
    """
    from huggingface_hub import get_session

    start, headers = url, {**headers, "Accept-Encoding": "identity"}
    for redirects in range(MAX_REDIRECTS + 1):
        if not _same_origin(start, url):
            headers = {name: value for name, value in headers.items() if name in ("Range", "Accept-Encoding")}
        with get_session().stream("GET", url, headers=headers, follow_redirects=False, timeout=TIMEOUT_S) as response:
            if _same_origin(start, url):
                see(response)
            if response.status_code not in (301, 302, 303, 307, 308) or "Location" not in response.headers:
                yield response, redirects
                return
            target = urljoin(url, response.headers["Location"])
        if not _may_follow(url, target):
            raise HubError(f"{url} redirects to {brief(target, 200)}, which is not a safe place to fetch from")
        url = target
    raise HubError(f"{start} redirects more than {MAX_REDIRECTS} times")


@contextmanager
def _network_errors() -> Iterator[None]:
    """The client's own errors as `_TryAgain`, or as HubError where trying again is useless."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    network.check_settings()

    # The client is httpx in huggingface_hub 1 and httpx2 in 2; its root error is the first base of the library's own.
    client_error: type[Exception] = HfHubHTTPError.__bases__[0]
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise HubError("offline mode is on (HF_HUB_OFFLINE was set at the start); unset it to download") from error
    except HfHubHTTPError:
        raise
    except client_error as error:
        raise _trouble(error) from error
    except Exception as error:
        if (sentence := network.no_socks(error)) is None:
            raise
        raise HubError(sentence) from error


def _trouble(error: Exception) -> _TryAgain | HubError:
    """What a client's error means: something to try again, or what only a setting can change."""
    url, kind = _asked(error), type(error).__name__
    said = one_line(f"{kind}: {error}" if str(error) else kind)
    if (distrust := network.distrust(error, url)) is not None:
        return HubError(distrust)
    proxy = network.proxy_for(url)
    if proxy is None:
        return _TryAgain(said)
    if kind == "ProxyError" and "407" in said:
        return HubError(network.refused(proxy))
    if kind == "ProxyError" and any(words in said for words in _WANTS_PASSWORD):
        return HubError(network.refused(proxy, one_line(str(error))))
    if kind == "ConnectError" and proxy.is_on_this_machine:
        return HubError(network.unreachable(proxy, said))
    return _TryAgain(f"{said}, through the proxy {proxy}")


def _asked(error: Exception) -> str:
    """The address that a client's error is about; "" if it knows none."""
    try:
        return str(error.request.url)  # type: ignore[attr-defined]
    except (AttributeError, RuntimeError):
        return ""


def _raise_if_transient(response: Response, url: str) -> None:
    raise_if_transient(response.status_code, response.headers, url)


def _wait(trouble: _TryAgain, failures: int, what: str, tell: Callable[[str], None]) -> None:
    """Sleep before the next try, or give up with HubError."""
    if failures >= len(RETRY_DELAYS_S):
        raise HubError(
            f"{what}: {trouble}; gave up after {failures + 1} tries. Run the same command to go on"
        ) from None
    delay_s = RETRY_DELAYS_S[failures]
    if trouble.after_s is not None:
        if trouble.after_s > MAX_RETRY_AFTER_S:
            raise HubError(f"{what}: the hub asks to come back in {trouble.after_s:.0f} s; run the same command then")
        delay_s = trouble.after_s
    tell(f"{what}: {trouble}; trying again in {delay_s:.0f} s")
    time.sleep(delay_s)


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """The Retry-After header in seconds, from either of its forms."""
    value = headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value[:9])
    import email.utils  # loads sockets and more, which no start without a download needs

    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _write(out: BinaryIO, chunk: bytes, file: RemoteFile, have: int) -> None:
    view = memoryview(chunk)
    try:
        while view:
            view = view[out.write(view) :]
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        folder, free_bytes = Path(out.name).parent, shutil.disk_usage(out.name).free
        raise HubError(
            f"the disk of {folder} is full: {file.path} needs {(file.size - have) / 1e9:.2f} GB more and "
            f"{free_bytes / 1e9:.2f} GB are free; make room and run the same command to go on"
        ) from error


def _may_follow(url: str, target: str) -> bool:
    """Whether a redirect leads to an address of the web, and not from https to http."""
    try:
        parts = urlsplit(target)
        return (
            parts.scheme in (("https",) if urlsplit(url).scheme == "https" else ("http", "https"))
            and bool(parts.hostname)
            and (parts.port is None or parts.port > 0)
            and target.isprintable()
        )
    except ValueError:
        return False


def _same_origin(one: str, other: str) -> bool:
    def origin(url: str) -> tuple[str, str | None, int | None]:
        parts = urlsplit(url)
        return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)

    return origin(one) == origin(other)
