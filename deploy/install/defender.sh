#!/bin/sh
# Installs a defender on this host, as a service of systemd: in front of its Docker Engine, and in a fleet.
#
#   sh defender.sh --controller fleet.example.com:8084 --join-token dft1...   install, and join a fleet
#   sh defender.sh --from DIRECTORY                                          install or upgrade from wheels
#   sh defender.sh --uninstall                                               `--help` tells the rest
#
# It says every step, and may be run again: what is there already stays as it is. A new version is put beside the
# old one and the service started anew; if the new one does not come up well, the old one is put back.
#
# For POSIX sh. All of it is functions, called in the last line: half a script does nothing.

set -eu
umask 022
LC_ALL=C
export LC_ALL
# Root's PATH after a plain su lacks the system's tools.
PATH="${PATH:-/usr/bin:/bin}:/usr/local/sbin:/usr/sbin:/sbin"
export PATH

PROGRAM=/opt/defender-fleet
SETTINGS=/etc/defender
STATE=/var/lib/defender
UNITS=/etc/systemd/system
UNIT="$UNITS/defender.service"
DROPIN="$UNITS/defender.service.d/10-install.conf"
COMMAND=/usr/local/bin/defenderctl
ACCOUNT=defender
CLIENTS=docker
PATIENCE="${DEFENDER_INSTALL_PATIENCE:-60}"
# A controller that serves this script fills in where its channel is.
FLEET=''

# ---- telling

usage() {
    cat <<'HELP'
Usage: sh defender.sh [--uninstall [--purge]] [options]

Installs a defender as a service of systemd, or upgrades the one that is there.

The fleet:
  --controller HOST:PORT   the controller's channel, usually port 8084; without it the defender is on its own,
                           or in the fleet of the controller that this script was downloaded from
  --join-token TOKEN       lets this host join, once; `defenderctl tokens create` makes one
  --join-token-file FILE   the same from a file, `-` for standard input: kept off the list of processes

Where the program comes from (without any: the package index of pip):
  --from DIRECTORY         wheels of the program and of its libraries; no network is used
  --wheel FILE             the program's wheel; its libraries come from --from, else from the index
  --index URL              another package index
  --version VERSION        this version and no other
  --python PROGRAM         Python 3.11 or newer, owned by root; default: the first one found

What is written into new settings (settings that are there are never changed):
  --name NAME              of this host in policies; default: its short host name
  --engine unix:///PATH    the Engine's socket; default: unix:///run/docker.sock
  --listen MODE            unix (default), tcp, unix+tcp or none
  --policy FILE            the policy of a defender without a controller; without one it denies everything

  --no-start               leave the service stopped
  --uninstall              remove the program and the service; settings, certificates and events stay
  --purge                  with --uninstall: remove those too
  --dry-run                say what would be done, and do nothing
  --help

Exit codes: 0 done, 1 not done (and what was before is back), 2 wrong usage.
HELP
}

step() { printf '==> %s\n' "$*"; }
note() { printf '    %s\n' "$*"; }
complain() { printf 'defender.sh: %s\n' "$*" >&2; }
fail() {
    complain "$@"
    exit 1
}
misused() {
    complain "$@"
    complain "sh defender.sh --help tells what can be said"
    exit 2
}

# ---- doing, or saying what would be done

run() {
    if [ -n "$dry" ]; then
        note "would run: $*"
    else
        "$@"
    fi
}

# put FILE MODE GROUP: makes $work/content a file of root's, whole or not at all; sets `changed` if it was another.
put() {
    if [ -n "$dry" ]; then
        note "would write $1"
        return
    fi
    if [ -L "$1" ] || ! cmp -s "$work/content" "$1"; then
        (umask 077 && cat "$work/content" >"$1.new")
        chown "root:$3" "$1.new"
        chmod "$2" "$1.new"
        mv -fT "$1.new" "$1"
        changed=1
    else
        chown "root:$3" "$1"
        chmod "$2" "$1"
    fi
}

# What runs as root here sees nothing of the caller's Python.
clean() {
    env -i PATH="$PATH" HOME="$work" TMPDIR="$work" LC_ALL=C.UTF-8 PYTHONSAFEPATH=1 PYTHONNOUSERSITE=1 \
        ${https_proxy:+"https_proxy=$https_proxy"} ${http_proxy:+"http_proxy=$http_proxy"} \
        ${no_proxy:+"no_proxy=$no_proxy"} "$@"
}

service() { systemctl "$@" 9>&-; }

