"""The nodes of `s3block shell`, for configshell: what they hold, how they are summed up, and their commands.

One rule: a node holds no state but its name. Its children are asked for when somebody looks, and nodes that are still there
stay the same objects, so that the place where the user stands survives a look.

configshell finds commands by the names of methods (`ui_command_NAME`) and draws help texts from their docstrings, which is
why these read like a manual.
"""

import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from configshell_fb import ConfigNode, ConfigShell, ExecutionError

from blockdev.arguments import moment
from blockdev.shell_command import Commands, ended, size_and
from s3core.exit_codes import ExitCode

Summary = tuple[str, bool | None]


class Shell(ConfigShell):  # type: ignore[misc]
    """configshell without its files: no preferences (they are pickles), no history, no log."""

    default_prefs: ClassVar[dict[str, Any]] = {
        "color_path": "magenta",
        "color_command": "cyan",
        "color_parameter": "magenta",
        "color_keyword": "cyan",
        "completions_in_columns": True,
        "logfile": None,
        "loglevel_console": "info",
        "loglevel_file": "critical",
        "color_mode": True,
        "prompt_length": 30,
        "tree_max_depth": 0,
        "tree_status_mode": True,
        "tree_round_nodes": True,
        "tree_show_root": True,
    }

    def __init__(self) -> None:
        super().__init__(None)
        self.prefs["color_mode"] = sys.stdout.isatty()


class Node(ConfigNode):  # type: ignore[misc]
    """A place in the tree."""

    def __init__(self, name: str, parent: "Node | None" = None, shell: Shell | None = None) -> None:
        super().__init__(name, parent, shell)
        self._asked = -1

    @property
    def root(self) -> "Root":
        found = self.get_root()
        assert isinstance(found, Root)
        return found

    @property
    def commands(self) -> Commands:
        return self.root.commands

    def wanted(self) -> Mapping[str, Callable[[str], "Node"]]:
        """The children there should be: by name, how to make one."""
        return {}

    @property
    def children(self) -> set["Node"]:
        if self._asked != self.root.line:
            self._asked = self.root.line
            wanted = self.wanted()
            have = {child.name: child for child in self._children}
            for name in have.keys() - wanted.keys():
                self._children.remove(have[name])
            for name in wanted.keys() - have.keys():
                wanted[name](name)
        children: set[Node] = self._children
        return children

    def get_child(self, name: str) -> "Node":
        for child in self.children:
            if child.name == name:
                return child
        raise ValueError(f"No such path {self.path.rstrip('/')}/{name}")

    def summary(self) -> Summary:
        return "", None

    def perform(self, *words: str, options: Mapping[str, str] | None = None) -> None:
        """Run a command of the program. Raises ExecutionError when it failed."""
        code = self.commands.perform(*words, options=options)
        self.root.line += 1
        if code not in (ExitCode.OK, ExitCode.FINDING):
            raise ExecutionError(ended(code))


class Root(Node):
    def __init__(self, commands: Commands) -> None:
        self.line = 0
        """Counts what was entered: children are asked for once for each."""
        self._commands = commands
        self._configshell = Shell()
        super().__init__("/", shell=self._configshell)
        for kind, name in ((Stores, "stores"), (Volumes, "volumes"), (Lio, "lio")):
            kind(name, self)
        self._configshell._current_node = self

    @property
    def commands(self) -> Commands:
        return self._commands

    @property
    def children(self) -> set[Node]:
        children: set[Node] = self._children
        return children

    @property
    def left(self) -> bool:
        """Whether the user said `exit`."""
        return bool(self._configshell._exit)

    def run(self, line: str) -> str:
        """Run one line, as if it were entered; what went wrong, empty for nothing."""
        self.line += 1
        self.commands.new_line()
        self.commands.code = 0
        try:
            self._configshell.run_cmdline(line)
        except (ExecutionError, ValueError) as error:
            return str(error) or type(error).__name__
        return ""

    def interact(self) -> None:
        """Read lines from the terminal until the user leaves."""
        shell = self._configshell
        run = shell.run_cmdline

        def run_cmdline(line: str) -> None:
            self.line += 1
            self.commands.new_line()
            run(line)

        shell.run_cmdline = run_cmdline
        while not self.left:
            try:
                shell.run_interactive()
            except (ExecutionError, ValueError) as error:
                shell.log.error(str(error))


