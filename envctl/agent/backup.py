"""One backup: scan, read what differs, upload, commit.

One rule: nothing that was saved can be seen until the console has taken the commit, and a commit names its parent; so a backup
that dies anywhere leaves the last snapshot as it was.

| crash after | leaves | repaired by |
| --- | --- | --- |
| some packs are uploaded | objects that nothing refers to | the next run finds them there; else the console collects them |
| new segments are uploaded | the same | the same |
| `scan.next` is written | a cache of a tree that is not yet a snapshot | it counts only for a head with these trees |
| the console has committed, its answer is lost | a snapshot the agent does not know of | the next commit is refused and told |
|  |  | the head: equal trees are done, else it goes on from there |
| `state.json` is written | `scan.next` beside the old cache | the next run takes whichever is of its trees |
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from envctl.agent import attributes, codec, hooks, memory, upload
from envctl.agent.client import Console, World
from envctl.agent.content import Packer, Reader
from envctl.agent.errors import Corrupt, Fenced, Incomplete, Moved, NotRestored, Refused
from envctl.agent.memory import Memory
from envctl.agent.merge import Lookup, Merge, Merged, Spool
from envctl.agent.places import Places, sync_directory
from envctl.agent.scan import Cache, CacheWriter, Drop, Excludes, Fresh, Put, Scan, Unread
from envctl.agent.segments import Segments
from envctl.agent.tree import decode

FUZZY_TOLD_MAX: Final = 100
PROBLEMS_TOLD_MAX: Final = 5
PROBLEMS_KEPT_MAX: Final = 20
PROBLEM_LENGTH_MAX: Final = 300
DIRECTORIES: Final = ("/home",)


class Settings(NamedTuple):
    """What the console says about this home's backups (`settings` of the protocol)."""

    directories: tuple[str, ...] = DIRECTORIES
    excludes: tuple[str, ...] = ()
    interval_s: float = 300.0
    bandwidth_bytes_per_s: int = 0
    hooks_timeout_s: float = 60.0
    codec: str = "zlib"

    @classmethod
    def of(cls, facts: dict[str, Any]) -> Settings:
        """From JSON; what is missing has its default, what is unknown is for a newer agent."""
        return cls(
            directories=tuple(facts.get("directories") or DIRECTORIES),
            excludes=tuple(facts.get("excludes") or ()),
            interval_s=float(facts.get("interval_s") or 300.0),
            bandwidth_bytes_per_s=int(facts.get("bandwidth_bytes_per_s") or 0),
            hooks_timeout_s=float(facts.get("hooks_timeout_s") or 60.0),
            codec=str(facts.get("codec") or "zlib"),
        )

    def roots(self) -> list[bytes]:
        return [os.fsencode(each).strip(b"/") for each in self.directories if each.strip("/")]


class Done(NamedTuple):
    """`number`: the snapshot that the home is in. `unchanged`: it was in it already."""

    number: int | None
    unchanged: bool
    stats: dict[str, Any]
    problems: list[str]


def cache_digest(settings: Settings, trees: list[str]) -> str:
    """What a cache belongs to: these directories and excludes, and these trees."""
    text = json.dumps([1, sorted(settings.directories), list(settings.excludes), trees])
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def open_cache(places: Places, settings: Settings, trees: list[str]) -> Cache | None:
    """The cache of this tree, if there is one."""
    wanted = cache_digest(settings, trees)
    for path in (places.cache, places.next_cache):
        try:
            cache = Cache(path)
        except (FileNotFoundError, Corrupt, ValueError):
            continue
        if cache.meta.get("of") == wanted:
            if path != places.cache:
                os.replace(path, places.cache)
            return cache
        cache.close()
    return None


