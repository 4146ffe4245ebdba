"""The table of properties as people and Perl read it: docs/plugin/properties.md and PVE::Bucketworks::Properties.

One rule: nothing is written down twice. `make docs` draws both from `plugin.properties`; a test compares.
"""

from plugin.properties import BOTH, DISKS, FILES, PROPERTIES, SECRETS, Property, of_type

_HEAD = """\
# Properties of the storage types

<!-- Drawn from plugin/properties.py by `make docs`; a test compares. -->

What `pvesm add` and `pvesm set` take for the types `bucketfiles` and `bucketdisks`, beside Proxmox VE's own (`content`,
`nodes`, `disable`, `prune-backups`, ...). **Fixed** ones cannot be changed later. **Secret** ones never come to
storage.cfg: they are kept in `/etc/pve/priv/storage/STORAGE.TYPE`, mode 0600, on all nodes of the cluster. *Original* is the
parameter of the original S3 plugin that it stands for; *Environment* is where the commands find it without Proxmox VE.

| property | of | value | default | what it is | original | environment |
| --- | --- | --- | --- | --- | --- | --- |
"""


def properties_markdown() -> str:
    return _HEAD + "".join(_row(one) for one in PROPERTIES)


def _row(one: Property) -> str:
    value = " or ".join(f"`{choice}`" for choice in one.choices) if one.choices else one.kind
    if one.minimum is not None:
        value = f"{one.minimum} to {one.maximum}{f' {one.unit}' if one.unit else ''}"
    marks = [
        mark for mark, holds in (("required", one.required), ("fixed", one.fixed), ("secret", one.secret)) if holds
    ]
    default = f"`{one.default}`" if one.default else ""
    where = "both" if one.types == BOTH else " ".join(one.types).replace("bucket", "")
    reason = one.reason + (f" ({', '.join(marks)})" if marks else "")
    original = f"`{one.origin}`" if one.origin else ""
    environment = f"`{one.environment}`" if one.environment else ""
    return f"| `{one.name}` | {where} | {value} | {default} | {reason} | {original} | {environment} |\n"


_PERL = """\
package PVE::Bucketworks::Properties;

# SPDX-License-Identifier: AGPL-3.0-or-later
# Drawn from plugin/properties.py by `make docs`; a test compares. Change the table, not this file.

use strict;
use warnings;

# JSON schema of each property, as PVE::SectionConfig takes it. A property that both types have is defined by the files
# type alone: two definitions of one name take down everything that loads PVE::Storage.
my $properties = {
%s};

my $types = {
%s};

my $fixed = { %s };
my $required = { %s };
my $secrets = { %s };

sub defined_by {
    my ($type) = @_;
    return { map { $_ => { %%{ $properties->{$_} } } } @{ $types->{$type}->{defines} } };
}

sub options {
    my ($type) = @_;
    my $options = {};
    for my $name (@{ $types->{$type}->{takes} }) {
        # A secret is optional whatever it is for: one that is required cannot be kept out of storage.cfg.
        my $option = $required->{$name} ? {} : { optional => 1 };
        $option->{fixed} = 1 if $fixed->{$name};
        $options->{$name} = $option;
    }
    return $options;
}

sub secrets {
    my ($type) = @_;
    return [grep { $secrets->{$_} } @{ $types->{$type}->{takes} }];
}

1;
"""


def properties_perl() -> str:
    schemas = "".join(f"    '{one.name}' => {{\n{_schema(one)}    }},\n" for one in PROPERTIES)
    kinds = ""
    for kind in BOTH:
        takes = "".join(f"            '{one.name}',\n" for one in of_type(kind))
        defines = "".join(
            f"            '{one.name}',\n" for one in of_type(kind) if kind == FILES or one.types == (DISKS,)
        )
        lists = f"        takes => [\n{takes}        ],\n        defines => [\n{defines}        ],\n"
        kinds += f"    {kind} => {{\n{lists}    }},\n"
    fixed = ", ".join(f"'{one.name}' => 1" for one in PROPERTIES if one.fixed)
    required = ", ".join(f"'{one.name}' => 1" for one in PROPERTIES if one.required)
    secrets = ", ".join(f"'{name}' => 1" for name in SECRETS)
    return _PERL % (schemas, kinds, fixed, required, secrets)


def _schema(one: Property) -> str:
    lines = [("type", _quoted(one.kind)), ("description", _quoted(_sentence(one)))]
    if one.minimum is not None:
        lines.append(("minimum", str(one.minimum)))
    if one.maximum is not None:
        lines.append(("maximum", str(one.maximum)))
    if one.choices:
        lines.append(("enum", "[" + ", ".join(_quoted(choice) for choice in one.choices) + "]"))
    if one.pattern:
        lines.append(("pattern", _quoted(one.pattern)))
    elif one.kind == "string" and not one.choices:
        lines.append(("maxLength", "4096"))
    if one.default and not one.secret:
        lines.append(("default", one.default if one.kind != "string" else _quoted(one.default)))
    return "".join(f"        {name} => {value},\n" for name, value in lines)


def _sentence(one: Property) -> str:
    unit = f", in {one.unit}" if one.unit else ""
    text = one.reason.replace("`", "")
    return f"{text[0].upper()}{text[1:]}{unit}."


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
