# What the stages ahead need from this machine: everything that is missing is listed at once, with the package that has it.

# rayon 1.11 in tokenizers' Cargo.lock asks for 1.80, more than any other crate there.
readonly CARGO_NEEDED=1.80

missing=()
packages=()

lack() {
    missing+=("$1")
    [[ -z ${2:-} ]] || packages+=("$2")
}

need_command() {
    command -v "$1" >/dev/null || lack "$1" "$2"
}

need_header() {
    local folder
    for folder in /usr/include /usr/include/*-linux-* /usr/local/include; do
        [[ ! -e $folder/$1 ]] || return 0
    done
    lack "$1" "$2"
}

# at_least VERSION MINIMUM
at_least() {
    [[ $(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1) == "$2" ]]
}

# The distribution's cargo package that is recent enough: some carry one under a name of its own.
cargo_package() {
    local name version
    command -v apt-cache >/dev/null || return 0
    for name in cargo cargo-web $(apt-cache pkgnames cargo-1. 2>/dev/null | sort -rV) rustup; do
        version=$(apt-cache policy "$name" 2>/dev/null | sed -n 's/^ *Candidate: //p')
        [[ -n $version && $version != '(none)' ]] || continue
        # rustup's own version says nothing about the compilers it installs.
        if [[ $name == rustup ]] || at_least "$version" "$CARGO_NEEDED" ||
            { [[ $name == cargo-1.* ]] && at_least "${name#cargo-}" "$CARGO_NEEDED"; }; then
            printf '%s' "$name"
            return 0
        fi
    done
}

need_cargo() {
    local version package
    version=$(cargo --version 2>/dev/null | awk '{print $2}') || true
    if [[ -n $version ]] && at_least "$version" "$CARGO_NEEDED"; then return 0; fi
    package=$(cargo_package)
    lack "cargo >= $CARGO_NEEDED (${version:+here is $version, }builds tokenizers; rustup has it too)" "$package"
}

need_compiler() {
    need_command gcc gcc
    need_command g++ g++
    need_header stdlib.h libc6-dev
}

need_network() {
    [[ -e /etc/ssl/certs/ca-certificates.crt ]] || lack "TLS certificates" ca-certificates
}

# CPython is built without semaphores where there are none to try, and grpcio's build has threads that use them.
need_shared_memory() {
    [[ -w /dev/shm ]] || lack "a writable /dev/shm (mount a tmpfs there)"
}

need_space() {
    local free_mb
    free_mb=$(df -Pm "$CACHE" | awk 'NR == 2 {print $4}')
    ((free_mb >= $1)) || lack "$1 MB of disk space in $CACHE (has $free_mb)"
}

needs_of_cpython() {
    if ! command -v apt-get >/dev/null; then
        lack "a free-threaded CPython 3.13: name one in GATEWAY_PYTHON, or install uv (this machine has no apt-get)"
        return
    fi
    need_compiler
    need_command make make
    need_command xz xz-utils
    # apt verifies the archive's signatures with one of the two.
    command -v gpgv >/dev/null || command -v sqv >/dev/null || lack gpgv gpgv
    need_header openssl/ssl.h libssl-dev
    need_header zlib.h zlib1g-dev
    need_header ffi.h libffi-dev
    need_header bzlib.h libbz2-dev
    need_header lzma.h liblzma-dev
    need_header sqlite3.h libsqlite3-dev
    need_header uuid/uuid.h uuid-dev
    need_network
    need_shared_memory
    need_space 1500
}

needs_of_grpcio() {
    need_compiler
    need_network
    need_shared_memory
    need_space 1500
}

needs_of_tokenizers() {
    need_compiler
    need_cargo
    need_network
    need_space 1000
}

# Ends the set-up when anything was lacking.
preflight() {
    local install thing
    ((${#missing[@]})) || return 0
    {
        printf 'set-up: this machine lacks, for what is still to be done:\n'
        printf '%s\n' "${missing[@]}" | sort -u | sed 's/^/  - /'
        if ((${#packages[@]})); then
            install=$(printf '%s\n' "${packages[@]}" | sort -u | tr '\n' ' ')
            printf 'Install it with:\n  %sapt-get install %s\n' "$( ((EUID == 0)) || printf 'sudo ')" "${install% }"
        fi
        printf 'Then run the same command again.\n'
    } >&2
    exit 1
}
