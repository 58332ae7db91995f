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
# Each directory in it is marked opaque, so that looking into it never asks the layer below. Without
# that, starting any program of the machine's would ask castore-fs, starting castore-fs itself among
# them: a restart would wait for itself. Directories that are added through the overlay are marked by the
# kernel, which does so only with a feature such as redirect_dir.
#
# The kernel remembers for the overlay which names are not there, so that what was looked up before it was
# below, or while the store below could not be reached, stays missing. And where a path that is also below
# is deleted through the overlay, by Nix's collector or before a build, a whiteout in the upper layer hides
# it. `refresh LOWER` drops both; `up` removes whiteouts, too.
#
# A daemon that is reloaded makes a mount anew whose store or options are others, and the overlay would keep the
# dead one. `reload LOWER [COMMAND…]`, after every reload, makes the overlay again if it is stale, and runs the
# command then; else it is `refresh`.
#
# What is only below is not there while the machine boots, nor while the daemon that serves it starts: a
# program of the initial ramdisk, systemd or castore-fs that has to be read from there would wait for itself.
# `keep LOWER TOPLEVEL [COMMAND…]` copies what the upper layer lacks of the store path TOPLEVEL and of
# all that it refers to. Copies are made beside the upper layer, come to the disk, and are moved into it whole.
# The kernel does not expect changes there under an overlay, and remembers that such a path is below; so the overlay
# is then made anew, and the command is run.
set -eu

store=${NIX_STORE_DIR:-/nix/store}
run=${RUNTIME_BELOW:-/run/castore-fs-nix-store}
# The device of the mount that is layered. As long as it is, no other mount has the same number.
layered_device=$run.device

layered() {
    [ "$(findmnt --noheadings --output FSTYPE --mountpoint "$store" | tail -n 1)" = overlay ]
}

# device LOWER: of the mount there, by the kernel's table: a daemon that stands still is not asked.
device() {
    findmnt --noheadings --output MAJ:MIN --mountpoint "$1" | tail -n 1
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
            "directory; mount that file system on $(dirname "$store") instead" >&2
        exit 1
    fi
    remove_whiteouts "$own"
    mark_opaque "$own"
    mount_overlay "$lower" "$store"
}

# mark_opaque DIRECTORY: the directories in it.
mark_opaque() {
    find "$1" -mindepth 1 -maxdepth 1 -type d \
        -exec setfattr --name trusted.overlay.opaque --value y {} +
}

# mount_overlay LOWER PLACE: read-only if the store is, whatever the copies of mounts are that the kernel makes below
# it where mounts are shared.
mount_overlay() {
    work=$run/.castore-fs-work
    mkdir -p "$work"
    flags=$(findmnt --noheadings --output VFS-OPTIONS --mountpoint "$store" | grep -w -m 1 ro || true)
    # By this name Nix' local-overlay store finds it in the table of mounts.
    mount -t overlay overlay \
        -o "lowerdir=$1,upperdir=$run/$(basename "$store"),workdir=$work,redirect_dir=on" "$2"
    case ",$flags," in
        *,ro,*) mount -o "remount,bind,$flags" "$2" ;;
    esac
    device "$1" >"$layered_device"
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

reload() {
    lower=$1
    shift
    if stale "$lower"; then
        down
        up "$lower"
        "$@" || echo "failed: $*" >&2
    else
        refresh "$lower"
    fi
}

stale() {
    ! layered || [ "$(device "$1")" != "$(cat "$layered_device")" ]
}

keep() {
    lower=$1
    toplevel=$2
    shift 2
    # Nothing has been layered here since the boot.
    [ -e "$layered_device" ] || return 0
    # Without the overlay the Nix daemon opens no store.
    if layered; then
        own=$run/$(basename "$store")
        remote=daemon
    else
        own=$store
        remote=local
    fi
    paths=$(NIX_REMOTE=$remote nix-store --query --requisites "$toplevel") ||
        not_kept "Nix does not say what $toplevel refers to; see systemctl status nix-daemon.service"
    staging=$run/.castore-fs-kept
    rm -rf "$staging"
    kept=0
    for path in $paths; do
        name=${path##*/}
        if [ ! -c "$own/$name" ]; then
            [ ! -e "$own/$name" ] || continue
            [ ! -L "$own/$name" ] || continue
        fi
        [ "$own" != "$store" ] ||
            not_kept "$path is not in the machine's own store, and nothing is layered below it;" \
                "start castore-fs.service and castore-fs-nix-store.service"
        mkdir -p "$staging"
        cp -dR --preserve=mode,ownership,timestamps,links "$store/$name" "$staging/$name" ||
            not_kept "$path cannot be copied into the machine's own store; see" \
                "systemctl status castore-fs.service, and the space that is left in $store"
        kept=$((kept + 1))
    done
    [ "$kept" -gt 0 ] || return 0
    mark_opaque "$staging"
    sync --file-system "$staging"
    for path in "$staging"/*; do
        # A whiteout is no directory that could be replaced.
        rm -f "$own/${path##*/}"
        mv --no-target-directory "$path" "$own/${path##*/}"
    done
    rmdir "$staging"
    sync --file-system "$own"
    remake "$lower"
    echo "$kept store paths that were only below $store are now in the machine's own store"
    "$@" || echo "failed: $*" >&2
}

# not_kept WHY…
not_kept() {
    rm -rf "${staging-}"
    echo "the new system cannot be made to start without what is below $store: $*" >&2
    exit 1
}

# remake LOWER: another overlay, which has nothing in mind of the former one; programs that run keep that. What
# is below is away no longer than a mount is moved.
remake() {
    next=$run/.castore-fs-next
    mkdir -p "$next"
    mount_overlay "$1" "$next"
    umount --lazy "$store"
    mount --move "$next" "$store"
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
    reload)
        : "${2:?reload LOWER [COMMAND…]}"
        shift
        reload "$@"
        ;;
    keep)
        : "${2:?keep LOWER TOPLEVEL [COMMAND…]}" "${3:?keep LOWER TOPLEVEL [COMMAND…]}"
        shift
        keep "$@"
        ;;
    stale) stale "${2:?stale LOWER}" ;;
    stopped) stopped "${2:?stopped LOWER}" ;;
    *)
        echo "usage: nix-store-overlay.sh {up|refresh|reload|keep|stale|stopped} LOWER | down" >&2
        exit 2
        ;;
esac
