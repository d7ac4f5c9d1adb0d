# The interpreters: finds a free-threaded CPython 3.13 or gets one, and finds the GIL builds that lint and tests use.

# Prints the real executable and its version when it is what we want, and nothing otherwise. A module that is missing
# (a build without OpenSSL, say) disqualifies it now rather than in the middle of an installation.
readonly PROBE='
import bz2, ctypes, ensurepip, lzma, multiprocessing.synchronize, os, ssl, sys, sysconfig, venv, zlib
free_threaded, lowest, highest = sys.argv[1:]
version = sys.version_info[:2]
fits = tuple(map(int, lowest.split("."))) <= version <= tuple(map(int, highest.split(".")))
threading = "t" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""
if not fits or sys.implementation.name != "cpython" or sys.abiflags != free_threaded or threading != free_threaded:
    sys.exit(1)
print(os.path.realpath(getattr(sys, "_base_executable", sys.executable)))
'

# probe EXECUTABLE t|"" LOWEST HIGHEST: the path of the interpreter behind EXECUTABLE, when it fits.
probe() {
    timeout 20 "$1" -I -c "$PROBE" "$2" "$3" "$4" 2>/dev/null </dev/null
}

probe_free_threaded() { probe "$1" t 3.13 3.13; }

on_path() { command -v "$1" || true; }

uv_finds() {
    ! command -v uv >/dev/null || UV_PYTHON_DOWNLOADS=never timeout 20 uv python find --system "$1" 2>/dev/null || true
}

# cached_interpreters t|"": the folders of those with or without free threading, newest first.
cached_interpreters() {
    [[ ! -d $CACHE/python ]] || find "$CACHE/python" -maxdepth 1 -name "cpython-*[0-9]$1-$PLATFORM" | sort -rV
}

# Where a free-threaded 3.13 may be, best first, one a line.
free_threaded_candidates() {
    local folder
    on_path python3.13t
    uv_finds 3.13t
    while read -r folder; do printf '%s\n' "$folder/bin/python3.13t"; done < <(cached_interpreters t)
}

# Sets PYTHON when a free-threaded 3.13 is already here.
find_free_threaded() {
    local candidate
    if [[ -n ${GATEWAY_PYTHON:-} ]]; then
        PYTHON=$(probe_free_threaded "$GATEWAY_PYTHON") ||
            fail "GATEWAY_PYTHON=$GATEWAY_PYTHON is not a complete free-threaded CPython 3.13" \
                "It must run, have the GIL disabled at build time, and have ssl, zlib, bz2, lzma, ctypes, venv and ensurepip."
        return 0
    fi
    while read -r candidate; do
        if [[ -n $candidate ]] && PYTHON=$(probe_free_threaded "$candidate"); then return 0; fi
    done < <(free_threaded_candidates)
    PYTHON=
    return 1
}

# first_gil LOWEST HIGHEST CANDIDATE...: the first candidate that is a GIL CPython of such a version.
first_gil() {
    local lowest=$1 highest=$2 candidate
    shift 2
    for candidate in "$@"; do
        [[ -z $candidate ]] || ! probe "$candidate" "" "$lowest" "$highest" || return 0
    done
    return 1
}

# The one built here first: it has the flags of the free-threaded one, which makes a comparison fair.
find_gil_3_13() {
    first_gil 3.13 3.13 "${GATEWAY_GIL_PYTHON:-}" "$(built_gil)" "$(on_path python3.13)" "$(on_path python3)" \
        "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.13.*/bin/python3.13 "$(uv_finds 3.13)"
}

built_gil() {
    local folder
    folder=$(cached_interpreters "" | head -n 1)
    [[ -z $folder ]] || printf '%s' "$folder/bin/python3.13"
}

find_tools_python() {
    local name paths=()
    for name in python3 python3.12 python3.13 python3.11 python3.10 python3.14; do paths+=("$(on_path "$name")"); done
    first_gil 3.10 3.14 "${GATEWAY_GIL_PYTHON:-}" "${paths[@]}" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1*/bin/python3 \
        "$(uv_finds 3.12)"
}

