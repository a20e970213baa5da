"""The detectors' weight files: sources, checksums, and which may be loaded.

None of them ships with the package: they carry no licence that would allow it.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpdm_core.errors import HpdmError, MetricError
from hpdm_core.files import sha256_of

# (addresses, where to put the file, its SHA-256); raises HpdmError where no address answers.
Fetch = Callable[[Sequence[str], Path, str], None]


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """A file published by a third party.

    Args:
        name: file name.
        about: what it holds.
        urls: addresses to try in turn; of files that only a browser can fetch, none.
        pages: addresses for a person.
        sha256: checksum, or None where none is known.
        git_blob: git's SHA-1 of the content, or None.
        is_code: whether loading it runs code in it (TorchScript), so that only the known checksum
            will do.
    """

    name: str
    about: str
    urls: tuple[str, ...] = ()
    pages: tuple[str, ...] = ()
    sha256: str | None = None
    git_blob: str | None = None
    is_code: bool = False


I3D_TORCHSCRIPT = WeightFile(
    name="i3d_torchscript.pt",
    about="I3D on Kinetics-400 as TorchScript (51,235,320 bytes)",
    urls=(
        "https://www.dropbox.com/s/ge9e5ujwgetktms/i3d_torchscript.pt?dl=1",
        "https://huggingface.co/flateon/FVD-I3D-torchscript/resolve/main/i3d_torchscript.pt",
        "https://huggingface.co/ByteDance/LatentSync-1.6/resolve/main/auxiliary/i3d_torchscript.pt",
        "https://github.com/JunyaoHu/common_metrics_on_video_quality/raw/main/fvd/styleganv/"
        "i3d_torchscript.pt",
    ),
    sha256="bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2",
    git_blob="93daef59c7ae0e9e8f76225521407e60cbafa6aa",
    is_code=True,
)
I3D_STATE_DICT = WeightFile(
    name="i3d_pretrained_400.pt",
    about="I3D on Kinetics-400 as VideoGPT's state dict (about 49 MB)",
    pages=(
        "https://github.com/songweige/TATS/raw/main/tats/fvd/i3d_pretrained_400.pt",
        "https://drive.google.com/uc?id=1mQK8KD8G6UWRa5t87SRMm5PVXtlpneJT",
    ),
    git_blob="a867b87ac3a9097d200598b1d48a1b890d8ec744",
)
C3D_TORCHSCRIPT = WeightFile(
    name="c3d_ucf101.pt",
    about="C3D fine-tuned on UCF-101 as TorchScript",
    pages=("https://www.dropbox.com/s/jxpu7avzdc9n97q/c3d_ucf101.pt?dl=1",),
    is_code=True,
)
C3D_ARRAYS = WeightFile(
    name="conv3d_deepnetA_ucf.npz",
    about="C3D fine-tuned on UCF-101 as TGANv2's arrays",
    pages=("https://github.com/rezoo/tgan2/releases/download/v1.0/conv3d_deepnetA_ucf.npz",),
)
C3D_MEAN = WeightFile(
    name="mean2.npz",
    about="C3D's mean video",
    pages=("https://github.com/rezoo/tgan2/releases/download/v1.0/mean2.npz",),
)


def git_blob_of(path: Path) -> str:
    """Return what `git hash-object` prints for a file."""
    data = path.read_bytes()
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def verify(path: Path, file: WeightFile) -> str:
    """Check a file against what is known of it and return its SHA-256.

    A TorchScript file of which no checksum is published needs one from the user, in a file beside
    it with `.sha256` added to its name, as `sha256sum` writes it.

    Raises:
        MetricError: where it is another file, or code without a known checksum.
    """
    sha256 = sha256_of(path)
    known = file.sha256 or (_vouched(path) if file.is_code else None)
    if known is None and file.is_code:
        raise MetricError(
            f"{path} holds code and no checksum of it is known",
            got=f"SHA-256 {sha256}",
            remedy=f"if you trust where it came from, write that checksum to {path}.sha256",
        )
    if known is not None and sha256 != known:
        raise MetricError(f"{path} is not {file.name}", got=f"SHA-256 {sha256}", expected=known)
    if file.git_blob is not None and git_blob_of(path) != file.git_blob:
        raise MetricError(
            f"{path} is not {file.name}",
            got=f"git blob {git_blob_of(path)}",
            expected=file.git_blob,
        )
    return sha256


def obtain(file: WeightFile, folder: Path, *, fetch: Fetch | None = None) -> Path:
    """Return the file in `folder`, downloading it where it is absent and its checksum is known.

    Args:
        file: which file.
        folder: the cache folder of detectors.
        fetch: downloads and verifies; None for no network.

    Raises:
        MetricError: it is not available, with instructions to fetch it by hand.
    """
    path = folder / file.name
    if path.is_file():
        return path
    problem: object = "no such file"
    if fetch is not None and file.urls and file.sha256 is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            fetch(file.urls, path, file.sha256)
            return path
        except (HpdmError, OSError) as error:
            problem = error
    raise MetricError(
        f"{file.name} is needed\n  ({file.about})",
        got=f"no\n  {path}\n  ({problem})",
        remedy=_by_hand(file),
    )


def _by_hand(file: WeightFile) -> str:
    checks = [
        f"{name} {value}"
        for name, value in (("SHA-256", file.sha256), ("git blob", file.git_blob))
        if value is not None
    ]
    return "\n  ".join(
        [
            "download it from one of these addresses,",
            *file.urls,
            *file.pages,
            "and save it there under its name; "
            + ("its checksum:" if checks else "no checksum of it is published"),
            *checks,
        ]
    )


def _vouched(path: Path) -> str | None:
    note = path.with_name(path.name + ".sha256")
    return note.read_text().split()[0].lower() if note.is_file() else None
