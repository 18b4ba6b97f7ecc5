"""Dictionaries of SAELens that lie in no folder yet: a release of its registry or a repository of the hub, and objects.

Both are what SAELens makes of them, saved as it saves them and read as any other folder.
"""

import difflib
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stages.contracts.dictionary import Dictionary
from stages.dictionaries.storage import load_dictionary
from stages.errors import UserError

__all__ = ["from_object", "from_release"]


def from_object(sae: Any) -> Dictionary:
    """An SAE or transcoder of SAELens, in memory.

    Raises:
        UserError: it is neither, or cannot be encoded here.
    """
    from sae_lens import SAE, TrainingSAE

    if not isinstance(sae, SAE | TrainingSAE):
        raise UserError(f"{type(sae).__name__} is no dictionary: give a folder, (release, id), or an SAE of SAELens")
    with tempfile.TemporaryDirectory() as made:
        if isinstance(sae, TrainingSAE):
            sae.save_inference_model(made)
        else:
            sae.save_model(made)
        return load_dictionary(Path(made))


def from_release(release: str, sae_id: str) -> Dictionary:
    """What ``SAE.from_pretrained`` loads, from the hub or its cache.

    Args:
        release: a name of SAELens's registry, or OWNER/REPOSITORY of the hub.
        sae_id: of the dictionary in it.

    Raises:
        UserError: there is no such release or id, it cannot be downloaded, or SAELens cannot read it.
    """
    from sae_lens import SAE
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory, get_repo_id_and_folder_name

    known = get_pretrained_saes_directory()
    if release not in known and "/" not in release:
        raise UserError(f"SAELens knows no release {release!r}{_like(release, known)}; or give OWNER/REPOSITORY")
    if release in known and sae_id not in known[release].saes_map:
        raise UserError(f"release {release!r} has no dictionary {sae_id!r}{_like(sae_id, known[release].saes_map)}")
    repository, folder = get_repo_id_and_folder_name(release, sae_id)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a factor that is not in the registry: ``attach`` measures it
            sae = SAE.from_pretrained(release, sae_id, device="cpu")
    except OSError as error:  # whatever the hub says is one
        raise UserError(
            f"{folder} of {repository} is not in the hub's cache and was not downloaded ({_line(error)}): check"
            f" the name and the network, or fetch it elsewhere with `hf download {repository} --include '{folder}/*'"
            " --local-dir DIR` and give the folder"
        ) from error
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"{sae_id} of release {release} cannot be read by SAELens ({type(error).__name__}: {_line(error)}): take"
            " another one of the release, or another version of sae-lens"
        ) from error
    return from_object(sae)


def _like(name: str, known: Iterable[str]) -> str:
    """Where to look instead, as the end of a sentence."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, 3, 0.4) or names[:3]
    return f": there are {', '.join(near)}" + (f" and {len(names) - len(near)} more" if len(names) > len(near) else "")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