class Backup:
    """Makes one backup. Owned by whoever holds the lock."""

    def __init__(
        self,
        places: Places,
        console: Console,
        known: Memory,
        world: World,
        *,
        reached: Callable[[str], None] = lambda point: None,
        progress: Callable[[str, float], None] = lambda message, part: None,
    ) -> None:
        """`reached(point)` is told of each durable step, for whoever tests what a crash there leaves."""
        self._places = places
        self._console = console
        self._known = known
        self._world = world
        self._reached = reached
        self._progress = progress
        self._settings = Settings.of(known.settings)

    def run(self, kind: str, *, command: str | None = None, status: dict[str, Any] | None = None) -> Done:
        """Back the home up. Once this returns, the home as it was during the run is in the bucket: in a new snapshot, or in
        the one it was in before. NotRestored before the restore is done; Fenced for good; Moved: scan again; Incomplete: part
        of the home could not be looked at, and is in the bucket as it was before."""
        if self._known.fenced:
            raise Fenced(self._known.fenced)
        if self._known.restoring:
            raise NotRestored("a restore is under way: half of a home is not to be saved")
        if not self._known.restored:
            raise NotRestored("the home is not restored: saving it now would save an empty one over it")
        words = {"ENVCTL_KIND": kind, "ENVCTL_ENVIRONMENT": self._known.environment}
        etc, limit_s = self._places.etc, self._settings.hooks_timeout_s
        problems = hooks.run(os.path.join(etc, "pre.d"), limit_s, words)
        try:
            done = self._run(kind, command, status or {}, problems)
        finally:
            problems += hooks.run(os.path.join(etc, "post.d"), limit_s, words)
        self._known.problems = _bounded(problems)
        memory.save(self._places, self._known)
        return done._replace(problems=problems)

    def _run(self, kind: str, command: str | None, status: dict[str, Any], problems: list[str]) -> Done:
        at = self._world.time()
        known, settings = self._known, self._settings
        mounted = [os.fsdecode(root) for root in settings.roots() if os.path.ismount(self._places.base + root)]
        for directory in known.mounted:
            if directory not in mounted and os.fsencode(directory) in settings.roots():
                # What lies below it now is not the home: an empty directory would become the newest snapshot.
                raise Incomplete(
                    f"/{directory} was a volume of its own, and is not mounted: mount it, or reset the machine"
                )
        segments = Segments(self._places.trees, self._console)
        cache = open_cache(self._places, settings, known.trees)
        writer = CacheWriter(self._places.next_cache, cache)
        scan = Scan(
            self._places.base,
            settings.roots(),
            Excludes(settings.excludes),
            cache,
            writer,
            now_ns=time.time_ns(),  # of the file system's clock, with which it compares ctimes
        )
        self._progress("looking for changes", 0.0)
        try:
            edits = scan.edits()
            first = next(edits, None)
            if first is None:
                problems += passed_over(scan)
            if first is None and known.number is not None and known.committed:
                self._say_unchanged({**status, "problems": _bounded([*left_out(known), *problems])})
                known.mounted = mounted
                self._remember(known.number, known.trees, at)
                return Done(known.number, True, {"entries": scan.entries}, problems)
            segments.fetch(known.trees)
            with upload.Uploads(self._console) as uploads:
                packer = Packer(
                    self._places.state, segments.tree(known.trees), codec.choose(settings.codec), uploads.ship
                )
                reader = Reader(self._places.base, packer, attributes.Names())
                spool = Spool(self._places.state)
                try:
                    gone, lost = self._read(first, edits, reader, spool, Lookup(known.trees, segments), scan)
                    packer.finish()
                    self._reached("packs")
                    merge = Merge(known.trees, segments, codec.choose(settings.codec), packer.name_of)
                    merged = merge.run(spool.read())
                finally:
                    spool.close()
                    reader.directories.close()
                # What was away when it was to be read may be back with the stat data that the cache has.
                writer.spoiled.update(reader.fuzzy, gone)
                problems += reader.problems
                if first is not None:
                    problems += passed_over(scan)
                stats = _stats(merged, packer.new_bytes, len(reader.fuzzy))
                new = [name for name in dict.fromkeys(merged.trees) if name not in set(known.trees)]
                is_new = merged.trees != known.trees or known.number is None or not known.committed
                if lost and not is_new:
                    raise Incomplete("; ".join(lost[:PROBLEMS_TOLD_MAX]))
                if is_new:
                    uploads.ship_trees(new, segments)
                uploads.finish()
            self._reached("trees")
            writer.finish({"of": cache_digest(settings, merged.trees)})
            self._reached("cache")
            number: int | None
            if not is_new:
                self._say_unchanged({**status, "problems": _bounded([*left_out(known), *problems])})
                number, unchanged = known.number, True
            else:
                packs = sorted({pack.hex() for name in new for pack in segments.open(name).packs} & uploads.shipped)
                number, unchanged = self._commit(merged, packs, kind, at, command, stats, reader.fuzzy), False
        except BaseException:
            writer.abandon()
            raise
        finally:
            if cache is not None:
                cache.close()
        self._reached("committed")
        known.mounted = mounted
        self._remember(number, merged.trees, known.last_backup_at if lost else at)
        self._reached("remembered")
        os.replace(self._places.next_cache, self._places.cache)
        sync_directory(self._places.state)
        segments.keep_only(merged.trees)
        if lost:
            raise Incomplete(f"backup {number} has not all of the home: {'; '.join(lost[:PROBLEMS_TOLD_MAX])}")
        return Done(number, unchanged, stats, problems)

    def _read(
        self,
        first: Any,
        edits: Any,
        reader: Reader,
        spool: Spool,
        lookup: Lookup,
        scan: Scan,
    ) -> tuple[set[bytes], list[str]]:
        """Make rows of what differs, into the spool. Returns the paths at which nothing was any more, and what of the home
        could not be looked at."""
        leaders: set[bytes] = set()
        gone: set[bytes] = set()
        lost: list[str] = []
        edit = first
        while edit is not None:
            if isinstance(edit, Put):
                body = lookup.find(edit.path)
                row = reader.row(edit, decode(edit.path, body) if body is not None else None)
                if row is None:
                    gone.add(edit.path)
                elif row.link:
                    leaders.add(row.link)
                spool.put(edit.path, row)
                if spool.steps % 256 == 0:
                    self._progress(f"{scan.entries} entries looked at, {spool.steps} read", 0.0)
            elif isinstance(edit, Drop):
                spool.drop(edit.path)
            elif isinstance(edit, Fresh):
                spool.fresh(edit.path)
            elif isinstance(edit, Unread):
                spool.keep(edit.path)
                problem = f"/{os.fsdecode(edit.path)} was not looked into: {edit.reason}"
                reader.problems.append(problem)
                if edit.is_lost and (edit.path not in self._settings.roots() or lookup.find(edit.path) is not None):
                    lost.append(problem)
            edit = next(edits, None)
        if leaders & gone:
            raise Moved("a file with several links went away while it was read; the next scan will find the others")
        return gone, lost

    def _commit(
        self,
        merged: Merged,
        packs: list[str],
        kind: str,
        at: float,
        command: str | None,
        stats: dict[str, Any],
        fuzzy: list[bytes],
    ) -> int:
        body: dict[str, Any] = {
            "parent": self._known.number,
            "trees": merged.trees,
            "packs": packs,
            "kind": kind,
            "at": at,
            "stats": stats,
            "fuzzy_paths": [base64.b64encode(path).decode("ascii") for path in fuzzy[:FUZZY_TOLD_MAX]],
        }
        if command is not None:
            body["command"] = command
        try:
            return int(self._console.post("/guest/v1/commits", body)["number"])
        except Refused as error:
            if error.code == "missing":
                # Something that the parent refers to is gone from the bucket. Everything is here: save all of it anew.
                self._known.trees, self._known.committed = [], False
                memory.save(self._places, self._known)
                raise Moved(f"the bucket lacks objects of the snapshot before: {error}") from error
            if error.code == "invalid" and self._known.trees:
                # Something that is kept here for the next run is wrong. Once without it; a run that began without it has
                # nothing else to try.
                self._known.trees, self._known.committed = [], False
                memory.save(self._places, self._known)
                raise Moved(f"the console finds the backup malformed: {error}") from error
            head = _head_of(error)
            if list(head.get("trees", [])) == merged.trees:
                return int(head["number"])
            # The answer to an earlier commit of this machine was lost, and the home has changed since: go on from there.
            raise self._moved(head) from error

    def _say_unchanged(self, status: dict[str, Any]) -> None:
        """Tell the console that the home is that of the newest snapshot."""
        try:
            body = {"number": self._known.number, "unchanged": True, "status": status}
            self._console.post("/guest/v1/heartbeats", body)
        except Refused as error:
            # The machine's disk was put back to an earlier moment, with the agent's state on it.
            raise self._moved(_head_of(error)) from error

    def _moved(self, head: dict[str, Any]) -> Moved:
        """Go on from that head the next time, and look at everything anew."""
        self._known.number = head.get("number")
        self._known.trees = list(head.get("trees", []))
        self._known.committed = True
        memory.save(self._places, self._known)
        return Moved(f"the newest snapshot is {head.get('number')}, not the one this run began from")

    def _remember(self, number: int | None, trees: list[str], at: float) -> None:
        self._known.number = number
        self._known.trees = list(trees)
        self._known.committed = True
        self._known.last_backup_at = at
        self._known.last_error = ""
        memory.save(self._places, self._known)


