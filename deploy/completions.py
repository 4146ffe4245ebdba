"""Completion files for bash, zsh and fish, made from the commands.

One rule: Tab starts no Python, opens no socket and changes nothing. A file holds its program's commands and options as a
table and walks over it in the shell's own language; names of endpoints, volumes, mirrors and ledgers are read off the
configuration file (that of `--config`, of BUCKETWORKS_CONFIG, or the default), where whoever types may read it, and
storages off storage.cfg. Names that no tool would take are not offered: the file may be another's, and what is offered
lands on a command line.

In the tables one word says what a value is: `=a|b` one of these words, `-` anything; `*` before it: any number of them.
"""

import shlex
from collections.abc import Callable, Iterable
from typing import Final

from command_tree import Command, Parameter

from s3core.settings import DEFAULT_PATH

_STORAGES: Final = "/etc/pve/storage.cfg"
_MADE: Final = "# Made by deploy/manuals.py from the program itself."


def bash_completion(top: Command) -> str:
    """The file `bash-completion/completions/PROGRAM`."""
    rows = "".join(
        f"    {shlex.quote(one.path)})\n"
        f"        commands=({_words(_word(inner) for inner in one.commands)})\n"
        f"        options=({_words(flag for option in one.options for flag in option.flags)})\n"
        f"        values=({_words(_values(one))})\n"
        f"        arguments=({_words(_argument(each) for each in one.arguments)})\n"
        "        ;;\n"
        for one in top.walk()
    )
    return _filled(_BASH, top, rows)


def zsh_completion(top: Command) -> str:
    """The file `zsh/vendor-completions/_PROGRAM`."""
    rows = "".join(
        f"    ({shlex.quote(one.path)})\n"
        f"        inner=({_words(f'{_word(inner)}:{_plain(inner.summary)}' for inner in one.commands)})\n"
        f"        flags=({_words(f'{flag}:{_plain(each.help)}' for each in one.options for flag in each.flags)})\n"
        f"        values=({_words(_values(one))})\n"
        f"        arguments=({_words(_argument(each) for each in one.arguments)})\n"
        "        ;;\n"
        for one in top.walk()
    )
    return _filled(_ZSH, top, rows)


def fish_completion(top: Command) -> str:
    """The file `fish/vendor_completions.d/PROGRAM.fish`."""
    rows = "".join(
        f"        case {_fish_quoted(one.path)}\n"
        + _fish_set("commands", (f"{_word(inner)}\t{_plain(inner.summary)}" for inner in one.commands))
        + _fish_set("options", (f"{flag}\t{_plain(each.help)}" for each in one.options for flag in each.flags))
        + _fish_set("values", _values(one))
        + _fish_set("arguments", (_argument(each) for each in one.arguments))
        for one in top.walk()
    )
    return _filled(_FISH, top, rows)


def _filled(template: str, top: Command, rows: str) -> str:
    name = top.path.replace("-", "_")
    texts = {
        "@MADE@": _MADE,
        "@ROWS@": rows.rstrip("\n"),
        "@NAME@": name,
        "@PROGRAM@": top.path,
        "@CONFIG@": str(DEFAULT_PATH),
        "@STORAGES@": _STORAGES,
    }
    for mark, text in texts.items():
        template = template.replace(mark, text)
    return template.lstrip("\n")


def _word(command: Command) -> str:
    return command.path.rpartition(" ")[2]


def _values(command: Command) -> Iterable[str]:
    """Each flag that takes a value, followed by what the value is."""
    for option in command.options:
        if option.value:
            for flag in option.flags:
                yield from (flag, _kind(option))


def _argument(argument: Parameter) -> str:
    return f"*{_kind(argument)}" if argument.repeated else _kind(argument)


def _kind(parameter: Parameter) -> str:
    return f"={'|'.join(parameter.words)}" if parameter.words else parameter.kind or "-"


