# For the steps: `. "$SCENARIOS/kit.sh"`.

work=/var/tmp/scenario
mkdir -p "$work"

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

# make_tree DIR: files and directories with the corners of the format in them.
make_tree() {
    mkdir -p "$1/many" "$1/twin-a" "$1/twin-b" "$1/empty" "$1/deep/er/and/deeper"
    printf 'hello\n' >"$1/file"
    : >"$1/nothing"
    printf '#!/bin/sh\necho ran\n' >"$1/program"
    chmod 755 "$1/program"
    # The same bytes, executable and not: one blob, two modes.
    cp "$1/program" "$1/text"
    chmod 644 "$1/text"
    # Equal directories are one Directory, and stay two places.
    printf 'twin\n' >"$1/twin-a/file"
    printf 'twin\n' >"$1/twin-b/file"
    ln -s file "$1/link"
    ln -s /nowhere/at/all "$1/dangling"
    printf 'x' >"$1/$(printf 'not\377utf8')"
    printf 'deep\n' >"$1/deep/er/and/deeper/file"
    head -c 3000000 /dev/urandom >"$1/large"
    i=0
    while [ "$i" -lt 700 ]; do
        printf '%s\n' "$i" >"$1/many/$i"
        i=$((i + 1))
    done
}

# shape DIR: a line for each thing in it: name, type, target, whether it is executable.
shape() {
    (
        cd "$1" || exit
        find . -mindepth 1 \( -type f -perm -100 -printf '%P x\n' -o -printf '%P %y %l\n' \) | LC_ALL=C sort
    )
}

# same_tree A B
same_tree() {
    shape "$1" >"$work/shape.a"
    shape "$2" >"$work/shape.b"
    cmp "$work/shape.a" "$work/shape.b" || fail "$1 and $2 have not the same shape"
    diff --recursive --no-dereference "$1" "$2" || fail "$1 and $2 differ"
}

# within SECONDS COMMAND…: until the command succeeds.
within() {
    left=$(($1 * 10))
    shift
    until "$@" >/dev/null 2>&1; do
        left=$((left - 1))
        [ "$left" -gt 0 ] || fail "this never came true: $*"
        sleep 0.1
    done
}

# forget: has the kernel drop what it keeps of files, where it lets us.
forget() {
    { echo 3 >/proc/sys/vm/drop_caches; } 2>/dev/null || true
}

# as_here UNIT: what the module writes, for a machine without its store paths.
as_here() {
    sed -e "s# /nix/store/[^ ]*-nix-store-overlay.sh# $SCENARIOS/below-nix-store/files/nix-store-overlay.sh#g" \
        -e 's#/nix/store/[^/]*/bin#/usr/bin#g' "$1"
}

# make_nix_store: where the machine is no NixOS, a directory like its Nix store, on a file system that an
# overlay can have for its upper layer, and the module's unit ($unit), over the mount at $lower.
make_nix_store() {
    ! test -d /nix/store || return 0
    lower=${lower-/run/castore-fs-lower}
    mkdir -p /nix
    mount -t tmpfs tmpfs /nix
    mkdir -p /nix/store/22222222222222222222222222222222-own
    printf 'own\n' >/nix/store/22222222222222222222222222222222-own/file
    mount --bind /nix/store /nix/store
    mount -o remount,bind,ro /nix/store
    # Its systemctl calls are for the Nix daemon, of which there is none.
    as_here "${unit-$SCENARIOS/below-nix-store/files/castore-fs-nix-store.service}" |
        sed -e "s#/run/castore-fs/store#$lower#g" >/run/systemd/system/castore-fs-nix-store.service
    systemctl daemon-reload
    systemctl start castore-fs-nix-store.service
}

# drop_nix_store: what make_nix_store made.
drop_nix_store() {
    test -e /run/systemd/system/castore-fs-nix-store.service || return 0
    systemctl stop castore-fs-nix-store.service
    rm /run/systemd/system/castore-fs-nix-store.service
    systemctl daemon-reload
    umount --lazy /nix/store
    umount --lazy /nix
    rmdir /nix
}
