"""Claims: which process trains which cell, where several share a folder.

A claim is a file in the cell's folder, claim-1. Making a file that must not exist yet is atomic, also on network file
systems (NFS from version 3 on). The process that holds a claim renews the file's time of change. Where that has not
been done for STALE seconds the process is taken for dead, and whoever makes the next file, claim-2, takes over: no
file is removed before the cell is finished, so that two processes cannot both take over. Ages are taken from the file
system's clock alone: those of the machines may differ. (A process that was only suspended trains on when it wakes,
beside its successor; both write the same results, each file as a whole.)
"""

import contextlib
import os
import platform
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vitlab.cli import UserError

RENEW = 15.0  # seconds between two signs of life
STALE = 120.0  # seconds without one after which a claim is free: several times RENEW, for a slow file system


@dataclass(frozen=True)
class Claim:
    """A claim that this process holds, or the process that it was handed to."""

    path: Path

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Renew the claim as long as this context lasts. It is removed at the end, and free after an error."""
        ended = threading.Event()

        def renew() -> None:
            while not ended.wait(RENEW):
                with contextlib.suppress(OSError):
                    os.utime(self.path)

        thread = threading.Thread(target=renew, daemon=True)
        thread.start()
        finished = False
        try:
            yield
            finished = True
        finally:
            ended.set()
            thread.join()
            remove_claims(self.path.parent) if finished else self.release()

    def release(self) -> None:
        """Make the claim free at once; nothing happens if it is gone."""
        with contextlib.suppress(OSError):
            os.utime(self.path, (0, 0))


def claim_cell(folder: Path) -> tuple[Claim | None, str]:
    """Claim the cell of a folder: (the claim, ""), or (None, who holds it). Raises UserError if nothing can be written
    there."""
    number, holder = newest_claim(folder)
    if holder:
        return None, holder
    path = folder / f"claim-{number + 1}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(path, "x", encoding="utf-8") as file:
            file.write(f"{platform.node()}, process {os.getpid()}")
    except FileExistsError:
        return None, "another process"
    except OSError as error:
        raise UserError(f"{path} cannot be made ({error.strerror or error}); choose another --output_path") from None
    return Claim(path), ""


def newest_claim(folder: Path) -> tuple[int, str]:
    """The number of the newest claim of a folder, 0 if there is none, and who holds it, "" if it is free."""
    number = max((int(path.name.removeprefix("claim-")) for path in folder.glob("claim-*")), default=0)
    if not number:
        return 0, ""
    with contextlib.suppress(FileNotFoundError):  # the cell was finished in this moment
        with open(folder / f"claim-{number}", encoding="utf-8") as file:  # opening it asks the file server anew
            renewed, holder = os.fstat(file.fileno()).st_mtime, file.read()
        with tempfile.TemporaryFile(dir=folder) as file:
            now = os.fstat(file.fileno()).st_mtime
        if now - renewed < STALE:
            return number, holder or "another process"
    return number, ""


def remove_claims(folder: Path) -> None:
    """Remove all claims of a cell, which is finished."""
    for path in folder.glob("claim-*"):
        path.unlink(missing_ok=True)
