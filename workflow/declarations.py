"""Read and check every declaration (YAML) and derive the plan of runs from it.

Imported by the Snakefile, so it needs only what Snakemake itself brings (PyYAML, jsonschema).
Every error is one line that names the file, the key, what was found and the closest valid value.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from workflow.fetching.addresses import check_places

ROOT = Path(__file__).resolve().parents[1]
WORKFLOW = ROOT / "workflow"


class DeclarationError(ValueError):
    """A declaration is wrong; the message is one line for the person who wrote it."""


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error (PyYAML keeps the last in silence)."""


def _mapping_without_duplicates(loader: _StrictLoader, node: yaml.MappingNode) -> dict:
    keys = [loader.construct_object(key) for key, _ in node.value]
    for index, key in enumerate(keys):
        if key in keys[:index]:
            line = node.value[index][0].start_mark.line + 1
            raise DeclarationError(f"key {key!r} stands twice (line {line})")
    return loader.construct_mapping(node, deep=True)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_duplicates)


def closest(found: Any, valid: Iterable[Any]) -> str:
    """Return ``; did you mean 'x'?`` or the list of valid values, for the end of an error line."""
    valid = [str(v) for v in valid]
    match = difflib.get_close_matches(str(found), valid, n=1, cutoff=0.5)
    if match:
        return f"; did you mean {match[0]!r}?"
    return f"; valid: {', '.join(valid)}" if valid else ""


def _explain(error: jsonschema.ValidationError) -> str:
    """Turn the first schema violation into one line."""
    where = ".".join(str(part) for part in error.absolute_path) or "top level"
    if error.validator == "additionalProperties":
        known = list(error.schema.get("properties", {}))
        patterns = list(error.schema.get("patternProperties", {}))
        unknown = [k for k in error.instance if k not in known and not any(re.search(p, k) for p in patterns)]
        if patterns and not known:
            return f"{where}: name {unknown[0]!r} must match {patterns[0]}"
        return f"{where}: unknown key {unknown[0]!r}{closest(unknown[0], known)}"
    if error.validator in ("enum", "const"):
        valid = error.validator_value if error.validator == "enum" else [error.validator_value]
        return f"{where}: found {error.instance!r}{closest(error.instance, valid)}"
    if error.validator == "propertyNames":
        return f"{where}: {error.message}"
    if error.validator == "required":
        missing = [k for k in error.validator_value if k not in error.instance]
        return f"{where}: key {missing[0]!r} is missing (found: {', '.join(error.instance) or '-'})"
    if error.validator == "pattern" and "urls" in error.absolute_path:
        return f"{where}: found {error.instance!r}; a file on disk is written file:/path/to/it, see schemas/"
    if error.validator == "type":
        return f"{where}: expected {error.validator_value}, found {error.instance!r}"
    return f"{where}: {error.message}"


def _shown(path: Path) -> str:
    try:
        return str(Path(path).resolve().relative_to(ROOT))
    except ValueError:
        return str(path)


def check(data: Any, schema: str, source: str, *, partial: bool = False) -> None:
    """Validate ``data`` against ``workflow/schemas/<schema>.schema.yaml``.

    Parameters
    ----------
    data
        What was read.
    schema
        Name of the schema.
    source
        What to call the data in an error: a file, or the words "the merged configuration".
    partial
        Do not ask for required keys at the top level (one of several files that are merged).

    Raises
    ------
    DeclarationError
        On the first violation (the deepest one where several are open).
    """
    path = WORKFLOW / "schemas" / f"{schema}.schema.yaml"
    rules = yaml.safe_load(path.read_text())
    if partial:
        rules = _without_required(rules)
    errors = sorted(
        jsonschema.Draft202012Validator(rules).iter_errors(data),
        key=lambda e: list(map(str, e.absolute_path)),
    )
    if errors:
        error = errors[0]
        if error.context:  # oneOf/anyOf: the branch that came furthest speaks most clearly
            error = max(error.context, key=lambda e: len(e.absolute_path))
        raise DeclarationError(f"{source}: {_explain(error)}")


def _without_required(rules: Any) -> Any:
    if isinstance(rules, dict):
        return {k: _without_required(v) for k, v in rules.items() if k != "required"}
    return [_without_required(v) for v in rules] if isinstance(rules, list) else rules