def plant(commands: Commands) -> Root:
    """The tree."""
    return Root(commands)


# --- volumes ---------------------------------------------------------------------------------------------------------


class Snapshot(Node):
    def __init__(self, name: str, parent: "Volume", row: Mapping[str, Any]) -> None:
        self._row = row
        super().__init__(name, parent)

    @property
    def volume(self) -> str:
        volume = self._parent
        assert isinstance(volume, Volume)
        return volume.text

    def summary(self) -> Summary:
        clones = self._row.get("clones") or ()
        cloned = f"clones: {', '.join(clones)}" if clones else ""
        return size_and(self._row.get("size_bytes"), moment(self._row.get("created")), cloned), None

    def ui_command_delete(self) -> None:
        """Let the snapshot go."""
        self.perform("snapshot", "delete", self.volume, self.name)

    def ui_command_clone(self, new: str) -> None:
        """Make volume NEW (a name, or a URL in the same store) that begins as this snapshot."""
        self.perform("clone", self.volume, self.name, new)

    def ui_command_rollback(self, **options: str) -> None:
        """Make the volume what it was at this snapshot; it must not be served. Options: yes, keep."""
        self.perform("rollback", self.volume, self.name, options=options)


class Volume(Node):
    """A volume. `text` is what the commands are told: a name of the configuration, or a URL."""

    def __init__(self, name: str, parent: Node, text: str, row: Mapping[str, Any]) -> None:
        self.text = text
        self._row = row
        super().__init__(name, parent)

    def wanted(self) -> Mapping[str, Callable[[str], Node]]:
        rows = self.commands.ask("snapshot", "list", self.text) or []
        found = {str(row["name"]): row for row in rows}
        return {name: lambda name: Snapshot(name, self, found[name]) for name in found}

    def summary(self) -> Summary:
        state = str(self._row.get("state", ""))
        bad = state in ("unreachable", "damaged")
        return size_and(self._row.get("size_bytes"), state), False if bad else None

    def ui_command_info(self) -> None:
        """Tell what the volume is and where it stands."""
        self.perform("info", self.text)

    def ui_command_delete(self, **options: str) -> None:
        """Remove the volume and all of its data. Options: yes, force, local."""
        self.perform("delete", self.text, options=options)

    def ui_command_resize(self, size: str, **options: str) -> None:
        """Give the volume another size, such as 200G. Options: force, yes."""
        self.perform("resize", self.text, size, options=options)

    def ui_command_snapshot(self, name: str = "", **options: str) -> None:
        """Keep the state of now as snapshot NAME; without it, the date and time. Options: expires, note."""
        self.perform("snapshot", "create", self.text, *([name] if name else []), options=options)

    def ui_command_clone(self, snapshot: str, new: str) -> None:
        """Make volume NEW that begins as SNAPSHOT."""
        self.perform("clone", self.text, snapshot, new)

    def ui_command_rollback(self, snapshot: str, **options: str) -> None:
        """Make the volume what it was at SNAPSHOT; it must not be served. Options: yes, keep."""
        self.perform("rollback", self.text, snapshot, options=options)

    def ui_command_check(self, **options: str) -> None:
        """Check the volume in its store. Options: those of `s3block check`."""
        self.perform("check", self.text, options=options)

    def ui_command_gc(self, **options: str) -> None:
        """Remove what the volume needs no more. Options: orphans."""
        self.perform("gc", self.text, options=options)


class Volumes(Node):
    def wanted(self) -> Mapping[str, Callable[[str], Node]]:
        found = {str(row["name"]): row for row in self.commands.ask("list") or []}
        return {name: lambda name: Volume(name, self, name, found[name]) for name in found}

    def summary(self) -> Summary:
        return f"Volumes: {len(self.children)}", None

    def ui_command_create(self, volume: str, size: str = "", **options: str) -> None:
        """Make a volume: a name of the configuration, or a URL. Options: those of `s3block create`, such as encrypt=true."""
        self.perform("create", volume, options=({"size": size} if size else {}) | options)

    def ui_command_delete(self, volume: str, **options: str) -> None:
        """Remove a volume and all of its data. Options: yes, force, local."""
        self.perform("delete", volume, options=options)


