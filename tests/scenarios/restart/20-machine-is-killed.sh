. "$SCENARIOS/kit.sh"
round=0
while [ "$round" -lt 10 ]; do
    before=$(systemctl show --property=MainPID --value castore-fs.service)
    systemctl kill --signal=SIGKILL castore-fs.service
    within 20 sh -c '
        now=$(systemctl show --property=MainPID --value castore-fs.service)
        [ "$now" != 0 ] && [ "$now" != '"$before"' ] && systemctl is-active castore-fs.service'
    round=$((round + 1))
    sleep 0.3
done
! test -e "$work/failures" || fail "reads failed over kills: $(sort "$work/failures" | uniq -c; tail -n 5 "$work/reader.log")"
