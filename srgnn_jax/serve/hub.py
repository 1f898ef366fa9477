"""Uploads an exported folder to the Hugging Face hub; needs huggingface_hub.

push_to_hub("exported", "me/shop")
"""

import os
import pathlib

from srgnn_jax.errors import UserError, reason


def push_to_hub(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
) -> str:
    """Uploads what `--mode=export` wrote, and returns the address of the commit.

    Files of an earlier export that this one does not have are deleted.

    Args:
      folder: the exported folder.
      repo_id: the hub's repository, "owner/name"; it is created if it does not exist.
      private: whether a new repository is private.
      token: the hub's token; None: the one stored by logging in.

    Raises:
      UserError: the folder is not an export, huggingface_hub is missing, or the hub
        cannot be reached or refuses.
    """
    path = pathlib.Path(folder).expanduser()
    if not (path / "manifest.json").is_file():
        raise UserError(f"{path} is not an exported folder; --mode=export writes one")
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        message = "push_to_hub needs huggingface_hub: pip install 'srgnn_jax[hub]'"
        raise UserError(message) from error
    api = huggingface_hub.HfApi(token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=path,
            commit_message=f"Export of {path.name}",
            delete_patterns="*",
            # Python caches the loader, with a path of this machine.
            ignore_patterns="__pycache__/*",
        )
    # The network and the hub may raise anything.
    except Exception as error:
        raise UserError(f"cannot upload to {repo_id}: {reason(error)}") from error
    return commit.commit_url
