#!/usr/bin/env bash
# Makes .venv ready, and with --tools and --gil also .venv-tools and .venv-gil; does nothing when they are. --same-gil
# builds a GIL CPython from source, with the flags of 3.13t, so that measurements compare like with like.
#
#   GATEWAY_PYTHON      a free-threaded CPython 3.13 to use
#   GATEWAY_GIL_PYTHON  a GIL CPython to use for lint and tests
#   GATEWAY_CACHE       where interpreters and wheels are kept (default: nogil-gateway in the user's cache folder)
#   GATEWAY_WHEELHOUSE  a folder with ready-made ones (default: ../shared/wheelhouse; empty: none)
set -euo pipefail
umask 022
# What an activated environment or a user's habits would change under us. Indexes, proxies and certificates are theirs.
unset PYTHONHOME PYTHONPATH PYTHON_GIL PIP_NO_BINARY PIP_ONLY_BINARY PIP_TARGET PIP_PREFIX PIP_USER PIP_CONSTRAINT \
    PIP_REQUIRE_VIRTUALENV PIP_NO_DEPS CC CXX CFLAGS CXXFLAGS CPPFLAGS LDFLAGS
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
ROOT=${HERE%/*}
CACHE=${GATEWAY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/nogil-gateway}
WHEELHOUSE=${GATEWAY_WHEELHOUSE-$ROOT/../shared/wheelhouse}
PLATFORM=$(uname -m)-$(getconf GNU_LIBC_VERSION 2>/dev/null | tr -d ' ' || uname -s)
WORK=$CACHE/work-$PLATFORM
CORES=$(nproc)
DISTRIBUTION=$(. /etc/os-release 2>/dev/null && case " $ID ${ID_LIKE:-} " in *' ubuntu '*) echo ubuntu ;; *) echo debian ;; esac)
FREE_WHEELS=$CACHE/wheels/cp313t-$PLATFORM
BUILT_WHEELS=(tokenizers grpcio)
PYTHON=

# shellcheck source=stage.sh
. "$HERE/stage.sh"
# shellcheck source=preflight.sh
. "$HERE/preflight.sh"
# shellcheck source=interpreter.sh
. "$HERE/interpreter.sh"
# shellcheck source=wheels.sh
. "$HERE/wheels.sh"
# shellcheck source=environments.sh
. "$HERE/environments.sh"

wanted_tools=
wanted_gil=
wanted_same_gil=
for argument in "$@"; do
    case $argument in
        --tools) wanted_tools=1 ;;
        --gil) wanted_gil=1 ;;
        --same-gil) wanted_gil=1 wanted_same_gil=1 ;;
        --has-gil)
            find_gil_3_13 >/dev/null
            exit
            ;;
        *) fail "unknown option $argument" "usage: setup/bootstrap.sh [--tools] [--gil] [--same-gil] [--has-gil]" ;;
    esac
done

pending=()
environment_is_ready .venv "$HERE/gateway.lock" "${GATEWAY_PYTHON:-}" || pending+=(gateway)
[[ -z $wanted_tools ]] || environment_is_ready .venv-tools "$HERE/tools.lock" "${GATEWAY_GIL_PYTHON:-}" || pending+=(tools)
if [[ -n $wanted_gil ]]; then
    # Which one it is made from changes when another one has been built or named.
    chosen=$(if [[ -z $wanted_same_gil || -n ${GATEWAY_GIL_PYTHON:-}$(built_gil) ]]; then find_gil_3_13; fi || true)
    [[ -n $chosen ]] && environment_is_ready .venv-gil "$HERE/gateway.lock" "$chosen" || pending+=(gil)
fi
((${#pending[@]})) || exit 0

mkdir -p "$CACHE" "$WORK"
exec 9>"$CACHE/lock"
if ! flock --nonblock 9; then
    say "another set-up is using $CACHE: waiting for it"
    flock 9
fi
trap end_stage EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# First all that is quick to find out, then one list of what is missing, then the work.
for environment in "${pending[@]}"; do "plan_$environment"; done
preflight
for environment in "${pending[@]}"; do "make_$environment"; done
rmdir "$WORK" 2>/dev/null || true
