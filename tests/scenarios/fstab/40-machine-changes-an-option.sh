# An option that is another, to which NixOS' switch and systemd answer with a remount: that fails with a
# message, and the mount stays as it is.
. "$SCENARIOS/kit.sh"
! test -e /run/current-system || exit 0
systemctl start srv-fstab.mount
mounted=$(findmnt --noheadings --output ID --mountpoint /srv/fstab)
sed -i '/srv.fstab/s/allow_other/allow_other,uid=1000/' /etc/fstab
systemctl daemon-reload
! systemctl reload srv-fstab.mount || fail "a changed option is not refused"
journalctl --unit srv-fstab.mount --output cat --no-pager >"$work/said"
grep -q 'uid=1000.*unmount it and mount it again' "$work/said" || fail "it does not say what to do: $(tail "$work/said")"
systemctl is-active srv-fstab.mount
[ "$(findmnt --noheadings --output ID --mountpoint /srv/fstab)" = "$mounted" ] || fail "the mount was made anew"
same_tree "$work/tree" /srv/fstab/tree
# As it says.
systemctl restart srv-fstab.mount
[ "$(stat -c %u /srv/fstab/tree/file)" = 1000 ] || fail "the option is not in force"
systemctl stop srv-fstab.mount
