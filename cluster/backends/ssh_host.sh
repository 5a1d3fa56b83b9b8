# What is asked of and done to one SSH host. POSIX shell and Linux's own programs only: it must work
# before anything of ours is installed. It is handed over on stdin, after lines that set
#
#     do       status, claim, swap, cordon or end
#     ray_tmp  Ray's temporary folder
#     claim, old_claim, node, mark, grace_s      as the verb needs them
#
# and it answers with the host's state, between a line "tidegate-host 1" and a line "end".
#
#     ~/.tidegate/claim.json   which node this host is; created with a hard link, so it is given once
#     ~/.tidegate/cordon       what an operator wants of the host, one word
#     ~/.tidegate/raylet       the node whose raylet was seen here, then its session folders
#     ~/.tidegate/lock         held while the claim is changed or removed

folder=$HOME/.tidegate

fail() {
    echo "$*" >&2
    exit 3
}

# Prints the claim, nothing where there is none. A claim that can't be read isn't "none".
read_claim() {
    [ -e "$folder/claim.json" ] || return 0
    cat "$folder/claim.json" 2>/dev/null || {
        [ -e "$folder/claim.json" ] && fail "$folder/claim.json can't be read"
        return 0
    }
}

# Writes stdin into a draft beside the file, down to the disk, and prints the draft's name.
write_draft() {
    draft=$folder/.draft.$$.$1
    cat >"$draft" && sync "$draft" || fail "$folder must be writable with room on it"
    echo "$draft"
}

lock() {
    exec 9>"$folder/lock"
    flock -w 10 9 || fail "$folder/lock must be free within 10 s; somebody holds it"
}

# Prints the ids of live processes with the node's mark in their environment.
list_marked() {
    grep -lzxF -- "TIDEGATE_NODE=$1" /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3
}

# Prints the id of a live raylet with the node's mark.
find_raylet() {
    grep -lxF raylet /proc/[0-9]*/comm 2>/dev/null | cut -d/ -f3 | while read -r pid; do
        if grep -qzxF -- "TIDEGATE_NODE=$1" "/proc/$pid/environ" 2>/dev/null; then
            echo "$pid"
            break
        fi
    done
}

list_sessions() {
    for pid in "$@"; do
        tr '\0' '\n' <"/proc/$pid/cmdline" 2>/dev/null
    done | grep -aoE "/[^=[:space:]]*/session_[A-Za-z0-9_.-]+" | sort -u
}

has_seen_raylet() {
    [ -e "$folder/raylet" ] && [ "$(head -n 1 "$folder/raylet")" = "$1" ]
}

report() {
    held=$(read_claim) || exit 3
    echo "tidegate-host 1"
    [ -e "$folder/cordon" ] && echo "cordon $(cat "$folder/cordon")"
    if [ -n "$held" ]; then
        echo "claim $held"
        held_node=${held#'{"node_id":"'}
        held_node=${held_node%%'"'*}
        raylet=$(find_raylet "$held_node")
        if [ -n "$raylet" ]; then
            echo "raylet lives"
            has_seen_raylet "$held_node" || {
                echo "$held_node"
                list_sessions "$raylet"
            } | write_draft raylet | xargs -I{} mv -f {} "$folder/raylet"
        elif has_seen_raylet "$held_node"; then
            echo "raylet died"
        fi
    elif [ -e "$folder/claim.json" ] && [ ! -s "$folder/claim.json" ]; then
        echo "claim empty"
    fi
    echo "end"
}

take() {
    find "$folder" -maxdepth 1 -name '.draft.*' -mmin +60 -exec rm -f {} +
    if [ ! -e "$folder/cordon" ]; then
        draft=$(printf %s "$claim" | write_draft claim) || exit 3
        ln "$draft" "$folder/claim.json" 2>/dev/null || {
            [ -e "$folder/claim.json" ] || fail "$folder must allow hard links"
        }
        rm -f "$draft"
    fi
}

swap() {
    lock
    if [ "$(read_claim)" = "$old_claim" ]; then
        draft=$(printf %s "$claim" | write_draft claim) || exit 3
        mv -f "$draft" "$folder/claim.json"
    fi
    exec 9>&-
}

cordon() {
    if [ -n "$mark" ]; then
        draft=$(echo "$mark" | write_draft cordon) || exit 3
        mv -f "$draft" "$folder/cordon"
    else
        rm -f "$folder/cordon"
    fi
}

# Ends every process with the node's mark, removes what it left, and gives up the claim last.
end_node() {
    marked=$(list_marked "$node")
    # shellcheck disable=SC2086 # a list of numbers
    sessions=$(list_sessions $marked)
    if has_seen_raylet "$node"; then
        sessions="$sessions
$(sed 1d "$folder/raylet")"
    fi
    end_marked
    echo "$sessions" | while read -r session; do
        case $session in
        "$ray_tmp"/session_*) rm -rf "$session" ;;
        esac
    done
    lock
    case $(read_claim) in
    "$claim"*)
        rm -f "$ray_tmp/ray_current_cluster" "$folder/raylet" "$folder/env.sh"
        rm -rf "$folder/gcs/$node"
        # A link that leads nowhere would confuse the next node's tools.
        [ -L "$ray_tmp/session_latest" ] && [ ! -e "$ray_tmp/session_latest" ] &&
            rm -f "$ray_tmp/session_latest"
        rm -f "$folder/claim.json"
        ;;
    esac
    exec 9>&-
}

end_marked() {
    rounds=0
    signal=TERM
    waits=$((grace_s * 5))
    while marked=$(list_marked "$node") && [ -n "$marked" ]; do
        if [ "$rounds" -ge "$waits" ]; then
            signal=KILL
        fi
        [ "$rounds" -lt $((waits + 50)) ] ||
            fail "processes" $marked "of node $node must end after SIGKILL; they still run"
        if [ "$signal" = KILL ] || [ "$rounds" -eq 0 ]; then
            # shellcheck disable=SC2086 # a list of numbers
            kill -"$signal" $marked 2>/dev/null
        fi
        rounds=$((rounds + 1))
        sleep 0.2
    done
}

# A function is read whole before it runs: a connection that breaks doesn't leave it half done.
main() {
    umask 077
    trap '' HUP PIPE
    [ -d "$HOME" ] || fail "the home folder $HOME must exist; is it mounted?"
    mkdir -p "$folder" || fail "$folder must be writable"
    case $do in
    status) ;;
    claim) take ;;
    swap) swap ;;
    cordon) cordon ;;
    end) end_node ;;
    esac
    report
    exit
}

main
