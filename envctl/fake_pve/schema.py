"""Is a request, or an answer, what Proxmox VE's own API description says? Pure.

One rule: `schema.json` is the slice of Proxmox VE's description (names, types, limits, permissions) that the driver uses,
unchanged; a test compares it with the whole one where that is at hand. What it does not say is not checked; formats that it
only names are in `_FORMATS`, after `PVE::JSONSchema` and `PVE::QemuServer`.
"""

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any, Final

_INDEXED: Final = re.compile(r"^([a-z]+)(\d+)$")
_NODE: Final = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?")
_CONFIG_ID: Final = re.compile(r"[a-z][a-z0-9_-]+", re.IGNORECASE)
_TAG: Final = re.compile(r"[a-z0-9_][a-z0-9_+.-]*", re.IGNORECASE)
_LABEL: Final = r"[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?"


@cache
def description() -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
    """Path to method to what is said of it."""
    text = files("envctl.fake_pve").joinpath("schema.json").read_text(encoding="utf-8")
    paths: Mapping[str, Mapping[str, Mapping[str, Any]]] = json.loads(text)["paths"]
    return paths


@cache
def _routes() -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple(
        (re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", re.escape(path))), path)
        for path in sorted(description(), key=lambda path: path.count("{"))
    )


def route(method: str, path: str) -> tuple[str, Mapping[str, Any], dict[str, str]] | None:
    """The described path, what is said of the method, and what is in the path's places. None: no such method."""
    for pattern, described in _routes():
        found = pattern.fullmatch(path)
        if found and method in description()[described]:
            return described, description()[described][method], found.groupdict()
    return None


def wrong_parameters(method: Mapping[str, Any], parameters: Mapping[str, str]) -> dict[str, str]:
    """What is wrong with each parameter, in Proxmox VE's words; empty: nothing."""
    allowed: Mapping[str, Mapping[str, Any]] = method.get("parameters", {})
    wrong = {}
    for name, value in parameters.items():
        rule = allowed.get(name) or allowed.get(_indexed(name))
        if rule is None:
            wrong[name] = "property is not defined in schema and the schema does not allow additional properties"
            continue
        complaint = _wrong_text(rule, value)
        if complaint:
            wrong[name] = complaint
        needs = rule.get("requires")
        if needs and needs not in parameters:
            wrong[needs] = f"missing property - '{name}' requires this property"
    for name, rule in allowed.items():
        if not rule.get("optional") and name not in parameters:
            wrong[name] = "property is missing and it is not optional"
    return wrong


def wrong_answer(rule: Mapping[str, Any] | None, value: object, where: str = "data") -> list[str]:
    """Where an answer's `data` is not as `returns` says."""
    if not rule or (value is None and rule.get("optional")):
        return []
    kind = rule.get("type", "object" if "properties" in rule else None)
    if kind == "null":
        return [] if value is None else [f"{where}: not null"]
    if kind == "array":
        if not isinstance(value, list):
            return [f"{where}: not an array"]
        return [
            each
            for index, item in enumerate(value)
            for each in wrong_answer(rule.get("items"), item, f"{where}[{index}]")
        ]
    if kind == "object":
        if not isinstance(value, Mapping):
            return [f"{where}: not an object"]
        return _wrong_object(rule, value, where)
    complaint = _wrong_value(rule, value)
    return [f"{where}: {complaint}"] if complaint else []


def _wrong_object(rule: Mapping[str, Any], value: Mapping[str, object], where: str) -> list[str]:
    properties: Mapping[str, Mapping[str, Any]] = rule.get("properties", {})
    wrong = []
    for name, item in value.items():
        inner = properties.get(name) or properties.get(_indexed(name))
        if inner is not None:
            wrong += wrong_answer(inner, item, f"{where}.{name}")
        elif properties and not rule.get("additionalProperties", True):
            wrong.append(f"{where}.{name}: not defined")
    wrong += [
        f"{where}.{name}: missing"
        for name, inner in properties.items()
        if not inner.get("optional") and name not in value
    ]
    return wrong


def _wrong_value(rule: Mapping[str, Any], value: object) -> str:
    kind = rule.get("type")
    if kind == "boolean":
        return "" if value in (0, 1, True, False) else "type check ('boolean') failed"
    if kind in ("integer", "number"):
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or (kind == "integer" and not isinstance(value, int))
        ):
            return f"type check ('{kind}') failed - got {value!r}"
        return _wrong_text(rule, str(value))
    if not isinstance(value, str):
        return f"type check ('string') failed - got {value!r}"
    return _wrong_text(rule, value)


