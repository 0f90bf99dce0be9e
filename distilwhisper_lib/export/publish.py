"""An export on the Hugging Face hub: only when asked, only what the export wrote.

``python -m distilwhisper_lib publish my-whisper you/whisper-small-ca --dry-run`` shows what would
go; without ``--dry-run`` it goes, into a private repository unless ``--public`` says otherwise.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from distilwhisper_lib.errors import UserError, command, reason
from distilwhisper_lib.export.bundle import MANIFEST, read_manifest
from distilwhisper_lib.io.files import sha256_file
from distilwhisper_lib.io.leaks import has_token, mask
from distilwhisper_lib.model.hub import could_be_repository


@dataclass(frozen=True)
class Upload:
    """What goes, or went, where: ``files`` are names and bytes; ``url`` is None after a dry run."""

    repository: str
    private: bool
    files: dict[str, int]
    url: str | None

    def __str__(self) -> str:
        total = sum(self.files.values()) / 2**20
        kind = "private" if self.private else "public"
        did = "would go" if self.url is None else "went"
        names = "".join(f"\n  {name} ({size:,} bytes)" for name, size in self.files.items())
        return (
            f"{len(self.files)} files ({total:.1f} MiB) {did} to the {kind} repository "
            f"{self.url or self.repository}:{names}"
        )


def push_to_hub(
    folder: str | Path,
    repository: str,
    *,
    private: bool = True,
    dry_run: bool = False,
    allow_demo: bool = False,
    api: Any = None,
) -> Upload:
    """Upload what export_run() wrote to ``owner/name`` on the hub, card included.

    The token is the one that ``hf auth login`` or HF_TOKEN gave this machine; it is never shown.
    An existing repository gets a new commit. ``dry_run`` checks everything and touches no network.
    ``api``: a HfApi of your own. Raises UserError before anything is sent: when a file has changed
    since the export, when the card names no licence, and for weights of the demo, which are of no
    use to anybody, unless ``allow_demo`` says that they are wanted there; and for a card with a
    token or a host path in it.
    """
    folder, manifest = Path(folder), read_manifest(folder)
    _check_repository(repository)
    if manifest["demo"] and not allow_demo:
        raise UserError(
            f"{folder} holds weights of the embedded demo, which can only hear synthetic speech: "
            "export a run on real recordings, or say allow_demo=True (--allow-demo)"
        )
    files = _check_files(folder, manifest)
    if ModelCard.load(folder / "README.md").data.get("license") is None:
        raise UserError(
            f"the model card in {folder} names no licence: export the run again with license=..., "
            "one that the base model and the recordings allow"
        )
    if dry_run:
        return Upload(repository, private, files, None)
    try:
        api = api or HfApi()
        url = api.create_repo(repository, private=private, repo_type="model", exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            repo_type="model",
            allow_patterns=list(files),
            commit_message=f"Upload {manifest['run_id']} ({manifest['what']})",
        )
    except LocalTokenNotFoundError:
        raise UserError("no hub token on this machine: run `hf auth login` first") from None
    except (HfHubHTTPError, OSError) as error:  # refused, or no network
        raise UserError(
            f"the hub did not take {repository!r} ({type(error).__name__}: {reason(error)[:200]}): "
            "check the name, your token's rights (`hf auth whoami`) and the network"
        ) from None
    return Upload(repository, private, files, str(url))


def _check_repository(name: str) -> None:
    if name.count("/") != 1 or not could_be_repository(name):
        raise UserError(f"repository {name!r}: expected owner/name, such as you/whisper-small-ca")


def _check_files(folder: Path, manifest: dict[str, Any]) -> dict[str, int]:
    """The files that the export wrote, which are those that go, with their sizes."""
    for name, digest in manifest["files"].items():
        path = folder / name
        if path.parent != folder or path.is_symlink():
            raise UserError(
                f"{folder / MANIFEST} lists {name!r}, which is no file of its own folder: export "
                "the run again"
            )
        # A card may be edited by hand: it is there to be read and completed.
        if not path.is_file() or (name != "README.md" and sha256_file(path) != digest):
            raise UserError(
                f"{path} is missing or not as it was exported: export the run again, and only "
                "edit README.md"
            )
    names = [*manifest["files"], MANIFEST]
    for name in names:
        if name.endswith((".md", "config.json")) or name == MANIFEST:
            _check_private(folder / name)
    return {name: (folder / name).stat().st_size for name in names}


def _check_private(path: Path) -> None:
    text = path.read_text(encoding="utf-8", errors="replace")
    if mask(text) != text:
        what = "a token" if has_token(text) else "the name of a folder of this machine"
        raise UserError(
            f"{path} holds {what}, which does not belong on the hub: take it out of the card, or "
            "export the run again"
        )


@command
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m distilwhisper_lib publish")
    parser.add_argument("folder", help="what python -m distilwhisper_lib export wrote")
    parser.add_argument("repository", help="owner/name on the hub")
    parser.add_argument("--public", action="store_true", help="for everybody to see")
    parser.add_argument("--dry-run", action="store_true", help="only show what would go")
    parser.add_argument("--allow-demo", action="store_true", help="upload the demo's weights")
    given = parser.parse_args(arguments)
    done = push_to_hub(
        given.folder,
        given.repository,
        private=not given.public,
        dry_run=given.dry_run,
        allow_demo=given.allow_demo,
    )
    print(done)
    return 0