# ---- what the host is like

check_host() {
    [ "$(uname -s)" = Linux ] || fail "a defender guards a Docker Engine on Linux; this is $(uname -s)"
    if [ -z "$dry" ] && [ "$(id -u)" != 0 ]; then
        fail "only root can install a service: run it with sudo, or look first with --dry-run"
    fi
    if [ ! -d /run/systemd/system ] || ! command -v systemctl >/dev/null 2>&1; then
        fail "systemd does not run this host. Install the Python package and have your service manager run:" \
            "twistd --nodaemon defender --config FILE"
    fi
    for tool in useradd getent runuser flock sha256sum cmp mktemp; do
        command -v "$tool" >/dev/null 2>&1 || fail "this host lacks the program $tool; install it first"
    done
}

find_python() {
    if [ -z "$python" ]; then
        for each in python3 python3.14 python3.13 python3.12 python3.11; do
            if command -v "$each" >/dev/null 2>&1 && new_enough "$each"; then
                python="$each"
                break
            fi
        done
        [ -n "$python" ] || fail "Python 3.11 or newer is needed, and none was found." \
            "Install it (Debian, Ubuntu: apt-get install python3 python3-venv; Fedora, RHEL: dnf install" \
            "python3.12) or name it with --python"
    fi
    command -v "$python" >/dev/null 2>&1 || fail "there is no program $python (--python)"
    python=$(command -v "$python")
    new_enough "$python" || fail "$python is not Python 3.11 or newer; name another with --python"
    env -i PATH="$PATH" "$python" -I -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python cannot make virtual environments (Debian, Ubuntu: apt-get install python3-venv)"
    # The defender runs what this interpreter is: nobody but root may be able to change it.
    if [ -n "$(find -L "$python" -maxdepth 0 \( ! -user root -o -perm /022 \) 2>/dev/null)" ]; then
        fail "$python can be changed by others than root; name another with --python"
    fi
}

new_enough() { env -i PATH="$PATH" "$1" -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# ---- the program

# Sets `wheel`, the program's wheel, and `wheels`, the folder with its libraries.
find_wheel() {
    if [ -n "$from" ]; then
        [ -d "$from" ] || fail "--from $from: there is no such directory"
        wheels=$(cd "$from" && pwd -P)
    fi
    if [ -n "$wheel" ]; then
        [ -f "$wheel" ] || fail "--wheel $wheel: there is no such file"
        wheel="$(cd "$(dirname "$wheel")" && pwd -P)/$(basename "$wheel")"
        case "$(basename "$wheel")" in
            defender_fleet-"${wanted:-*}"-*.whl) ;;
            defender_fleet-*-*.whl) [ -z "$wanted" ] || fail "--wheel $wheel is not version $wanted" ;;
            *) fail "--wheel $wheel: the program's wheel is called defender_fleet-VERSION-....whl" ;;
        esac
    elif [ -n "$from" ]; then
        choose_wheel "$wheels" "--from $from"
    fi
    if [ -z "$from" ]; then
        fetch
    fi
    version=$(basename "$wheel")
    version=${version#defender_fleet-}
    version=${version%%-*}
    case "$version" in
        "" | *[!A-Za-z0-9.+_!]* | .*) fail "$wheel: this is no version: $version" ;;
    esac
}

# choose_wheel FOLDER HOW-IT-WAS-NAMED: the newest, or the wanted one.
choose_wheel() {
    wheel=$(find "$1" -maxdepth 1 -name "defender_fleet-${wanted:-*}-*.whl" | sort -V | tail -n 1)
    [ -n "$wheel" ] || fail "$2: there is no wheel defender_fleet-${wanted:-VERSION}-....whl in it"
}

fetch() {
    what="defender-fleet${wanted:+==$wanted}"
    [ -z "$wheel" ] || what=$wheel
    step "Fetching $what and its libraries from ${index:-the package index}"
    if [ -n "$dry" ]; then
        note "would download wheels; nothing that comes from there is run while they are fetched"
        [ -n "$wheel" ] || wheel="defender_fleet-${wanted:-VERSION}-py3-none-any.whl"
        return
    fi
    logged clean "$python" -I -m venv "$work/fetch"
    mkdir "$work/wheels"
    # Wheels only: a source distribution runs its own code as root to become one.
    logged clean "$work/fetch/bin/python" -m pip --isolated --disable-pip-version-check download \
        --quiet --no-input --only-binary=:all: --dest "$work/wheels" ${index:+--index-url "$index"} "$what"
    wheels="$work/wheels"
    choose_wheel "$wheels" "the package index"
}

