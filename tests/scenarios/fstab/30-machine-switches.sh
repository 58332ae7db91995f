# Another version in the place of this one: what is mounted stays with its process, and the next mount has
# the new one. (On NixOS a switch does it: tests/nixos/machines.nix.)
. "$SCENARIOS/kit.sh"
! test -e /run/current-system || exit 0
# server: the process that serves the mount. It has the directory as its last argument.
server() {
    for process in /proc/[0-9]*; do
        case $(tr '\0' ' ' <"$process/cmdline" 2>/dev/null) in
            *castore-fs*" /srv/fstab ") printf '%s\n' "${process#/proc/}" ;;
        esac
    done | sort -n | tail -n 1
}
systemctl start srv-fstab.mount
before=$(server)
[ -n "$before" ] || fail "no process serves the mount"
cp /usr/bin/castore-fs /usr/bin/castore-fs.new
printf 'another version' >>/usr/bin/castore-fs.new
mv /usr/bin/castore-fs.new /usr/bin/castore-fs
systemctl daemon-reload
same_tree "$work/tree" /srv/fstab/tree
[ "$(server)" = "$before" ] || fail "another process serves the mount"
! cmp -s "/proc/$before/exe" /usr/bin/castore-fs || fail "the process has the new program"
systemctl restart srv-fstab.mount
after=$(server)
[ "$after" != "$before" ] || fail "the process is the same"
cmp "/proc/$after/exe" /usr/bin/castore-fs || fail "the next mount has the old program"
same_tree "$work/tree" /srv/fstab/tree