def load_yaml(path: str | Path, schema: str | None = None, *, partial: bool = False) -> Any:
    """Read a YAML file and, if ``schema`` is given, validate it.

    Raises
    ------
    DeclarationError
        If the file is missing, is not YAML, has a key twice or violates the schema.
    """
    path = Path(path)
    name = _shown(path)
    try:
        data = yaml.load(path.read_text(), _StrictLoader)
    except FileNotFoundError:
        raise DeclarationError(f"{name}: no such file") from None
    except DeclarationError as error:
        raise DeclarationError(f"{name}: {error}") from None
    except yaml.YAMLError as error:
        raise DeclarationError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from None
    if schema is not None:
        check(data, schema, name, partial=partial)
    return data


_KINDS = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list"}


def _differs(value: Any, declared: Any) -> str:
    """Say in which way a value is of another kind than the declared one; empty if it is not.

    Integers and floats are one kind. A declared null admits every kind.
    """
    kind, found = (_KINDS.get(type(v)) for v in (declared, value))
    if declared is None or kind is None:
        return ""
    if found != kind:
        shown = f"the text {value!r}" if isinstance(value, str) else repr(value)
        return f"found {shown}, expected {kind} as declared ({declared!r})"
    if isinstance(declared, list) and declared:
        return next(filter(None, (_differs(v, declared[0]) for v in value)), "")
    return ""


def _unknown(changes: dict[str, dict], entry: dict, name: str) -> str:
    """Say what is wrong with task -> parameter -> value for a method; empty if nothing is.

    A null is left to the method: it is how a parameter is switched off.
    """
    for task, params in changes.items():
        if task not in entry["tasks"]:
            return f"{task}: {name!r} does not declare this task{closest(task, entry['tasks'])}"
        known = entry["tasks"][task] or {}
        for key, value in params.items():
            if key not in known:
                return f"{task}: unknown parameter {key!r} of {name!r}{closest(key, known)}"
            if value is not None and (problem := _differs(value, known[key])):
                return f"{task}.{key}: {problem}"
    return ""


def _merged(*layers: dict[str, dict]) -> dict[str, dict]:
    """Lay task -> parameter -> value over each other, the last one on top."""
    merged: dict[str, dict] = {}
    for layer in layers:
        for task, params in layer.items():
            merged[task] = merged.get(task, {}) | params
    return merged


def load_register(table: str) -> list[dict]:
    """Read ``defects`` or ``conflicts``.

    Raises
    ------
    DeclarationError
        If the file is wrong, or an id stands twice.
    """
    entries = load_yaml(WORKFLOW / f"{table}.yaml", table)
    ids = [entry["id"] for entry in entries]
    for number in ids:
        if ids.count(number) > 1:
            raise DeclarationError(f"workflow/{table}.yaml: {number} stands twice")
    return entries


