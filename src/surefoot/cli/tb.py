"""`surefoot tb RUN...`: TensorBoard on runs, or their events written anew from the record."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

from surefoot.cli.options import parser, print_json
from surefoot.errors import ConfigError, OutOfResources, Unsupported
from surefoot.track.folder import RunFolder, find, list_runs, runs_dir
from surefoot.track.lock import scratch

__all__ = ["run"]


def run(verb: str, argv: list[str]) -> int:
    """Run the verb and return its exit code."""
    own = parser("tb", "Start TensorBoard on runs, or write their events anew.")
    own.add_argument("run", nargs="*", help="names, numbers, prefixes or `last`; default: all")
    own.add_argument("--rebuild", action="store_true", help="write tb/ anew from the record")
    own.add_argument("--port", metavar="N", help="of the server; default: 6006 or near")
    own.epilog = "What stands behind -- goes to TensorBoard as it is."
    end = argv.index("--") if "--" in argv else len(argv)
    options = own.parse_args(argv[:end])
    runs = runs_dir(options.runs)
    found = [find(runs, name) for name in options.run] or list_runs(runs)
    if options.rebuild:
        return _rebuild(found, options.json)
    if options.json:
        raise ConfigError("--json goes with --rebuild: TensorBoard has no answer to print")
    shown = [each for each in found if any(each.path.glob("tb/**/*tfevents*"))]
    if not shown:
        raise ConfigError(
            "no run has TensorBoard events" if found else f"there are no runs in {runs}",
            fix="write them from the record: surefoot tb RUN --rebuild",
        )
    port = ["--port", options.port] if options.port else []
    return _serve(shown, [*port, *argv[end + 1 :]])


def _rebuild(found: list[RunFolder], as_json: bool) -> int:
    from surefoot.track.tensorboard import rebuild

    counts = {}
    for each in found:
        try:
            counts[each.name] = rebuild(each)
        except OSError as error:
            what = f"cannot write events: {error.strerror}; those of before are untouched"
            fix = "free some space: surefoot du"
            raise OutOfResources(what, where=str(each.path), fix=fix) from error
        if not as_json:
            print(f"{each.name}: {counts[each.name]} rows written to {each.path / 'tb'}")
    if as_json:
        print_json(counts)
    return 0


def _serve(shown: list[RunFolder], options: list[str]) -> int:
    """Run TensorBoard on a folder of links, so that it shows runs by name and nothing else."""
    if importlib.util.find_spec("tensorboard") is None:
        fix = "pip install tensorboard; report.html in the run's folder needs nothing"
        raise Unsupported("TensorBoard is not installed", fix=fix)
    with scratch() as place:
        for each in shown:
            (place / each.name).symlink_to((each.path / "tb").resolve())
        words = ["-m", "tensorboard.main", "--logdir", str(place), *options]
        server = subprocess.Popen([sys.executable, *words])
        try:
            return server.wait()
        except KeyboardInterrupt:
            server.terminate()
            return 0 if server.wait() in (0, -15) else 1
