# Layers /nix/store over a mount of castore-fs: `up LOWER` and `down`. POSIX shell; needs mount(8),
# flock(1) and setfattr(1).
#
# A daemon that is restarted, or dies, keeps its mount. One that is stopped takes it down, and with a
# dead layer below, /nix/store could not even be listed: `stopped LOWER`, after every end of the daemon,
# then takes the overlay down. `stale LOWER`, after every start, is true if the overlay is to be made
# again: it does not exist, or is made of another mount than the present one on LOWER.
#
# The upper layer is the machine's own store, reached through a second mount of the file system that
# it is on: the one at /nix/store itself is read-only on NixOS, and an overlay writes to its upper
# layer.
#
# Each folder in it is marked opaque, so that looking into it never asks the layer below. Without
# that, starting any program of the machine's would ask castore-fs, starting castore-fs itself among
# them: a restart would wait for itself. Folders that are added through the overlay are marked by the
# kernel, which does so only with a feature such as redirect_dir.
#
# The kernel remembers for the overlay which names are not there, so that what was looked up before it was
# below, or while the store below could not be reached, stays missing. And where a path that is also below
# is deleted through the overlay, by Nix's collector or before a build, a whiteout in the upper layer hides
# it. `refresh LOWER` drops both; `up` removes whiteouts, too.
set -eu

store=${NIX_STORE_DIR:-/nix/store}
run=${RUNTIME_BELOW:-/run/castore-fs-nix-store}
# The device of the mount that is layered. As long as it is, no other mount has the same number.
layered_device=$run.device

layered() {
    [ "$(findmnt --noheadings --output FSTYPE --mountpoint "$store" | tail -n 1)" = overlay ]
}

up() {
    lower=$1
    if layered; then
        echo "$store is layered already"
        return
    fi
    mkdir -p "$run"
    mount --bind "$(dirname "$store")" "$run"
    mount --make-private "$run"
    own=$run/$(basename "$store")
    if [ "$(stat -c %d:%i "$own")" != "$(stat -c %d:%i "$store")" ]; then
        umount "$run"
        echo "$store is a file system of its own, which leaves an overlay no place for its work" \
            "folder; mount that file system on $(dirname "$store") instead" >&2
        exit 1
    fi
    work=$run/.castore-fs-work
    mkdir -p "$work"
    remove_whiteouts "$own"
    find "$own" -mindepth 1 -maxdepth 1 -type d \
        -exec setfattr --name trusted.overlay.opaque --value y {} +
    flags=$(findmnt --noheadings --output VFS-OPTIONS --mountpoint "$store" | tail -n 1)
    # By this name Nix' local-overlay store finds it in the table of mounts.
    mount -t overlay overlay \
        -o "lowerdir=$lower,upperdir=$own,workdir=$work,redirect_dir=on" "$store"
    case ",$flags," in
        *,ro,*) mount -o "remount,bind,$flags" "$store" ;;
    esac
    stat -c %d "$lower" >"$layered_device"
}

# remove_whiteouts OWN: those that are not in the middle of being replaced: Nix locks a path that it
# builds, adds or substitutes by PATH.lock.
remove_whiteouts() {
    find "$1" -mindepth 1 -maxdepth 1 -type c | while IFS= read -r whiteout; do
        [ "$(stat -c %t:%T "$whiteout")" = 0:0 ] || continue
        if [ -e "$whiteout.lock" ]; then
            flock --nonblock "$whiteout.lock" rm -f "$whiteout" || true
        else
            rm -f "$whiteout"
        fi
    done
}

# Has the kernel forget which names are not there, for this file system alone. A remount drops them, and
# has to change nothing: it is done at a second place, whose own flags do not matter.
forget() {
    forgetting=$run/.castore-fs-merged
    mkdir -p "$forgetting"
    mount --bind "$store" "$forgetting"
    # The new mount API would say again what the overlay is made of, which a remount refuses.
    LIBMOUNT_FORCE_MOUNT2=always mount -i -o remount,rw "$forgetting" || failed=$?
    umount "$forgetting"
    return "${failed-0}"
}

refresh() {
    if layered; then
        remove_whiteouts "$run/$(basename "$store")"
        forget
    else
        up "$1"
    fi
}

stale() {
    ! layered || [ "$(stat -c %d "$1")" != "$(cat "$layered_device")" ]
}

stopped() {
    findmnt --mountpoint "$1" >/dev/null || down
}

down() {
    if layered; then
        umount --lazy "$store"
    fi
    if findmnt --mountpoint "$run" >/dev/null; then
        umount --lazy "$run"
    fi
}

case ${1-} in
    up) up "${2:?up LOWER}" ;;
    down) down ;;
    refresh) refresh "${2:?refresh LOWER}" ;;
    stale) stale "${2:?stale LOWER}" ;;
    stopped) stopped "${2:?stopped LOWER}" ;;
    *)
        echo "usage: nix-store-overlay.sh {up|refresh|stale|stopped} LOWER | down" >&2
        exit 2
        ;;
esac