def _plain(text: str) -> str:
    """One line for a menu."""
    return text.replace("`", "").rstrip(".")


def _words(words: Iterable[str], quoted: Callable[[str], str] = shlex.quote) -> str:
    return " ".join(quoted(word) for word in words)


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _fish_set(name: str, words: Iterable[str]) -> str:
    shown = _words(words, _fish_quoted)
    return f"            set {name} {shown}\n" if shown else f"            set {name}\n"


_BASH: Final = r"""
# bash completion for @PROGRAM@
@MADE@

_@NAME@_node() {
    case $1 in
@ROWS@
    esac
}

# Whether the option $1 takes a value; `kind` says which.
_@NAME@_takes() {
    local -i at
    for ((at = 0; at < ${#values[@]}; at += 2)); do
        [[ ${values[at]} == "$1" ]] && kind=${values[at + 1]} && return 0
    done
    return 1
}

# Adds the names in tables [$1.NAME] of the configuration file to `found`, each after $2 and before $3.
_@NAME@_names() {
    local line quoted bare
    quoted="^[[:space:]]*\[[[:space:]]*$1[[:space:]]*\.[[:space:]]*\"([[:alnum:].-]+)\"[[:space:]]*\]"
    bare="^[[:space:]]*\[[[:space:]]*$1[[:space:]]*\.[[:space:]]*([a-z0-9-]+)[[:space:]]*\]"
    [[ -f $config && -r $config ]] || return 0
    while IFS= read -r line || [[ $line ]]; do
        [[ $line =~ $quoted || $line =~ $bare ]] && found+=("$2${BASH_REMATCH[1]}$3")
    done <"$config"
    return 0
}

# Adds what a value of kind $1 may be to `found`.
_@NAME@_offers() {
    local line
    case $1 in
    =*) IFS='|' read -ra found <<<"${1#=}" ;;
    file) compopt -o default 2>/dev/null ;;
    directory) compopt -o dirnames 2>/dev/null ;;
    endpoint | mirror | ledger) _@NAME@_names "$1" '' '' ;;
    volume | url)
        [[ $1 == volume ]] && _@NAME@_names volume '' ''
        _@NAME@_names endpoint s3:// /
        found+=(file:///)
        ;;
    storage)
        [[ -r @STORAGES@ ]] || return 0
        while IFS= read -r line; do
            [[ $line =~ ^bucket(files|disks):[[:space:]]*([^[:space:]]+) ]] && found+=("${BASH_REMATCH[2]}")
        done <@STORAGES@
        ;;
    esac
}

_@NAME@() {
    local -a words=() commands=() options=() values=() arguments=() found=()
    local config=${BUCKETWORKS_CONFIG:-@CONFIG@} rest=$COMP_LINE before='' at=@PROGRAM@
    local word current kind taken='' flag='' keep
    local -i i nth=0
    # Words as they were typed: readline breaks them at ':' and '=' too.
    for ((i = 0; i <= COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if ((i)) && [[ $rest != [[:space:]]* && $before$word == *[:=]* ]]; then
            words[-1]+=$word
        else
            words+=("$word")
            rest=${rest#"${rest%%[![:space:]]*}"}
        fi
        rest=${rest#"$word"}
        before=$word
    done
    current=${words[-1]}
    _@NAME@_node "$at"
    for ((i = 1; i < ${#words[@]} - 1; i++)); do
        word=${words[i]}
        if [[ $taken ]]; then
            [[ $flag == --config ]] && config=$word
            taken=''
        elif [[ $word == --config=* ]]; then
            config=${word#*=}
        elif [[ $word == -?* ]]; then
            flag=$word
            _@NAME@_takes "$word" && taken=$kind
        elif [[ " ${commands[*]} " == *" $word "* ]]; then
            at+=" $word"
            _@NAME@_node "$at"
        else
            nth+=1
        fi
    done
    COMPREPLY=()
    if [[ $taken ]]; then
        _@NAME@_offers "$taken"
    elif [[ $current == --*=* ]]; then
        _@NAME@_takes "${current%%=*}" || return 0
        _@NAME@_offers "$kind"
        found=("${found[@]/#/${current%%=*}=}")
    elif [[ $current == -* ]]; then
        found=("${options[@]}")
    elif ((${#commands[@]})); then
        found=("${commands[@]}")
    elif ((${#arguments[@]})); then
        kind=${arguments[nth < ${#arguments[@]} ? nth : ${#arguments[@]} - 1]}
        ((nth < ${#arguments[@]})) || [[ $kind == \** ]] || return 0
        _@NAME@_offers "${kind#\*}"
    fi
    # Readline replaces what stands after the last ':' or '='.
    keep=${current%"${current##*[:=]}"}
    for word in "${found[@]}"; do
        [[ $word == "$current"* ]] && COMPREPLY+=("${word#"$keep"}")
    done
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[:/=] ]] && compopt -o nospace 2>/dev/null
    return 0
}

complete -F _@NAME@ @PROGRAM@
"""