def load_methods() -> dict[str, dict]:
    """Read methods.yaml and expand it: each arm, mode, defect and conflict of a method is a method, too.

    Returns
    -------
    dict
        The entries by name. One that was expanded has the keys of the method that it varies, and
        ``variant_of``: that method; ``mode``; ``variant``: the id of a defect or conflict, empty for a
        mode and an arm; ``arm``: its name, empty for all but an arm; ``compared_with``: the method whose
        result is the base of its effect; ``changes``: its own parameters, task -> parameter -> value.
        ``tasks`` holds all of them, with its own.

    Raises
    ------
    DeclarationError
        If a file is wrong, or an arm, mode or toggle names a task or parameter that its method lacks,
        gives a value of another kind, or changes nothing.
    """
    declared = load_yaml(WORKFLOW / "methods.yaml", "methods")
    expanded: dict[str, dict] = {}

    def add(source: str, name: str, suffix: str, title: str, changes: dict, **more: str) -> None:
        entry, new = declared[name], f"{name}_{suffix}"
        if problem := _unknown(changes, entry, name):
            raise DeclarationError(f"{source}: {problem}")
        if new in declared or new in expanded:
            raise DeclarationError(f"{source}: its method {new!r} stands in workflow/methods.yaml already")
        own = ("arms", "modes", "variants")
        expanded[new] = {key: value for key, value in entry.items() if key not in own} | {
            "title": f"{entry['title']} ({title})",
            "script": entry.get("script", name),
            "tasks": {task: (entry["tasks"][task] or {}) | params for task, params in changes.items()},
            "mode": entry.get("mode", "repaired"),
            "variant_of": name,
            "variant": "",
            "arm": "",
            "compared_with": name,
            "changes": changes,
            **more,
        }

    def same(changes: dict, under: dict) -> str:
        """Name a parameter that is changed into what it is."""
        for task, params in changes.items():
            for key, value in params.items():
                if value == under.get(task, {}).get(key, ...):
                    return f"{task}.{key} is {value!r} without it, too"
        return ""

    for name, entry in declared.items():
        for arm, said in entry.get("arms", {}).items():
            source = f"workflow/methods.yaml: {name}.arms.{arm}"
            changes = {task: said[task] for task in said if task not in ("title", "note", "kind")}
            more = {key: said[key] for key in ("note", "kind") if key in said}
            add(source, name, arm, said["title"], changes, arm=arm, **more)
            if problem := same(changes, entry["tasks"]):
                raise DeclarationError(f"{source}: {problem}")
        for mode, changes in entry.get("modes", {}).items():
            source = f"workflow/methods.yaml: {name}.modes.{mode}"
            add(source, name, mode, mode, changes, mode=mode)
            if problem := same(changes, entry["tasks"]):
                raise DeclarationError(f"{source}: {problem}")
    for table in ("defects", "conflicts"):
        for item in load_register(table):
            if "toggle" not in item:
                continue
            source, name, number = f"workflow/{table}.yaml: {item['id']}", item["method"], item["id"]
            if name not in declared:
                raise DeclarationError(f"{source}.method: unknown method {name!r}{closest(name, declared)}")
            base, suffix = item.get("base", {}), number.lower().replace("-", "")
            if base and set(base) != set(item["toggle"]):
                raise DeclarationError(f"{source}: base and toggle must name the same tasks")
            common = {task: declared[name].get("variants", {}) for task in item["toggle"]}
            under, over = _merged(common, base), _merged(common, base, item["toggle"])
            compared = name
            if base:
                compared = f"{name}_{suffix}_base"
                add(f"{source}.base", name, f"{suffix}_base", f"{number}, base", under, variant=number)
            add(f"{source}.toggle", name, suffix, number, over, variant=number, compared_with=compared)
            known = {task: declared[name]["tasks"][task] or {} for task in over}
            if problem := same(item["toggle"], _merged(known, under)):
                raise DeclarationError(f"{source}.toggle: {problem}")
    return declared | expanded


def script_of(name: str, entry: dict) -> Path:
    """Return the script of a method: ``baselines/<script>.R`` where there is one, else ``.py``."""
    stem = ROOT / "baselines" / entry.get("script", name)
    in_r = stem.with_name(stem.name + ".R")
    return in_r if in_r.exists() else stem.with_name(stem.name + ".py")


@dataclass(frozen=True, order=True)
class Run:
    """One (task, dataset, method, seed). Never declared: it follows from the selection."""

    task: str
    dataset: str
    method: str
    seed: int