# logged COMMAND...: runs it silently; if it fails, its last words are told.
logged() {
    if ! "$@" >"$work/log" 2>&1 9>&-; then
        grep -E '^ERROR|[Ee]rror:' "$work/log" | tail -n 6 >"$work/errors" || true
        [ -s "$work/errors" ] || tail -n 6 "$work/log" >"$work/errors"
        sed 's/^/    /' "$work/errors" >&2
        return 1
    fi
}

# In a folder that is being made by this script.
begun=.begun-by-the-installer

# Puts the program into a folder of its own, `id` below $PROGRAM.
install_program() {
    if [ -n "$dry" ]; then
        id=$version
        step "Putting version $version into $PROGRAM/$id"
        note "would make a virtual environment of root's there, with $(basename "$wheel") and its libraries"
        return
    fi
    digest=$(cat "$wheel" "$wheels/constraints.txt" 2>/dev/null | sha256sum | cut -c 1-64)
    id=$version
    # Another build of the same version stands beside it: what runs is never changed in place. So does what
    # somebody else has put there, such as a controller.
    if [ -e "$PROGRAM/$id" ] && [ ! -f "$PROGRAM/$id/$begun" ] &&
        [ "$(cat "$PROGRAM/$id/installed" 2>/dev/null)" != "$digest" ]; then
        id="$version-$(printf %s "$digest" | cut -c 1-8)"
    fi
    new="$PROGRAM/$id"
    if [ "$(cat "$new/installed" 2>/dev/null)" = "$digest" ]; then
        step "Version $version is in $new already"
        return
    fi
    step "Putting version $version into $new"
    if [ -e "$new" ] && [ ! -f "$new/$begun" ]; then
        fail "$new is there and is none of ours: move it away"
    fi
    rm -rf "$new"
    made=$new
    mkdir -p "$new"
    : >"$new/$begun"
    logged clean "$python" -I -m venv "$new" || fail "no virtual environment could be made in $new"
    set -- --no-index --find-links "$wheels"
    [ ! -f "$wheels/constraints.txt" ] || set -- "$@" --constraint "$wheels/constraints.txt"
    logged clean "$new/bin/python" -m pip --isolated --disable-pip-version-check --no-cache-dir install \
        --quiet --no-input --only-binary=:all: "$@" "$wheel" ||
        fail "the program could not be installed from $wheels; nothing was changed"
    # twistd keeps a list of its plugins in a file that it loads as a pickle: written now, by root, and never again.
    clean "$new/bin/twistd" --help >"$work/log" 2>&1 || true
    grep -q '^    defender ' "$work/log" || {
        tail -n 6 "$work/log" >&2
        fail "twistd of version $version does not know the command defender; nothing was changed"
    }
    if [ -n "$(find "$new" ! -type l \( ! -user root -o -perm /022 \) | head -n 1)" ]; then
        fail "files in $new can be changed by others than root; nothing was changed"
    fi
    defender_service >"$new/defender.service"
    printf '%s\n' "$digest" >"$new/installed"
    rm "$new/$begun"
    made=
}

# ---- the account, the settings, the unit

make_account() {
    if getent passwd "$ACCOUNT" >/dev/null; then
        [ "$(id -u "$ACCOUNT" 2>/dev/null)" != 0 ] || fail "the user $ACCOUNT of this host is root"
    else
        step "Making the system user $ACCOUNT"
        nologin=$(command -v nologin || echo /bin/false)
        if getent group "$ACCOUNT" >/dev/null; then
            set -- --gid "$ACCOUNT"
        else
            set -- --user-group
        fi
        run useradd --system "$@" --home-dir "$STATE" --no-create-home --shell "$nologin" "$ACCOUNT"
    fi
    clients=$CLIENTS
    getent group "$CLIENTS" >/dev/null || clients=
}