# --- stores ----------------------------------------------------------------------------------------------------------


def place_name(url: str) -> str:
    """A place in a store as the name of a node: paths of the shell are made with '/', and take few other characters."""
    return re.sub(r"[^A-Za-z0-9._-]+", ":", url).strip(":")


class Store(Node):
    def __init__(self, name: str, parent: Node, url: str) -> None:
        self.url = url
        super().__init__(name, parent)

    def wanted(self) -> Mapping[str, Callable[[str], Node]]:
        found = {str(row["name"]): row for row in self.commands.ask("list", self.url) or []}
        return {name: lambda name: Volume(name, self, f"{self.url}/{name}", found[name]) for name in found}

    def summary(self) -> Summary:
        if self.commands.ask("list", self.url) is None:
            return f"{self.url}: unreachable", False
        return f"{self.url}, Volumes: {len(self.children)}", None

    def ui_command_create(self, volume: str, size: str, **options: str) -> None:
        """Make a volume here. Options: those of `s3block create`."""
        self.perform("create", f"{self.url}/{volume}", options={"size": size} | options)


class Stores(Node):
    def wanted(self) -> Mapping[str, Callable[[str], Node]]:
        configured = {str(row["store_url"]): None for row in self.commands.ask("list") or []}
        urls = {place_name(url): url for url in configured | self.commands.stores}
        return {name: lambda name: Store(name, self, urls[name]) for name in urls}

    def summary(self) -> Summary:
        return f"Places: {len(self.children)}", None

    def ui_command_open(self, url: str) -> None:
        """Show what is at a place, s3://ENDPOINT/BUCKET/PREFIX or file:///DIRECTORY, until the shell ends."""
        self.perform("list", url)
        self.commands.stores[url.rstrip("/")] = None


# --- LIO -------------------------------------------------------------------------------------------------------------


class Portal(Node):
    def __init__(self, name: str, parent: Node, told: str) -> None:
        self._told = told
        super().__init__(name, parent)

    def summary(self) -> Summary:
        return self._told, True


class Lun(Node):
    """A volume as the kernel offers it."""

    def __init__(self, name: str, parent: Node, row: Mapping[str, Any]) -> None:
        self.row = row
        super().__init__(name, parent)

    def wanted(self) -> Mapping[str, Callable[[str], Node]]:
        told = {}
        for target in self.row["targets"]:
            for portal in target["portals"]:
                sessions = len(target["sessions"])
                told[portal] = f"{target['iqn']} LUN {target['lun']}, sessions: {sessions}"
        return {name: lambda name: Portal(name, self, told[name]) for name in told}

    def summary(self) -> Summary:
        problems = self.row["problems"]
        if problems:
            return str(problems[0]).partition(";")[0], False
        return size_and(self.row["size_bytes"], self.row["state"]), True

    def ui_command_status(self) -> None:
        """Show how it stands between its daemon, the kernel and the saved configuration."""
        self.perform("lio", "status", self.name)

    def ui_command_attach(self, **options: str) -> None:
        """Have the kernel offer it, now and after the next boot. Options: portal, replace, wait."""
        self.perform("lio", "attach", self.name, options=options)

    def ui_command_detach(self, **options: str) -> None:
        """Take it out of the kernel. Options: force."""
        self.perform("lio", "detach", self.name, options=options)


class Lio(Node):
    def wanted(self) -> Mapping[str, Callable[[str], Node]]:
        found = {str(row["name"]): row for row in self.commands.ask("lio", "status") or []}
        for child in self._children:
            if child.name in found:
                child.row = found[child.name]
        return {name: lambda name: Lun(name, self, found[name]) for name in found}

    def summary(self) -> Summary:
        return f"LUNs: {len(self.children)}", None

    def ui_command_status(self) -> None:
        """Show all of them."""
        self.perform("lio", "status")

    def ui_command_attach(self, volume: str, **options: str) -> None:
        """Have the kernel offer a volume, now and after the next boot. Options: portal, replace, wait."""
        self.perform("lio", "attach", volume, options=options)

    def ui_command_detach(self, volume: str, **options: str) -> None:
        """Take a volume out of the kernel. Options: force."""
        self.perform("lio", "detach", volume, options=options)