_ZSH: Final = r"""
#compdef @PROGRAM@
@MADE@

_@NAME@_node() {
    case $1 in
@ROWS@
    esac
}

# Adds the names in tables [$1.NAME] of the configuration file to `found`, each after $2 and before $3.
_@NAME@_names() {
    local line
    local -a match mbegin mend
    [[ -f $config && -r $config ]] || return 0
    while IFS= read -r line || [[ -n $line ]]; do
        if [[ $line =~ "^[[:space:]]*\[[[:space:]]*$1[[:space:]]*\.[[:space:]]*\"([[:alnum:].-]+)\"[[:space:]]*\]" ||
            $line =~ "^[[:space:]]*\[[[:space:]]*$1[[:space:]]*\.[[:space:]]*([a-z0-9-]+)[[:space:]]*\]" ]]; then
            found+=("$2$match[1]$3")
        fi
    done <$config
    return 0
}

# Offers what a value of kind $1 may be.
_@NAME@_offers() {
    local line
    local -a found match mbegin mend
    case $1 in
    ('='*) found=("${(@s:|:)${1#=}}") ;;
    (file) _files; return ;;
    (directory) _files -/; return ;;
    (endpoint|mirror|ledger) _@NAME@_names $1 '' '' ;;
    (volume|url)
        [[ $1 == volume ]] && _@NAME@_names volume '' ''
        compadd -- $found
        found=()
        _@NAME@_names endpoint s3:// /
        found+=(file:///)
        ;;
    (storage)
        [[ -r @STORAGES@ ]] || return 1
        while IFS= read -r line; do
            [[ $line =~ "^bucket(files|disks):[[:space:]]*([^[:space:]]+)" ]] && found+=($match[2])
        done <@STORAGES@
        ;;
    (*) return 1 ;;
    esac
    compadd -S '' -- ${(M)found:#*[:/]}
    compadd -- ${found:#*[:/]}
}

_@PROGRAM@() {
    # Not `commands` and `options`: zsh keeps its own under those names.
    local -a inner flags values arguments
    local config=${BUCKETWORKS_CONFIG:-@CONFIG@} at=@PROGRAM@ word kind taken= flag=
    local -i i nth=0
    local -A takes
    _@NAME@_node $at
    takes=($values)
    for ((i = 2; i < CURRENT; i++)); do
        word=${(Q)words[i]}
        if [[ -n $taken ]]; then
            [[ $flag == --config ]] && config=$word
            taken=
        elif [[ $word == --config=* ]]; then
            config=${word#*=}
        elif [[ $word == -?* ]]; then
            flag=$word
            taken=${takes[$word]:-}
        elif [[ -n ${(M)inner:#$word:*} ]]; then
            at+=" $word"
            _@NAME@_node $at
            takes=($values)
        else
            ((nth += 1))
        fi
    done
    if [[ -n $taken ]]; then
        _@NAME@_offers $taken
    elif [[ $PREFIX == --*=* ]]; then
        kind=${takes[${PREFIX%%=*}]:-}
        compset -P 1 '*='
        _@NAME@_offers $kind
    elif [[ $PREFIX == -* ]]; then
        _describe -o option flags
    elif (( $#inner )); then
        _describe command inner
    elif (( $#arguments )); then
        kind=${arguments[nth + 1]:-$arguments[-1]}
        (( nth < $#arguments )) || [[ $kind == \** ]] || return 1
        _@NAME@_offers ${kind#\*}
    fi
}

if [[ $funcstack[1] == _@PROGRAM@ ]]; then
    _@PROGRAM@ "$@"
else
    compdef _@PROGRAM@ @PROGRAM@
fi
"""