write_settings() {
    if [ ! -d "$SETTINGS" ]; then
        run mkdir -m 0750 "$SETTINGS"
        run chown "root:$ACCOUNT" "$SETTINGS"
    fi
    if [ -e "$SETTINGS/defender.toml" ]; then
        step "Settings are in $SETTINGS/defender.toml already, and stay as they are"
        [ -z "$name$engine$listen" ] || note "so --name, --engine and --listen change nothing; edit the file"
    else
        step "Writing settings into $SETTINGS/defender.toml"
        {
            printf '[defender]\nstate = "%s"\n' "$STATE"
            [ -z "$name" ] || printf 'name = "%s"\n' "$name"
            printf '\n[engine]\naddress = "%s"\n' "${engine:-unix:///run/docker.sock}"
            printf '\n[listen]\nmode = "%s"\nunix = ["/run/defender/docker.sock"]\n' "${listen:-unix}"
            [ -z "$clients" ] || printf 'unix_group = "%s"\n' "$clients"
            [ -n "$controller" ] || printf '\n[policy]\nfile = "%s/policy.yaml"\n' "$SETTINGS"
        } >"$work/content"
        put "$SETTINGS/defender.toml" 0640 "$ACCOUNT"
        [ -n "$dry" ] || fresh_settings=1
    fi
    if [ -n "$policy" ]; then
        if [ -e "$SETTINGS/policy.yaml" ] && ! cmp -s "$policy" "$SETTINGS/policy.yaml"; then
            fail "--policy: there is another policy in $SETTINGS/policy.yaml; it is read again when you change it"
        fi
        cat "$policy" >"$work/content"
        put "$SETTINGS/policy.yaml" 0640 "$ACCOUNT"
    fi
    [ -z "$dry" ] || return 0
    # A Python in root's home, for one, works for root alone.
    runuser -u "$ACCOUNT" -- "$new/bin/python" -I -c '' 2>/dev/null ||
        fail "the user $ACCOUNT cannot run $python; remove $new and name another Python with --python"
    logged clean "$new/bin/python" -c "$CHECK_SETTINGS" "$SETTINGS/defender.toml" || {
        [ -z "$fresh_settings" ] || rm -f "$SETTINGS/defender.toml"
        fail "version $version cannot use these settings; the service was not touched"
    }
}

CHECK_SETTINGS='
import sys
from defender.settings import SettingsError, load_settings
try:
    load_settings(sys.argv[1])
except SettingsError as error:
    sys.exit("Error: " + "\nError: ".join(str(error).splitlines()))
'

# How the defender finds its controller, and for its first start the token, in a file that only it can read.
write_options() {
    [ -n "$controller" ] || return 0
    line="--controller $controller"
    if [ -n "$token" ] && [ "$enrollment" = enrolled ] && grep -qF -- "$line" "$SETTINGS/options" 2>/dev/null; then
        step "This host has joined the fleet of $controller already; the token is left unused"
        return 0
    fi
    if [ -n "$token" ]; then
        step "Having the defender join the fleet of $controller"
        (umask 077 && printf '%s\n' "$token" >"$work/content")
        put "$SETTINGS/join-token" 0640 "$ACCOUNT"
        line="$line --join-token-file $SETTINGS/join-token"
    else
        step "Having the defender speak with $controller"
    fi
    rm -f "$work/content"
    printf 'DEFENDER_OPTIONS="%s"\n' "$line" >"$work/content"
    put "$SETTINGS/options" 0640 "$ACCOUNT"
}

forget_token() {
    [ -f "$SETTINGS/join-token" ] || return 0
    rm -f "$SETTINGS/join-token"
    sed 's/ --join-token-file [^ "]*//' "$SETTINGS/options" >"$work/content"
    put "$SETTINGS/options" 0640 "$ACCOUNT"
    note "the join token has been used and is removed from this host"
}

write_unit() {
    step "Installing the service defender.service"
    defender_service >"$work/content"
    put "$UNIT" 0644 root
    if [ -n "$clients" ]; then
        if [ -e "$DROPIN" ]; then
            run rm -f "$DROPIN"
            changed=1
        fi
    else
        note "there is no group $CLIENTS here: the socket will be for the defender's own group"
        run mkdir -p "$(dirname "$DROPIN")"
        printf '[Service]\nSupplementaryGroups=\n' >"$work/content"
        put "$DROPIN" 0644 root
    fi
}

# point ID: have `current` lead to a version; the change of the link is one step.
point() {
    run ln -sfn "$1" "$PROGRAM/.current.new"
    run mv -fT "$PROGRAM/.current.new" "$PROGRAM/current"
}

# ---- how it does