def _wrong_text(rule: Mapping[str, Any], value: str) -> str:
    """As `PVE::JSONSchema::check_type` and `check_prop` take a parameter: all of them are text."""
    kind = rule.get("type", "string")
    if kind == "boolean":
        return (
            ""
            if value.lower() in ("0", "1", "yes", "no", "on", "off", "true", "false")
            else f"type check ('boolean') failed - got '{value}'"
        )
    if kind in ("integer", "number"):
        if not re.fullmatch(r"[+-]?\d+" if kind == "integer" else r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?", value):
            return f"type check ('{kind}') failed - got '{value}'"
        if "minimum" in rule and float(value) < float(rule["minimum"]):
            return f"value must have a minimum value of {rule['minimum']}"
        if "maximum" in rule and float(value) > float(rule["maximum"]):
            return f"value must have a maximum value of {rule['maximum']}"
        return ""
    if "maxLength" in rule and len(value) > int(rule["maxLength"]):
        return f"value may only be {rule['maxLength']} characters long"
    if "minLength" in rule and len(value) < int(rule["minLength"]):
        return f"value must be at least {rule['minLength']} characters long"
    if "enum" in rule and value not in rule["enum"]:
        return f"value '{value}' does not have a value in the enumeration '{', '.join(rule['enum'])}'"
    pattern = rule.get("pattern")
    if pattern and not re.fullmatch(_python_pattern(pattern), value):
        return "value does not match the regex pattern"
    form = rule.get("format")
    if isinstance(form, Mapping):
        return _wrong_fields(form, value)
    check = _FORMATS.get(str(form)) if form else None
    return "" if check is None or check(value) else f"invalid format - value does not look like a valid {form}"


def _python_pattern(pattern: str) -> str:
    """Perl's `(?^:...)` is Python's `(?:...)`."""
    return pattern.replace("(?^:", "(?:")


def _wrong_fields(form: Mapping[str, Mapping[str, Any]], value: str) -> str:
    """A property string: `key=value,...`, where one key may go without its name."""
    default = next((name for name, rule in form.items() if rule.get("default_key")), None)
    for part in value.split(","):
        key, equals, text = part.partition("=")
        if not equals:
            if default is None:
                return f"invalid format - value without key, but schema does not define a default key: {part}"
            key, text = default, part
        seen: set[str] = set()
        while key in form and "alias" in form[key] and key not in seen:
            seen.add(key)
            key = str(form[key]["alias"])
        if key not in form:
            return f"invalid format - {key}: property is not defined in schema"
        complaint = _wrong_text(form[key], text)
        if complaint:
            return f"invalid format - {key}: {complaint}"
    return ""


def _indexed(name: str) -> str:
    return _INDEXED.sub(r"\1[n]", name)


def _listed(check: "Callable[[str], bool]") -> "Callable[[str], bool]":
    return lambda text: all(check(each) for each in re.split(r"[,;\s\0]+", text) if each)


def _smbios(text: str) -> bool:
    fields = dict(part.partition("=")[::2] for part in text.split(","))
    for key, value in fields.items():
        if key == "uuid":
            if not re.fullmatch(r"[a-fA-F0-9]{8}(-[a-fA-F0-9]{4}){3}-[a-fA-F0-9]{12}", value):
                return False
        elif key == "base64":
            if value not in ("0", "1"):
                return False
        elif key not in ("version", "serial", "manufacturer", "product", "sku", "family") or not _base64(value):
            return False
    return True


def _base64(text: str) -> bool:
    if not re.fullmatch(r"[A-Za-z0-9+/]+={0,2}", text):
        return False
    try:
        base64.b64decode(text, validate=True)
    except binascii.Error:
        return False
    return True


_FORMATS: Final[Mapping[str, Callable[[str], bool]]] = {
    "pve-node": lambda text: _NODE.fullmatch(text) is not None,
    "pve-vmid": lambda text: re.fullmatch(r"[1-9][0-9]{2,8}", text) is not None,
    "pve-configid": lambda text: _CONFIG_ID.fullmatch(text) is not None,
    "pve-configid-list": _listed(lambda text: _CONFIG_ID.fullmatch(text) is not None),
    "pve-poolid": lambda text: re.fullmatch(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+){0,2}", text) is not None,
    "pve-storage-id": lambda text: re.fullmatch(r"[a-zA-Z][a-zA-Z0-9._-]*[a-zA-Z0-9]", text) is not None,
    "pve-tag-list": _listed(lambda text: _TAG.fullmatch(text) is not None),
    "dns-name": lambda text: re.fullmatch(rf"({_LABEL}\.)*{_LABEL}", text) is not None,
    "pve-qm-smbios1": _smbios,
    "mac-addr": lambda text: re.fullmatch(r"[a-fA-F0-9][02468aceACE](:[a-fA-F0-9]{2}){5}", text) is not None,
    "pve-bridge-id": lambda text: re.fullmatch(r"[-_.\w\d]+", text) is not None,
    "disk-size": lambda text: re.fullmatch(r"\d+(\.\d+)?[KMGT]?", text) is not None,
}