# adopt FOLDER t|"": moves a finished interpreter tree into the cache in one step.
adopt() {
    local version target python=$1/bin/python3.13$2
    probe "$python" "$2" 3.13 3.13 >/dev/null || return 1
    version=$("$python" -I -c 'import platform; print(platform.python_version())')
    target="$CACHE/python/cpython-$version$2-$PLATFORM"
    mkdir -p "$CACHE/python"
    rm -rf "$target"
    mv -T "$1" "$target"
}

# from_wheelhouse GLOB: the newest such file of the wheelhouse that matches its SHA256SUMS.
from_wheelhouse() {
    local file
    [[ -n $WHEELHOUSE && -r $WHEELHOUSE/SHA256SUMS ]] || return 0
    while read -r file; do
        if (cd "$WHEELHOUSE" && grep -F "  ${file##*/}" SHA256SUMS | sha256sum --check --status --strict); then
            printf '%s\n' "$file"
            return 0
        fi
        printf 'set-up: %s is not what its SHA256SUMS says: ignored\n' "$file" >&2
    done < <(find "$WHEELHOUSE/" -maxdepth 1 -name "$1" | sort -rV)
}

wheelhouse_interpreter() { from_wheelhouse "cpython-3.13.*t-linux-$(uname -m).tar.xz"; }

# unpack_interpreter ARCHIVE: fails when it does not run on this machine.
unpack_interpreter() {
    local folder=$WORK/unpacked
    rm -rf "$folder"
    mkdir -p "$folder"
    tar -xJf "$1" -C "$folder" --no-same-owner
    adopt "$(find "$folder" -path '*/bin/python3.13t' | sed 's|/bin/python3.13t$||' | head -n 1)" t
}

uv_installs() { timeout 180 uv python install 3.13t; }

# The archive this machine already uses, asked for its source packages, with lists and state of our own.
write_apt_configuration() {
    local folder=$1 suite=$2 keyring signed='' uri
    for keyring in /usr/share/keyrings/{debian,ubuntu}-archive-keyring.{gpg,pgp}; do
        if [[ -e $keyring && $keyring == */"$DISTRIBUTION"-* ]]; then signed="[signed-by=$keyring]"; fi
    done
    mkdir -p "$folder/lists/partial" "$folder/archives/partial"
    : >"$folder/status"
    while read -r uri; do
        printf 'deb-src %s %s %s main\n' "$signed" "$uri" "$suite"
    done < <(archive_uris) >"$folder/sources.list"
    # The machine's own settings (proxies, certificates) hold; its update hooks refresh system caches, so they go.
    cat >"$folder/apt.conf" <<CONFIGURATION
Dir::State::Lists "$folder/lists";
Dir::State::status "$folder/status";
Dir::Cache "$folder";
Dir::Cache::archives "$folder/archives";
Dir::Etc::SourceList "$folder/sources.list";
Dir::Etc::SourceParts "/dev/null";
APT::Sandbox::User "";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowDowngradeToInsecureRepositories "false";
APT::Get::AllowUnauthenticated "false";
Acquire::Retries "3";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
CONFIGURATION
}

# Those that serve this release: the distribution's, and perhaps others, whose signatures then do not fit its keyring.
# Asked without what an `apt-get update` would have told, because there may have been none.
archive_uris() {
    local codename
    codename=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")
    apt-get indextargets --no-release-info --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
        awk -v codename="$codename" '$2 == "main" && $1 ~ "^(" codename "|stable|testing|unstable|sid)$" { print $3 }' |
        sort -u
}

# The suites that may have CPython 3.13, newest first.
source_suites() {
    case $DISTRIBUTION in
        ubuntu) printf '%s\n' devel questing plucky ;;
        *) printf '%s\n' sid forky trixie ;;
    esac
}

