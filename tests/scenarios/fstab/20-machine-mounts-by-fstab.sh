. "$SCENARIOS/kit.sh"
mkdir -p /srv/fstab
grep -q /srv/fstab /etc/fstab || {
    # On NixOS it is there, and cannot be written to.
    printf 'local:%s /srv/fstab castore-fs _netdev,noauto,nofail 0 0\n' "$work/store" >>/etc/fstab
    systemctl daemon-reload
}
systemctl start srv-fstab.mount
same_tree "$work/tree" /srv/fstab/tree
systemctl stop srv-fstab.mount
! mountpoint -q /srv/fstab || fail "systemd did not unmount it"
