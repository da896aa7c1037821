"""ModelScope's side of the wire: its REST calls, without its SDK (75 MB, imports torch). Public models only."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from urllib.parse import quote, urlencode

from minicpm import __version__
from minicpm.errors import HubError, one_line
from minicpm.hub import network, transfer
from minicpm.hub.huggingface import checked_endpoint
from minicpm.hub.names import Reference, did_you_mean
from minicpm.hub.remote import Listing, RemoteFile, checked_file, checked_listing

DEFAULT_REVISION = "master"
_HEADERS = {"User-Agent": f"minicpm/{__version__}"}


def endpoint() -> str:
    """The hub's address: MODELSCOPE_ENDPOINT, read at each call, or the public one."""
    return checked_endpoint("MODELSCOPE_ENDPOINT", "https://www.modelscope.cn")


def list_files(reference: Reference, tell: Callable[[str], None]) -> Listing:
    """The repository's files as the revision has them now."""
    query = urlencode({"Revision": reference.revision or DEFAULT_REVISION, "Recursive": "True"})
    status, answer = transfer.fetch_json(f"{_repository(reference)}/repo/files?{query}", _HEADERS, tell)
    if status == 200 and not isinstance(answer, dict):
        raise HubError(_no_hub())
    data = answer.get("Data") if isinstance(answer, dict) else None
    if status != 200 or not isinstance(answer, dict) or answer.get("Success") is not True:
        message = answer.get("Message") if isinstance(answer, dict) else None
        raise HubError(_explain(reference, status, {}, message if isinstance(message, str) else ""))
    entries = data.get("Files") if isinstance(data, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise HubError(_no_hub())
    files = [
        checked_file(str(reference), entry.get("Path"), entry.get("Size"), entry.get("Sha256"))
        for entry in entries
        if entry.get("Type") != "tree"
    ]
    return checked_listing(reference.repo_id, str(reference), _state(files), files)


def download(reference: Reference, listing: Listing, file: RemoteFile) -> transfer.Download:
    """Where the file's bytes come from."""
    query = urlencode({"Revision": reference.revision or DEFAULT_REVISION, "FilePath": file.path})
    url = f"{_repository(reference)}/repo?{query}"
    return transfer.Download(file, url, _HEADERS, lambda *answer: _explain(reference, *answer))


def _repository(reference: Reference) -> str:
    return f"{endpoint()}/api/v1/models/{quote(reference.repo_id)}"


def _no_hub() -> str:
    """The sentence for a server, or a proxy in front of it, that answers with anything but ModelScope's JSON."""
    proxy = network.proxy_for(endpoint())
    suspects = "MODELSCOPE_ENDPOINT" if proxy is None else f"MODELSCOPE_ENDPOINT and the proxy {proxy}"
    return f"{endpoint()} did not answer as ModelScope does; check {suspects}"


def _state(files: list[RemoteFile]) -> str:
    """40 hex digits that change with any file: ModelScope names commits per file only."""
    summary = "\n".join(sorted(f"{file.digest} {file.path}" for file in files))
    return hashlib.sha256(summary.encode()).hexdigest()[:40]


def _explain(reference: Reference, status: int, headers: Mapping[str, str], message: str = "") -> str:
    """Why the hub refused, and what the user can do about it."""
    said = one_line(message)
    if status in (401, 403):
        return (
            f"{reference} is not public on ModelScope; fetch it with ModelScope's own SDK and your account there, "
            "then pass the folder with -m"
        )
    if status == 404 or "not exist" in said or "not found" in said.lower():
        revision = f" at revision '{reference.revision}'" if reference.revision else ""
        return f"there is no model '{reference.repo_id}'{revision} on {endpoint()}{did_you_mean(reference.repo_id)}"
    return f"{endpoint()} refused {reference} with status {status} {said}".rstrip()
