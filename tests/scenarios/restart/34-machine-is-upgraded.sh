# Another program, then a restart, as a package manager does it; what is open stays open.
. "$SCENARIOS/kit.sh"
program=$work/upgraded
{
    cat "$(readlink -f "$(command -v castore-fs)")"
    # Another file that does the same.
    echo upgraded
} >"$program"
chmod 755 "$program"
drop_in=/run/systemd/system/castore-fs.service.d
mkdir -p "$drop_in"
printf '[Service]\nExecStart=\nExecStart=%s daemon --config /etc/castore-fs/config.toml\n' "$program" >"$drop_in/zz-upgraded.conf"
systemctl daemon-reload
systemctl restart castore-fs.service
pid=$(systemctl show --property=MainPID --value castore-fs.service)
[ "$(readlink "/proc/$pid/exe")" = "$program" ] || fail "another program runs than the new one"
! test -e "$work/failures" || fail "reads failed over the upgrade: $(sort "$work/failures" | uniq -c; tail -n 5 "$work/reader.log")"
