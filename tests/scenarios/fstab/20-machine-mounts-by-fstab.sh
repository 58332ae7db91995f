# The entry of docs/nixos.md: systemd mounts it, for every user.
. "$SCENARIOS/kit.sh"
mkdir -p /srv/fstab
grep -q /srv/fstab /etc/fstab || {
    # On NixOS it is there, and cannot be written to.
    printf 'local:%s /srv/fstab castore-fs _netdev,allow_other,nofail 0 0\n' "$work/store" >>/etc/fstab
    systemctl daemon-reload
}
systemctl start srv-fstab.mount
same_tree "$work/tree" /srv/fstab/tree
setpriv --reuid 65534 --regid 65534 --clear-groups cat /srv/fstab/tree/file >"$work/other" ||
    fail "another user cannot read it"
cmp "$work/other" "$work/tree/file"
systemctl stop srv-fstab.mount
! mountpoint -q /srv/fstab || fail "systemd did not unmount it"