# download_source SUITE: the source package into $WORK/source. A mirror's index may name files its pool has lost by now,
# hence all versions, newest first.
download_source() {
    local configuration=$WORK/apt/apt.conf version
    rm -rf "$WORK/apt" "$WORK/source"
    write_apt_configuration "$WORK/apt" "$1"
    mkdir -p "$WORK/source"
    cd "$WORK/source"
    apt-get -c "$configuration" update || true
    while read -r version; do
        ! apt-get -c "$configuration" source --download-only --only-source "python3.13=$version" || return 0
    done < <(apt-cache -c "$configuration" showsrc --only-source python3.13 | sed -n 's/^Version: //p' | sort -rV)
    return 1
}

# CPython's original source as $WORK/cpython; apt has checked the archive's signature and the files' hashes, and the one
# file that is used is checked again against the signed index.
fetch_source() {
    local suite archive
    while read -r suite; do
        ! download_source "$suite" || break
    done < <(source_suites)
    archive=$(find "$WORK/source" -name 'python3.13_3.13.*.orig.tar.xz')
    [[ -n $archive ]] || { printf 'no suite of the archive gives a source package python3.13\n'; return 1; }
    apt-cache -c "$WORK/apt/apt.conf" showsrc --only-source python3.13 |
        awk -v file="${archive##*/}" -v path="$archive" 'length($1) == 64 && $3 == file {print $1 "  " path}' |
        sort -u | sha256sum --check --strict
    rm -rf "$WORK/cpython.part"
    mkdir -p "$WORK/cpython.part"
    tar -xJf "$archive" -C "$WORK/cpython.part" --strip-components=1 --no-same-owner
    mv -T "$WORK/cpython.part" "$WORK/cpython"
    rm -rf "$WORK/source" "$WORK/apt"
}

# build_cpython t|"": with or without free threading, and the same flags otherwise.
# Resumes where it was cut off: configure's and make's own state is in the tree.
build_cpython() {
    local version prefix threading=()
    [[ $1 != t ]] || threading=(--disable-gil)
    cd "$WORK/cpython"
    version=$(sed -n 's/^#define PY_VERSION  *"\(.*\)"/\1/p' Include/patchlevel.h)
    prefix="$CACHE/python/cpython-$version$1-$PLATFORM"
    if [[ ! -e configured ]]; then
        ./configure "${threading[@]}" --prefix="$prefix" --with-ensurepip=no --disable-test-modules \
            --without-static-libpython OPT='-DNDEBUG -fwrapv -O3 -g0 -Wall'
        : >configured
    fi
    # A machine that lost power may have left half an object file, which make would believe: start over after a failure.
    if ! make -j"$CORES"; then
        rm -rf "$WORK/cpython"
        return 1
    fi
    rm -rf "$WORK/installed"
    make altinstall DESTDIR="$WORK/installed" >/dev/null
    rm -rf "$WORK/installed$prefix/lib/python3.13$1"/{idlelib,turtledemo}
    # It runs from where it lies, so it can be looked over before it takes its place.
    adopt "$WORK/installed$prefix" "$1"
}

# Gets a free-threaded 3.13 by the cheapest way that works, and sets PYTHON.
get_free_threaded() {
    stage "CPython 3.13t source" 30 "Is the package archive reachable? Or name an interpreter in GATEWAY_PYTHON." \
        fetch_source_once
    stage "CPython 3.13t build" $((35 + 220 / CORES)) "The log has the compiler's message." build_cpython t
    find_free_threaded || fail "the interpreter that was just built does not pass its check"
}

# A GIL build from the same source, for comparisons.
get_gil() {
    stage "CPython 3.13 source" 30 "Is the package archive reachable? Or name an interpreter in GATEWAY_GIL_PYTHON." \
        fetch_source_once
    stage "CPython 3.13 build" $((35 + 220 / CORES)) "The log has the compiler's message." build_cpython ""
    rm -rf "$WORK/cpython" "$WORK/installed"
}

fetch_source_once() { [[ -d $WORK/cpython ]] || fetch_source; }
