# shellcheck shell=bash
# What the entry points share: make .venv beside this checkout, with this library in it. To be sourced.
#
# Environment: PYTHON   the interpreter to use (default: the first of python3, python3.13 ... python3.11 that is new enough)
#              VENV     where the virtual environment goes (default: .venv in the checkout)

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${VENV:-$root/.venv}

say() { printf '%s\n' "$*" >&2; }
die() { say "$0: $*"; exit 1; }

# Install Debian packages, or say which are missing. Fails when it cannot.
apt_install() {
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        say "missing: $*; as root: apt-get install $* (or what your distribution calls them)"
        return 1
    fi
    say "installing: $*"
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update >&2 && apt-get -qq -o Dpkg::Use-Pty=0 install -y --no-install-recommends --no-upgrade "$@" >/dev/null
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    die "no Python >= 3.11 found (looked for: ${PYTHON:-python3 ...}); name one in PYTHON"
}

make_venv() {
    local python
    python=$(find_python)
    # Debian's python3 comes without ensurepip, which venv needs.
    "$python" -c 'import ensurepip, venv' 2>/dev/null || apt_install python3-venv || die "this Python cannot make virtual environments"
    "$python" -m venv "$venv"
}

need_compiler() {
    [ -n "${CC:-}" ] || command -v cc >/dev/null || command -v gcc >/dev/null || command -v clang >/dev/null ||
        apt_install gcc libc6-dev || die "the launcher is written in C, and there is no C compiler"
}

# What an installation depends on: when it changes, install again.
fingerprint() {
    {
        printf '%s\n' "${CC:-}" "${CFLAGS:-}" "$root"
        cat "$root/pyproject.toml" "$root/hatch_build.py" "$root"/sandbox/_launch/c/*.[ch]
    } | sha256sum | cut -d' ' -f1
}

# install EXTRAS: make .venv if needed and install this checkout into it, editable, with these extras ("" or "test,dev").
# Does nothing when that was done already.
install() {
    local stamp=$venv/.sandbox-${1//,/-} print other
    print=$(fingerprint)
    if [ -x "$venv/bin/python" ] && [ -x "$root/sandbox/_launch/launcher" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$print" ]; then
        return
    fi
    need_compiler
    [ -x "$venv/bin/python" ] && "$venv/bin/python" -m pip --version >/dev/null 2>&1 || make_venv
    say "installing into $venv"
    # use-pep517: the pip of Debian 12 otherwise runs a dependency's setup.py, and complains.
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --use-pep517 --editable "$root${1:+[$1]}" >&2
    # One launcher serves all sets of extras: what was installed from other sources counts no more.
    for other in "$venv"/.sandbox-*; do
        [ "$(cat "$other" 2>/dev/null)" = "$print" ] || rm -f "$other"
    done
    printf '%s\n' "$print" >"$stamp"
}
