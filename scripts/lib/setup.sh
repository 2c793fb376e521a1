# shellcheck shell=bash
# Shared setup of the scripts; sourced, not run. What it leaves: $root, the repository, and $venv,
# its .venv, which after daxfs_setup holds daxfs with the wanted extra.
#
# Silent on success but for one line when there is something to install; the whole log on failure.
# All of it goes to stderr: stdout belongs to the script. A second run costs some milliseconds: a
# stamp in .venv holds a hash of all that the installation depends on.

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
venv=$root/.venv

say() { printf '%s\n' "$*" >&2; }
die() { say "setup: $*"; exit 1; }

# quietly WHAT COMMAND...: run it; its output is shown only when it fails.
quietly() {
    local what=$1 log
    shift
    log=$(mktemp)
    if ! "$@" >"$log" 2>&1 </dev/null; then
        cat "$log" >&2
        rm -f "$log"
        die "$what failed; the log stands above"
    fi
    rm -f "$log"
}

# The first Python from 3.11 on: $PYTHON, else what the shell finds. Shims and links are resolved.
find_python() {
    local name path
    for name in ${PYTHON:+"$PYTHON"} python3 python3.14 python3.13 python3.12 python3.11; do
        path=$("$name" -c 'import sys
print(getattr(sys, "_base_executable", sys.executable) if sys.version_info >= (3, 11) else "")' \
            2>/dev/null) || continue
        if [ -n "$path" ]; then
            printf '%s\n' "$path"
            return
        fi
    done
    return 1
}

# missing_packages TEST|RUN: the Debian packages of the tools that are not here, one a line.
missing_packages() {
    local entry PATH=$PATH:/usr/sbin # where Debian keeps xfs_io, also off the PATH of users
    local wanted="fusermount3:fuse3 pkg-config:pkg-config gcc:gcc fio:fio"
    if [ "$1" = test ]; then
        wanted+=" setfattr:attr setfacl:acl sqlite3:sqlite3 git:git rsync:rsync make:make tar:tar"
        wanted+=" xfs_io:xfsprogs lsattr:e2fsprogs stress-ng:stress-ng"
        compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || wanted+=" initdb:postgresql"
    fi
    for entry in $wanted; do
        command -v "${entry%%:*}" >/dev/null || printf '%s\n' "${entry#*:}"
    done
    pkg-config --exists fuse3 2>/dev/null || printf 'libfuse3-dev\n'
    printf '#include <stdio.h>\n' | gcc -E -x c - >/dev/null 2>&1 || printf 'libc6-dev\n'
    if [ -z "${python:-}" ]; then
        printf 'python3\npython3-venv\npython3-dev\n'
        return
    fi
    "$python" -c 'import ensurepip, venv' 2>/dev/null || printf 'python3-venv\n'
    "$python" -c 'import os, sysconfig
raise SystemExit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
        printf 'python3-dev\n'
}

install_packages() {
    local -a as_root=()
    if [ "$(id -u)" != 0 ]; then
        sudo -n true 2>/dev/null ||
            die "missing system packages; as root: apt-get install $*"
        as_root=(sudo -n)
    fi
    command -v apt-get >/dev/null || die "no apt-get here; install by hand: $*"
    say "setup: installing $*"
    quietly "apt-get update" "${as_root[@]}" apt-get update
    # Meanwhile a setting keeps postgresql from making and starting a cluster of the system.
    # shellcheck disable=SC2016 # expanded by the inner shell
    quietly "apt-get install" "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive sh -c '
        set -e
        setting=/etc/postgresql-common/createcluster.d/daxfs-tests.conf
        case " $* " in *" postgresql "*)
            trap "rm -f $setting" EXIT
            mkdir -p "${setting%/*}"
            echo "create_main_cluster = false" >"$setting" ;;
        esac
        apt-get install -y --no-install-recommends "$@"' sh "$@"
}

# daxfs_setup EXTRA: make .venv hold daxfs with the extra (dev for the tests, plot for the demo).
daxfs_setup() {
    local extra=$1 kind="run" stamp want missing
    if [ "$extra" = dev ]; then kind="test"; fi
    stamp=$venv/.setup-$extra
    want=$( (
        printf '%s\n' "$root"
        cd "$root"
        cat pyproject.toml daxfs/fuse/_lowlevel.c scripts/lib/{setup.sh,build_backend.py}
    ) | sha256sum)
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ] && "$venv/bin/python" -c '' 2>/dev/null; then
        return
    fi

    exec 9<"$root/pyproject.toml"
    flock 9 # two scripts started at once: the second one waits and finds the work done
    python=$(find_python) || python=
    missing=$(missing_packages "$kind" | sort -u)
    if [ -n "$missing" ]; then
        # shellcheck disable=SC2086 # one word a package
        install_packages $missing
        python=$(find_python) || die "daxfs needs Python 3.11 or newer"
        missing=$(missing_packages "$kind" | sort -u | tr '\n' ' ')
        [ -z "$missing" ] || die "still missing after the installation: $missing"
    fi
    if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$want" ]; then
        say "setup: installing daxfs[$extra] into .venv"
        if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
            quietly "making .venv" "$python" -m venv --clear "$venv"
        fi
        quietly "pip install" "$venv/bin/python" -m pip install --quiet \
            --disable-pip-version-check -e "$root[$extra]"
        printf '%s\n' "$want" >"$stamp"
    fi
    exec 9<&-
}
