# mount(8) finds the helper, and leaves out what is not for it.
. "$SCENARIOS/kit.sh"
make_tree "$work/tree"
castore-fs import --store "local:$work/store" "$work/tree"
mkdir -p /srv/byhand
mount -t castore-fs -o _netdev,nofail,x-systemd.automount "local:$work/store" /srv/byhand
same_tree "$work/tree" /srv/byhand/tree
mount -o remount,noexec /srv/byhand
findmnt --noheadings --output OPTIONS /srv/byhand | grep -qw noexec || fail "remount did not"
! mount -o remount,rw /srv/byhand || fail "it is writable"
umount /srv/byhand
! mountpoint -q /srv/byhand || fail "umount did not"
