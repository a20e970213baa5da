"""Models on the Hugging Face Hub: `hf://owner/name[@revision]` to a local file, and uploads.

Only safetensors files are fetched. The endpoint is the environment's HF_ENDPOINT, read when it is
needed; cache, token and offline mode are huggingface_hub's own settings.
"""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from hpdm_core.errors import CheckpointError, HpdmError
from hpdm_core.training.checkpoint import EMA

if TYPE_CHECKING:
    from huggingface_hub import HfApi

HUB = "hf://"
_REPO = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


def download_weights(ref: str) -> Path:
    """Return the weights file of a model on the Hub, from the local cache if present.

    Args:
        ref: `hf://owner/name`, with `@revision` for a branch, tag or commit. The repository holds
            `ema.safetensors`, or one other safetensors file.

    Raises:
        CheckpointError: there is no such model, or the Hub cannot be reached.
    """
    from huggingface_hub import errors

    repo, revision = _parse(ref)
    api = _api()
    try:
        return Path(_download(api, ref, repo, revision))
    except CheckpointError:
        raise
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise CheckpointError(
            f"no model {ref}",
            got=f"{type(error).__name__} from {api.endpoint}",
            expected="hf://owner/name or hf://owner/name@revision",
            remedy="check the spelling; for a private or gated model log in with `hf auth login`",
        ) from error
    except Exception as error:  # what transports raise differs between versions of the client
        raise CheckpointError(
            f"cannot download {ref}",
            got=_first_line(error),
            remedy=f"check the connection to {api.endpoint}, or give a local file",
        ) from error


def upload_folder(folder: Path, repo: str, *, private: bool) -> str:
    """Upload a folder's files to a model repository on the Hub, created if absent.

    Args:
        folder: what to upload.
        repo: `owner/name`.
        private: whether a new repository is private.

    Returns:
        the repository's address.

    Raises:
        HpdmError: the name is wrong, or the Hub refuses.
    """
    name, revision = _parse(HUB + repo.removeprefix(HUB))
    api = _api()
    try:
        api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=name, folder_path=folder, revision=revision, commit_message="Upload hpdm model"
        )
    except Exception as error:  # as above
        raise HpdmError(
            f"cannot upload to {name}",
            got=_first_line(error),
            remedy=f"log in with `hf auth login`, and check the connection to {api.endpoint}",
        ) from error
    return f"{api.endpoint}/{name}"


def _download(api: "HfApi", ref: str, repo: str, revision: str | None) -> str:
    from huggingface_hub import errors

    try:
        return api.hf_hub_download(repo, EMA, revision=revision)
    except errors.EntryNotFoundError as error:
        if isinstance(error, errors.LocalEntryNotFoundError):  # offline, and not in the cache
            raise
    other = _only_safetensors(ref, api.list_repo_files(repo, revision=revision))
    return api.hf_hub_download(repo, other, revision=revision)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _api() -> "HfApi":
    from huggingface_hub import HfApi

    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"))


def _parse(ref: str) -> tuple[str, str | None]:
    match = _REPO.fullmatch(ref.removeprefix(HUB))
    if match is None:
        raise CheckpointError(
            "not the name of a model on the Hub",
            got=ref,
            expected="hf://owner/name or hf://owner/name@revision",
        )
    return match["repo"], match["revision"]


def _only_safetensors(ref: str, files: list[str]) -> str:
    found = [name for name in files if name.endswith(".safetensors")]
    if len(found) != 1:
        raise CheckpointError(
            f"{ref} holds no model of hpdm",
            got=", ".join(found or files[:8]) or "an empty repository",
            expected=f"{EMA}, or one other .safetensors file",
            remedy="upload one with Pipeline.push_to_hub",
        )
    return found[0]
