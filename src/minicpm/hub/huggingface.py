"""Hugging Face's side of the wire: huggingface_hub lists and authenticates, the answers are checked here."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TypeVar
from urllib.parse import quote

from minicpm import __version__
from minicpm.errors import HubError, brief, one_line
from minicpm.hub import network, transfer
from minicpm.hub.names import Reference, did_you_mean
from minicpm.hub.remote import Listing, RemoteFile, checked_file, checked_listing

DEFAULT_REVISION = "main"

Result = TypeVar("Result")


def endpoint() -> str:
    """The hub's address: HF_ENDPOINT, read at each call, or the public one."""
    return checked_endpoint("HF_ENDPOINT", "https://huggingface.co")


def checked_endpoint(variable: str, default: str) -> str:
    """An address from the environment; ValueError when it is none."""
    address = (os.environ.get(variable) or default).rstrip("/")
    scheme, _, rest = address.partition("://")
    if scheme not in ("http", "https") or not rest or not address.isprintable() or " " in address:
        raise ValueError(f"{variable} is '{address}'; expected an address such as {default}")
    return address


def list_files(reference: Reference, tell: Callable[[str], None]) -> Listing:
    """The repository's files at the commit that the reference's revision means now."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    api = HfApi(endpoint=endpoint(), library_name="minicpm", library_version=__version__)
    revision = reference.revision or DEFAULT_REVISION
    commit = _ask(
        lambda: api.repo_info(reference.repo_id, revision=revision, timeout=transfer.TIMEOUT_S).sha, reference, tell
    )
    tree = _ask(lambda: list(api.list_repo_tree(reference.repo_id, revision=commit, recursive=True)), reference, tell)
    files = [_checked(reference, entry) for entry in tree if isinstance(entry, RepoFile)]
    return checked_listing(reference.repo_id, str(reference), commit, files)


def download(reference: Reference, listing: Listing, file: RemoteFile) -> transfer.Download:
    """Where the file's bytes come from. No X-Xet header is sent, so the hub answers with plain HTTP."""
    from huggingface_hub.utils import build_hf_headers

    url = f"{endpoint()}/{reference.repo_id}/resolve/{listing.commit}/{quote(file.path)}"
    headers: dict[str, str] = build_hf_headers(library_name="minicpm", library_version=__version__)
    return transfer.Download(file, url, headers, lambda *answer: _explain(reference, *answer), etag_is_digest=True)


def _checked(reference: Reference, entry: object) -> RemoteFile:
    lfs = getattr(entry, "lfs", None)
    path, size, digest = (getattr(entry, name, None) for name in ("path", "size", "blob_id"))
    if lfs is not None:
        size, digest = lfs.size, lfs.sha256
    return checked_file(str(reference), path, size, digest)


def _ask(call: Callable[[], Result], reference: Reference, tell: Callable[[str], None]) -> Result:
    """A call of the library: transient trouble retried, refusals as one sentence."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    def once() -> Result:
        try:
            return call()
        except HfHubHTTPError as error:
            transfer.raise_if_transient(error.response.status_code, error.response.headers, endpoint())
            raise HubError(_explain(reference, error.response.status_code, error.response.headers)) from error
        except HFValidationError as error:
            raise HubError(f"'{reference.repo_id}' is not a model's name: {error}") from error
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            # The library trusts its hub's JSON; another server's may have any shape.
            proxy = network.proxy_for(endpoint())
            suspects = "HF_ENDPOINT" if proxy is None else f"HF_ENDPOINT and the proxy {proxy}"
            raise HubError(
                f"{endpoint()} did not answer as a Hugging Face hub does ({brief(error, 200)}); check {suspects}"
            ) from error

    return transfer.with_retries(once, str(reference), tell)


def _explain(reference: Reference, status: int, headers: Mapping[str, str]) -> str:
    """Why the hub refused, and what the user can do about it."""
    from huggingface_hub import get_token

    code = headers.get("X-Error-Code", "")
    page = f"{endpoint()}/{reference.repo_id}"
    token = get_token()
    login = "set HF_TOKEN or run 'hf auth login'"
    if code == "GatedRepo" or (status == 403 and not code):
        if token:
            return f"{reference} is gated: your token has no access to it. Accept its terms at {page} with that account"
        return f"{reference} is gated: accept its terms at {page}, then {login} with a token that may read it"
    if code == "RevisionNotFound":
        return f"{reference.repo_id} has no revision '{reference.revision or DEFAULT_REVISION}'; see {page}/tree/main"
    if code == "EntryNotFound":
        return f"{reference} listed the file but does not have it; run the same command again"
    if status in (401, 404) or code == "RepoNotFound":
        hint = did_you_mean(reference.repo_id)
        private = "your token cannot read it" if token else f"if it is private, {login}"
        return f"there is no model '{reference.repo_id}' on {endpoint()}{hint or ''}; {private}"
    return (
        f"{endpoint()} refused {reference} with status {status} {one_line(headers.get('X-Error-Message', ''))}".rstrip()
    )
