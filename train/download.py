"""Weights at a URL, kept in the folder where torch.hub and timm keep theirs."""

import hashlib
import re
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import torch
from filelock import FileLock
from huggingface_hub import hf_hub_download

from attnzoo.backbones import checkpoint_folder

from .errors import UserError, one_line

# A file's page or its download on the Hugging Face Hub, whose own client goes on where a download broke off.
_HUB = re.compile(r'https://(?:huggingface\.co|hf\.co)/([^/]+/[^/]+)/(?:resolve|blob)/([^/]+)/([^?#]+)')


def is_url(text: str) -> bool:
    return text.startswith(('https://', 'http://', 'file://'))


def download(url: str) -> Path:
    """The file at a URL, from the cache where it is there.

    Raises:
        UserError: it cannot be fetched.
    """
    name = Path(unquote(urlsplit(url).path)).name
    # Under the file's name alone one model.safetensors would stand for every other.
    cached = checkpoint_folder() / f'{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name}'
    try:
        if hub := _HUB.match(url):
            repository, revision, file = hub.groups()
            return Path(hf_hub_download(repository, unquote(file), revision=unquote(revision)))
        cached.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f'{cached}.lock'):  # the processes of a run all ask for it
            if not cached.exists():
                torch.hub.download_url_to_file(url, str(cached), progress=sys.stderr.isatty())
        return cached
    except Exception as error:  # of two clients, the network and the disk
        raise UserError(f'cannot download {url}: {one_line(error)}') from error
