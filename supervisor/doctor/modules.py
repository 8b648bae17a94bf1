"""Whether the trainer's interpreter finds its modules: they are looked for, and not imported."""

from __future__ import annotations

import difflib

from healthchecks.frame.report import Finding
from supervisor import proc
from supervisor.config import Job
from supervisor.doctor import arguments, rank_zero
from supervisor.doctor.files import judge
from supervisor.doctor.finding import unknown, warn

# Runs in the trainer's python: finds modules and imports none, but for what finding needs.
FIND = """
import importlib.util, json, os, pkgutil, sys
def find(name, inside):
    # Every finder: packages that are installed to be edited may have one of their own.
    for finder in sys.meta_path:
        try:
            spec = finder.find_spec(name, inside)
        except Exception:
            spec = None
        if spec is not None:
            return spec
folder, as_main, *modules = sys.argv[1:]
sys.path[0] = folder
missing, places = {}, {}
for name in modules:
    first, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(first)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        missing[name] = [first, [module.name for module in pkgutil.iter_modules()], "no module"]
        continue
    at = first
    for part in [*rest, *(["__main__"] if name == as_main else [])]:
        inside = spec.submodule_search_locations
        if inside is None:
            if f"{at}.{part}" in sys.modules:  # os.path
                break
            if part != "__main__":
                missing[name] = [at, [], "not a package"]
            break
        at = f"{at}.{part}"
        spec = find(at, list(inside))
        if spec is None:
            missing[name] = [at, [m.name for m in pkgutil.iter_modules(list(inside))], "no module"]
            break
        if part == "__main__":
            break
    top = importlib.util.find_spec(first)
    places[name] = list(top.submodule_search_locations or [])
print("\\n" + json.dumps({"missing": missing, "places": places}))
"""


async def look(job: Job, cwd: str, deadline_s: float) -> list[Finding]:
    """Modules that the interpreter, started in `cwd`, does not find."""
    trainer = job.trainer
    names = dict.fromkeys([*([trainer.module] if trainer.module else []), *trainer.preload])
    folder = str(trainer.script.parent if trainer.script else trainer.workdir)
    argv = (trainer.python, "-c", FIND, folder, trainer.module or "", *names)
    done = await proc.run(argv, deadline_s=deadline_s, env=rank_zero.environment(job), cwd=cwd)
    if done.timed_out:
        text = (
            f"{trainer.python} did not answer within {deadline_s:g} s: modules were not looked for"
        )
        return [unknown("trainer", text, "see whether the storage that holds it answers")]
    told = rank_zero.told(done.out)
    if "missing" not in told:
        text, fix = f"trainer.python: {done.why()}", "fix trainer.python or its environment"
        if await rank_zero.wraps(job):
            return [warn("trainer", f"{text}; modules were not looked for", fix)]
        return [judge(job, trainer.python, "trainer", text, fix)]
    found = [_missing(job, folder, name, *of) for name, of in told["missing"].items()]
    if not found and trainer.hook != "none":
        found += await arguments.fields(job, told["places"], deadline_s)
    return found


def _missing(job: Job, folder: str, name: str, at: str, there: list[str], what: str) -> Finding:
    """What to say of a module of which `at` was not found, where `there` are."""
    trainer = job.trainer
    key = "trainer.module" if name == trainer.module else "trainer.preload"
    package, dot, last = at.rpartition(".")
    close = difflib.get_close_matches(last, there, n=1)
    guess = f"; did you mean {package}{dot}{close[0]}?" if close else ""
    fix = f"install it there, or fix {key}, trainer.python or PYTHONPATH in trainer.env"
    if last == "__main__":
        says, guess = f"{package} is a package without __main__", ""
    elif what == "not a package":
        says = f"{at} is not a package"
    else:
        says = f"no module {at}"
    text = f"{key}: {name}: {says} in {trainer.python} or {folder}{guess}"
    return judge(job, trainer.python, "trainer", text, fix)