@dataclass(frozen=True)
class Plan:
    """Everything that is declared, checked, and the runs that follow from the selection."""

    config: dict
    datasets: dict[str, dict]
    methods: dict[str, dict]

    @property
    def seeds(self) -> list[int]:
        return list(self.config["select"]["seeds"])

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(task, dataset) of the selection, in the order in which the datasets are listed."""
        return [
            (task, name)
            for name in self.config["select"]["datasets"]
            for task in self.datasets[name]["tasks"]
        ]

    @property
    def to_download(self) -> list[str]:
        """Datasets that ``snakemake download`` brings, by the key ``data`` of the configuration."""
        chosen = self.config.get("data", "all")
        if chosen == "all":
            return list(self.datasets)
        if chosen == "selected":
            needed = (
                self.files(method, task, name)
                for task, name in self.pairs
                for method in self.methods_for(task)
            )
            return list(dict.fromkeys([*self.config["select"]["datasets"], *itertools.chain(*needed)]))
        return [chosen] if isinstance(chosen, str) else list(chosen)

    @property
    def to_prepare(self) -> list[str]:
        """Those of them that have a recipe; the others are files only, such as checkpoints."""
        return [name for name in self.to_download if {"recipe", "obs"} & set(self.datasets[name])]

    def methods_for(self, task: str) -> list[str]:
        return list(self.config["select"]["methods"].get(task, []))

    @property
    def runs(self) -> list[Run]:
        return [
            Run(task, dataset, method, seed)
            for task, dataset in self.pairs
            for method in self.methods_for(task)
            for seed in self.seeds
        ]

    def _declared(self, method: str, task: str, dataset: str, changed: dict) -> dict:
        """Parameters as declared, with what the configuration changed of the method (of the base)."""
        entry = self.methods[method]
        return (
            (self.methods[entry.get("variant_of", method)]["tasks"][task] or {})
            | entry.get("overrides", {}).get(dataset, {})
            | changed
            | entry.get("changes", {}).get(task, {})
        )

    def params(self, method: str, task: str, dataset: str) -> dict:
        """Parameters of a method, later ones winning: its entry, its override for the dataset, the config.

        Of a mode or variant: the entry, the override and the config of the method that it varies, then its
        own changes, then the config of itself.
        """
        config = self.config.get("params", {})
        base = self.methods[method].get("variant_of", method)
        params = self._declared(method, task, dataset, config.get(base, {}).get(task, {}))
        return params | config.get(method, {}).get(task, {}) if base != method else params

    def changed_params(self, method: str, task: str, dataset: str) -> dict:
        """Parameters that the configuration changed, as {name: declared value}.

        What a mode or variant changes by itself is declared, not changed.
        """
        declared = self._declared(method, task, dataset, {})
        now = self.params(method, task, dataset)
        return {k: declared[k] for k in now if now[k] != declared[k]}

    def files(self, method: str, task: str, dataset: str) -> list[str]:
        """Entries of datasets.yaml whose files a run is handed, because its parameters ask for them."""
        entry = self.methods[method]
        wanted = self.params(method, task, dataset).get(entry.get("files_when", "pretrained"))
        return list(entry.get("files", [])) if wanted else []

    @property
    def trials(self) -> int:
        """Tries of every method that may be tuned; 0 for none."""
        return self.config.get("tuning", {}).get("trials", 0)

    def space(self, method: str, task: str) -> dict[str, list]:
        """Values that tuning may choose from, by parameter; empty where nothing is tuned.

        What makes an arm or a mode what it is stays.
        """
        if not self.trials:
            return {}
        entry = self.methods[method]
        own = entry.get("changes", {}).get(task, {})
        return {k: v for k, v in entry.get("tuning", {}).get(task, {}).items() if k not in own}

    def limit(self, method: str, key: str) -> int:
        """A resource (``threads``, ``gpu``, ``mem_mb``, ``runtime``) of a method, config first.

        A mode or variant takes over what the configuration says of the method that it varies.
        """
        changed = self.config.get("resources", {})
        base = self.methods[method].get("variant_of", method)
        of_method = changed.get(method) or changed.get(base) or changed.get("all") or {}
        return of_method.get(key, self.methods[method][key])


def load_plan(config: dict, configfiles: Iterable[str | Path] = ()) -> Plan:
    """Check all declarations and the selection; return the plan.

    Parameters
    ----------
    config
        The merged configuration, as Snakemake hands it over.
    configfiles
        The files that it came from: each is checked by itself first, so that an error names it.

    Raises
    ------
    DeclarationError
        On the first thing that is wrong.
    """
    for path in configfiles:
        load_yaml(path, "config", partial=True)
    files = ", ".join(_shown(Path(p)) for p in configfiles) or "config"
    check(config, "config", f"configuration ({files} and --config)")
    datasets = load_yaml(WORKFLOW / "datasets.yaml", "datasets")
    methods = load_methods()

    for name, entry in datasets.items():
        needs = {"label", "batch"} if "integration" in entry["tasks"] else {"label"}
        if entry["tasks"] and "recipe" not in entry and needs - set(entry.get("obs", {})):
            raise DeclarationError(
                f"workflow/datasets.yaml: {name}: needs a recipe, or obs with {' and '.join(sorted(needs))}"
            )
        if (recipe := entry.get("recipe")) and not (WORKFLOW / f"recipes/{recipe}.py").is_file():
            stems = [path.stem for path in (WORKFLOW / "recipes").glob("[!_]*.py")]
            raise DeclarationError(
                f"workflow/datasets.yaml: {name}: no workflow/recipes/{recipe}.py{closest(recipe, stems)}"
            )

    try:
        check_places(datasets)
    except ValueError as error:
        raise DeclarationError(f"workflow/datasets.yaml: {error}") from None

    for table, entries in (("datasets", datasets), ("methods", methods)):
        owner: dict[str, str] = {}
        for name, entry in entries.items():
            if (title := entry["title"]) in owner:
                raise DeclarationError(
                    f"workflow/{table}.yaml: {name}.title: {title!r} is the title of {owner[title]!r} too; "
                    "tables tell entries apart by it"
                )
            owner[title] = name

    def fail(text: str) -> None:
        raise DeclarationError(f"configuration ({files} and --config): {text}")

    select = config["select"]
    for name in select["datasets"]:
        if name not in datasets:
            fail(f"select.datasets: unknown dataset {name!r}{closest(name, datasets)}")
        if not datasets[name]["tasks"]:
            fail(f"select.datasets: no task reads {name!r} yet; name it in data to download and prepare it")
    chosen = config.get("data", "all")
    words = ["all", "selected", *datasets]
    for name in [chosen] if isinstance(chosen, str) else chosen:
        if name not in (words if isinstance(chosen, str) else datasets):
            fail(f"data: unknown dataset {name!r}{closest(name, words)}")
    for task, names in select["methods"].items():
        able = [m for m in methods if task in methods[m]["tasks"]]
        for name in names:
            if name not in methods:
                fail(f"select.methods.{task}: unknown method {name!r}{closest(name, able)}")
            if name not in able:
                does = ", ".join(methods[name]["tasks"])
                fail(
                    f"select.methods.{task}: method {name!r} does not declare the task {task!r} "
                    f"(workflow/methods.yaml says: {does}){closest(name, able)}"
                )
            other = methods[name].get("compared_with")
            if methods[name].get("variant") and other not in names:
                fail(f"select.methods.{task}: {name!r} needs {other!r} beside it, with which it is compared")
    plan = Plan(config, datasets, methods)
    for task, dataset in plan.pairs:
        if not plan.methods_for(task):
            fail(f"select.methods: no method for the task {task!r} of dataset {dataset!r}")
    for name, tasks in config.get("params", {}).items():
        if name not in methods:
            fail(f"params: unknown method {name!r}{closest(name, methods)}")
        if problem := _unknown(tasks, methods[name], name):
            fail(f"params.{name}.{problem}")
    for name in config.get("resources", {}):
        if name != "all" and name not in methods:
            fail(f"resources: unknown method {name!r}{closest(name, [*methods, 'all'])}")
    for name, entry in methods.items():
        for dataset in entry.get("overrides", {}):
            if dataset not in datasets:
                raise DeclarationError(
                    f"workflow/methods.yaml: {name}.overrides: unknown dataset {dataset!r}"
                    f"{closest(dataset, datasets)}"
                )
        for task, space in entry.get("tuning", {}).items() if "variant_of" not in entry else ():
            for key, values in space.items():
                problems = (_unknown({task: {key: value}}, entry, name) for value in values)
                if problem := next(filter(None, problems), ""):
                    raise DeclarationError(f"workflow/methods.yaml: {name}.tuning.{problem}")
        for dataset in entry.get("files", []):
            if dataset not in datasets:
                raise DeclarationError(
                    f"workflow/methods.yaml: {name}.files: unknown dataset {dataset!r}"
                    f"{closest(dataset, datasets)}"
                )
            when = entry.get("files_when", "pretrained")
            if not any(when in (params or {}) for params in entry["tasks"].values()):
                raise DeclarationError(
                    f"workflow/methods.yaml: {name}.files: no task has the parameter {when!r}, "
                    "which says whether a run starts from them"
                )
        for file in (script_of(name, entry), ROOT / f"envs/{entry['env']}.yaml"):
            if not file.exists():
                others = [path.stem for path in file.parent.glob("[!_]*" + file.suffix)]
                raise DeclarationError(
                    f"workflow/methods.yaml: {name}: no {_shown(file)}{closest(file.stem, others)}"
                )
    return plan
