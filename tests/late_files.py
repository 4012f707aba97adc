"""A runs folder on a file system that shows other machines' files late; run as a program, a job on such a machine.

    python -m tests.late_files SERVER MINE MACHINE LOG SPEC DELAY_S

Each machine works in a folder of its own (`MINE`) and sees its own writes at once. They go to `SERVER` too, and a thread
fetches what others have put there: claims and the endings of packs soon, everything else after `DELAY_S`, as attribute
caches do in whatever order. Only a hard link, by which claims are made, is decided on the server at once.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

POLL_S = 0.02
_replace, _link, _unlink, _rmtree = os.replace, os.link, os.unlink, shutil.rmtree


class LateFiles:
    """Two folders kept alike.

    Args:
        server: what all machines share.
        mine: what this machine sees.
        delay_s: how late it sees the others' files.
    """

    def __init__(self, server: Path, mine: Path, delay_s: float) -> None:
        self.server, self.mine, self.delay_s = server, mine, delay_s
        self.known: dict[Path, int] = {}  # inode on the server of what was fetched or written
        self.gone: dict[Path, float] = {}
        self.lock = threading.RLock()

    def start(self) -> None:
        """From now on, this process's writes go to the server, and others' writes arrive."""
        os.replace = os.rename = self.replace  # type: ignore[assignment]
        os.link, os.unlink, shutil.rmtree = self.link, self.unlink, self.rmtree  # type: ignore[assignment]
        threading.Thread(target=self._fetch_for_ever, daemon=True).start()

    def twin(self, path: Any) -> Path | None:
        """The same file on the server; None for what is not shared."""
        path = Path(os.fspath(path))
        if path.name.endswith(".tmp") or not path.is_relative_to(self.mine):
            return None
        return self.server / path.relative_to(self.mine)

    def replace(self, source: Any, target: Any, **more: Any) -> None:
        """Rename here, and copy to the server."""
        with self.lock:
            _replace(source, target, **more)
            if (twin := self.twin(target)) is None:
                return
            for file in [p for p in Path(target).rglob("*") if p.is_file()] or [Path(target)]:
                if (place := self.twin(file)) is not None and file.is_file():
                    self.put(file, place, _replace)
            if Path(target).is_dir():
                twin.mkdir(parents=True, exist_ok=True)

    def link(self, source: Any, target: Any, **more: Any) -> None:
        """Link on the server, which decides; then here."""
        with self.lock:
            if (twin := self.twin(target)) is not None:
                self.put(Path(source), twin, _link)
            shutil.copyfile(source, target)

    def put(self, file: Path, twin: Path, how: Any) -> None:
        """Bring a file to the server, whole."""
        twin.parent.mkdir(parents=True, exist_ok=True)
        aside = twin.with_name(f".{os.getpid()}.{threading.get_ident()}.tmp")
        shutil.copyfile(file, aside)
        try:
            how(aside, twin)
            self.known[twin] = twin.stat().st_ino
        finally:
            aside.unlink(missing_ok=True)

    def unlink(self, path: Any, **more: Any) -> None:
        """Remove here and there."""
        with self.lock:
            _unlink(path, **more)
            if not more and (twin := self.twin(path)) is not None and twin.is_file():
                _unlink(twin)

    def rmtree(self, path: Any, *some: Any, **more: Any) -> None:
        """Remove a folder here and there."""
        with self.lock:
            _rmtree(path, *some, **more)
            if (twin := self.twin(path)) is not None:
                _rmtree(twin, ignore_errors=True)

    def _fetch_for_ever(self) -> None:
        while True:
            with self.lock:
                self.fetch()
            time.sleep(POLL_S)

    def fetch(self) -> None:
        """Take over what is old enough to be seen here."""
        now, there = time.time(), set()
        for twin in [path for path in self.server.rglob("*") if not path.name.endswith(".tmp")]:
            try:
                status = twin.stat()
            except FileNotFoundError:
                continue
            soon = ".claim-" in twin.name or ".ended." in twin.name
            if not twin.is_file():
                continue
            there.add(twin)
            if self.known.get(twin) == status.st_ino or now - status.st_ctime < (0.0 if soon else self.delay_s):
                continue
            place = self.mine / twin.relative_to(self.server)
            place.parent.mkdir(parents=True, exist_ok=True)
            aside = place.with_name(f".fetched.{place.name}.tmp")
            try:
                shutil.copyfile(twin, aside)
            except FileNotFoundError:
                continue
            _replace(aside, place)
            self.known[twin] = status.st_ino
        self._forget(now, there)

    def _forget(self, now: float, there: set[Path]) -> None:
        for twin in [twin for twin in self.known if twin not in there]:
            if now - self.gone.setdefault(twin, now) >= self.delay_s:
                (self.mine / twin.relative_to(self.server)).unlink(missing_ok=True)
                del self.known[twin], self.gone[twin]


def main(server: str, mine: str, machine: str, log: str, spec: str, delay_s: str) -> int:
    """Run one pack as a job of a machine; every step that it trains is a line `machine step` in the log."""
    from slurm.store import leases
    from slurm.worker import run as job
    from training import whole_files
    from training.tasks.subject import SubjectTask

    leases.machine = whole_files.machine = lambda: machine  # type: ignore[assignment]
    losses = SubjectTask.losses

    def noted(self: SubjectTask, step: int, micro: int = 0) -> Any:
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"{machine} {step}\n")
        return losses(self, step, micro)

    SubjectTask.losses = noted  # type: ignore[method-assign]
    Path(mine).mkdir()
    LateFiles(Path(server), Path(mine), float(delay_s)).start()
    return job.main([str(Path(mine) / spec)])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