CHECK_STATUS='
import json, sys
version, joining, was_good = sys.argv[1:4]
try:
    status = json.load(sys.stdin)
    listener, policy = status["listener"], status["policy"]
    fleet = status.get("fleet") or {}
    if version and status["version"] != version:
        print("wait version", status["version"], "still runs")
    elif joining and fleet.get("enrollment") == "pending":
        print("pending")
    elif listener["actual"] != listener["desired"]:
        print("wait its listener mode is", listener["actual"], "and should be", listener["desired"] + ":",
              listener.get("last_error") or "no reason given")
    elif was_good and policy["problems"]:
        print("wait it refuses the policy that was good before:", policy["problems"][0])
    elif joining and fleet.get("enrollment") != "enrolled":
        print("wait it has not joined the fleet:", fleet.get("problem") or "no reason given")
    else:
        print("good")
except (ValueError, KeyError, TypeError, AttributeError) as error:
    print("wait its status cannot be read:", repr(error))
'

READ_STATUS='
import json, sys
try:
    status = json.load(sys.stdin)
    print((status.get("fleet") or {}).get("enrollment") or "none",
          "" if status["policy"]["problems"] or not status["policy"]["rules"] else "good")
except (ValueError, KeyError, TypeError, AttributeError):
    print("none")
'

# Its status as JSON; nothing if it does not answer. The settings are in another folder than defenderctl looks in.
ask_status() {
    mkdir -p "$work/view"
    ln -sfn "$SETTINGS/defender.toml" "$work/view/defender.toml"
    clean "$PROGRAM/current/bin/defenderctl" local status --state "$work/view" --json 2>"$work/log" 9>&-
}

# Sets `enrollment` and `was_good` from the defender that runs now, if one does.
look_before() {
    enrollment=none
    was_good=
    [ -x "$PROGRAM/current/bin/defenderctl" ] || return 0
    ask_status >"$work/status" || return 0
    # shellcheck disable=SC2046  # two words, the second may be missing
    set -- $(clean "$PROGRAM/current/bin/python" -c "$READ_STATUS" <"$work/status")
    enrollment=$1
    was_good=${2:-}
}

# self_check VERSION JOINING WAS-GOOD: waits until the defender does well; sets `verdict`. 1 if it does not.
self_check() {
    waited=0
    while :; do
        if ask_status >"$work/status"; then
            verdict=$(clean "$PROGRAM/current/bin/python" -c "$CHECK_STATUS" "$1" "$2" "$3" <"$work/status")
        else
            verdict="wait it does not answer: $(tail -n 1 "$work/log")"
        fi
        case "$verdict" in good | pending) return 0 ;; esac
        [ "$waited" -lt "$PATIENCE" ] || break
        sleep 1
        waited=$((waited + 1))
    done
    verdict=${verdict#wait }
    return 1
}

tell_journal() {
    if command -v journalctl >/dev/null 2>&1; then
        journalctl --unit defender --lines 12 --no-pager --output cat 2>/dev/null | sed 's/^/    | /' >&2 || true
    fi
}

# ---- installing

remember() {
    previous=$(readlink "$PROGRAM/current" 2>/dev/null || true)
    [ -z "$dry" ] || return 0
    mkdir "$work/before"
    for each in "$UNIT" "$DROPIN" "$SETTINGS/options" "$SETTINGS/join-token"; do
        [ ! -e "$each" ] || cp -p "$each" "$work/before/$(basename "$each")"
    done
}

put_back() {
    step "Putting version $previous back"
    for each in "$UNIT" "$DROPIN" "$SETTINGS/options" "$SETTINGS/join-token"; do
        if [ -e "$work/before/$(basename "$each")" ]; then
            cp -p "$work/before/$(basename "$each")" "$each.new.$$" && mv -fT "$each.new.$$" "$each"
        else
            rm -f "$each"
        fi
    done
    point "$previous"
    service daemon-reload
    service restart defender.service || true
    if self_check "" "" ""; then
        fail "version $version was not installed: $reason. Version $previous runs again."
    fi
    tell_journal
    fail "version $version was not installed: $reason. Version $previous does not run either: $verdict"
}

start_service() {
    service daemon-reload
    service enable --quiet defender.service
    if [ -z "$changed" ] && service is-active --quiet defender.service; then
        step "The service runs, and nothing has changed for it"
    else
        step "Starting the service"
        reason=
        service restart defender.service || reason="it did not start"
    fi
    joining=
    [ ! -s "$SETTINGS/options" ] || joining=1
    step "Looking how it does"
    expected=$(clean "$PROGRAM/current/bin/python" -c 'import defender; print(defender.__version__)')
    if [ -z "${reason:-}" ] && self_check "$expected" "$joining" "$was_good"; then
        return 0
    fi
    reason=${reason:-$verdict}
    tell_journal
    if [ -n "$previous" ] && [ -n "$changed" ]; then
        put_back
    fi
    fail "the defender is installed and does not do well: $reason." \
        "Look with: systemctl status defender; journalctl -u defender. Run this again when it is mended"
}

