"""Upload a training to a model of the Hugging Face Hub."""

from __future__ import annotations

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

from minimagen.run_directory import TrainingDirectory

UPLOADED = [  # what others need, and no checkpoints
    "README.md",
    "curve.png",
    "sheet.png",
    "samples.png",
    "training_log.csv",
    "training_progress.txt",
    "parameters/*",
    "state_dicts/*.safetensors",
    "manifest/*.json",
]


def check_push(name: str) -> None:
    """Raise ValueError, naming `push_to`, unless the Hub would take an upload to ``owner/name``."""
    problem = f"`push_to` is {name!r}"
    try:
        validate_repo_id(name)
        owner, _ = name.split("/")
    except (HFValidationError, ValueError):
        raise ValueError(f"{problem}, it should be OWNER/NAME on the Hub") from None
    try:
        user = HfApi().whoami()
    except LocalTokenNotFoundError:
        raise ValueError(f"{problem}, but you are not logged in: run `hf auth login`") from None
    except Exception as error:  # of the network
        raise ValueError(f"{problem}, but the Hub does not answer to you: {_why(error)}") from None
    owners = [user["name"], *(org["name"] for org in user.get("orgs", []))]
    if owner not in owners:
        raise ValueError(f"{problem}, but you may upload only to models of {', '.join(owners)}")
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise ValueError(f"{problem}, but your token may only read: run `hf auth login`")


def push(directory: TrainingDirectory, name: str) -> str:
    """Upload a training to the model ``owner/name``, which is made if it is missing; its address.

    Raises ConnectionError, which says how to try again, if that fails.
    """
    try:
        api = HfApi()
        address = api.create_repo(name, exist_ok=True)
        api.upload_folder(
            repo_id=name,
            folder_path=directory.path,
            allow_patterns=UPLOADED,
            commit_message="Upload a training of MinImagen",
        )
    except Exception as error:  # of the network; the training is done, and stays
        raise ConnectionError(
            f"{directory.path} could not be uploaded to {name}: {_why(error)}; "
            f"try again with: minimagen push {directory.path} {name}"
        ) from None
    return str(address)


def _why(error: Exception) -> str:
    """The reason in one line."""
    if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
        return "it does not accept your token, run `hf auth login`"
    return " ".join(str(error).split())[:200] or type(error).__name__