_FISH: Final = r"""
# fish completion for @PROGRAM@
@MADE@

function __@NAME@_node --no-scope-shadowing
    switch $argv[1]
@ROWS@
    end
end

# The names in tables [$table.NAME] of the configuration file.
function __@NAME@_names --argument-names config table
    test -f "$config" -a -r "$config"; or return 0
    string match --regex --groups-only '^\s*\[\s*'$table'\s*\.\s*(?|"([\w.-]+)"|([a-z0-9-]+))\s*\]' <$config
    return 0
end

# What a value of a kind may be.
function __@NAME@_offers --argument-names config kind current
    switch $kind
        case '=*'
            string split '|' -- (string sub --start 2 -- $kind)
        case file
            __fish_complete_path $current
        case directory
            __fish_complete_directories $current
        case endpoint mirror ledger
            __@NAME@_names $config $kind
        case volume url
            test $kind = volume; and __@NAME@_names $config volume
            for name in (__@NAME@_names $config endpoint)
                echo s3://$name/
            end
            echo file:///
        case storage
            test -r @STORAGES@
            and string match --regex --groups-only '^bucket(?:files|disks):\s*(\S+)' <@STORAGES@
    end
end

function __@NAME@_complete
    set -l commands
    set -l options
    set -l values
    set -l arguments
    set -l config @CONFIG@
    test -n "$BUCKETWORKS_CONFIG"; and set config $BUCKETWORKS_CONFIG
    set -l at @PROGRAM@
    set -l taken
    set -l flag
    set -l nth 1
    set -l typed (commandline -opc)
    set -l current (commandline -ct)
    __@NAME@_node $at
    for word in $typed[2..]
        if test -n "$taken"
            test "$flag" = --config; and set config $word
            set taken
        else if string match -q -- '--config=*' $word
            set config (string replace -- '--config=' '' $word)
        else if string match -q -- '-?*' $word
            set flag $word
            set -l place (contains -i -- $word $values)
            and set taken $values[(math $place + 1)]
        else if string match -q -- $word\t'*' $commands
            set at "$at $word"
            __@NAME@_node $at
        else
            set nth (math $nth + 1)
        end
    end
    if test -n "$taken"
        __@NAME@_offers $config $taken $current
    else if string match -q -- '--*=*' $current
        set -l pair (string split -m 1 = -- $current)
        set -l place (contains -i -- $pair[1] $values)
        and for one in (__@NAME@_offers $config $values[(math $place + 1)] $pair[2])
            echo $pair[1]=$one
        end
    else if string match -q -- '-*' $current
        string join \n -- $options
    else if set -q commands[1]
        string join \n -- $commands
    else if set -q arguments[1]
        set -l kind $arguments[-1]
        test $nth -le (count $arguments)
        and set kind $arguments[$nth]
        or string match -q '\**' -- $kind
        or return 0
        __@NAME@_offers $config (string replace -r '^\*' '' -- $kind) $current
    end
end

complete -c @PROGRAM@ -f -a '(__@NAME@_complete)'
"""