remove_old() {
    # The one before stays, also when the same version is installed again.
    [ "$previous" != "$id" ] || return 0
    for each in "$PROGRAM"/*; do
        if [ ! -f "$each/installed" ] || [ -L "$each" ]; then
            continue
        fi
        case "${each##*/}" in "$id" | "$previous") continue ;; esac
        step "Removing version ${each##*/}"
        rm -rf "$each"
    done
}

link_command() {
    if [ -L "$COMMAND" ] || [ ! -e "$COMMAND" ]; then
        run ln -sfn "$PROGRAM/current/bin/defenderctl" "$COMMAND"
    else
        note "$COMMAND is somebody else's and stays; ours is $PROGRAM/current/bin/defenderctl"
    fi
}

do_install() {
    check_host
    if [ -n "$controller" ] && [ -z "$token" ] && [ ! -d "$STATE" ]; then
        fail "this host has not joined the fleet of $controller yet: it needs a join token (--join-token)"
    fi
    find_python
    begin
    find_wheel
    remember
    look_before
    changed=
    fresh_settings=
    install_program
    make_account
    write_settings
    write_options
    write_unit
    link_command
    if [ "$previous" != "$id" ]; then
        step "Making it the version in use"
        point "$id"
        changed=1
    fi
    if [ -n "$dry" ]; then
        [ -n "$stay" ] || note "would run: systemctl enable defender.service; systemctl restart defender.service"
        step "Nothing was done: --dry-run"
        return 0
    fi
    if [ -n "$stay" ]; then
        service daemon-reload
        step "Installed. Start it with: systemctl enable --now defender"
        return 0
    fi
    start_service
    remove_old
    if [ "$verdict" = pending ]; then
        step "Version $version runs. Until an operator approves this host, it denies everything"
    else
        [ -z "$joining" ] || forget_token
        step "Version $version runs and does well"
    fi
    [ -n "$joining" ] || [ -e "$SETTINGS/policy.yaml" ] ||
        note "it denies everything until there is a policy in $SETTINGS/policy.yaml"
    note "clients: DOCKER_HOST=unix:///run/defender/docker.sock"
    note "whoever can open the Engine's own socket goes around it; put it out of reach"
}

# ---- uninstalling

