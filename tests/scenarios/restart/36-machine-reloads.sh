# Another mount comes and goes.
. "$SCENARIOS/kit.sh"
pid=$(systemctl show --property=MainPID --value castore-fs.service)
round=0
while [ "$round" -lt 5 ]; do
    cp --remove-destination "$SCENARIOS/restart/files/two-mounts.toml" /etc/castore-fs/config.toml
    systemctl reload castore-fs.service
    mountpoint -q /srv/second || fail "the added mount is not there"
    cp --remove-destination "$SCENARIOS/restart/machine.toml" /etc/castore-fs/config.toml
    systemctl reload castore-fs.service
    ! mountpoint -q /srv/second || fail "the removed mount is still there"
    round=$((round + 1))
done
[ "$(systemctl show --property=MainPID --value castore-fs.service)" = "$pid" ] || fail "a reload restarted the daemon"
! test -e "$work/failures" || fail "reads failed over reloads: $(sort "$work/failures" | uniq -c; tail -n 5 "$work/reader.log")"
