# One named step of the set-up: shows elapsed and expected time, keeps its output in a log, says what to do when it fails.

stage_pid=

# Children run in a process group of their own: a cut-off set-up takes its compilers with it.
end_stage() {
    if [[ -n $stage_pid ]]; then
        kill -TERM -- "-$stage_pid" 2>/dev/null || true
        stage_pid=
    fi
}

say() { printf '%s\n' "$*"; }

fail() {
    printf '\nset-up: %s\n' "$1" >&2
    shift
    for line in "$@"; do printf '  %s\n' "$line" >&2; done
    exit 1
}

duration() {
    if (($1 < 60)); then printf '%ds' "$1"; else printf '%dm%02ds' $(($1 / 60)) $(($1 % 60)); fi
}

# stage NAME EXPECTED_SECONDS REMEDY COMMAND...: runs COMMAND (a function, say) with its output in a log.
stage() {
    local name=$1 expected=$2 remedy=$3 began=$SECONDS shown=0 status=0
    shift 3
    mkdir -p "$CACHE/logs"
    local log="$CACHE/logs/${name//[^A-Za-z0-9.]/-}.log"
    [[ -t 1 ]] || say "$name: started, expected $(duration "$expected")"
    set -m
    # It keeps the set-up's lock, too: when this script alone is killed, the next one waits for what still works here.
    ( set -euo pipefail; "$@" ) >"$log" 2>&1 </dev/null &
    stage_pid=$!
    set +m
    while kill -0 "$stage_pid" 2>/dev/null; do
        if [[ -t 1 ]]; then
            printf '\r\033[K%s: %s of about %s' "$name" "$(duration $((SECONDS - began)))" "$(duration "$expected")"
        elif ((SECONDS - began - shown >= 30)); then
            shown=$((SECONDS - began))
            say "$name: $(duration "$shown") of about $(duration "$expected")"
        fi
        sleep 0.2
    done
    wait "$stage_pid" || status=$?
    stage_pid=
    [[ ! -t 1 ]] || printf '\r\033[K'
    if ((status)); then
        {
            printf '%s: failed after %s. The end of %s:\n' "$name" "$(duration $((SECONDS - began)))" "$log"
            tail -n 25 "$log" | sed 's/^/  | /'
        } >&2
        fail "$name failed" "$remedy" "Then run the same command again: finished stages are kept."
    fi
    say "$name: done in $(duration $((SECONDS - began)))"
}
