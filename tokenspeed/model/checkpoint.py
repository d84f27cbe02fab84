"""From what the operator names (a folder, or a hub id and a revision) to the files of a checkpoint."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tokenspeed.errors import ModelError
from tokenspeed.model.fields import read_json

INDEX = "model.safetensors.index.json"
# `model*` leaves out second copies of the weights in other formats (consolidated*, original/*).
HUB_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model*.safetensors",
    INDEX,
)
HASH_CHUNK = 1 << 22  # bytes read at once

Progress = Callable[[int, int], None]  # (bytes done, bytes in all)
Fetch = Callable[[str, str | None], Path]  # (hub id, revision) -> folder
FindWeights = Callable[[Path], tuple[Path, ...]]  # folder -> the files that hold its weights


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The files of a checkpoint; those that it may lack are None.

    `name` is the folder or hub id as the operator wrote it. `revision` is the commit that a hub id came to,
    None for a folder.
    """

    name: str
    folder: Path
    config: Path
    weights: tuple[Path, ...]
    generation_config: Path | None
    tokenizer: Path | None
    tokenizer_config: Path | None
    chat_template: Path | None
    revision: str | None = None


def fetch_from_hub(repository: str, revision: str | None) -> Path:
    """The folder of the snapshot, downloaded where it is not in the cache. Raises `ModelError`."""
    at = f"{repository} at revision {revision}" if revision else repository
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(HUB_FILES)))
    except GatedRepoError as error:
        raise ModelError(
            f"{repository}: is gated; accept its terms on the hub and log in (hf auth login)"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"{repository}: is neither a folder here nor a repository on the hub that you can read; "
            "check the name, or log in (hf auth login) if it is private"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(
            f"{repository}: has no revision {revision!r}; name a commit, a tag or a branch"
        ) from error
    except HFValidationError as error:
        raise ModelError(
            f"{repository}: is neither a folder here nor a hub id of the form owner/name"
        ) from error
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"{at}: is not in the local cache and the hub cannot be reached; "
            "connect, or download it elsewhere and name the folder"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise ModelError(f"{at}: cannot be fetched from the hub: {_first_line(error)}") from error


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The single file where there is one, else the files of the index, else every safetensors file.

    Raises `ModelError` where there are none.
    """
    if (folder / "model.safetensors").is_file():
        return (folder / "model.safetensors",)
    if (folder / INDEX).is_file():
        return _indexed_files(folder)
    found = sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith("consolidated"))
    if found:
        return tuple(found)
    other = sorted(
        path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.gguf") for path in folder.glob(pattern)
    )
    if other:
        raise ModelError(
            f"{folder}: has its weights as {other[0]}; convert them to safetensors, the only format read"
        )
    raise ModelError(
        f"{folder}: has no *.safetensors files, so no weights; fetch them, or convert them to safetensors"
    )


def no_weights(folder: Path) -> tuple[Path, ...]:
    """For a checkpoint that is served with random ones."""
    return ()


def resolve(
    model: str,
    *,
    revision: str | None = None,
    sha256: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    fetch: Fetch = fetch_from_hub,
    weights: FindWeights = weight_files,
) -> Checkpoint:
    """Find the files of `model`, a folder or a hub id, and check those that `sha256` pins.

    `weights` finds those that hold tensors. `sha256` maps file names to the digests they must have;
    `progress` hears of the bytes hashed. Raises `ModelError` for whatever keeps the checkpoint from being
    served, naming the file.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        if revision:
            raise ModelError(
                f"{model}: is a folder, so no revision can pin it; pin its files with sha256 instead"
            )
        checkpoint = from_folder(folder, name=model, weights=weights)
    elif _looks_like_a_path(model):
        raise ModelError(
            f"{model}: no such folder; name a checkpoint's folder or a hub id such as Qwen/Qwen3-0.6B"
        )
    else:
        fetched = fetch(model, revision)
        # The hub's cache names a snapshot's folder after its commit.
        checkpoint = from_folder(fetched, name=model, revision=fetched.name, weights=weights)
    check_pins(checkpoint.folder, sha256 or {}, progress)
    return checkpoint


def from_folder(
    folder: Path, *, name: str, revision: str | None = None, weights: FindWeights = weight_files
) -> Checkpoint:
    """The checkpoint in `folder`. Raises `ModelError` where it has no configuration, or as `weights` does."""
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: has no config.json; name the folder that holds the checkpoint's files")

    def optional(file: str) -> Path | None:
        return folder / file if (folder / file).is_file() else None

    return Checkpoint(
        name=name,
        folder=folder,
        config=folder / "config.json",
        weights=weights(folder),
        generation_config=optional("generation_config.json"),
        tokenizer=optional("tokenizer.json"),
        tokenizer_config=optional("tokenizer_config.json"),
        chat_template=optional("chat_template.jinja"),
        revision=revision,
    )


def check_pins(folder: Path, sha256: Mapping[str, str], progress: Progress | None = None) -> None:
    """Raise `ModelError` unless every pinned file is there with its digest."""
    for name, digest in sha256.items():
        if not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
            raise ModelError(f"sha256 of {name}: {digest!r} is not 64 hexadecimal digits")
        if not (folder / name).is_file():
            raise ModelError(f"{folder}: has no {name}, which sha256 pins; correct the pin or fetch the file")
    total = sum((folder / name).stat().st_size for name in sha256)
    done = 0
    for name, digest in sha256.items():
        found, done = _digest(folder / name, done, total, progress)
        if found != digest.lower():
            raise ModelError(
                f"{folder / name}: sha256 is {found}, but the pin says {digest.lower()}; "
                "fetch the pinned file again or correct the pin"
            )


def _digest(path: Path, done: int, total: int, progress: Progress | None) -> tuple[str, int]:
    """The hex SHA-256 of a file, and the bytes done after it."""
    state = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(HASH_CHUNK):
                state.update(chunk)
                done += len(chunk)
                if progress:
                    progress(done, total)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    return state.hexdigest(), done


def _indexed_files(folder: Path) -> tuple[Path, ...]:
    places = read_json(folder / INDEX).part("weight_map")
    names = sorted({places.text(tensor) for tensor in places.values})
    if absent := [name for name in names if not (folder / name).is_file()]:
        raise ModelError(
            f"{folder}: {len(absent)} of the {len(names)} files in {INDEX} are missing: "
            f"{', '.join(absent[:10])}; fetch them (was a download cut short?)"
        )
    return tuple(folder / name for name in names)


def _looks_like_a_path(model: str) -> bool:
    return model.startswith(("/", ".", "~")) or model.count("/") > 1 or "\\" in model or Path(model).exists()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
