# The three virtual environments: which are ready, what each needs, and how each is made.

# Of everything an environment depends on: when one of these changes it is made anew, from the cache.
environment_key() {
    printf '%s %s %s %s' "$ROOT" "$PLATFORM" "$(hash_of "$1" "$HERE/environments.sh")" "$2"
}

environment_is_ready() {
    [[ -e $ROOT/$1/.ready && $(<"$ROOT/$1/.ready") == "$(environment_key "$2" "$3")" ]] &&
        "$ROOT/$1/bin/python" -I -S -c '' 2>/dev/null
}

# open_environment NAME PYTHON LOCK WHEELS [BUILT_WHEEL...]: an empty environment, and its locked wheels in the cache.
open_environment() {
    local folder=$ROOT/$1 lock=$3 wheels=$4
    rm -rf "$folder"
    "$2" -m venv "$folder"
    shift 4
    is_downloaded "$lock" "$wheels" || download "$folder/bin/python" "$lock" "$wheels" "$@"
}

# fill_environment NAME LOCK WHEELS CHOSEN [BUILT_WHEEL...]: needs no network. Locked wheels are checked against the lock
# once more; for those built here there is no hash to check.
fill_environment() {
    local folder=$ROOT/$1 lock=$2 wheels=$3 chosen=$4 wheel pip
    shift 4
    pip=("$folder/bin/python" -m pip --isolated --disable-pip-version-check install --no-index --no-deps --find-links "$wheels")
    entries "$lock" without "$@" >"$folder/locked.txt"
    "${pip[@]}" --only-binary :all: --require-hashes -r "$folder/locked.txt"
    for wheel in "$@"; do "${pip[@]}" "$(built_wheel "$wheels" "$wheel")"; done
    # The project runs from the checkout.
    printf '%s\n' "$ROOT" >"$("$folder/bin/python" -I -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/nogil-gateway.pth"
    environment_key "$lock" "$chosen" >"$folder/.ready.part"
}

seal() { mv "$ROOT/$1/.ready.part" "$ROOT/$1/.ready"; }

readonly GATEWAY_IMPORTS='
import sys
import grpc, hypercorn, jinja2, numpy, PIL.Image, starlette, tokenizers
if sys._is_gil_enabled():
    sys.exit("the GIL is on")
'

plan_gateway() {
    local archive
    if ! find_free_threaded; then
        archive=$(wheelhouse_interpreter)
        if [[ -n $archive ]]; then
            need_command xz xz-utils
            preflight
            stage "CPython 3.13t from the wheelhouse" 5 "Set GATEWAY_WHEELHOUSE= to do without it." \
                try unpack_interpreter "$archive"
        elif command -v uv >/dev/null; then
            stage "CPython 3.13t by uv" 60 "Take uv off PATH to build it instead." try uv_installs
        fi
        if ! find_free_threaded; then
            say "No free-threaded CPython 3.13 here: it will be built from the distribution's source package."
            needs_of_cpython
        fi
    fi
    [[ -z $PYTHON ]] || take_from_wheelhouse
    plan_built_wheels
}

# A shortcut that fails costs nothing but its time.
try() { "$@" || printf 'not used\n'; }

plan_built_wheels() {
    local name unbuilt=()
    for name in "${BUILT_WHEELS[@]}"; do
        [[ -n $(built_wheel "$FREE_WHEELS" "$name") ]] || unbuilt+=("$name")
    done
    for name in "${unbuilt[@]}"; do "needs_of_$name"; done
    if ((${#unbuilt[@]})) && [[ -n $PYTHON ]]; then
        [[ -e $("$PYTHON" -I -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h ]] ||
            lack "Python.h of $PYTHON (its development package)"
    fi
    is_downloaded "$HERE/gateway.lock" "$FREE_WHEELS" || need_network
}

make_gateway() {
    local name unbuilt=()
    [[ -n $PYTHON ]] || get_free_threaded
    take_from_wheelhouse
    stage "gateway packages" 20 "Is the package index reachable (pip's own configuration is used)?" \
        open_environment .venv "$PYTHON" "$HERE/gateway.lock" "$FREE_WHEELS" "${BUILT_WHEELS[@]}"
    for name in "${BUILT_WHEELS[@]}"; do
        [[ -n $(built_wheel "$FREE_WHEELS" "$name") ]] || unbuilt+=("$name")
    done
    if ((${#unbuilt[@]})); then
        stage "sources to build" 40 "Is the package index reachable (pip's own configuration is used)?" \
            fetch_build_inputs "${unbuilt[@]}"
    fi
    for name in "${unbuilt[@]}"; do "stage_$name"; done
    stage "gateway environment" 20 "Remove .venv if it is in use by something else." fill_gateway_environment
    seal .venv
    rm -rf "$WORK"/{build-venv,bin,cpython,installed,unpacked}
}

stage_tokenizers() {
    stage "tokenizers wheel" $((20 + 260 / CORES)) "Is the crate registry reachable (cargo's own configuration is used)?" \
        build_tokenizers
}

stage_grpcio() { stage "grpcio wheel" $((40 + 2100 / CORES)) "The log has the compiler's message." build_grpcio; }

fill_gateway_environment() {
    fill_environment .venv "$HERE/gateway.lock" "$FREE_WHEELS" "${GATEWAY_PYTHON:-}" "${BUILT_WHEELS[@]}"
    [[ -e $ROOT/.venv/bin/python3.13t ]] || ln -s python "$ROOT/.venv/bin/python3.13t"
    PYTHON_GIL=0 "$ROOT/.venv/bin/python3.13t" -c "$GATEWAY_IMPORTS"
}

plan_tools() {
    TOOLS_PYTHON=$(find_tools_python) || lack "a CPython from 3.10 to 3.14 with venv and pip, for lint and tests" python3-venv
}

make_tools() {
    make_gil_environment .venv-tools "$TOOLS_PYTHON" tools.lock "lint and test tools" "${GATEWAY_GIL_PYTHON:-}"
}

plan_gil() {
    if [[ -n $wanted_same_gil && -z ${GATEWAY_GIL_PYTHON:-} && -z $(built_gil) ]]; then
        say "A GIL CPython 3.13 will be built from the distribution's source package, with the flags of 3.13t."
        needs_of_cpython
        return
    fi
    GIL_PYTHON=$(find_gil_3_13) ||
        lack "a GIL CPython 3.13, for test-gil: on PATH as python3.13, from pyenv or uv, or named in GATEWAY_GIL_PYTHON"
}

make_gil() {
    if [[ -z ${GIL_PYTHON:-} ]]; then
        get_gil
        GIL_PYTHON=$(find_gil_3_13)
    fi
    make_gil_environment .venv-gil "$GIL_PYTHON" gateway.lock "GIL environment" "$GIL_PYTHON"
}

# make_gil_environment NAME PYTHON LOCK TITLE CHOSEN: all its wheels are published.
make_gil_environment() {
    local wheels
    wheels="$CACHE/wheels/$("$2" -I -c 'import sys; print("cp%d%d" % sys.version_info[:2])')-$PLATFORM"
    stage "$4: packages" 20 "Is the package index reachable (pip's own configuration is used)?" \
        open_environment "$1" "$2" "$HERE/$3" "$wheels"
    stage "$4" 20 "Remove $1 if it is in use by something else." \
        fill_environment "$1" "$HERE/$3" "$wheels" "$5"
    seal "$1"
}
