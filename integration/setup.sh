# shellcheck shell=bash
# What a Debian machine needs to build and mount parsfs, for the scripts beside it, which source this file.

# The oldest Rust that builds parsfs; Cargo.toml says the same.
rust=1.90

fail() {
    echo "integration/$(basename "$0"): $*" >&2
    exit 1
}

# Debian packages that are not there yet.
install_packages() {
    local missing=() package
    for package in "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)" = installed ] || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    echo "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    # A new machine may be updating itself, and mirrors fail at times.
    local patient=(-o DPkg::Lock::Timeout=600 -o Acquire::Retries=5)
    apt-get update -qq "${patient[@]}"
    apt-get install -y -qq --no-install-recommends "${patient[@]}" "${missing[@]}" >/dev/null
}

new_enough() {
    [ "$(printf '%s\n%s\n' "$rust" "$1" | sort -V | head -n 1)" = "$rust" ]
}

# The version of cargo that a package would bring.
candidate() {
    apt-cache policy "$1" 2>/dev/null | awk '$1 == "Candidate:" && $2 != "(none)" { print $2 }'
}

# Makes a toolchain in the usual place of rustup's be found.
find_rust() {
    # What a service manager starts has no home.
    export HOME=${HOME:-/root}
    if [ -d "$HOME/.cargo/bin" ]; then PATH=$HOME/.cargo/bin:$PATH; fi
    # Debian's own rustup would otherwise fetch another toolchain in the middle of a test.
    export PATH RUSTUP_AUTO_INSTALL=${RUSTUP_AUTO_INSTALL:-0}
}

# A toolchain that is there is used. Else Debian's: `cargo` where it is new enough, and on Debian 12 the packages that its
# security updates carry for browsers, `cargo-web` and `rustc-web`.
set_up_rust() {
    # Cargo fetches crates over TLS.
    install_packages ca-certificates
    find_rust
    if ! command -v cargo >/dev/null; then
        apt-get update -qq
        local version
        if version=$(candidate cargo-web) && [ -n "$version" ] && new_enough "$version"; then
            install_packages cargo-web rustc-web rustfmt-web rust-web-clippy
        elif version=$(candidate cargo) && [ -n "$version" ] && new_enough "$version"; then
            install_packages cargo rustc rustfmt rust-clippy
        elif [ -n "$(candidate rustup)" ]; then
            install_packages rustup
            rustup toolchain install stable --profile minimal --component clippy,rustfmt
        else
            fail "Rust $rust or later is needed and Debian's sources have none. On Debian 12 add the security updates to
/etc/apt/sources.list (deb http://deb.debian.org/debian-security bookworm-security main), or install it from
https://rustup.rs, and start again."
        fi
    fi
    local version
    version=$(cargo --version | awk '{ print $2 }')
    new_enough "$version" || fail "cargo $version is too old: Rust $rust or later is needed (https://rustup.rs)"
}

# Root, these packages, /dev/fuse.
set_up_mounting() {
    [ "$(id -u)" = 0 ] || fail "needs root, to mount"
    command -v apt-get >/dev/null || fail "needs Debian: there is no apt-get"
    install_packages "$@"
    [ -c /dev/fuse ] || modprobe fuse 2>/dev/null || true
    [ -c /dev/fuse ] || fail "there is no /dev/fuse; a container needs --device /dev/fuse and the right to mount"
}

# All of it.
set_up_machine() {
    set_up_mounting "$@"
    set_up_rust
}
