# The wheels: pinned and hashed ones are downloaded once into the cache, those nobody publishes for 3.13t are built once.

# locked VERSION_OF LOCK: the pinned version of a package.
locked() { sed -n "s/^$1==\([^ ;]*\).*/\1/p" "$2"; }

# entries LOCK KEEP NAME...: the lock's entries for the names (KEEP=only) or for all others (KEEP=without).
entries() {
    local lock=$1 keep=$2
    shift 2
    awk -v keep="$keep" -v names=" $* " '
        /^[A-Za-z0-9]/ { split($0, part, "=="); listed = index(names, " " part[1] " ") > 0 }
        keep == "only" ? listed : !listed' "$lock"
}

hash_of() { cat -- "$@" | sha256sum | cut -c1-16; }

# built_wheel FOLDER NAME: the wheel of NAME for 3.13t, when there is one.
built_wheel() {
    find "$1" -maxdepth 1 -name "$2-$(locked "$2" "$HERE/gateway.lock")-*-cp313t-*.whl" 2>/dev/null | head -n 1
}

# A wheel built elsewhere may want another libc: all its libraries must load here.
readonly LOADS='
import ctypes, pathlib, sys, tempfile, zipfile
with tempfile.TemporaryDirectory() as folder:
    zipfile.ZipFile(sys.argv[1]).extractall(folder)
    for library in pathlib.Path(folder).rglob("*.so*"):
        ctypes.CDLL(str(library))
'

# Takes what the wheelhouse has of the wheels that would have to be built.
take_from_wheelhouse() {
    local name file
    for name in "${BUILT_WHEELS[@]}"; do
        [[ -z $(built_wheel "$FREE_WHEELS" "$name") ]] || continue
        file=$(from_wheelhouse "$name-$(locked "$name" "$HERE/gateway.lock")-*-cp313t-*_$(uname -m).whl")
        [[ -n $file ]] && "$PYTHON" -I -c "$LOADS" "$file" 2>/dev/null || continue
        mkdir -p "$FREE_WHEELS"
        cp "$file" "$FREE_WHEELS/.part" && mv "$FREE_WHEELS/.part" "$FREE_WHEELS/${file##*/}"
        say "wheelhouse: ${file##*/}"
    done
}

# download PYTHON LOCK FOLDER [NAME_NOT_TO_DOWNLOAD...]
download() {
    local python=$1 lock=$2 folder=$3
    shift 3
    mkdir -p "$folder"
    entries "$lock" without "$@" >"$folder/.wanted"
    "$python" -m pip download --no-deps --only-binary :all: --require-hashes -r "$folder/.wanted" -d "$folder"
    : >"$folder/.has-$(hash_of "$lock")"
}

is_downloaded() { [[ -e $2/.has-$(hash_of "$1") ]]; }

# The interpreter with the build tools; the wheels' build back ends run in it, nothing is fetched behind our back.
make_build_venv() {
    [[ ! -e $WORK/build-venv/.has-$(hash_of "$HERE/build.lock") ]] || return 0
    rm -rf "$WORK/build-venv"
    "$PYTHON" -m venv "$WORK/build-venv"
    "$WORK/build-venv/bin/python" -m pip install --no-deps --only-binary :all: --require-hashes -r "$HERE/build.lock"
    : >"$WORK/build-venv/.has-$(hash_of "$HERE/build.lock")"
}

# unpack_sdist NAME: the published source, checked against the lock, as $WORK/NAME.
unpack_sdist() {
    local name=$1
    [[ ! -d $WORK/$name ]] || return 0
    rm -rf "$WORK/$name.part" "$WORK/$name.sdist"
    mkdir -p "$WORK/$name.part" "$WORK/$name.sdist"
    entries "$HERE/gateway.lock" only "$name" >"$WORK/$name.txt"
    PATH="$WORK/build-venv/bin:$PATH" "$WORK/build-venv/bin/python" -m pip download --no-deps --no-binary :all: \
        --no-build-isolation --require-hashes -r "$WORK/$name.txt" -d "$WORK/$name.sdist"
    tar -xzf "$WORK/$name.sdist"/*.tar.gz -C "$WORK/$name.part" --strip-components=1 --no-same-owner
    mv -T "$WORK/$name.part" "$WORK/$name"
}

fetch_build_inputs() {
    local name
    make_build_venv
    for name in "$@"; do unpack_sdist "$name"; done
}

# build_wheel NAME: moves the wheel into the cache in one step.
build_wheel() {
    local name=$1
    rm -rf "$WORK/$name.wheel"
    PATH="$WORK/build-venv/bin:$PATH" "$WORK/build-venv/bin/python" -m pip --no-cache-dir wheel --verbose --no-deps --no-index \
        --no-build-isolation -w "$WORK/$name.wheel" "$WORK/$name"
    mkdir -p "$FREE_WHEELS"
    mv "$WORK/$name.wheel"/*.whl "$FREE_WHEELS/"
    rm -rf "$WORK/$name" "$WORK/$name.wheel" "$WORK/$name.sdist"
}

build_tokenizers() {
    MATURIN_PEP517_ARGS=--locked CARGO_TARGET_DIR="$WORK/tokenizers-target" build_wheel tokenizers
    rm -rf "$WORK/tokenizers-target"
}

# setuptools compiles every file anew each time it is started. This compiler keeps an object that is there, so that a
# build that was cut off goes on where it was; the sources never change under it.
write_resuming_compiler() {
    mkdir -p "$WORK/bin"
    cat >"$WORK/bin/resuming-$1" <<COMPILER
#!/usr/bin/env bash
arguments=("\$@")
for ((i = 0; i < \$#; i++)); do
    if [[ \${arguments[i]} == -o && \${arguments[i + 1]} == *.o ]]; then
        object=\${arguments[i + 1]}
        [[ ! -e \$object ]] || exit 0
        arguments[i + 1]=\$object.part
        $1 "\${arguments[@]}" && exec mv "\$object.part" "\$object"
        exit 1
    fi
done
exec $1 "\$@"
COMPILER
    chmod +x "$WORK/bin/resuming-$1"
}

# Without -g0 it takes more than twice as long.
build_grpcio() {
    write_resuming_compiler gcc
    write_resuming_compiler g++
    PATH="$WORK/bin:$PATH" CC=resuming-gcc CXX=resuming-g++ CFLAGS="-g0 -O2" \
        GRPC_PYTHON_BUILD_EXT_COMPILER_JOBS=$CORES build_wheel grpcio
}