do_uninstall() {
    check_host
    if [ ! -e "$PROGRAM" ] && [ ! -e "$UNIT" ]; then
        if [ -z "$purge" ] || { [ ! -e "$STATE" ] && [ ! -e "$SETTINGS" ]; }; then
            step "No defender is installed here"
            return 0
        fi
    fi
    begin
    if [ -e "$UNIT" ]; then
        step "Stopping the service"
        run service disable --now --quiet defender.service
        [ ! -e "$UNITS/defender.socket" ] || run service disable --now --quiet defender.socket
        run rm -f "$UNIT" "$UNITS/defender.socket" "$DROPIN"
        [ ! -d "$(dirname "$DROPIN")" ] || run rmdir --ignore-fail-on-non-empty "$(dirname "$DROPIN")"
        run service daemon-reload
    fi
    if [ -e "$UNITS/controller.service" ]; then
        step "Leaving $PROGRAM: a controller of this host uses it"
    else
        step "Removing the program"
        case "$(readlink "$COMMAND" 2>/dev/null)" in "$PROGRAM"/*) run rm -f "$COMMAND" ;; esac
        run rm -rf "$PROGRAM"
    fi
    if [ -n "$purge" ]; then
        step "Removing settings, certificates and events, those not delivered yet among them"
        run rm -rf "$STATE" "$SETTINGS" /run/defender
        if getent passwd "$ACCOUNT" >/dev/null; then
            run userdel "$ACCOUNT" || note "the user $ACCOUNT stays: processes of it still run"
        fi
    else
        note "kept: $SETTINGS (settings), $STATE (certificates, locks, events) and the user $ACCOUNT;"
        note "--uninstall --purge removes them"
    fi
    step "Done. A fleet lists this host until it is removed there; the Engine's socket is as it was"
}

# ---- the beginning and the end

begin() {
    made=
    if [ -n "$dry" ]; then
        work=$(mktemp -d)
        trap 'rm -rf "$work"' EXIT
        return
    fi
    mkdir -p "$PROGRAM"
    chown root:root "$PROGRAM"
    chmod 0755 "$PROGRAM"
    exec 9>>"$PROGRAM/.lock"
    flock -n 9 || fail "another installation is under way"
    work=$(mktemp -d "$PROGRAM/.work.XXXXXX")
    # What was begun and not finished goes; a signal ends the script through the same door.
    trap 'rm -rf "$work" ${made:+"$made"}' EXIT
    trap 'exit 130' INT TERM HUP
}

read_token() {
    if [ -n "$token_file" ]; then
        [ -z "$token" ] || misused "--join-token and --join-token-file exclude each other"
        if [ "$token_file" = - ]; then
            IFS= read -r token || [ -n "$token" ] || fail "--join-token-file -: nothing came on standard input"
        else
            [ -f "$token_file" ] || fail "--join-token-file $token_file: there is no such file"
            IFS= read -r token <"$token_file" || [ -n "$token" ] || fail "--join-token-file $token_file: it is empty"
        fi
    fi
    [ -n "$token" ] || return 0
    [ -n "$controller" ] || misused "a join token is for a controller: say --controller HOST:PORT, too"
    # Never printed, here or anywhere.
    printf '%s\n' "$token" | grep -Eqx 'dft1\.[a-z2-7]{16}\.[a-z2-7]{32}\.[a-z2-7]{52}' ||
        fail "this is no join token, or not all of it: one has four parts with full stops between them, 107 letters"
}

check_values() {
    if [ -n "$controller" ]; then
        printf '%s\n' "$controller" | grep -Eqx '([A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}' ||
            misused "--controller $controller: must be HOST:PORT, such as fleet.example.com:8084"
        [ -z "$policy" ] || misused "--policy: a defender with a controller has its policy from there"
    fi
    case "$listen" in
        "" | unix | tcp | unix+tcp | none) ;;
        *) misused "--listen $listen: must be unix, tcp, unix+tcp or none" ;;
    esac
    if [ -n "$name" ]; then
        printf '%s\n' "$name" | grep -Eqx '[A-Za-z0-9][A-Za-z0-9._-]{0,252}' ||
            misused "--name $name: must be a host name (letters, digits, '.', '_', '-')"
    fi
    if [ -n "$engine" ]; then
        printf '%s\n' "$engine" | grep -Eqx 'unix:///[A-Za-z0-9._/@+-]+' ||
            misused "--engine $engine: must be a unix socket, written as unix:///run/docker.sock"
    fi
    case "$wanted" in *[!A-Za-z0-9.+_!]*) misused "--version $wanted: this is no version" ;; esac
    [ -z "$policy" ] || [ -f "$policy" ] || fail "--policy $policy: there is no such file"
    [ -z "$purge" ] || [ -n "$uninstall" ] || misused "--purge goes with --uninstall"
}

main() {
    controller='' token='' token_file='' from='' wheel='' wheels='' index='' wanted='' python='' name='' engine=''
    listen='' policy='' stay='' uninstall='' purge='' dry='' verdict='' joining=''
    while [ $# -gt 0 ]; do
        option=$1
        shift
        case "$option" in
            --help | -h)
                usage
                exit 0
                ;;
            --no-start) stay=1 && continue ;;
            --uninstall) uninstall=1 && continue ;;
            --purge) purge=1 && continue ;;
            --dry-run) dry=1 && continue ;;
            --*=*)
                value=${option#*=}
                option=${option%%=*}
                ;;
            --*)
                [ $# -gt 0 ] || misused "$option: needs a value, or is no option"
                value=$1
                shift
                ;;
            *) misused "what is meant by this word: $option" ;;
        esac
        [ -n "$value" ] || misused "$option: its value is empty"
        case "$value" in *[[:cntrl:]]*) misused "$option: its value has control characters in it" ;; esac
        case "$option" in
            --controller) controller=$value ;;
            --join-token) token=$value ;;
            --join-token-file) token_file=$value ;;
            --from) from=$value ;;
            --wheel) wheel=$value ;;
            --index) index=$value ;;
            --version) wanted=$value ;;
            --python) python=$value ;;
            --name) name=$value ;;
            --engine) engine=$value ;;
            --listen) listen=$value ;;
            --policy) policy=$value ;;
            *) misused "there is no option $option" ;;
        esac
    done
    # What is said, or was said before, counts for more.
    if [ -z "$controller$policy$uninstall" ]; then
        if [ -n "$token$token_file" ] || [ ! -e "$SETTINGS/defender.toml" ]; then
            controller=$FLEET
        fi
    fi
    check_values
    read_token
    if [ -n "$uninstall" ]; then
        do_uninstall
    else
        do_install
    fi
}

# ---- the service: a copy of deploy/systemd/defender.service, held to it by a test

defender_service() {
    cat <<'UNIT'
# The defender as a service of systemd 252 (Debian 12) or newer.
#
# deploy/install/defender.sh puts it in place with all that it needs: a system user `defender`; root-owned virtual
# environments in /opt/defender-fleet, `current` leading to the one in use; settings in
# /etc/defender/defender.toml with `state = "/var/lib/defender"`. Options of `twistd defender` go into
# /etc/defender/options, as DEFENDER_OPTIONS="--controller HOST:8084". By hand: docs/how-to/run-under-systemd.md.

[Unit]
Description=Access control in front of the Docker Engine
Documentation=man:systemd.exec(5) man:sd_notify(3)
# Not Requires=: without its Engine the defender answers 502 and recovers, and its decisions are still noted.
Wants=network.target
After=network.target docker.service nss-user-lookup.target
# Never given up: without its defender the host serves nobody, and nobody may be there to start it.
StartLimitIntervalSec=0

[Service]
# Ready: each listener has been tried. One that cannot be opened is retried, and told of in `systemctl status`, in
# the log and by `defenderctl local status`.
Type=notify
NotifyAccess=main
# Fed while the self-checks pass: clients are served, the audit trail's thread lives. An Engine, a controller or
# a disk that fails is no reason to end. SIGABRT has Python write every thread's stack to the journal.
WatchdogSec=60
Environment=PYTHONFAULTHANDLER=1
# What is in memory has been typed and sent by people, keys beside it.
LimitCORE=0
User=defender
Group=defender
# To give its socket to the group that Docker's users are in, and, with defender.socket, to knock at the socket
# that systemd passes: a switch tries each new listener before it leaves the old one.
SupplementaryGroups=docker
EnvironmentFile=-/etc/defender/options
ExecStart=/opt/defender-fleet/current/bin/twistd --nodaemon --pidfile= defender \
    --config /etc/defender/defender.toml $DEFENDER_OPTIONS
ExecReload=/bin/kill -HUP $MAINPID
Restart=always
RestartSec=1
# For the audit trail's last write. A defender that drains its streams asks for more as it goes.
TimeoutStopSec=20

# twistd loads dropin.cache, a pickle, from every twisted/plugins on sys.path: nothing but the virtual
# environment may be on it.
Environment=PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1
UnsetEnvironment=PYTHONPATH PYTHONHOME PYTHONSTARTUP
# --nodaemon leaves the umask alone. The sockets have modes of their own.
UMask=0077
# Every stream takes two descriptors, every client connection one.
LimitNOFILE=65536
OOMScoreAdjust=-500

StateDirectory=defender
StateDirectoryMode=0700
# The unix socket stands in /run/defender. Without Preserve, a stop of the service would remove the socket of
# defender.socket with its directory.
RuntimeDirectory=defender
RuntimeDirectoryMode=0755
RuntimeDirectoryPreserve=yes

# The server's key encrypted to this machine (systemd-creds encrypt --name=server.key ...). Then say
# `key = "/run/credentials/defender.service/server.key"` under [tls].
#LoadCredentialEncrypted=server.key:/etc/defender/server.key.cred

# What it may do: listen, speak with the Engine, write its state. Nothing needs a capability: port 9998 is not
# privileged and the Engine's socket is opened by its owner.
CapabilityBoundingSet=
AmbientCapabilities=
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
KeyringMode=private
LockPersonality=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RemoveIPC=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
# Clients, the Engine, the control socket; netlink is how glibc asks for the interfaces.
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK

# Left out on purpose:
#   MemoryDenyWriteExecute=yes: tried with pyOpenSSL 26.4 on cffi 2.1. Its callbacks, which check certificates,
#   are made at run time in pages that are written and executed; with the setting no TLS listener opens
#   ("Cannot allocate write+execute memory for ffi.callback()").
# These three would make every unix peer "anonymous":
#   ProtectProc=invisible and ProcSubset=pid hide /proc/PID/cgroup of the peers, which tells containers apart;
#   PrivateUsers=yes maps the peers' uids to "nobody";
#   a PID namespace of its own turns the peers' process ids to 0.

[Install]
WantedBy=multi-user.target
UNIT
}

main "$@"
