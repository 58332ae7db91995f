# One mount more is a restart, which makes its directory and hands the other mount over.
. "$SCENARIOS/kit.sh"
! test -e /run/current-system || exit 0
as_user() { setpriv --reuid castore-fs --regid castore-fs --clear-groups "$@"; }
mount_id() { sed -n "s#^\([0-9]*\) .* $1 .*fuse.castore-fs.*#\1#p" /proc/self/mountinfo; }
before=$(mount_id /srv/tree)
[ -n "$before" ] || fail "it is not mounted"
printf '[mounts.more]\npath = "/srv/more"\nallow-other = false\n' >>/etc/castore-fs/config.toml
sed -i "/^ExecStartPre=/s#\"\$#; grep -qF ' /srv/more ' /proc/self/mountinfo || install -d --owner castore-fs --group castore-fs /srv/more\"#" \
    /etc/systemd/system/castore-fs.service.d/scenario.conf
systemctl daemon-reload
systemctl restart castore-fs.service
[ "$(as_user cat /srv/more/tree/file)" = hello ] || fail "the mount that was added has something else"
[ "$(as_user cat /srv/tree/tree/file)" = hello ] || fail "the mount that was there has something else"
[ "$(mount_id /srv/tree)" = "$before" ] || fail "the mount was made anew"
systemctl stop castore-fs.service
[ -z "$(mount_id /srv/tree)" ] || fail "it is still mounted"
! test -e /dev/fuse.users || { umount /dev/fuse && rm /dev/fuse.users; }
