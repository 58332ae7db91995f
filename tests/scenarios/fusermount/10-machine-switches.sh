# The first switch to a daemon of an ordinary user, which mounts through fusermount3: the directory, which is
# not there yet, is made for the user. Elsewhere than on NixOS its drop-in is what the module is expected to
# write.
. "$SCENARIOS/kit.sh"
test -e /run/current-system || {
    useradd --system castore-fs
    # Where udev does not see to it, as in a container, the device is root's alone.
    [ "$(stat -c %a /dev/fuse)" = 666 ] || {
        mknod -m 666 /dev/fuse.users c 10 229
        mount --bind /dev/fuse.users /dev/fuse
    }
    ! test -e /srv/tree || rmdir /srv/tree
    printf '[mounts.tree]\npath = "/srv/tree"\nallow-other = false\n' >/etc/castore-fs/config.toml
    mkdir -p /etc/systemd/system/castore-fs.service.d
    sed -e 's#/nix/store/[^/]*/bin#/usr/bin#g' -e 's#/run/wrappers/bin#/usr/bin#' \
        "$SCENARIOS/fusermount/files/castore-fs.service" >/etc/systemd/system/castore-fs.service.d/scenario.conf
    systemctl daemon-reload
    systemctl start castore-fs.service
}
# Root may not look into it: the kernel's table says what is mounted.
within 30 grep " /srv/tree .*fuse.castore-fs.*user_id=$(id -u castore-fs)" /proc/self/mountinfo
make_tree "$work/tree"
chmod -R go+rX "$work" "$work/tree"
as_user() { setpriv --reuid castore-fs --regid castore-fs --clear-groups "$@"; }
as_user castore-fs import --store local:/var/lib/castore-fs "$work/tree"
[ "$(as_user cat /srv/tree/tree/file)" = hello ] || fail "the user reads something else"
