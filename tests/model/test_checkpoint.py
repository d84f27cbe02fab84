"""Finding a checkpoint's files, and what is told when they cannot be found or are not the pinned ones."""

from __future__ import annotations

import hashlib
import json
from fnmatch import fnmatch
from pathlib import Path

import pytest
from huggingface_hub import constants, errors

from tokenspeed.errors import ModelError
from tokenspeed.model import checkpoint as checkpoint_module
from tokenspeed.model.checkpoint import INDEX, resolve

REVISION = "1234567890abcdef1234567890abcdef12345678"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the names of a published checkpoint; nothing here looks into the files."""
    for name in ("config.json", "tokenizer.json", "generation_config.json", "chat_template.jinja"):
        (tmp_path / name).write_text("{}")
    shards = [f"model-0000{part}-of-00002.safetensors" for part in (1, 2)]
    for shard in shards:
        (tmp_path / shard).write_bytes(shard.encode())
    index = {"weight_map": {f"tensor {part}": shards[part % 2] for part in range(5)}}
    (tmp_path / INDEX).write_text(json.dumps(index))
    return tmp_path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def never(repository: str, revision: str | None) -> Path:
    raise AssertionError(f"the hub was asked for {repository}")


def told_of(model: str, **options: object) -> str:
    with pytest.raises(ModelError) as caught:
        resolve(model, **{"fetch": never, **options})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_gives_its_files_and_none_for_those_it_lacks(folder: Path) -> None:
    checkpoint = resolve(str(folder), fetch=never)
    assert [path.name for path in checkpoint.weights] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    assert checkpoint.tokenizer == folder / "tokenizer.json"
    assert checkpoint.chat_template == folder / "chat_template.jinja"
    assert checkpoint.tokenizer_config is None
    assert (checkpoint.name, checkpoint.revision) == (str(folder), None)


def test_a_single_file_of_weights_needs_no_index(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")
    assert [path.name for path in resolve(str(folder)).weights] == ["model.safetensors"]


def test_files_under_other_names_are_taken_but_not_a_second_copy_in_another_layout(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()
    (folder / "weights.safetensors").write_bytes(b"")
    (folder / "consolidated.safetensors").write_bytes(b"")
    assert [path.name for path in resolve(str(folder)).weights] == ["weights.safetensors"]


def test_a_hub_id_is_fetched_at_its_revision_and_known_by_its_commit(folder: Path) -> None:
    asked = []

    def fetch(repository: str, revision: str | None) -> Path:
        asked.append((repository, revision))
        snapshot = folder.parent / REVISION
        folder.rename(snapshot)
        return snapshot

    checkpoint = resolve("some/model", revision="v1.0", fetch=fetch)
    assert asked == [("some/model", "v1.0")]
    assert (checkpoint.name, checkpoint.revision) == ("some/model", REVISION)


def test_a_revision_of_a_folder_is_refused(folder: Path) -> None:
    assert "is a folder, so no revision can pin it" in told_of(str(folder), revision="v1.0")


@pytest.mark.parametrize("model", ["./nowhere", "/no/where", "~/no where", "a/b/c", "pyproject.toml"])
def test_a_path_that_is_no_folder_is_told_without_asking_the_hub(model: str) -> None:
    assert told_of(model) == (
        f"{model}: no such folder; name a checkpoint's folder or a hub id such as Qwen/Qwen3-0.6B"
    )


def test_a_folder_without_a_configuration_is_told(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "has no config.json" in told_of(str(folder))


def test_weights_in_another_format_are_to_be_converted(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()
    assert "has no *.safetensors files" in told_of(str(folder))
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert "has its weights as pytorch_model.bin; convert them to safetensors" in told_of(str(folder))


def test_files_that_the_index_names_but_the_folder_lacks_are_listed(folder: Path) -> None:
    (folder / "model-00002-of-00002.safetensors").unlink()
    told = told_of(str(folder))
    assert f"1 of the 2 files in {INDEX} are missing: model-00002-of-00002.safetensors" in told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is not JSON"),
        ("[]", "holds a JSON list where an object is wanted"),
        ("{}", "'weight_map' is missing"),
        ('{"weight_map": {"a": 1}}', "'a' must be a string, not 1"),
    ],
)
def test_a_broken_index_is_told(folder: Path, text: str, told: str) -> None:
    (folder / INDEX).write_text(text)
    assert told in told_of(str(folder))


def test_pinned_files_are_checked_and_progress_is_told(folder: Path) -> None:
    names = ("config.json", "model-00001-of-00002.safetensors")
    pins = {name: digest(folder / name).upper() for name in names}
    heard: list[tuple[int, int]] = []
    resolve(str(folder), sha256=pins, progress=lambda done, total: heard.append((done, total)))
    total = sum((folder / name).stat().st_size for name in names)
    assert heard[-1] == (total, total)


def test_a_file_that_is_not_the_pinned_one_is_told_with_both_digests(folder: Path) -> None:
    pinned = digest(folder / "config.json")
    (folder / "config.json").write_text("{ }")
    told = told_of(str(folder), sha256={"config.json": pinned})
    assert f"{folder / 'config.json'}: sha256 is {digest(folder / 'config.json')}" in told
    assert f"but the pin says {pinned}" in told


def test_a_pin_of_an_absent_file_or_of_no_digest_is_told(folder: Path) -> None:
    assert "has no tokenizer_config.json, which sha256 pins" in told_of(
        str(folder), sha256={"tokenizer_config.json": "0" * 64}
    )
    assert "'abc' is not 64 hexadecimal digits" in told_of(str(folder), sha256={"config.json": "abc"})


def test_a_hub_id_that_is_not_cached_is_told_when_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError) as caught:
        resolve("some/model", revision="v1.0")
    assert str(caught.value) == (
        "some/model at revision v1.0: is not in the local cache and the hub cannot be reached; "
        "connect, or download it elsewhere and name the folder"
    )


def test_the_hub_is_asked_for_the_files_that_are_read_and_no_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {}

    def download(repository: str, **options: object) -> str:
        asked.update(options, repository=repository)
        return str(folder)

    monkeypatch.setattr(checkpoint_module, "snapshot_download", download)
    resolve("some/model", revision=REVISION)
    assert (asked["repository"], asked["revision"]) == ("some/model", REVISION)
    patterns = asked["allow_patterns"]
    assert isinstance(patterns, list)
    for name, wanted in (
        ("model-00001-of-00002.safetensors", True),
        ("tokenizer.json", True),
        ("chat_template.jinja", True),
        ("pytorch_model.bin", False),
        ("consolidated.safetensors", False),
        ("original/model.safetensors", False),
    ):
        assert any(fnmatch(name, pattern) for pattern in patterns) == wanted


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (errors.GatedRepoError, "some/model: is gated; accept its terms on the hub and log in"),
        (errors.RepositoryNotFoundError, "some/model: is neither a folder here nor a repository on the hub"),
        (errors.RevisionNotFoundError, "some/model: has no revision 'v9'; name a commit, a tag or a branch"),
        (errors.HfHubHTTPError, "some/model at revision v9: cannot be fetched from the hub: 503 of the hub"),
        (ConnectionError, "some/model at revision v9: cannot be fetched from the hub: 503 of the hub"),
    ],
)
def test_what_the_hub_refuses_is_told_in_one_line(
    kind: type[Exception], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(repository: str, **options: object) -> str:
        error = kind.__new__(kind)  # their constructors want a response of the hub
        error.args = ("503 of the hub\nand a long story",)
        raise error

    monkeypatch.setattr(checkpoint_module, "snapshot_download", download)
    with pytest.raises(ModelError) as caught:
        resolve("some/model", revision="v9")
    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)


def test_a_name_that_is_neither_folder_nor_hub_id_is_told() -> None:
    with pytest.raises(ModelError, match="is neither a folder here nor a hub id of the form owner/name"):
        resolve("not a/hub id!")
