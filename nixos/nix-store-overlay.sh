# Layers /nix/store over a mount of castore-fs: `up LOWER` and `down`. POSIX shell; needs mount(8)
# and setfattr(1).
#
# The upper layer is the machine's own store, reached through a second mount of the file system that
# it is on: the one at /nix/store itself is read-only on NixOS, and an overlay writes to its upper
# layer.
#
# Each folder in it is marked opaque, so that looking into it never asks the layer below. Without
# that, starting any program of the machine's would ask castore-fs, starting castore-fs itself among
# them: a restart would wait for itself. Folders that are added through the overlay are marked by the
# kernel, which does so only with a feature such as redirect_dir.
set -eu

store=${NIX_STORE_DIR:-/nix/store}
run=${RUNTIME_BELOW:-/run/castore-fs-nix-store}

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
    find "$own" -mindepth 1 -maxdepth 1 -type d \
        -exec setfattr --name trusted.overlay.opaque --value y {} +
    flags=$(findmnt --noheadings --output VFS-OPTIONS --mountpoint "$store" | tail -n 1)
    mount -t overlay castore-fs-nix-store \
        -o "lowerdir=$lower,upperdir=$own,workdir=$work,redirect_dir=on" "$store"
    case ",$flags," in
        *,ro,*) mount -o "remount,bind,$flags" "$store" ;;
    esac
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
    *)
        echo "usage: nix-store-overlay up LOWER | down" >&2
        exit 2
        ;;
esac