def passed_over(scan: Scan) -> list[str]:
    """What a finished walk did not go into."""
    lines = [
        f"/{os.fsdecode(path)} is a file system of its own and is not saved: "
        "add it to the environment's directories, or exclude it"
        for path in scan.passed_over
    ]
    if scan.passed_over_count > len(scan.passed_over):
        lines.append(f"{scan.passed_over_count - len(scan.passed_over)} further file systems are not saved")
    return lines


def left_out(known: Memory) -> list[str]:
    """What this machine's home lacks, though the snapshot that it was made from has it."""
    if not known.left_out_count:
        return []
    named = ", ".join(f"/{path}" for path in known.left_out[:PROBLEMS_TOLD_MAX])
    return [f"{known.left_out_count} of backup {known.restored_number} could not be restored to this machine: {named}"]


def _bounded(problems: list[str]) -> list[str]:
    return [each[:PROBLEM_LENGTH_MAX] for each in problems[:PROBLEMS_KEPT_MAX]]


def _head_of(error: Refused) -> dict[str, Any]:
    """The head that came with a refusal because of another parent. Any other refusal is raised again."""
    head = error.details.get("head")
    if error.status != 409 or error.code != "parent" or not isinstance(head, dict):
        raise error
    return head


def _stats(merged: Merged, new_bytes: int, fuzzy: int) -> dict[str, Any]:
    touched = merged.changed + merged.removed
    return {
        "files": merged.files,
        "bytes": merged.bytes,
        "added": merged.added,
        "changed": merged.changed,
        "removed": merged.removed,
        "new_bytes": new_bytes,
        "fuzzy": fuzzy,
        "changed_files_fraction": touched / merged.files_before if merged.files_before else 0.0,
    }
