# shellcheck shell=sh
# Sourced by install-run-deps and install-test-deps: what is missing, and how to install it here.

set -eu

apt_wanted=
brew_wanted=

# want APT BREW: the package of Debian and Ubuntu, and that of Homebrew; `-` where the system brings it along.
want() {
    [ "$1" = - ] || apt_wanted="$apt_wanted $1"
    [ "$2" = - ] || brew_wanted="$brew_wanted $2"
}

have() {
    command -v "$1" >/dev/null 2>&1
}

have_any_file() {
    for file; do
        [ ! -e "$file" ] || return 0
    done
    return 1
}

fail() {
    echo "$0: $*" >&2
    exit 1
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif have sudo; then
        sudo "$@"
    else
        fail "needs root and there is no sudo; as root, run: apt-get install$apt_wanted"
    fi
}

install_wanted() {
    if have apt-get; then
        [ -n "$apt_wanted" ] || return 0
        echo "installing:$apt_wanted"
        as_root apt-get update -q
        # shellcheck disable=SC2086 # a list of names
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $apt_wanted
    elif have brew; then
        [ -n "$brew_wanted" ] || return 0
        echo "installing:$brew_wanted"
        # shellcheck disable=SC2086 # a list of names
        brew install $brew_wanted
    elif [ -n "$apt_wanted" ]; then
        fail "neither apt-get nor brew is here; install what these Debian packages hold:$apt_wanted"
    fi
}

have_softhsm() {
    have_any_file "${CLAVIGER_DEV_MODULE:-/nonexistent}" \
        /usr/lib/softhsm/libsofthsm2.so /usr/lib/*/softhsm/libsofthsm2.so \
        /usr/lib64/pkcs11/libsofthsm2.so /usr/lib64/libsofthsm2.so /usr/lib/pkcs11/libsofthsm2.so \
        /opt/homebrew/lib/softhsm/libsofthsm2.so /usr/local/lib/softhsm/libsofthsm2.so
}

have cargo || fail "there is no Rust toolchain: see https://rustup.rs, then run this again"
