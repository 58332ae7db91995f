# For the steps: a machine whose Nix has a local-overlay store over a mount of a binary cache, as
# services.castore-fs.nixStore arranges it.
. "$SCENARIOS/kit.sh"
. "$SCENARIOS/nix.sh"

lower=/run/castore-fs-nix-store-lower
upper=/run/castore-fs-nix-store/store
cache=http://127.0.0.1:5007

NIX_CONFIG="$NIX_CONFIG
trusted-public-keys = $public_key"
if test -e /run/current-system; then
    NIX_REMOTE=daemon
else
    NIX_REMOTE="local-overlay://?lower-store=unix%3A%2F%2F%2Frun%2Fcastore-fs-nix-store.sock%3Freal%3D%2Frun%2Fcastore-fs-nix-store-lower&upper-layer=%2Frun%2Fcastore-fs-nix-store%2Fstore"
fi
export NIX_REMOTE

# in_the_open COMMAND…: builders see this machine's files.
in_the_open() {
    NIX_CONFIG="$NIX_CONFIG
sandbox = false" "$@"
}

# The binary cache, which can be stopped.
start_far() {
    systemctl stop far.service 2>/dev/null || true
    systemd-run --quiet --unit=far --collect castore-fs serve --store "local:$work/far" --writable \
        --keep-free 0 --binary-cache 127.0.0.1:5007 --secret-key-file "$work/secret-key"
    within 30 $nix store info --store "$cache"
}
kill_far() {
    systemctl kill --signal=SIGKILL far.service
    within 30 sh -c '! systemctl is-active far.service'
}

# below PATH: a valid path as an input.
below() { printf '${builtins.storePath "%s"}' "$1"; }
# build NAME TEXT
build() { nix-build --no-out-link -E "$(made "$1" "$2")"; }

# publish NAME TEXT: builds elsewhere, and gives the path, which is in the binary cache then.
publish() {
    published=$(build_elsewhere -E "$(made "$1" "$2")")
    $nix copy --from "$source" --to "$cache" "$published" >&2
    printf '%s\n' "$published"
}

# only_below PATH…: the machine's own store has no copy and no mark of them.
only_below() {
    for path; do
        ! test -e "$upper/${path##*/}" || fail "$path was copied"
        ! test -c "$upper/${path##*/}" || fail "$path is hidden"
        test -e "$path" || fail "$path is not there"
    done
}

is_active() { [ "$(systemctl is-active castore-fs.service)" = active ]; }
pid() { systemctl show --property=MainPID --value castore-fs.service; }
# another_than PID: the service runs as another process.
another_than() { [ "$(pid)" != "$1" ] && [ "$(pid)" != 0 ] && is_active; }
